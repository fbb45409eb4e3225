// Package unit starts the parts of one process in order, each waited for, and
// ends them in reverse.
//
// Left out: restarts. A part that ends by itself ends the process, and init,
// which restarts processes, starts it whole again: Kubernetes' components keep
// state in package variables and can't be run twice in one process.
package unit

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Unit is one part.
type Unit struct {
	Name string
	// Run works until ctx ends. It calls ready once, when what comes later may
	// rely on it. Returning before ctx ends is a failure, whatever it returns.
	Run func(ctx context.Context, ready func()) error
}

// stopTimeout bounds the wait for one unit's Run after its context has ended.
const stopTimeout = 10 * time.Second

// Run starts units in order and calls allReady after the last is ready. It
// ends when ctx does (nil, if all stopped in time) or when a unit ends by
// itself; then all others are stopped. report is told of each unit that is
// ready.
func Run(ctx context.Context, units []Unit, report func(name string, after time.Duration), allReady func()) error {
	type end struct {
		name string
		err  error
	}
	ends := make(chan end, len(units))
	type started struct {
		name   string
		cancel context.CancelFunc
		done   chan struct{}
	}
	var running []started
	var errs []error

	start := func(u Unit) bool {
		// A context of its own, so that units stop in reverse order.
		uctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		done, ready := make(chan struct{}), make(chan struct{}, 1)
		running = append(running, started{u.Name, cancel, done})
		begin := time.Now()
		go func() {
			err := u.Run(uctx, func() {
				select {
				case ready <- struct{}{}:
				default:
				}
			})
			if uctx.Err() == nil { // it ended by itself
				if err == nil {
					err = errors.New("ended by itself")
				}
				ends <- end{u.Name, err}
			}
			close(done)
		}()
		select {
		case <-ready:
			report(u.Name, time.Since(begin))
			return true
		case <-ctx.Done():
		case e := <-ends:
			errs = append(errs, fmt.Errorf("%s: %w", e.name, e.err))
		}
		return false
	}

	ok := true
	for _, u := range units {
		if ok = start(u); !ok {
			break
		}
	}
	if ok {
		allReady()
		select {
		case <-ctx.Done():
		case e := <-ends:
			errs = append(errs, fmt.Errorf("%s: %w", e.name, e.err))
		}
	}
	for i := len(running) - 1; i >= 0; i-- {
		r := running[i]
		r.cancel()
		select {
		case <-r.done:
		case <-time.After(stopTimeout):
			errs = append(errs, fmt.Errorf("stop %s: still running after %s", r.name, stopTimeout))
		}
	}
	return errors.Join(errs...)
}
