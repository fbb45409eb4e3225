package supervise

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A stopped child of a unit goes on; a stopped main process is left to its watchdog.
func TestWakeStopped(t *testing.T) {
	s, c, dir := start(t, Unit{}, "orphan")
	if err := s.WaitReady("u", 20*time.Second); err != nil {
		t.Fatal(err)
	}
	c.await(t, "status u: ", 1)
	_, status := s.State("u")
	orphan, err := strconv.Atoi(strings.Fields(status)[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(orphan, syscall.SIGKILL) })
	main := s.Report()[0].PID
	// The file that the kernel would show; the processes are real.
	s.cfg.Cgroup = dir
	if err := os.Mkdir(filepath.Join(dir, "u"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "u", "cgroup.procs"), fmt.Appendf(nil, "%d\n%d\n", main, orphan), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{main, orphan} {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	defer syscall.Kill(main, syscall.SIGCONT)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go s.WakeStopped(ctx, 50*time.Millisecond)
	c.await(t, fmt.Sprintf("(%d) was stopped; it goes on", orphan), 1)
	for pid, want := range map[int]bool{main: true, orphan: false} {
		if _, state, _, err := readStat(pid); err != nil || (state == "T") != want {
			t.Errorf("process %d is in state %q, %v; stopped: want %v", pid, state, err, want)
		}
	}
}
