// Package notify speaks the sd_notify protocol: a service tells the one that
// started it that it is ready, alive, or what it is doing. Both ends are here:
// Socket for init, Send for a child that wants no library.
//
// Left out: file descriptor passing (FDSTORE), which nothing here stores.
package notify

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Message is one datagram of a service. Fields that were not sent are zero.
type Message struct {
	PID       int           // sender, as the kernel says
	Ready     bool          // READY=1
	Reloading bool          // RELOADING=1
	Stopping  bool          // STOPPING=1
	Watchdog  bool          // WATCHDOG=1: alive
	Trigger   bool          // WATCHDOG=trigger: treat as hung
	Interval  time.Duration // WATCHDOG_USEC=: a new watchdog interval
	Extend    time.Duration // EXTEND_TIMEOUT_USEC=
	MainPID   int           // MAINPID=
	Status    string        // STATUS=
}

// Parse reads a datagram. Unknown lines are skipped, as the protocol says.
func Parse(data []byte) Message {
	var m Message
	for line := range strings.SplitSeq(string(data), "\n") {
		key, value, _ := strings.Cut(line, "=")
		switch key {
		case "READY":
			m.Ready = value == "1"
		case "RELOADING":
			m.Reloading = value == "1"
		case "STOPPING":
			m.Stopping = value == "1"
		case "WATCHDOG":
			m.Watchdog, m.Trigger = value == "1", value == "trigger"
		case "WATCHDOG_USEC":
			m.Interval = usec(value)
		case "EXTEND_TIMEOUT_USEC":
			m.Extend = usec(value)
		case "MAINPID":
			if n, err := strconv.Atoi(value); err == nil && n > 1 {
				m.MainPID = n
			}
		case "STATUS":
			m.Status = strings.Map(printable, value)
		}
	}
	return m
}

func usec(s string) time.Duration {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 || n > int64(24*time.Hour/time.Microsecond) {
		return 0
	}
	return time.Duration(n) * time.Microsecond
}

func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return -1 // no control characters from a service to the console
	}
	return r
}

// Socket receives messages of one service.
type Socket struct {
	conn *net.UnixConn
	path string
}

// Listen makes the socket, mode 0600. A file that lies at path is replaced.
func Listen(path string) (*Socket, error) {
	os.Remove(path)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for notifications: %w", err)
	}
	s := &Socket{conn: conn, path: path}
	raw, err := conn.SyscallConn()
	if err == nil {
		var serr error
		err = raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
		err = errors.Join(err, serr)
	}
	if err = errors.Join(err, os.Chmod(path, 0o600)); err != nil {
		s.Close()
		return nil, fmt.Errorf("listen for notifications: %w", err)
	}
	return s, nil
}

// Path is what NOTIFY_SOCKET is set to.
func (s *Socket) Path() string { return s.path }

// Close ends Receive and removes the socket.
func (s *Socket) Close() error {
	os.Remove(s.path)
	return s.conn.Close()
}

// Receive waits for the next message. Datagrams without a sender's credentials
// are dropped. It returns net.ErrClosed after Close.
func (s *Socket) Receive() (Message, error) {
	buf, oob := make([]byte, 4096), make([]byte, 256)
	for {
		n, oobn, _, _, err := s.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return Message{}, fmt.Errorf("receive notification: %w", err)
		}
		pid := sender(oob[:oobn])
		if pid == 0 {
			continue
		}
		m := Parse(buf[:n])
		m.PID = pid
		return m, nil
	}
}

// sender returns the process that sent a message, 0 if it is unknown. File
// descriptors that came along are closed.
func sender(oob []byte) (pid int) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for i := range msgs {
		if cred, err := unix.ParseUnixCredentials(&msgs[i]); err == nil {
			pid = int(cred.Pid)
		}
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}
	return pid
}

// Send tells whoever started this process, through $NOTIFY_SOCKET, lines like
// READY=1. Without that variable it does nothing.
func Send(lines ...string) error { return Sender{path: os.Getenv("NOTIFY_SOCKET")}.Send(lines...) }
