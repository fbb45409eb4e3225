package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Reaper owns Wait4: it starts every child of this process and collects every
// one that ends, also orphans that fall to PID 1. So nothing else in the
// process may start programs (os/exec would wait for its child too, and one of
// the two would never hear of it).
type Reaper struct {
	mu    sync.Mutex // held from before a fork until the child is known
	procs map[int]*Process

	signals chan os.Signal
	reaped  chan struct{} // capacity 1: something ended
}

// Process is one child.
type Process struct {
	PID    int
	done   chan struct{}
	status syscall.WaitStatus // valid once done is closed
	err    error
}

// NewReaper returns one that is at work already. There is one in a process.
func NewReaper() *Reaper {
	r := &Reaper{procs: map[int]*Process{}, signals: make(chan os.Signal, 1), reaped: make(chan struct{}, 1)}
	signal.Notify(r.signals, unix.SIGCHLD)
	go func() {
		for range r.signals {
			r.reap()
		}
	}()
	return r
}

// reap collects all that have ended: one SIGCHLD may stand for many.
func (r *Reaper) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		r.mu.Lock()
		if p := r.procs[pid]; p != nil {
			delete(r.procs, pid)
			p.status = status
			close(p.done)
		}
		r.mu.Unlock()
		select {
		case r.reaped <- struct{}{}:
		default:
		}
	}
}

// Reaped receives after children have ended; it may stand for many.
func (r *Reaper) Reaped() <-chan struct{} { return r.reaped }

// Start runs a program.
func (r *Reaper) Start(path string, argv []string, attr *syscall.ProcAttr) (*Process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, fmt.Errorf("start %q: %w", path, err)
	}
	p := &Process{PID: pid, done: make(chan struct{})}
	r.procs[pid] = p
	return p, nil
}

// Adopt watches a process that another child has started and left to us. It
// tells of the end of one that is no child of this process at once.
func (r *Reaper) Adopt(pid int) *Process {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.procs[pid]; p != nil {
		return p
	}
	p := &Process{PID: pid, done: make(chan struct{})}
	if err := syscall.Kill(pid, 0); err != nil {
		p.err = fmt.Errorf("adopt process %d: %w", pid, err)
		close(p.done)
		return p
	}
	r.procs[pid] = p
	return p
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal, unless the process has ended: then its number may be
// another's.
func (r *Reaper) Signal(p *Process, sig syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.procs[p.PID] != p {
		return nil
	}
	return syscall.Kill(p.PID, sig)
}

// Reason says why a process ended, for people; it waits for the end.
func (p *Process) Reason() string {
	<-p.done
	switch s := p.status; {
	case p.err != nil:
		return p.err.Error()
	case s.Signaled():
		return "killed by " + unix.SignalName(s.Signal())
	default:
		return fmt.Sprintf("exit status %d", s.ExitStatus())
	}
}

// Output runs a program to its end and returns what it wrote, both streams,
// the first MiB of it, and its exit status. A program that is not done by the
// deadline is killed.
func (r *Reaper) Output(ctx context.Context, path string, args ...string) (out []byte, status int, err error) {
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, -1, fmt.Errorf("run %q: %w", path, err)
	}
	defer pr.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		pw.Close()
		return nil, -1, fmt.Errorf("run %q: %w", path, err)
	}
	p, err := r.Start(path, append([]string{path}, args...), &syscall.ProcAttr{
		Env:   []string{"PATH=/usr/sbin:/usr/bin", "LC_ALL=C"},
		Files: []uintptr{null.Fd(), pw.Fd(), pw.Fd()},
	})
	null.Close()
	pw.Close()
	if err != nil {
		return nil, -1, err
	}
	read := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(pr, 1<<20))
		read <- b
		io.Copy(io.Discard, pr) // or the program would wait for a reader for ever
	}()
	select {
	case <-p.done:
	case <-ctx.Done():
		r.Signal(p, syscall.SIGKILL)
		<-p.done
	}
	select {
	case out = <-read:
	case <-time.After(time.Second): // a grandchild holds the pipe
	}
	switch {
	case ctx.Err() != nil:
		return out, -1, fmt.Errorf("run %q: %w", path, ctx.Err())
	case p.status.Signaled():
		return out, -1, fmt.Errorf("run %q: %s", path, p.Reason())
	}
	return out, p.status.ExitStatus(), nil
}
