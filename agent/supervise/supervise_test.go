package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/notify"
)

// The one reaper of this test process; it must be able to adopt orphans, as
// PID 1 does.
var reaper *Reaper

func TestMain(m *testing.M) {
	if mode := os.Getenv("SUPERVISE_CHILD"); mode != "" {
		child(mode)
		return
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	reaper = NewReaper()
	m.Run()
}

// child is what the tests supervise: this binary again.
func child(mode string) {
	fmt.Println("child in mode", mode)
	switch mode {
	case "die":
		syscall.Exit(3)
	case "sleep":
		time.Sleep(time.Hour)
	case "orphan": // leaves a child behind, which says its number on the socket
		os.Setenv("SUPERVISE_CHILD", "sleep")
		pid, err := syscall.ForkExec("/proc/self/exe", []string{"orphan"}, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
		notify.Send("READY=1", fmt.Sprintf("STATUS=%d %v", pid, err))
		time.Sleep(time.Hour)
	case "mainpid": // what a daemon that starts itself anew does
		os.Setenv("SUPERVISE_CHILD", "ready")
		pid, _ := syscall.ForkExec("/proc/self/exe", []string{"x"}, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
		notify.Send(fmt.Sprintf("MAINPID=%d", pid))
		time.Sleep(50 * time.Millisecond)
	case "stranger": // its child claims readiness
		os.Setenv("SUPERVISE_CHILD", "ready")
		syscall.ForkExec("/proc/self/exe", []string{"x"}, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
		time.Sleep(time.Hour)
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		notify.Send("READY=1")
		time.Sleep(time.Hour)
	case "alive":
		notify.Send("READY=1")
		for {
			notify.Send("WATCHDOG=1")
			time.Sleep(20 * time.Millisecond)
		}
	case "extend": // says each of its arguments after a pause
		for _, line := range os.Args[1:] {
			notify.Send(strings.Split(line, ",")...)
			time.Sleep(1500 * time.Millisecond) // more than the tests' StartTimeout
		}
		time.Sleep(time.Hour)
	case "ready":
		notify.Send("READY=1")
		time.Sleep(time.Hour)
	}
}

type console struct {
	mu     sync.Mutex
	lines  []string
	signal chan struct{}
}

func (c *console) printf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = append(c.lines, fmt.Sprintf(format, args...))
	select {
	case c.signal <- struct{}{}:
	default:
	}
}

// await waits until a line holds text, n times over.
func (c *console) await(t *testing.T, text string, n int) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		c.mu.Lock()
		got := 0
		for _, l := range c.lines {
			if strings.Contains(l, text) {
				got++
			}
		}
		all := strings.Join(c.lines, "\n")
		c.mu.Unlock()
		if got >= n {
			return
		}
		select {
		case <-c.signal:
		case <-deadline:
			t.Fatalf("console: got %d lines with %q, want %d:\n%s", got, text, n, all)
		}
	}
}

// start runs one unit of a mode under a new supervisor.
func start(t *testing.T, u Unit, mode string) (*Supervisor, *console, string) {
	t.Helper()
	c := &console{signal: make(chan struct{}, 1)}
	dir := t.TempDir()
	s := New(Config{Reaper: reaper, RunDir: dir, LogDir: dir, Printf: c.printf, Errorf: c.printf,
		Status:     func(unit, status string) { c.printf("status %s: %s", unit, status) },
		FirstPause: 10 * time.Millisecond, LastPause: 100 * time.Millisecond})
	u.Name = "u"
	if u.Args == nil {
		u.Args = []string{"/proc/self/exe"}
	}
	u.Env = append(u.Env, "SUPERVISE_CHILD="+mode, "GOTRACEBACK=none")
	if err := s.Start(u); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.StopAll)
	return s, c, dir
}

