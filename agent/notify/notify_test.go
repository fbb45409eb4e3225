package notify

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]Message{
		"READY=1\nSTATUS=node ready": {Ready: true, Status: "node ready"},
		"READY=0":                    {},
		"WATCHDOG=1":                 {Watchdog: true},
		"WATCHDOG=trigger":           {Trigger: true},
		"WATCHDOG_USEC=2000000\nEXTEND_TIMEOUT_USEC=5000": {Interval: 2 * time.Second, Extend: 5 * time.Millisecond},
		"WATCHDOG_USEC=-1\nEXTEND_TIMEOUT_USEC=x":         {},
		"WATCHDOG_USEC=9223372036854775807":               {},
		"MAINPID=77\nSTOPPING=1\nRELOADING=1":             {MainPID: 77, Stopping: true, Reloading: true},
		"MAINPID=1":                                       {}, // PID 1 is nobody's service
		"MAINPID=-4":                                      {},
		"STATUS=a\x1b[2Jb\rc":                             {Status: "a[2Jbc"},
		"X_OTHER=1\n\nno equal":                           {},
		"":                                                {},
	} {
		if got := Parse([]byte(in)); got != want {
			t.Errorf("Parse(%q) = %+v; want %+v", in, got, want)
		}
	}
}

// Both ends, and the library that skerryd and containerd use, over a real
// socket.
func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(path, nil, 0o644); err != nil { // left by a previous run
		t.Fatal(err)
	}
	s, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := Send("READY=1"); err != nil {
		t.Errorf("Send() without NOTIFY_SOCKET = %v; want nil", err)
	}
	t.Setenv("NOTIFY_SOCKET", s.Path())
	if err := Send("READY=1", "STATUS=x"); err != nil {
		t.Fatal(err)
	}
	if ok, err := daemon.SdNotify(false, daemon.SdNotifyWatchdog); !ok || err != nil {
		t.Fatalf("SdNotify() = %v, %v", ok, err)
	}
	for _, want := range []Message{{PID: os.Getpid(), Ready: true, Status: "x"}, {PID: os.Getpid(), Watchdog: true}} {
		if got, err := s.Receive(); got != want || err != nil {
			t.Errorf("Receive() = %+v, %v; want %+v", got, err, want)
		}
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket has mode %v, %v; want 0600", fi.Mode(), err)
	}
	s.Close()
	if _, err := s.Receive(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Receive() after Close = %v; want %v", err, net.ErrClosed)
	}
	if err := Send("READY=1"); err == nil {
		t.Error("Send() to a closed socket = nil; want an error")
	}
}
