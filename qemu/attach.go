package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/boards"
)

// RecordFile is in the folder of a machine that outlives who started it.
const RecordFile = "machine.json"

// Record is what it takes to find a machine again and to start it as before.
type Record struct {
	Board    string      `json:"board"`
	Machine  string      `json:"machine"`
	Image    string      `json:"image"`
	Cluster  string      `json:"cluster,omitempty"`
	Memory   int         `json:"memory"`
	SMP      int         `json:"smp"`
	PID      int         `json:"pid"` // 0: off
	Ports    map[int]int `json:"ports"`
	Started  time.Time   `json:"started"`
	ReadyIn  float64     `json:"readySeconds"` // 0: it wasn't waited for
	Watchdog bool        `json:"watchdog"`
}

// Save writes the record durably enough for a throw-away machine: whole or not at all.
func (r Record) Save(dir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write machine record: %w", err)
	}
	file := filepath.Join(dir, RecordFile)
	if err := os.WriteFile(file+".part", append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write machine record: %w", err)
	}
	if err := os.Rename(file+".part", file); err != nil {
		return fmt.Errorf("write machine record: %w", err)
	}
	return nil
}

// Load reads the record in dir. PID is 0 if that process is not this machine any more.
func Load(dir string) (Record, error) {
	var r Record
	b, err := os.ReadFile(filepath.Join(dir, RecordFile))
	if err != nil {
		return r, fmt.Errorf("read machine record: %w", err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read machine record %q: %w", filepath.Join(dir, RecordFile), err)
	}
	if !isMachine(r.PID, dir) {
		r.PID = 0
	}
	return r, nil
}

// isMachine tells QEMU with this folder from a process that has its number by now.
func isMachine(pid int, dir string) bool {
	dir, err := filepath.Abs(dir)
	if err != nil || pid <= 0 {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.Contains(string(b), "logfile="+escape(filepath.Join(dir, ConsoleFile)))
}

// config is the Config to start r's machine again.
func (r Record) config(dir string) (Config, error) {
	board, err := boards.ByName(r.Board)
	if err != nil {
		return Config{}, err
	}
	machine, err := board.Machine(r.Machine)
	if err != nil {
		return Config{}, err
	}
	return Config{Dir: dir, Machine: machine, Memory: r.Memory, SMP: r.SMP, Forwards: r.Ports, Detach: true, Watchdog: r.Watchdog}, nil
}

// Reopen prepares a recorded machine that is off, with the disk it had.
func Reopen(ctx context.Context, dir string) (*VM, Record, error) {
	r, err := Load(dir)
	if err != nil {
		return nil, r, err
	}
	if r.PID != 0 {
		return nil, r, fmt.Errorf("start machine in %q: it runs already", dir)
	}
	cfg, err := r.config(dir)
	if err != nil {
		return nil, r, err
	}
	vm, err := New(ctx, cfg)
	return vm, r, err
}

// ErrOff says that a machine isn't running.
var ErrOff = errors.New("the machine is off")

// Attach connects to a recorded machine that runs. Its console begins with what is printed from now on.
func Attach(ctx context.Context, dir string) (*VM, error) {
	r, err := Load(dir)
	if err != nil {
		return nil, err
	}
	if r.PID == 0 {
		return nil, fmt.Errorf("attach to machine in %q: %w", dir, ErrOff)
	}
	cfg, err := r.config(dir)
	if err != nil {
		return nil, err
	}
	if cfg.Dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("attach to machine: %w", err)
	}
	pidfd, err := unix.PidfdOpen(r.PID, 0)
	if err != nil {
		return nil, fmt.Errorf("attach to machine in %q: %w", dir, err)
	}
	vm := &VM{cfg: cfg, grown: make(chan struct{}), done: make(chan struct{}), pid: r.PID, ports: r.Ports}
	go func() {
		defer unix.Close(pidfd)
		for {
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1); err != unix.EINTR {
				vm.finish(nil)
				return
			}
		}
	}()
	connecting, cancel := context.WithTimeout(ctx, attachTime)
	defer cancel()
	if err := vm.connect(connecting); err != nil {
		vm.Disconnect()
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			err = fmt.Errorf("no answer within %s: if another command holds it (skerry qemu up that waits for its node, console --follow), end that one first: %w", attachTime, err)
		}
		return nil, fmt.Errorf("attach to machine in %q: %w", dir, err)
	}
	return vm, nil
}

// attachTime is how long a busy QEMU may take to answer. It serves one connection at a
// time: a second one hears nothing until the first is closed.
const attachTime = 15 * time.Second

// Exists says whether dir holds a machine.
func Exists(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, RecordFile))
	return !errors.Is(err, fs.ErrNotExist)
}
