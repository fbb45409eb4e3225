package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/clock"
	"skerry.internal/skerry/agent/mount"
)

// Shutdown is the way down. All of it is optional: whatever fails, the machine
// goes down in the end.
var Shutdown = []Step{
	{Name: "stop units", Optional: true, Limit: 90 * time.Second, Run: stopUnits},
	{Name: "end processes", Optional: true, Run: endProcesses},
	{Name: "save clock and random seed", Optional: true, Run: saveAll},
	{Name: "unmount STATE", Optional: true, Run: unmountState},
	{Name: "flush disks", Optional: true, Run: func(*System) error { unix.Sync(); return nil }},
}

// ShutdownLimit is the time after which whoever waits for Shutdown need not
// wait any longer.
const ShutdownLimit = 4 * time.Minute

func stopUnits(s *System) error {
	s.units.StopAll()
	return nil
}

// grace is the time between SIGTERM and SIGKILL for what is not a unit:
// containers, most of all.
const grace = 10 * time.Second

func endProcesses(s *System) error {
	s.cancel()
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.Kill(-1, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("send %s to all: %w", unix.SignalName(sig), err)
		}
		if s.awaitNone(grace) {
			return nil
		}
	}
	return fmt.Errorf("processes are left: %v", others("/proc"))
}

// awaitNone waits until no other process is left.
func (s *System) awaitNone(patience time.Duration) bool {
	end := time.NewTimer(patience)
	defer end.Stop()
	for {
		if len(others("/proc")) == 0 {
			return true
		}
		select {
		case <-s.Reaper.Reaped(): // all that ends is reaped here, sooner or later
		case <-end.C:
			return len(others("/proc")) == 0
		}
	}
}

const kernelThread = 0x00200000 // PF_KTHREAD

// others lists the processes that are neither this one nor the kernel's.
func others(proc string) (pids []int) {
	files, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "stat"))
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // it has just ended
		}
		pid, flags, zombie := parseStat(string(data))
		if pid > 1 && flags&kernelThread == 0 && !zombie {
			pids = append(pids, pid)
		}
	}
	return pids
}

// parseStat reads number, flags and state of a process. Its name may hold
// anything, so fields count from the last parenthesis.
func parseStat(s string) (pid int, flags uint64, zombie bool) {
	head, _, _ := strings.Cut(s, " ")
	pid, _ = strconv.Atoi(head)
	f := strings.Fields(s[strings.LastIndex(s, ")")+1:])
	if len(f) < 7 {
		return 0, 0, false
	}
	flags, _ = strconv.ParseUint(f[6], 10, 64)
	return pid, flags, f[0] == "Z" || f[0] == "X"
}

func saveAll(s *System) error {
	if _, err := os.Stat(initDir); err != nil {
		return nil // STATE never was there
	}
	return errors.Join(clock.Save(clockFile, time.Now()), saveSeed())
}

func unmountState(*System) error { return mount.UnmountBelow("/var") }

// watchPowerKey listens to the power keys that are there; hotplug adds those
// that come.
func watchPowerKey(s *System) error {
	nodes, err := filepath.Glob("/dev/input/event*")
	for _, n := range nodes {
		s.openKey(n)
	}
	return err
}

const keyPower = 116

// openKey watches one input device, if it has a power key.
func (s *System) openKey(node string) {
	caps, err := os.ReadFile(filepath.Join("/sys/class/input", filepath.Base(node), "device/capabilities/key"))
	if err != nil || !hasKey(string(caps), keyPower) {
		return
	}
	f, err := os.Open(node)
	if err != nil {
		s.Console.Errorf("open power key: %v", err)
		return
	}
	go func() {
		defer f.Close()
		buf := make([]byte, 64*inputEvent)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return // unplugged
			}
			if pressed(buf[:n], keyPower) {
				select {
				case s.PowerKey <- struct{}{}:
				default:
				}
			}
		}
	}()
}

const (
	longSize   = int(unsafe.Sizeof(uintptr(0)))
	inputEvent = 2*longSize + 8 // seconds, microseconds, type, code, value
)

// hasKey reads a bit mask as sysfs prints it: the kernel's longs in hex, the
// highest first.
func hasKey(mask string, key int) bool {
	words := strings.Fields(mask)
	i := len(words) - 1 - key/(8*longSize)
	if i < 0 {
		return false
	}
	w, err := strconv.ParseUint(words[i], 16, 64)
	return err == nil && w>>(key%(8*longSize))&1 == 1
}

// pressed reports whether a key goes down in a series of events.
func pressed(events []byte, key uint16) bool {
	for ; len(events) >= inputEvent; events = events[inputEvent:] {
		e := events[2*longSize:]
		if binary.NativeEndian.Uint16(e) == unixEvKey && binary.NativeEndian.Uint16(e[2:]) == key && !bytes.Equal(e[4:8], make([]byte, 4)) {
			return true
		}
	}
	return false
}

const unixEvKey = 1
