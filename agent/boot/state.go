package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/mount"
	"skerry.internal/skerry/boards"
)

// mountState mounts STATE at /var. At first boot it is made: the partition
// grows to the end of the disk, then comes the file system, then a mark that
// both are whole. Each of the three can be cut short and is repeated by the
// next boot; nothing is ever formatted that has been in use.
//
// A factory reset is a mark outside of STATE (reset.go): then it is made anew,
// whatever it holds.
func mountState(s *System) error {
	var err error
	if s.disk, err = findDisk("/sys", "/dev"); err != nil {
		return err
	}
	s.learn(func(k *known) { k.disk = s.disk })
	dev, err := s.disk.partition("/dev", boards.PartState)
	if err != nil {
		return err
	}
	mark, err := readReset(s.disk.dev)
	if err != nil {
		s.Console.Errorf("%v", err) // STATE may be fine all the same
	}
	if !mark.due {
		err := s.openState(dev)
		if err == nil {
			return nil
		}
		var asked bool
		if mark, asked = s.lastResort(); !asked {
			return err
		}
		s.Console.Errorf("mount STATE: %v; FIRMWARE holds %s, so it is made anew", err, ResetFile)
	}
	return s.carryOut(dev, mark)
}

// openState makes or repairs STATE as its content asks for, and mounts it.
func (s *System) openState(dev string) error {
	kind, err := s.examineState(dev)
	if err != nil {
		return err
	}
	switch kind {
	case stateBlank:
		if err := s.makeState(dev); err != nil {
			return err
		}
	case stateInUse:
		s.Console.Errorf("STATE has no mark of ours but a file system that was in use: it is used as it is")
	case stateDamaged:
		if err := s.reclaim(dev); err != nil {
			return err
		}
	case stateErrors:
		if err := s.repair(dev); err != nil {
			return err
		}
	}
	state := stateMount(dev)
	err = state.Apply()
	if err == nil {
		return nil
	}
	s.Console.Errorf("%v: %v; repairing it", state, err)
	if err := s.repair(dev); err != nil {
		return err
	}
	if err := state.Apply(); err != nil {
		return fmt.Errorf("%v: %w", state, err)
	}
	return nil
}

func stateMount(dev string) mount.Mount {
	return mount.Mount{Source: dev, Target: "/var", Type: "ext4", Flags: unix.MS_NOATIME, Data: stateOptions}
}

func examineDevice(dev string) (stateKind, error) {
	f, err := os.Open(dev)
	if err != nil {
		return 0, fmt.Errorf("open STATE: %w", err)
	}
	defer f.Close()
	head := make([]byte, 2048)
	if _, err := io.ReadFull(f, head); err != nil {
		return 0, fmt.Errorf("read STATE: %w", err)
	}
	return examine(head), nil
}

func (s *System) makeState(dev string) error {
	grown, err := s.disk.grow()
	if err != nil {
		return err
	}
	if grown {
		s.Console.Printf("STATE grown to the end of the disk")
	}
	if err := s.tool("/usr/sbin/mkfs.ext4", 0, "-F", "-q", "-L", "STATE", "-m", "1", "-i", "32768",
		"-E", "lazy_itable_init=1,lazy_journal_init=1", dev); err != nil {
		return err
	}
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("mark STATE: %w", err)
	}
	err = f.Sync() // all of the file system before the mark
	if err == nil {
		_, err = f.WriteAt([]byte(formatted), 0)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("mark STATE: %w", err)
	}
	if err := markState(s.disk.dev); err != nil {
		return err
	}
	s.Console.Printf("STATE formatted")
	return nil
}

// tool runs a program whose exit status must be at most good.
func (s *System) tool(path string, good int, args ...string) error {
	ctx, cancel := context.WithTimeout(s.ctx, 25*time.Minute)
	defer cancel()
	out, status, err := s.Reaper.Output(ctx, path, args...)
	if err != nil {
		return err
	}
	if status > good {
		return fmt.Errorf("run %q: exit status %d: %s", path, status, last(out, 400))
	}
	return nil
}

func last(b []byte, n int) []byte { return b[max(0, len(b)-n):] }
