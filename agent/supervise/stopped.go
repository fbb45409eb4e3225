package supervise

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// WakeStopped continues what units have started and somebody has stopped, by
// SIGSTOP or a terminal: a container whose shim is stopped can't be asked, ended or
// removed, and nobody else waits for the shim. It looks every so often until ctx
// ends, and acts on what was stopped at two looks. A unit's main process is left
// to its watchdog; one that is being debugged is in another state.
func (s *Supervisor) WakeStopped(ctx context.Context, every time.Duration) {
	look := time.NewTicker(every)
	defer look.Stop()
	var before map[process]bool
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
		now := map[process]bool{}
		for _, p := range s.stopped() {
			if !before[p] {
				now[p] = true
				continue
			}
			if err := unix.Kill(p.pid, unix.SIGCONT); err == nil {
				s.cfg.Errorf("unit %s: its process %s (%d) was stopped; it goes on", p.unit, p.name, p.pid)
			}
		}
		before = now
	}
}

// process is one, and no other that gets its number later.
type process struct {
	unit, name string
	pid        int
	start      uint64 // in ticks after the boot
}

// stopped lists the stopped processes of all units but the main ones.
func (s *Supervisor) stopped() []process {
	s.mu.Lock()
	units := append([]*running(nil), s.units...)
	s.mu.Unlock()
	var list []process
	for _, r := range units {
		data, _ := os.ReadFile(filepath.Join(s.cfg.Cgroup, r.Name, "cgroup.procs")) // none: it has not started yet
		r.mu.Lock()
		main := r.report.pid
		r.mu.Unlock()
		for _, f := range strings.Fields(string(data)) {
			pid, err := strconv.Atoi(f)
			if err != nil || pid == main || pid <= 1 {
				continue
			}
			if name, state, start, err := readStat(pid); err == nil && state == "T" {
				list = append(list, process{r.Name, name, pid, start})
			}
		}
	}
	return list
}

// readStat reads what proc_pid_stat(5) says: the name in brackets may hold anything.
func readStat(pid int) (name, state string, start uint64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", "", 0, err
	}
	open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 0 || end < open {
		return "", "", 0, fmt.Errorf("read /proc/%d/stat: no name in %q", pid, data)
	}
	fields := strings.Fields(string(data[end+1:]))
	const startField = 22 - 3 // counted from the state, which is the third
	if len(fields) <= startField {
		return "", "", 0, fmt.Errorf("read /proc/%d/stat: %d fields", pid, len(fields))
	}
	start, err = strconv.ParseUint(fields[startField], 10, 64)
	return string(data[open+1 : end]), fields[0], start, err
}
