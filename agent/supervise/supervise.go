// Package supervise keeps a few long-running programs alive: it starts them in
// order, waits until each says that it is ready (sd_notify), restarts what
// dies or hangs with growing pauses, and stops them in reverse.
//
// A unit is one process. What that process has started, like the shims that
// hold containers, outlives it: only the main process is ever signalled, never
// its cgroup, so that a restart of containerd costs no pod.
//
// Left out: dependencies beyond the order, sockets, timers, limits. A unit
// that never becomes ready does not keep the later ones from starting.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/notify"
)

// Unit describes one program.
type Unit struct {
	Name string
	Args []string // Args[0] is the program's path
	Env  []string

	// StartTimeout is the time it has to send READY=1; then it is killed and
	// started again. 0 means two minutes. EXTEND_TIMEOUT_USEC prolongs it,
	// counted from that message, and never makes it shorter.
	StartTimeout time.Duration
	// StopTimeout is the time from SIGTERM to SIGKILL; 0 means 20 seconds.
	StopTimeout time.Duration
	// Watchdog is the longest pause between two WATCHDOG=1 once it is
	// ready; then it gets SIGABRT, and SIGKILL after AbortTimeout (0 means
	// five seconds). 0: none is asked for.
	Watchdog     time.Duration
	AbortTimeout time.Duration
	// Probe asks a program that doesn't send WATCHDOG=1 whether it is alive;
	// nil means that it sends it. It is called every third of Watchdog, and
	// must return when its context ends.
	Probe func(context.Context) error
	// OOMScoreAdj is -1000 (never killed for memory) to 1000.
	OOMScoreAdj int
}

// Config is what all units share.
type Config struct {
	Reaper *Reaper
	RunDir string // notification sockets
	LogDir string // <unit>.log and <unit>.log.1
	Cgroup string // folder in which each unit has its own cgroup; empty: none
	// Printf prints a line on the console. Errorf is for what an operator
	// should look at.
	Printf, Errorf func(format string, args ...any)
	// Status is called with each new STATUS= of a unit.
	Status func(unit, status string)
	// FirstPause is the pause before the first restart; 0 means 250 ms. It
	// doubles up to LastPause (0: one minute) and starts over after a run
	// of StableAfter (0: one minute).
	FirstPause, LastPause, StableAfter time.Duration
}

// State of a unit.
//
//	            start              READY=1
//	stopped ───────────▶ starting ──────────▶ ready
//	   ▲                  ▲    │ exit           │ exit
//	   │ exit       retry │    ▼                ▼
//	stopping ◀──stop──── waiting ◀──────────────┘
//
// A unit that is stopped while starting, ready or hung goes to stopping; while
// waiting, straight to stopped. hung is a process that was sent SIGABRT since
// it missed its start or watchdog deadline; its exit leads to waiting.
type State int

// The states.
const (
	Stopped State = iota
	Starting
	Ready
	Hung
	Waiting
	Stopping
)

func (s State) String() string {
	return [...]string{"stopped", "starting", "ready", "hung", "waiting", "stopping"}[s]
}

type event int

const (
	evStart event = iota // start it
	evReady              // READY=1
	evLate               // start or watchdog deadline missed
	evExit               // the process ended
	evRetry              // the pause is over
	evStop               // stop it
)

func (e event) String() string {
	return [...]string{"start", "ready", "late", "exit", "retry", "stop"}[e]
}

// next is the whole state machine.
func next(s State, e event) (State, error) {
	switch {
	case e == evStart && s == Stopped, e == evRetry && s == Waiting:
		return Starting, nil
	case e == evReady && (s == Starting || s == Ready):
		return Ready, nil
	case e == evLate && (s == Starting || s == Ready):
		return Hung, nil
	case e == evExit && (s == Starting || s == Ready || s == Hung):
		return Waiting, nil
	case e == evExit && s == Stopping, e == evStop && (s == Waiting || s == Stopped):
		return Stopped, nil
	case e == evStop && (s == Starting || s == Ready || s == Hung || s == Stopping):
		return Stopping, nil
	case e == evReady && (s == Hung || s == Stopping):
		return s, nil // too late to matter
	}
	return s, fmt.Errorf("cannot %s a unit that is %s", e, s)
}

