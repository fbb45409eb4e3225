package clock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Jumps sends each time that somebody sets the system clock, until ctx ends; a
// clock that is slewed doesn't count. Several at once may arrive as one.
func Jumps(ctx context.Context) (<-chan struct{}, error) {
	// The kernel cancels a timer of this kind when the clock is set
	// (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET). The timer itself lies too far ahead to matter.
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch clock: %w", err)
	}
	f := os.NewFile(uintptr(fd), "clock")
	arm := func() error {
		never := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(maxUnix) * int64(time.Second))}
		err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &never, nil)
		// It reports a jump that came before; the timer is armed all the same.
		if err != nil && !errors.Is(err, unix.ECANCELED) {
			return fmt.Errorf("watch clock: %w", err)
		}
		return nil
	}
	if err := arm(); err != nil {
		f.Close()
		return nil, err
	}
	jumps := make(chan struct{}, 1)
	context.AfterFunc(ctx, func() { f.Close() })
	go func() {
		defer close(jumps)
		for {
			if _, err := f.Read(make([]byte, 8)); !errors.Is(err, unix.ECANCELED) || arm() != nil {
				return // closed
			}
			select {
			case jumps <- struct{}{}:
			default:
			}
		}
	}()
	return jumps, nil
}

// Shift is by how much the system clock was set between two readings of time.Now:
// what it has gone on less what really passed. Negative: it was set back.
func Shift(from, to time.Time) time.Duration {
	return to.Round(0).Sub(from.Round(0)) - to.Sub(from) // Round strips the monotonic reading
}
