package console

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/api"
)

// pty is a real terminal whose other end is in the test.
type pty struct {
	t      *testing.T
	master *os.File
	path   string

	mu   sync.Mutex
	text string
	more chan struct{} // receives when text has grown
}

func newPTY(t *testing.T) *pty {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	p := &pty{t: t, master: os.NewFile(uintptr(fd), "ptmx"), path: fmt.Sprintf("/dev/pts/%d", n), more: make(chan struct{}, 1)}
	// A second opener, so that the terminal never hangs up.
	keep, err := os.OpenFile(p.path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.master.Close(); keep.Close() })
	return p
}

// collect reads what is written to the terminal, from now on.
func (p *pty) collect() {
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := p.master.Read(buf)
			if err != nil {
				return
			}
			p.mu.Lock()
			p.text += string(buf[:n])
			p.mu.Unlock()
			select {
			case p.more <- struct{}{}:
			default:
			}
		}
	}()
}

func (p *pty) seen() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text
}

// expect waits until the terminal has got text, and forgets what was before.
func (p *pty) expect(text string) {
	p.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		p.mu.Lock()
		_, rest, ok := strings.Cut(p.text, text)
		if ok {
			p.text = rest
		}
		p.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-p.more:
		case <-deadline:
			p.t.Fatalf("no %q on the terminal; it has %q", text, p.seen())
		}
	}
}

func (p *pty) send(text string) {
	p.t.Helper()
	if _, err := p.master.WriteString(text); err != nil {
		p.t.Fatal(err)
	}
}

// wedge fills the terminal until it takes no more, even after the kernel has
// moved what it has.
func (p *pty) wedge() {
	p.t.Helper()
	fd, err := unix.Open(p.path, unix.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := raw(fd); err != nil { // changing that later makes room
		p.t.Fatal(err)
	}
	for range 1 << 20 {
		_, err := unix.Write(fd, []byte("full of it"))
		if errors.Is(err, unix.EAGAIN) {
			if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 300); n == 0 {
				return
			}
			err = nil
		}
		if err != nil {
			p.t.Fatal(err)
		}
	}
	p.t.Fatal("the terminal takes all")
}

// node is a node whose status the test changes.
type node struct {
	mu sync.Mutex
	st api.Status
}

func (n *node) status() api.Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.st
}

func (n *node) change(f func(*api.Status)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(&n.st)
}

// run starts a console, and returns what ends it.
func run(t *testing.T, c Config) (end func()) {
	t.Helper()
	if c.Errorf == nil {
		c.Errorf = t.Errorf
	}
	c.Poll = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		New(c).Run(ctx)
	}()
	end = func() {
		t.Helper()
		cancel()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Error("the console does not end")
		}
	}
	t.Cleanup(end)
	return end
}

// A life: the boot, all well, a problem, the end.
func TestConsole(t *testing.T) {
	vt, serial := newPTY(t), newPTY(t)
	vt.collect()
	serial.collect()
	switched := make(chan bool, 10)
	booted := make(chan struct{})
	n := &node{st: well()}
	n.st.Uptime = 20 * time.Second
	notice := make(chan []string, 1)
	notice <- []string{"the code is 4711"}
	var text []string
	end := run(t, Config{Status: n.status, Booted: booted, VT: vt.path, Serial: serial.path, Quiet: time.Millisecond,
		Notice: func() []string {
			select {
			case text = <-notice:
			default:
			}
			return text
		},
		Switch: func(on bool) error { switched <- on; return nil }})

	serial.send("\r")
	serial.expect("STARTING, up 20s")
	if got := vt.seen(); got != "" || len(switched) > 0 {
		t.Errorf("during the boot the display has %q, was switched %d times", got, len(switched))
	}
	close(booted)
	vt.expect("READY, up 20s")
	vt.expect("the code is 4711")
	serial.expect("READY, up 20s")
	if on := <-switched; !on {
		t.Error("the display was switched away")
	}
	n.change(func(st *api.Status) {
		st.Problems = []api.Problem{{Where: "network", What: "no cable is plugged in", Doing: "waiting"}}
	})
	vt.expect("\x1b[1;31m! network: no cable is plugged in\x1b[0m")
	serial.expect("! network: no cable is plugged in\r\n")
	notice <- []string{"the code is 815"}
	vt.expect("the code is 815")
	serial.expect("the code is 815")
	if len(switched) > 0 {
		t.Error("the display was switched again")
	}
	end()
	if on := <-switched; on {
		t.Error("at the end the display was not given back")
	}
}

