package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"skerry.internal/skerry/agent/api"
)

// Config says what a Console shows, where and when.
type Config struct {
	// Status is asked again and again, from one goroutine. It may block: then
	// the screen says so.
	Status func() api.Status
	Notice func() []string // Options.Notice, asked with Status; nil: none
	// Booted is closed when the boot is complete.
	Booted <-chan struct{}
	// VT is a virtual terminal that nothing else writes to, and Serial the
	// console's serial line, which the kernel's log shares; each may be empty.
	VT, Serial string
	// Wanted says which of them are to show the node, as the configuration
	// wants it; nil: both.
	Wanted func() (vt, serial bool)
	// Switch brings VT to the display, or with false what was there before.
	Switch func(on bool) error
	Errorf func(format string, args ...any)

	// Poll is the pause between two questions for the status; 0 means five
	// seconds, and one second during the boot.
	Poll time.Duration
	// Quiet is the shortest pause between two blocks that the serial line
	// gets unasked; 0 means one minute.
	Quiet time.Duration
}

const (
	bootPoll = time.Second
	poll     = 5 * time.Second
	quiet    = time.Minute
	// The boot's own lines keep the display until it is complete, a step has
	// failed that long ago, or the boot has taken that long.
	afterFailure = 30 * time.Second
	longBoot     = 2 * time.Minute
	// stale is the age at which a status no longer counts as what is.
	stale = 30 * time.Second
	// enterPause is the shortest pause between two answers to Enter.
	enterPause  = 2 * time.Second
	serialLines = 40
)

// Console keeps a screen and a serial line up to date.
type Console struct {
	c          Config
	vt, serial *terminal
	enter      chan struct{}

	last     api.Status
	asked    time.Time // when last came
	notice   []string
	booting  bool
	showing  bool      // the boot's own lines have had their time
	switched bool      // the VT was brought to the display
	frame    string    // what is on the VT
	key      string    // of the last block on the serial line
	printed  time.Time // when that was
	answered time.Time // when Enter was answered last

	mu   sync.Mutex      // guards said
	said map[string]bool // what was reported
}

// New returns a console; Run makes it work.
func New(c Config) *Console {
	if c.Quiet == 0 {
		c.Quiet = quiet
	}
	k := &Console{c: c, booting: true, enter: make(chan struct{}, 1), said: map[string]bool{}}
	if c.VT != "" {
		k.vt = &terminal{path: c.VT}
	}
	if c.Serial != "" {
		k.serial = &terminal{path: c.Serial, received: k.received}
	}
	return k
}

// Run shows the node until ctx ends, and gives the display back then. Nothing
// that it does waits longer than a moment for a terminal.
func (k *Console) Run(ctx context.Context) {
	defer k.close()
	k.asked = time.Now()
	k.safely(func() { k.report(k.serial.open()) }) // to hear Enter during the boot
	statuses := make(chan api.Status)
	go k.collect(ctx, statuses)
	old := time.NewTimer(stale)
	defer old.Stop()
	var enter chan struct{} // not heard before there is something to show
	for {
		select {
		case <-ctx.Done():
			return
		case st := <-statuses:
			k.last, k.asked = st, time.Now()
			k.safely(k.show)
		case <-old.C:
			k.safely(k.show)
		case <-enter:
			k.safely(k.answer)
			continue
		}
		enter = k.enter
		old.Reset(stale)
	}
}

func (k *Console) close() {
	if k.switched {
		k.safely(func() { k.report(k.c.Switch(false)) })
	}
	k.vt.close()
	k.serial.close()
}

