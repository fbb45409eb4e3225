package boot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/modules"
	"skerry.internal/skerry/agent/mount"
	"skerry.internal/skerry/agent/verity"
	"skerry.internal/skerry/agent/watchdog"
)

// Initramfs is the first half of a boot: from the kernel's start to the root
// file system of the chosen slot. main then executes the init that lies there.
var Initramfs = []Step{
	{Name: "mount kernel file systems", Run: mountKernel},
	// The board's reset and watchdog come first in the list: without them a
	// Raspberry Pi can neither reboot nor reset after a panic.
	{Name: "load listed modules", Optional: true, Run: loadListed},
	{Name: "start watchdog", Optional: true, Run: startWatchdog},
	{Name: "load modules for hardware", Optional: true, Run: coldplug},
	{Name: "find slot", Run: findSlot},
	{Name: "open slot", Run: openSlot},
	{Name: "mount root", Run: mountRoot},
	{Name: "check init", Run: checkInit},
	{Name: "count boot", Run: countBoot},
	{Name: "switch root", Run: switchRoot},
}

const (
	initModules = "/etc/skerry/modules"
	newRoot     = "/newroot"
	// Init is the program that goes on in the root file system.
	Init = "/sbin/init"
	// slotPatience is how long storage may take to turn up: USB disks take
	// ten seconds.
	slotPatience = 40 * time.Second
)

