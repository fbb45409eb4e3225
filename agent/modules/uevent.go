package modules

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Event is one message of the kernel about a device: its variables, among them
// ACTION, DEVPATH, SUBSYSTEM, and for some MODALIAS and DEVNAME.
type Event map[string]string

// Uevents receives the kernel's device events, from Listen on.
type Uevents struct{ fd int }

// ErrTimeout is returned by Next when nothing came.
var ErrTimeout = errors.New("no device event")

// ErrOverrun is returned by Next when the kernel dropped events: look at /sys
// as a whole.
var ErrOverrun = errors.New("device events were lost")

// Listen must be called before /sys is looked at, so that no device falls
// between the look and the first event.
func Listen() (*Uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("open device event socket: %w", err)
	}
	// Group 1 is the kernel's; only it may send there.
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind device event socket: %w", err)
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) // best effort; ErrOverrun covers the rest
	return &Uevents{fd: fd}, nil
}

// Close ends listening.
func (u *Uevents) Close() error { return unix.Close(u.fd) }

// Next waits for an event, forever when timeout is negative.
func (u *Uevents) Next(timeout time.Duration) (Event, error) {
	deadline := time.Now().Add(timeout)
	buf := make([]byte, 16<<10)
	for {
		ms := -1
		if timeout >= 0 {
			ms = max(0, int(time.Until(deadline).Milliseconds()))
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(u.fd), Events: unix.POLLIN}}, ms)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, fmt.Errorf("wait for device event: %w", err)
		case n == 0:
			return nil, ErrTimeout
		}
		n, from, err := unix.Recvfrom(u.fd, buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case errors.Is(err, unix.ENOBUFS):
			return nil, ErrOverrun
		case err != nil:
			return nil, fmt.Errorf("receive device event: %w", err)
		}
		if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
			continue // not from the kernel
		}
		if e := parseEvent(buf[:n]); e != nil {
			return e, nil
		}
	}
}

// parseEvent reads "add@/devices/x\0ACTION=add\0…"; nil if it is none.
func parseEvent(data []byte) Event {
	head, rest, ok := bytes.Cut(data, []byte{0})
	if !ok || !bytes.Contains(head, []byte("@")) {
		return nil
	}
	e := Event{}
	for _, kv := range strings.Split(string(rest), "\x00") {
		if k, v, ok := strings.Cut(kv, "="); ok {
			e[k] = v
		}
	}
	return e
}