func TestRestartAfterKill(t *testing.T) {
	s, c, dir := start(t, Unit{}, "ready")
	if err := s.WaitReady("u", 20*time.Second); err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 3; i++ {
		c.await(t, "unit u ready", i)
		for _, p := range children(t, "ready") {
			syscall.Kill(p, syscall.SIGKILL)
		}
		c.await(t, "killed by SIGKILL", i)
	}
	c.await(t, "unit u ready", 4)
	c.await(t, "next start in 40ms", 1) // 10, 20, 40
	if log, err := os.ReadFile(filepath.Join(dir, "u.log")); err != nil || strings.Count(string(log), "child in mode ready\n") < 3 {
		t.Errorf("log = %q, %v; want the child's lines", log, err)
	}
	s.StopAll()
	if state, _ := s.State("u"); state != Stopped {
		t.Errorf("State() after StopAll = %v; want stopped", state)
	}
	if err := s.Start(Unit{Name: "v", Args: []string{"/proc/self/exe"}}); err == nil {
		t.Error("Start() after StopAll = nil; want an error")
	}
}

func TestDiesAtOnce(t *testing.T) {
	s, c, _ := start(t, Unit{}, "die")
	c.await(t, "exit status 3", 3)
	c.await(t, "unit u | child in mode die", 1) // its last words
	c.await(t, "next start in 100ms", 1)        // the longest pause
	if err := s.WaitReady("u", time.Millisecond); err == nil {
		t.Error("WaitReady() = nil; want an error")
	}
}

func TestMissingProgram(t *testing.T) {
	_, c, _ := start(t, Unit{Args: []string{"/does/not/exist"}}, "ready")
	c.await(t, "no such file", 2) // and tried again
}

func TestStartDeadline(t *testing.T) {
	_, c, _ := start(t, Unit{StartTimeout: 50 * time.Millisecond, AbortTimeout: 100 * time.Millisecond}, "sleep")
	c.await(t, "not ready after 50ms", 2)
}

func TestExtendStart(t *testing.T) {
	for _, tt := range []struct {
		name  string
		unit  Unit
		says  []string
		want  string // on the console
		never string
	}{
		{"longer", Unit{StartTimeout: time.Second}, []string{"EXTEND_TIMEOUT_USEC=20000000", "READY=1"}, "unit u ready", "not ready"},
		{"never shorter", Unit{StartTimeout: 20 * time.Second}, []string{"EXTEND_TIMEOUT_USEC=1", "READY=1"}, "unit u ready", "not ready"},
		{"passed too", Unit{StartTimeout: time.Second}, []string{"EXTEND_TIMEOUT_USEC=1500000"}, "not ready after", "not ready after 1s"},
		{"with readiness", Unit{Watchdog: 20 * time.Second}, []string{"READY=1,EXTEND_TIMEOUT_USEC=1,STATUS=first", "STATUS=second"}, "status u: second", "no sign of life"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.unit.Args = append([]string{"/proc/self/exe"}, tt.says...)
			_, c, _ := start(t, tt.unit, "extend")
			c.await(t, tt.want, 1)
			c.mu.Lock()
			defer c.mu.Unlock()
			if all := strings.Join(c.lines, "\n"); strings.Contains(all, tt.never) {
				t.Errorf("console has %q:\n%s", tt.never, all)
			}
		})
	}
}

func TestWatchdog(t *testing.T) {
	t.Parallel()
	// It sends nothing: hung from the first moment.
	_, c, _ := start(t, Unit{Watchdog: 50 * time.Millisecond}, "ready")
	c.await(t, "no sign of life", 1)
	c.await(t, "unit u ready", 2)

	// It sends, until it is stopped: then even SIGABRT is not delivered.
	s, c, _ := start(t, Unit{Watchdog: 500 * time.Millisecond, AbortTimeout: 50 * time.Millisecond}, "alive")
	if err := s.WaitReady("u", 20*time.Second); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // twice the interval: that it lives is what is tested
	c.mu.Lock()
	for _, l := range c.lines {
		if strings.Contains(l, "no sign of life") {
			t.Error("the watchdog fired on a living unit")
		}
	}
	c.mu.Unlock()
	for _, p := range children(t, "alive") {
		syscall.Kill(p, syscall.SIGSTOP)
	}
	c.await(t, "no sign of life", 1)
	c.await(t, "killed by SIGKILL", 1)
	c.await(t, "unit u ready", 2)
}

