package notify

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Sender is a service's way to whoever started it. The zero value sends
// nothing, as does one made where nobody listens.
type Sender struct {
	path     string
	watchdog time.Duration
}

// Take makes the Sender of this process and removes the protocol's variables
// from its environment. Libraries in the process would use them too:
// kube-apiserver says READY=1 for itself alone and then unsets the variable,
// and the kubelet starts a watchdog of its own.
func Take() Sender {
	s := Sender{path: os.Getenv("NOTIFY_SOCKET")}
	if usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && usec > 0 {
		s.watchdog = time.Duration(usec) * time.Microsecond
	}
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		os.Unsetenv(name)
	}
	return s
}

// Watchdog is the time within which WATCHDOG=1 is expected; 0 means never.
func (s Sender) Watchdog() time.Duration { return s.watchdog }

// Send sends lines like READY=1.
func (s Sender) Send(lines ...string) error {
	if s.path == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("send notification: %w", err)
	}
	_, err = conn.Write([]byte(strings.Join(lines, "\n")))
	if err := errors.Join(err, conn.Close()); err != nil {
		return fmt.Errorf("send notification: %w", err)
	}
	return nil
}