var kernelMounts = []mount.Entry{
	mount.Mount{Source: "proc", Target: "/proc", Type: "proc", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	mount.Mount{Source: "sysfs", Target: "/sys", Type: "sysfs", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	mount.Mount{Source: "dev", Target: "/dev", Type: "devtmpfs", Flags: unix.MS_NOSUID, Data: "mode=0755"},
	// Notices and worse reach the console, whatever the command line says,
	// and our own lines are not held back as too many.
	mount.Setting{Path: "/proc/sys/kernel/printk_devkmsg", Value: "on\n", Optional: true},
	mount.Setting{Path: "/proc/sys/kernel/printk", Value: "6", Optional: true},
}

func mountKernel(s *System) error {
	if err := mount.Apply(kernelMounts); err != nil {
		return err
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return fmt.Errorf("read kernel command line: %w", err)
	}
	s.Args = ParseCommandLine(string(line))
	s.learn(func(k *known) { k.args = s.Args })
	return nil
}

func loadListed(s *System) error {
	var err error
	// Before anything that makes devices appear.
	if s.events, err = modules.Listen(); err != nil {
		return err
	}
	if s.tree, err = modules.Open("/"); err != nil {
		return err
	}
	list, err := modules.ReadList(initModules)
	if err != nil {
		return err
	}
	return s.tree.LoadAll(list)
}

func coldplug(s *System) error {
	if s.tree == nil {
		return errors.New("no module tree")
	}
	return s.tree.Coldplug("/sys")
}

// startWatchdog opens the hardware watchdog, or takes over the one that the
// initramfs has opened.
func startWatchdog(s *System) error {
	if s.Args["skerry.watchdog"] == "off" || s.Feeder != nil {
		return nil
	}
	hw := watchdog.Inherit(os.Getenv(WatchdogVariable))
	if hw == nil {
		var err error
		hw, err = watchdog.Open("/dev/watchdog0")
		if errors.Is(err, os.ErrNotExist) {
			return nil // not every board has one
		}
		if err != nil {
			return err
		}
		s.Console.Printf("hardware watchdog started, %v", hw.Timeout)
	}
	s.Hardware = hw
	s.Feeder = watchdog.NewFeeder(hw, min(hw.Timeout/3, 5*time.Second), 2*stepLimit)
	return nil
}

// WatchdogVariable hands the open watchdog from the initramfs to the root.
const WatchdogVariable = "SKERRY_WATCHDOG"

// findSlot waits for the partition that boot.scr has named; loading modules
// for what turns up is part of the wait.
func findSlot(s *System) error {
	number, err := parsePartUUID(s.Args["skerry.part"])
	if err != nil {
		return s.slotError("no slot: %w", err)
	}
	deadline := time.Now().Add(slotPatience)
	for {
		d, err := findDisk("/sys", "/dev")
		if err == nil {
			if s.device, err = d.partition("/dev", number); err == nil {
				if _, err = os.Stat(s.device); err == nil {
					return nil
				}
			}
		}
		if s.events == nil || !time.Now().Before(deadline) {
			return s.slotError("no slot after %v: %w", slotPatience, err)
		}
		e, eerr := s.events.Next(time.Until(deadline))
		switch {
		case errors.Is(eerr, modules.ErrOverrun):
			eerr = coldplug(s)
		case errors.Is(eerr, modules.ErrTimeout):
			eerr = nil
		case eerr == nil && e["MODALIAS"] != "" && s.tree != nil:
			eerr = s.tree.Plug(e["MODALIAS"])
		}
		if eerr != nil {
			s.Console.Errorf("%v", eerr)
		}
	}
}

func (s *System) slotError(format string, args ...any) error {
	return fmt.Errorf("slot %s: "+format, append([]any{s.slot()}, args...)...)
}

func (s *System) slot() string {
	if a := s.Args["skerry.slot"]; a != "" {
		return a
	}
	return "unknown"
}

// refused is what a slot's damage looks like on the console.
func (s *System) refused(err error) error {
	return refusal{s.slotError("root file system refused: %w", err)}
}

func openSlot(s *System) error {
	p, err := verity.ParseParams(s.device, s.Args["skerry.rootoff"], s.Args["skerry.hashoff"], s.Args["skerry.roothash"])
	if err != nil {
		return s.refused(err)
	}
	for _, m := range []string{"crypto-sha256", "dm_mod", "dm_verity"} {
		if err := s.load(m); err != nil && m != "crypto-sha256" {
			return s.refused(err)
		}
	}
	if s.device, err = verity.Open(p); err != nil {
		return s.refused(err)
	}
	return nil
}

func (s *System) load(name string) error {
	if s.tree == nil {
		return fmt.Errorf("load module %q: no module tree", name)
	}
	return s.tree.Load(name)
}

func mountRoot(s *System) error {
	kind := s.Args["skerry.rootfs"]
	if kind != "squashfs" && kind != "erofs" {
		return s.refused(fmt.Errorf("parse skerry.rootfs %q: want squashfs or erofs", kind))
	}
	if err := s.load(kind); err != nil {
		return s.refused(err)
	}
	root := mount.Mount{Source: s.device, Target: newRoot, Type: kind, Flags: unix.MS_RDONLY | unix.MS_NODEV}
	if err := root.Apply(); err != nil {
		return s.refused(fmt.Errorf("%v: %w", root, err))
	}
	return nil
}

// checkInit reads the next init whole: a damaged block is found while it can
// be reported, and not as the death of PID 1.
func checkInit(s *System) error {
	f, err := os.Open(newRoot + Init)
	if err != nil {
		return s.refused(err)
	}
	defer f.Close()
	if _, err := io.Copy(io.Discard, f); err != nil {
		return s.refused(err)
	}
	return nil
}

// switchRoot makes the root file system / and frees the memory of the
// initramfs, including this program's own file.
func switchRoot(s *System) error {
	if s.events != nil {
		s.events.Close()
	}
	for _, m := range []string{"/dev", "/proc", "/sys"} {
		if err := unix.Mount(m, newRoot+m, "", unix.MS_MOVE, ""); err != nil {
			return s.refused(fmt.Errorf("move %s into the root file system: %w", m, err))
		}
	}
	if err := emptyRAM("/"); err != nil {
		s.Console.Errorf("free initramfs: %v", err)
	}
	if err := unix.Chdir(newRoot); err != nil {
		return s.refused(fmt.Errorf("enter root file system: %w", err))
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return s.refused(fmt.Errorf("move root file system: %w", err))
	}
	if err := errors.Join(unix.Chroot("."), unix.Chdir("/")); err != nil {
		return s.refused(fmt.Errorf("change root: %w", err))
	}
	return nil
}

// emptyRAM removes everything on the file system of dir, which must be in
// memory; it never enters another one.
func emptyRAM(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return err
	}
	if uint32(fs.Type) != unix.RAMFS_MAGIC && uint32(fs.Type) != unix.TMPFS_MAGIC {
		return fmt.Errorf("%q is not in memory", dir)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return err
	}
	return removeOn(dir, uint64(st.Dev))
}

func removeOn(dir string, dev uint64) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || uint64(st.Dev) != dev {
			continue
		}
		if e.IsDir() {
			errs = append(errs, removeOn(path, dev))
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