// collect asks for the status, at once when the boot is complete.
func (k *Console) collect(ctx context.Context, statuses chan<- api.Status) {
	booted, pause := k.c.Booted, bootPoll
	for {
		k.safely(func() {
			select {
			case statuses <- k.c.Status():
			case <-ctx.Done():
			}
		})
		if k.c.Poll != 0 {
			pause = k.c.Poll
		}
		next := time.NewTimer(pause)
		select {
		case <-next.C:
		case <-booted:
			booted, pause = nil, poll
		case <-ctx.Done():
		}
		next.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// show brings both terminals up to date.
func (k *Console) show() {
	completed := false
	select {
	case <-k.c.Booted:
		completed, k.booting = k.booting, false
	default:
	}
	if k.c.Notice != nil {
		k.notice = k.c.Notice()
	}
	if !k.showing {
		if k.showing = !k.booting || overdue(k.status()); !k.showing {
			return
		}
	}
	vt, serial := k.wanted()
	if vt {
		k.draw()
	}
	if !serial {
		return
	}
	if key := key(k.last, k.booting, k.notice); completed || key != k.key && (k.key == "" || time.Since(k.printed) >= k.c.Quiet) {
		k.key, k.printed = key, time.Now()
		k.block()
	}
}

// overdue reports whether a boot needs more than its own lines.
func overdue(st api.Status) bool {
	return st.Uptime >= longBoot || slices.ContainsFunc(st.Steps, func(s api.Step) bool {
		return s.Error != "" && st.Uptime-s.Start-s.Took >= afterFailure
	})
}

// key is what a new block on the serial line is worth: other problems, or
// another readiness. Figures in the text of a problem change all the time, and
// what is wrong with a unit with each of its restarts.
func key(st api.Status, booting bool, notice []string) string {
	b := fmt.Sprintf("%v %q %q", booting, st.Node.Cluster, notice)
	for _, u := range st.Units {
		b += fmt.Sprintf(" %s %v", u.Name, u.State == ready)
	}
	for _, p := range st.Problems {
		if strings.HasPrefix(p.Where, "unit ") {
			continue
		}
		b += " " + strings.Map(func(r rune) rune {
			if r >= '0' && r <= '9' {
				return -1
			}
			return r
		}, p.Where+p.What)
	}
	return b
}

// status is the last one, with what its age tells.
func (k *Console) status() api.Status {
	st := k.last
	age := time.Since(k.asked)
	if age < stale {
		return st
	}
	st.Problems = append(slices.Clone(st.Problems), api.Problem{
		Where: "status", What: fmt.Sprintf("cannot be read for %s: a disk or a driver may hang", span(age)), Doing: "what this screen says is as old as that",
	})
	if !k.asked.IsZero() {
		st.Uptime += age
	}
	return st
}

// draw puts the screen on the VT, line by line to its place: so it neither
// scrolls nor flickers, and one that was cut off does not harm the next.
func (k *Console) draw() {
	if err := k.vt.open(); err != nil {
		k.report(err)
		return
	}
	width, height := k.vt.size()
	lines := Screen(k.status(), Options{Width: width, Height: height, Colour: true, Booting: k.booting, Notice: k.notice})
	var b strings.Builder
	b.WriteString("\x18\x1b[0m\x1b[?25l\x1b[?7l") // cancel a torn sequence; no cursor, no wrapping
	for i := range height {
		fmt.Fprintf(&b, "\x1b[%d;1H\x1b[2K", i+1)
		if i < len(lines) {
			b.WriteString(lines[i])
		}
	}
	frame := b.String()
	if frame == k.frame {
		return
	}
	k.frame = ""
	if err := k.vt.write([]byte(frame)); err != nil {
		k.report(err)
		return
	}
	k.frame = frame
	if !k.switched && k.c.Switch != nil { // once: who looks at another terminal is not called away
		k.switched = true
		k.report(k.c.Switch(true))
	}
}

// block prints the screen as plain lines on the serial line.
func (k *Console) block() {
	if err := k.serial.open(); err != nil {
		k.report(err)
		return
	}
	lines := Screen(k.status(), Options{Width: 80, Height: serialLines, Plain: true, Booting: k.booting, Notice: k.notice})
	rule := strings.Repeat("-", 80)
	k.report(k.serial.write([]byte("\r\n" + rule + "\r\n" + strings.Join(lines, "\r\n") + "\r\n" + rule + "\r\n")))
}

// answer answers Enter.
func (k *Console) answer() {
	if _, serial := k.wanted(); serial && time.Since(k.answered) >= enterPause {
		k.answered = time.Now()
		k.block()
	}
}

// received gets what comes in on the serial line. All but Enter is noise.
func (k *Console) received(data []byte) {
	if bytes.ContainsAny(data, "\r\n") {
		select {
		case k.enter <- struct{}{}:
		default:
		}
	}
}

// wanted says which terminals there are and are to be used.
func (k *Console) wanted() (vt, serial bool) {
	vt, serial = true, true
	if k.c.Wanted != nil {
		vt, serial = k.c.Wanted()
	}
	return vt && k.vt != nil, serial && k.serial != nil
}

// report says once what is wrong with a terminal. That one is wedged is not
// worth a word: it is tried again.
func (k *Console) report(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !k.said[err.Error()] {
		k.said[err.Error()] = true
		k.c.Errorf("console: %v", err)
	}
}

// safely keeps a mistake in a status or a screen from being the end of it.
func (k *Console) safely(f func()) {
	defer func() {
		if p := recover(); p != nil {
			k.report(fmt.Errorf("panic: %v", p))
		}
	}()
	f()
}