// The boot's lines give way to the screen when a boot does not get on.
func TestOverdue(t *testing.T) {
	for _, tt := range []struct {
		name string
		st   api.Status
		want bool
	}{
		{"a young boot", api.Status{Uptime: time.Minute, Steps: []api.Step{{Start: time.Second, Took: time.Second}}}, false},
		{"a long boot", api.Status{Uptime: 2 * time.Minute}, true},
		{"a failure just now", api.Status{Uptime: time.Minute, Steps: []api.Step{{Start: 20 * time.Second, Took: 11 * time.Second, Error: "no"}}}, false},
		{"a failure 30 s ago", api.Status{Uptime: time.Minute, Steps: []api.Step{{Start: 20 * time.Second, Took: 10 * time.Second, Error: "no"}}}, true},
	} {
		if got := overdue(tt.st); got != tt.want {
			t.Errorf("%s: overdue() = %v; want %v", tt.name, got, tt.want)
		}
	}
}

// What configuration turns off stays dark and mute.
func TestWanted(t *testing.T) {
	for _, tt := range []struct{ vt, serial bool }{{true, false}, {false, true}} {
		vt, serial := newPTY(t), newPTY(t)
		vt.collect()
		serial.collect()
		booted := make(chan struct{})
		close(booted)
		n := &node{st: well()}
		end := run(t, Config{Status: n.status, Booted: booted, VT: vt.path, Serial: serial.path, Wanted: func() (bool, bool) { return tt.vt, tt.serial }})
		on, off := vt, serial
		if tt.serial {
			on, off = serial, vt
		}
		on.expect("READY")
		if off == serial {
			off.send("\r")
		}
		n.change(func(st *api.Status) { st.Node.Cluster = "" })
		if on == vt {
			on.expect("UNCLAIMED")
		}
		end()
		if got := off.seen(); got != "" {
			t.Errorf("%+v: the other terminal has %q", tt, got)
		}
	}
}

// A terminal that takes nothing costs the other one seconds, and nobody
// anything else.
func TestWedged(t *testing.T) {
	for _, which := range []string{"display", "serial line"} {
		t.Run(which, func(t *testing.T) {
			t.Parallel()
			wedged, other := newPTY(t), newPTY(t)
			wedged.wedge()
			other.collect()
			booted := make(chan struct{})
			close(booted)
			n := &node{st: well()}
			c := Config{Status: n.status, Booted: booted, VT: wedged.path, Serial: other.path, Quiet: time.Millisecond}
			if which == "serial line" {
				c.VT, c.Serial = c.Serial, c.VT
			}
			end := run(t, c)
			other.expect("READY")
			n.change(func(st *api.Status) { st.Problems = []api.Problem{{Where: "here", What: "it is wrong"}} })
			other.expect("! here: it is wrong")
			if which == "display" { // it is drawn as soon as it takes something
				wedged.collect()
				wedged.expect("! here: it is wrong")
			}
			end()
		})
	}
}

// A terminal that is not there is said once, and costs nothing else.
func TestNoTerminal(t *testing.T) {
	serial := newPTY(t)
	serial.collect()
	booted := make(chan struct{})
	close(booted)
	said := make(chan string, 100)
	n := &node{st: well()}
	end := run(t, Config{Status: n.status, Booted: booted, VT: "/dev/none", Serial: serial.path, Quiet: time.Millisecond,
		Errorf: func(format string, args ...any) { said <- fmt.Sprintf(format, args...) }})
	serial.expect("READY")
	n.change(func(st *api.Status) { st.Node.Cluster = "" })
	serial.expect("UNCLAIMED")
	end()
	if len(said) != 1 {
		t.Errorf("%d errors; want one", len(said))
	}
	if got := <-said; got != "console: open /dev/none: no such file or directory" {
		t.Errorf("said %q", got)
	}
}