// children lists living children of this process in a mode.
func children(t *testing.T, mode string) (pids []int) {
	t.Helper()
	reaper.mu.Lock()
	defer reaper.mu.Unlock()
	for p := range reaper.procs {
		env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p))
		if strings.Contains(string(env), "SUPERVISE_CHILD="+mode+"\x00") {
			pids = append(pids, p)
		}
	}
	return pids
}

func TestStubbornIsKilled(t *testing.T) {
	s, c, _ := start(t, Unit{StopTimeout: 50 * time.Millisecond}, "stubborn")
	if err := s.WaitReady("u", 20*time.Second); err != nil {
		t.Fatal(err)
	}
	s.StopAll()
	c.await(t, "does not end", 1)
	c.await(t, "unit u stopped", 1)
}

func TestOthersMayNotSpeakForIt(t *testing.T) {
	s, _, _ := start(t, Unit{}, "stranger")
	if err := s.WaitReady("u", 500*time.Millisecond); err == nil {
		t.Error("a child of the unit made it ready")
	}
	reapOthers(t, "ready")
}

func TestMainPID(t *testing.T) {
	s, c, _ := start(t, Unit{}, "mainpid")
	if err := s.WaitReady("u", 20*time.Second); err != nil {
		t.Fatal(err)
	}
	s.StopAll() // stops the second process
	c.await(t, "unit u stopped", 1)
}