// Supervisor runs units.
type Supervisor struct {
	cfg Config

	mu     sync.Mutex // guards all that follows
	units  []*running // in the order of their start
	closed bool       // StopAll was called
}

// New returns a supervisor without units.
func New(cfg Config) *Supervisor {
	cfg.FirstPause = or(cfg.FirstPause, 250*time.Millisecond)
	cfg.LastPause = or(cfg.LastPause, time.Minute)
	cfg.StableAfter = or(cfg.StableAfter, time.Minute)
	return &Supervisor{cfg: cfg}
}

func or(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// running is a unit and the goroutine that owns it.
type running struct {
	Unit
	cfg     Config
	log     *logFile
	socket  *notify.Socket
	stop    chan struct{} // closed to stop, by end
	stopOne sync.Once
	stopped chan struct{} // closed when it has stopped
	ready   chan struct{} // closed when it was ready for the first time
	notes   chan notify.Message
	alive   chan struct{} // Probe has succeeded

	mu     sync.Mutex // guards what follows, which others read
	state  State
	status string
	report report

	// Owned by loop.
	proc     *Process
	deadline *time.Timer // start, watchdog, abort, stop or retry, as the state says
	interval time.Duration
	started  time.Time
	limit    time.Duration // from started on, to READY=1
	failures int
}

// Start starts a unit and returns at once; WaitReady waits for it.
func (s *Supervisor) Start(u Unit) error {
	if len(u.Args) == 0 || u.Name == "" {
		return errors.New("start unit: no name or no program")
	}
	u.StartTimeout = or(u.StartTimeout, 2*time.Minute)
	u.StopTimeout = or(u.StopTimeout, 20*time.Second)
	u.AbortTimeout = or(u.AbortTimeout, 5*time.Second)
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.startLocked(u)
	if err != nil {
		return err
	}
	s.units = append(s.units, r)
	return nil
}

func (s *Supervisor) startLocked(u Unit) (*running, error) {
	if s.closed {
		return nil, fmt.Errorf("start unit %q: the system is going down", u.Name)
	}
	socket, err := notify.Listen(filepath.Join(s.cfg.RunDir, u.Name+".sock"))
	if err != nil {
		return nil, fmt.Errorf("start unit %q: %w", u.Name, err)
	}
	r := &running{Unit: u, cfg: s.cfg, log: newLog(filepath.Join(s.cfg.LogDir, u.Name+".log"), logSize), socket: socket,
		stop: make(chan struct{}), stopped: make(chan struct{}), ready: make(chan struct{}), notes: make(chan notify.Message), alive: make(chan struct{})}
	r.deadline = time.NewTimer(time.Hour)
	r.deadline.Stop()
	go func() {
		for {
			m, err := socket.Receive()
			if err != nil {
				return
			}
			select {
			case r.notes <- m:
			case <-r.stopped:
				return
			}
		}
	}()
	go r.loop()
	if r.Probe != nil {
		go r.probe()
	}
	return r, nil
}

// probe asks a ready unit for a sign of life until it has stopped.
func (r *running) probe() {
	each := r.Watchdog / 3
	t := time.NewTicker(each)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-r.stopped:
			return
		}
		if state, _ := r.current(); state != Ready {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), each)
		err := r.Probe(ctx)
		cancel()
		if err != nil {
			continue // the next one, or the deadline
		}
		select {
		case r.alive <- struct{}{}:
		case <-r.stopped:
			return
		}
	}
}

// WaitReady waits until the unit was ready once. It says on the console what it
// waits for, after ten seconds and then in growing intervals, and gives up
// after timeout.
func (s *Supervisor) WaitReady(name string, timeout time.Duration) error {
	r := s.unit(name)
	if r == nil {
		return fmt.Errorf("wait for unit %q: no such unit", name)
	}
	pause := 10 * time.Second
	progress := time.NewTimer(pause)
	defer progress.Stop()
	end := time.NewTimer(timeout)
	defer end.Stop()
	for {
		select {
		case <-r.ready:
			return nil
		case <-progress.C:
			state, status := s.State(name)
			s.cfg.Printf("waiting for unit %s: %s", name, strings.TrimSpace(state.String()+" "+status))
			pause = min(2*pause, time.Minute)
			progress.Reset(pause)
		case <-end.C:
			return fmt.Errorf("wait for unit %q: not ready after %v", name, timeout)
		case <-r.stopped:
			return fmt.Errorf("wait for unit %q: it was stopped", name)
		}
	}
}

