// Package watchdog feeds the hardware watchdog for as long as it is allowed
// to: whoever is at work promises to be back within some time (Alive), and
// when the promise is not kept, feeding ends and the hardware resets the board.
//
// Fed is what says that init turns and the kernel schedules; never the health
// of network, API or pods: a full disk must not kill the pods that still work.
// Left out: pretimeouts and more than one device.
package watchdog

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Timeout is what the hardware is asked for. Some know less (a Raspberry Pi 15
// seconds); then it is theirs.
const Timeout = 60 * time.Second

// Device is the hardware, or a test's stand-in.
type Device interface {
	// Feed starts the time over.
	Feed() error
	// Disarm stops the watchdog, where the hardware can be stopped.
	Disarm() error
}

// Hardware is an open watchdog device: opening it has started its clock, and
// only Disarm stops it.
type Hardware struct {
	fd      int
	Timeout time.Duration // what the driver has accepted
}

var _ Device = (*Hardware)(nil)

// Open starts a watchdog. The error is os.ErrNotExist when there is none.
func Open(path string) (*Hardware, error) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return hardware(fd), nil
}

func hardware(fd int) *Hardware {
	h := &Hardware{fd: fd, Timeout: Timeout}
	h.SetTimeout(Timeout) // a driver that can't keeps its own
	h.Feed()
	return h
}

// SetTimeout asks the hardware for another time, whole seconds. Afterwards
// Timeout is what it has, also when that is another one.
func (h *Hardware) SetTimeout(d time.Duration) error {
	err := unix.IoctlSetPointerInt(h.fd, unix.WDIOC_SETTIMEOUT, int(d/time.Second))
	if s, gerr := unix.IoctlGetInt(h.fd, unix.WDIOC_GETTIMEOUT); gerr == nil && s > 0 {
		h.Timeout = time.Duration(s) * time.Second
	}
	switch {
	case err != nil:
		return fmt.Errorf("set watchdog to %v: it keeps %v: %w", d, h.Timeout, err)
	case h.Timeout != d:
		return fmt.Errorf("set watchdog to %v: it keeps %v", d, h.Timeout)
	}
	return nil
}

// Stop stops it for good. When that fails, as with a driver that can't stop,
// it must be fed on.
func (h *Hardware) Stop() error {
	const disable = 1 // WDIOS_DISABLECARD
	if err := unix.IoctlSetPointerInt(h.fd, unix.WDIOC_SETOPTIONS, disable); err != nil {
		return fmt.Errorf("stop watchdog: %w", err)
	}
	return nil
}

// Inherit takes the running watchdog that a previous program in this process
// has left in the variable that Bequeath set; nil if there is none.
func Inherit(value string) *Hardware {
	fd, err := strconv.Atoi(value)
	if err != nil || fd < 3 {
		return nil
	}
	if _, err := unix.IoctlGetInt(fd, unix.WDIOC_GETTIMEOUT); err != nil {
		return nil
	}
	unix.CloseOnExec(fd)
	return hardware(fd)
}

// Bequeath keeps the device open across execve: closing it would stop it or
// print an alarm. The value is for Inherit.
func (h *Hardware) Bequeath() (string, error) {
	h.Feed()
	if _, err := unix.FcntlInt(uintptr(h.fd), unix.F_SETFD, 0); err != nil {
		return "", fmt.Errorf("keep watchdog open: %w", err)
	}
	return strconv.Itoa(h.fd), nil
}

// Feed starts the time over.
func (h *Hardware) Feed() error {
	if err := unix.IoctlWatchdogKeepalive(h.fd); err != nil {
		return fmt.Errorf("feed watchdog: %w", err)
	}
	return nil
}

// Disarm closes it with the character that drivers ask for.
func (h *Hardware) Disarm() error {
	_, err := unix.Write(h.fd, []byte("V"))
	if err := errors.Join(err, unix.Close(h.fd)); err != nil {
		return fmt.Errorf("disarm watchdog: %w", err)
	}
	return nil
}

// Feeder feeds while promises hold.
type Feeder struct {
	dev  Device
	tick time.Duration
	stop chan struct{}
	done chan struct{}

	mu    sync.Mutex // guards until
	until time.Time
}

// NewFeeder feeds every tick, from now on and for the first promise.
func NewFeeder(dev Device, tick, first time.Duration) *Feeder {
	f := &Feeder{dev: dev, tick: tick, stop: make(chan struct{}), done: make(chan struct{})}
	f.Alive(first)
	go f.run()
	return f
}

// Alive promises to be back within d. A nil feeder does nothing, so that
// callers need not ask whether there is a watchdog.
func (f *Feeder) Alive(d time.Duration) {
	if f == nil {
		return
	}
	f.mu.Lock()
	f.until = time.Now().Add(d) // monotonic: a clock that is set does no harm
	f.mu.Unlock()
}

// Stop ends feeding; the hardware's time goes on.
func (f *Feeder) Stop() {
	if f == nil {
		return
	}
	close(f.stop)
	<-f.done
}

func (f *Feeder) run() {
	defer close(f.done)
	t := time.NewTicker(f.tick)
	defer t.Stop()
	for {
		f.mu.Lock()
		alive := time.Now().Before(f.until)
		f.mu.Unlock()
		if alive {
			if err := f.dev.Feed(); errors.Is(err, syscall.EBADF) {
				return
			}
		}
		select {
		case <-t.C:
		case <-f.stop:
			return
		}
	}
}