// Noise on the line is heard without being obeyed, XOFF and ^C in it too.
func TestNoise(t *testing.T) {
	serial := newPTY(t)
	serial.collect()
	booted := make(chan struct{})
	close(booted)
	n := &node{st: well()}
	run(t, Config{Status: n.status, Booted: booted, Serial: serial.path})
	serial.expect("READY")
	start := time.Now()
	rnd := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 512)
	for range 512 { // 256 KiB
		for i := range noise {
			noise[i] = byte(rnd.Uint32())
		}
		serial.send(string(noise))
	}
	serial.send("\x13\x03\x13")
	blocks := strings.Count(serial.seen(), "READY")
	if most := 1 + int(time.Since(start)/enterPause); blocks > most {
		t.Errorf("%d blocks in %v; want at most %d", blocks, time.Since(start), most)
	}
	n.change(func(st *api.Status) { st.Node.Name = "barn-2" })
	for deadline := time.Now().Add(20 * time.Second); ; {
		serial.send("\r") // refused for a moment after the last answer
		if strings.Contains(serial.seen(), "barn-2") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("Enter is not answered: %q", serial.seen())
		}
		select {
		case <-serial.more:
		case <-time.After(enterPause):
		}
	}
}

// A status that panics once, or hangs, is not the end of the screen.
func TestBadStatus(t *testing.T) {
	serial := newPTY(t)
	serial.collect()
	booted := make(chan struct{})
	close(booted)
	said := make(chan string, 100)
	calls := 0
	run(t, Config{Booted: booted, Serial: serial.path, Errorf: func(format string, args ...any) { said <- fmt.Sprintf(format, args...) },
		Status: func() api.Status {
			if calls++; calls == 1 {
				panic("no status today")
			}
			return well()
		}})
	serial.expect("READY")
	if got := <-said; !strings.Contains(got, "no status today") {
		t.Errorf("said %q", got)
	}

	k := New(Config{})
	k.last, k.asked = well(), time.Now().Add(-stale-time.Second)
	if text := strings.Join(Screen(k.status(), Options{}), "\n"); !strings.Contains(text, "! status: cannot be read for 31s") || strings.Contains(text, "READY") {
		t.Errorf("with an old status the screen is\n%s", text)
	}
}

// The serial line hears of news, not of figures.
func TestKey(t *testing.T) {
	st := well()
	st.Problems = []api.Problem{{Where: "STATE", What: "full: 88 KiB free", Doing: "for 5s"}}
	before := key(st, false, nil)
	for _, tt := range []struct {
		name   string
		change func(*api.Status)
		news   bool
	}{
		{"figures", func(st *api.Status) {
			st.Problems[0] = api.Problem{Where: "STATE", What: "full: 87 KiB free", Doing: "for 6s"}
			st.Uptime++
			st.Units[1].Restarts++
		}, false},
		{"a unit's next restart", func(st *api.Status) {
			st.Problems = append(st.Problems, api.Problem{Where: "unit skerryd", What: "not ready yet"})
		}, false},
		{"another problem", func(st *api.Status) { st.Problems[0].What = "read-only" }, true},
		{"none", func(st *api.Status) { st.Problems = nil }, true},
		{"a unit that is not ready", func(st *api.Status) { st.Units[1].State = "waiting" }, true},
		{"claimed", func(st *api.Status) { st.Node.Cluster = "other" }, true},
	} {
		st := well()
		st.Problems = []api.Problem{{Where: "STATE", What: "full: 88 KiB free", Doing: "for 5s"}}
		tt.change(&st)
		if news := key(st, false, nil) != before; news != tt.news {
			t.Errorf("%s: news = %v; want %v", tt.name, news, tt.news)
		}
	}
}