// What a unit has started lives on when the unit is killed, and is reaped when
// it ends: like the shims of containerd.
func TestOrphan(t *testing.T) {
	s, c, _ := start(t, Unit{}, "orphan")
	if err := s.WaitReady("u", 20*time.Second); err != nil {
		t.Fatal(err)
	}
	c.await(t, "status u: ", 1)
	_, status := s.State("u")
	orphan, err := strconv.Atoi(strings.Fields(status)[0])
	if err != nil || orphan < 2 {
		t.Fatalf("STATUS = %q; want a process", status)
	}
	s.StopAll()
	if err := syscall.Kill(orphan, 0); err != nil {
		t.Fatalf("the orphan ended with the unit: %v", err)
	}
	p := reaper.Adopt(orphan)
	reaper.Signal(p, syscall.SIGKILL)
	select {
	case <-p.Done():
		if got := p.Reason(); got != "killed by SIGKILL" {
			t.Errorf("Reason() = %q", got)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the orphan was not reaped")
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", orphan)); err == nil {
		t.Error("the orphan is still there, a zombie")
	}
	if p := reaper.Adopt(orphan); !strings.Contains(p.Reason(), "no such process") {
		t.Errorf("Adopt() of a process that is gone: %q", p.Reason())
	}
}

// reapOthers ends what a test's unit has started in a mode.
func reapOthers(t *testing.T, mode string) {
	t.Helper()
	procs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range procs {
		env, _ := os.ReadFile(f)
		if strings.Contains(string(env), "SUPERVISE_CHILD="+mode+"\x00") && strings.Contains(string(env), "NOTIFY_SOCKET="+os.TempDir()) {
			p, _ := strconv.Atoi(strings.Split(f, "/")[2])
			syscall.Kill(p, syscall.SIGKILL)
		}
	}
}

func TestOutput(t *testing.T) {
	out, status, err := reaper.Output(context.Background(), "/bin/sh", "-c", "echo out; echo err >&2; exit 4")
	if string(out) != "out\nerr\n" || status != 4 || err != nil {
		t.Errorf("Output() = %q, %d, %v; want both lines, 4", out, status, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := reaper.Output(ctx, "/bin/sleep", "3600"); err == nil {
		t.Error("Output() past its deadline = nil; want an error")
	}
	if _, _, err := reaper.Output(context.Background(), "/does/not/exist"); err == nil {
		t.Error("Output() of nothing = nil; want an error")
	}
}

// More than is kept, and more than a pipe holds after that.
func TestOutputKeepsReading(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, status, err := reaper.Output(ctx, "/bin/sh", "-c", "head -c 2097152 /dev/zero; exit 4")
	if len(out) != 1<<20 || status != 4 || err != nil {
		t.Errorf("Output() of 2 MiB = %d bytes, %d, %v; want 1 MiB, 4", len(out), status, err)
	}
}

func TestNext(t *testing.T) {
	for _, tt := range []struct {
		s    State
		e    event
		want State
	}{
		{Stopped, evStart, Starting}, {Starting, evReady, Ready}, {Ready, evReady, Ready}, {Ready, evExit, Waiting},
		{Starting, evExit, Waiting}, {Starting, evLate, Hung}, {Ready, evLate, Hung}, {Hung, evExit, Waiting}, {Hung, evReady, Hung},
		{Waiting, evRetry, Starting}, {Waiting, evStop, Stopped}, {Ready, evStop, Stopping}, {Starting, evStop, Stopping},
		{Hung, evStop, Stopping}, {Stopping, evExit, Stopped}, {Stopping, evReady, Stopping},
	} {
		if got, err := next(tt.s, tt.e); got != tt.want || err != nil {
			t.Errorf("next(%v, %v) = %v, %v; want %v", tt.s, tt.e, got, err, tt.want)
		}
	}
	for _, bad := range []struct {
		s State
		e event
	}{{Stopped, evExit}, {Waiting, evReady}, {Waiting, evExit}, {Ready, evStart}, {Stopped, evReady}, {Stopping, evLate}, {Ready, evRetry}} {
		if got, err := next(bad.s, bad.e); err == nil || got != bad.s {
			t.Errorf("next(%v, %v) = %v, %v; want it refused", bad.s, bad.e, got, err)
		}
	}
}

func TestBackoff(t *testing.T) {
	var got []time.Duration
	for n := range 12 {
		got = append(got, Backoff(250*time.Millisecond, time.Minute, n))
	}
	want := []time.Duration{250, 250, 500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000, 60000}
	for i := range want {
		if got[i] != want[i]*time.Millisecond {
			t.Errorf("Backoff(%d) = %v; want %vms", i, got[i], want[i])
		}
	}
	if got := Backoff(time.Second, time.Minute, 1<<30); got != time.Minute {
		t.Errorf("Backoff() = %v; want a minute", got)
	}
}

func TestLogRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "u.log")
	l := newLog(path, 100)
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		fmt.Fprintf(pw, "line %02d\n", i)
	}
	fmt.Fprintf(pw, "%s\nunfinished", strings.Repeat("x", 2*lineSize))
	pw.Close()
	l.copy(pr)
	l.close()
	for _, f := range []string{path, path + ".1"} {
		if fi, err := os.Stat(f); err != nil || fi.Size() > lineSize+100 {
			t.Errorf("%s: %v, %v; want a bounded log", f, fi, err)
		}
	}
	if names, _ := os.ReadDir(filepath.Dir(path)); len(names) != 2 {
		t.Errorf("the log left %v; want two files", names)
	}
	tail := l.last()
	if len(tail) != tailLines || tail[tailLines-1] != "unfinished" {
		t.Errorf("last() = %.40q; want the last ten lines", tail)
	}
	// Where nothing can be written, the last lines are kept all the same.
	l = newLog(filepath.Join(path, "impossible"), 100)
	l.mark("%d", 1)
	l.writeLine([]byte("1\n"))
	if tail := l.last(); len(tail) != 1 || tail[0] != "1" {
		t.Errorf("last() without a file = %q", tail)
	}
}

// A program without a watchdog of its own is asked; when it does not answer any
// more it is started again.
func TestProbe(t *testing.T) {
	t.Parallel()
	var dead atomic.Bool
	asked := make(chan struct{}, 100)
	u := Unit{Watchdog: 2 * time.Second, AbortTimeout: 100 * time.Millisecond, Probe: func(context.Context) error {
		select {
		case asked <- struct{}{}:
		default:
		}
		if dead.Load() {
			return errors.New("no answer")
		}
		return nil
	}}
	_, c, _ := start(t, u, "ready")
	for range 9 { // three times as long as Watchdog
		select {
		case <-asked:
		case <-time.After(10 * time.Second):
			t.Fatal("the program is not asked")
		}
	}
	c.mu.Lock()
	before := strings.Join(c.lines, "\n")
	c.mu.Unlock()
	if strings.Contains(before, "no sign of life") {
		t.Fatalf("a program that answers was ended:\n%s", before)
	}
	dead.Store(true)
	c.await(t, "no sign of life for 2s", 1)
	dead.Store(false)
	c.await(t, "unit u ready", 2)
}