// State returns a unit's state and its last STATUS=.
func (s *Supervisor) State(name string) (State, string) {
	r := s.unit(name)
	if r == nil {
		return Stopped, ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state, r.status
}

func (s *Supervisor) unit(name string) *running {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.units {
		if r.Name == name {
			return r
		}
	}
	return nil
}

// StopAll stops the units one after the other, the last started first, and
// returns when their main processes have ended. No unit can be started any more.
func (s *Supervisor) StopAll() {
	s.mu.Lock()
	units := s.units
	s.units, s.closed = nil, true
	s.mu.Unlock()
	for i := len(units) - 1; i >= 0; i-- {
		units[i].end()
	}
}

// loop is the unit's life.
func (r *running) loop() {
	defer close(r.stopped)
	defer r.log.close()
	defer r.socket.Close()
	stop := r.stop
	r.event(evStart)
	for {
		var exited <-chan struct{}
		if r.proc != nil {
			exited = r.proc.Done()
		}
		select {
		case <-exited:
			r.exited()
		case m := <-r.notes:
			if r.proc != nil && m.PID == r.proc.PID {
				r.note(m)
			}
		case <-r.alive:
			if state, _ := r.current(); state == Ready {
				r.arm(r.interval)
			}
		case <-r.deadline.C:
			r.late()
		case <-stop:
			stop = nil
			r.event(evStop)
		}
		if state, _ := r.current(); state == Stopped {
			return
		}
	}
}

func (r *running) current() (State, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state, r.status
}

// event moves the unit to its next state and does what entering it means.
func (r *running) event(e event) {
	r.mu.Lock()
	old := r.state
	s, err := next(old, e)
	r.state = s
	r.mu.Unlock()
	if err != nil {
		r.cfg.Errorf("unit %s: %v", r.Name, err)
		return
	}
	if s == old {
		return
	}
	r.entered(s)
	switch s {
	case Starting:
		if e == evRetry {
			r.restarted()
		}
		r.launch()
	case Ready:
		r.cfg.Printf("unit %s ready after %dms", r.Name, time.Since(r.started).Milliseconds())
		r.arm(r.interval)
		select {
		case <-r.ready:
		default:
			close(r.ready)
		}
	case Hung:
		r.signal(unix.SIGABRT)
		r.arm(r.AbortTimeout)
	case Waiting:
		r.arm(r.pause())
	case Stopping:
		r.signal(unix.SIGTERM)
		r.arm(r.StopTimeout)
	case Stopped:
		r.deadline.Stop()
	}
}

// arm sets the deadline; 0 means none.
func (r *running) arm(d time.Duration) {
	r.deadline.Stop()
	if d > 0 {
		r.deadline.Reset(d)
	}
}

// pause is the time before the next start.
func (r *running) pause() time.Duration {
	return Backoff(r.cfg.FirstPause, r.cfg.LastPause, r.failures)
}

// Backoff returns first, doubled failures-1 times, and at most last.
func Backoff(first, last time.Duration, failures int) time.Duration {
	d := first
	for i := 1; i < failures && d < last; i++ {
		d *= 2
	}
	return min(d, last)
}

// late handles a deadline that has passed.
func (r *running) late() {
	switch s, _ := r.current(); s {
	case Starting:
		r.cfg.Errorf("unit %s: not ready after %v, starting it again", r.Name, r.limit.Round(time.Millisecond))
		r.event(evLate)
	case Ready:
		r.cfg.Errorf("unit %s: no sign of life for %v, starting it again", r.Name, r.interval)
		r.event(evLate)
	case Hung, Stopping:
		r.cfg.Errorf("unit %s: does not end, killing it", r.Name)
		r.signal(unix.SIGKILL)
	case Waiting:
		r.event(evRetry)
	}
}

// note handles a message of the main process.
func (r *running) note(m notify.Message) {
	if m.Interval > 0 {
		r.interval = m.Interval
	}
	if m.MainPID != 0 && m.MainPID != r.proc.PID {
		r.proc = r.cfg.Reaper.Adopt(m.MainPID)
		r.launched(m.MainPID)
	}
	r.mu.Lock()
	state := r.state
	news := m.Status != "" && m.Status != r.status
	if news {
		r.status = m.Status
	}
	r.mu.Unlock()
	if m.Ready {
		r.event(evReady)
		state, _ = r.current()
	}
	switch {
	case m.Trigger && state == Ready:
		r.late()
	case m.Extend > 0 && state == Starting:
		ran := time.Since(r.started)
		r.limit = max(r.StartTimeout, ran+m.Extend) // as sd_notify(3) has it
		r.arm(max(r.limit-ran, time.Nanosecond))
	case (m.Watchdog || m.Interval > 0) && state == Ready:
		r.arm(r.interval)
	}
	if news && r.cfg.Status != nil {
		r.cfg.Status(r.Name, m.Status)
	}
}

// exited handles the end of the main process.
func (r *running) exited() {
	reason, ran := r.proc.Reason(), time.Since(r.started)
	r.proc = nil
	r.ended(fmt.Sprintf("%s after %v", reason, ran.Round(time.Millisecond)))
	state, _ := r.current()
	r.log.mark("%s after %v", reason, ran.Round(time.Millisecond))
	if state == Stopping {
		r.cfg.Printf("unit %s stopped", r.Name)
	} else {
		if ran >= r.cfg.StableAfter {
			r.failures = 0
		}
		r.fail("%s after %v", reason, ran.Round(time.Millisecond))
	}
	r.event(evExit)
}

func (r *running) fail(format string, args ...any) {
	r.failures++
	for _, line := range r.log.last() {
		r.cfg.Printf("unit %s | %s", r.Name, line)
	}
	r.cfg.Errorf("unit %s: %s; next start in %v", r.Name, fmt.Sprintf(format, args...), r.pause())
}

func (r *running) signal(sig syscall.Signal) {
	if r.proc != nil {
		r.cfg.Reaper.Signal(r.proc, sig)
	}
}

// launch starts the process. When that fails, the unit waits for a retry as if
// the process had ended at once.
func (r *running) launch() {
	r.started = time.Now()
	r.interval = r.Watchdog
	r.mu.Lock()
	r.status = ""
	r.mu.Unlock()
	p, err := r.exec()
	if err != nil {
		r.ended(err.Error())
		r.fail("%v", err)
		r.event(evExit)
		return
	}
	r.proc = p
	r.launched(p.PID)
	r.cfg.Printf("unit %s started, process %d", r.Name, p.PID)
	r.limit = r.StartTimeout
	r.arm(r.limit)
}

func (r *running) exec() (*Process, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer pw.Close()
	attr := &syscall.ProcAttr{
		Dir:   "/",
		Env:   append([]string{"PATH=/usr/sbin:/usr/bin", "NOTIFY_SOCKET=" + r.socket.Path()}, r.Env...),
		Files: []uintptr{null.Fd(), pw.Fd(), pw.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if r.Watchdog > 0 && r.Probe == nil {
		attr.Env = append(attr.Env, fmt.Sprintf("WATCHDOG_USEC=%d", r.Watchdog.Microseconds()))
	}
	if r.cfg.Cgroup != "" {
		dir, err := cgroup(filepath.Join(r.cfg.Cgroup, r.Name))
		if err != nil {
			pr.Close()
			return nil, err
		}
		defer dir.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(dir.Fd())
	}
	p, err := r.cfg.Reaper.Start(r.Args[0], r.Args, attr)
	if err != nil {
		pr.Close()
		return nil, err
	}
	go r.log.copy(pr)
	if r.OOMScoreAdj != 0 {
		path := fmt.Sprintf("/proc/%d/oom_score_adj", p.PID)
		if err := os.WriteFile(path, fmt.Appendf(nil, "%d", r.OOMScoreAdj), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			r.cfg.Errorf("unit %s: %v", r.Name, err)
		}
	}
	return p, nil
}

// cgroup makes and opens a unit's cgroup. Processes that a former run left
// there, like shims, stay.
func cgroup(path string) (*os.File, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	return f, nil
}
