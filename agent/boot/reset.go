package boot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/mount"
	"skerry.internal/skerry/boards"
)

// Request is what the status API asks main to do to the machine.
type Request struct {
	Command int // as reboot(2) has it
	Why     string
}

// request hands r to main; one that waits already counts for both.
func (s *System) request(r Request) {
	select {
	case s.Requests <- r:
	default:
	}
}

// A factory reset makes STATE's file system anew. What asks for it is a mark
// in a sector of its own, outside of STATE: so it can be written while STATE is
// full, read-only or damaged, and no file system can write over it.
//
//	         API, file            made, mounted
//	done ───────────────▶ due ───────────────────▶ done
//	                      ▲  │
//	                      └──┘ cut
//
// The mark goes last, so a power cut at any moment has the next boot begin
// again. Nothing of the old STATE is used meanwhile. The mark keeps which file
// asked, so that one that can't be removed from a worn card works once, not at
// every boot, whatever has become of STATE.

// reset is the content of the mark. A new card has none: nothing is due.
type reset struct {
	due bool
	// file is the identity of the file on FIRMWARE that was carried out, or is
	// to be; empty if there was none.
	file string
}

const (
	resetDue  = "skerry: make STATE anew\n"
	resetDone = "skerry: STATE was made anew\n"
)

// ResetFile is the file on FIRMWARE by which a person asks for a reset.
const ResetFile = "skerry-reset"

func (r reset) encode() []byte {
	magic := resetDone
	if r.due {
		magic = resetDue
	}
	sector := make([]byte, boards.SectorSize)
	copy(sector, magic+r.file+"\n")
	return sector
}

func readReset(dev string) (reset, error) {
	sector, err := readSector(dev, boards.ResetMark/boards.SectorSize)
	if err != nil {
		return reset{}, fmt.Errorf("read reset mark: %w", err)
	}
	for _, due := range []bool{true, false} {
		magic := resetDone
		if due {
			magic = resetDue
		}
		if rest, ok := bytes.CutPrefix(sector, []byte(magic)); ok {
			file, _, _ := strings.Cut(string(rest), "\n")
			return reset{due, file}, nil
		}
	}
	return reset{}, nil
}

func writeReset(dev string, r reset) error {
	if err := writeSector(dev, boards.ResetMark/boards.SectorSize, r.encode()); err != nil {
		return fmt.Errorf("write reset mark: %w", err)
	}
	return nil
}

// carryOut makes STATE anew and mounts it.
func (s *System) carryOut(dev string, r reset) error {
	s.Console.Printf("factory reset: STATE is made anew")
	state := stateMount(dev)
	return carryOut(s.disk.dev, r, func() error { return s.makeState(dev) }, state.Apply)
}

func carryOut(disk string, r reset, format, mount func() error) error {
	for _, step := range []func() error{format, mount} {
		if err := step(); err != nil {
			return fmt.Errorf("factory reset: %w", err)
		}
	}
	return writeReset(disk, reset{false, r.file})
}

// identity tells one reset file from another that somebody makes later.
func identity(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d %d ", fi.Size(), fi.ModTime().Unix())
	if _, err := io.Copy(h, io.LimitReader(f, 1<<20)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// resetByFile looks for the reset file on the mounted FIRMWARE. One that was
// not carried out yet asks for a reset and reboots; one that was is removed.
func (s *System) resetByFile(fat mount.Mount) (asked bool, err error) {
	path := filepath.Join(fat.Target, ResetFile)
	id, done, err := askedByFile(path, s.disk.dev)
	if err != nil || id == "" {
		return false, err
	}
	if done {
		// It may be there for good, so that it fails is no error.
		if err := unix.Mount("", fat.Target, "", unix.MS_REMOUNT|unix.MS_SYNCHRONOUS|fat.Flags&^unix.MS_RDONLY, fat.Data); err == nil {
			os.Remove(path)
			unix.Mount("", fat.Target, "", unix.MS_REMOUNT|fat.Flags, fat.Data)
		}
		s.Console.Printf("%s on FIRMWARE was carried out; a new one asks again", ResetFile)
		return false, nil
	}
	if err := writeReset(s.disk.dev, reset{true, id}); err != nil {
		return false, err
	}
	s.request(Request{unix.LINUX_REBOOT_CMD_RESTART, "factory reset, FIRMWARE holds " + ResetFile})
	return true, nil
}

// askedByFile returns the reset file's identity, empty if there is none, and
// whether it was carried out already.
func askedByFile(path, disk string) (id string, done bool, err error) {
	id, err = identity(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("read %s: %w", ResetFile, err)
	}
	mark, err := readReset(disk)
	return id, !mark.due && mark.file == id, err
}

// lastResort looks for the reset file when STATE can't be mounted, which is
// when a person needs it most. One that was carried out before asks no more: the
// node's data may still be saved from this STATE.
func (s *System) lastResort() (r reset, asked bool) {
	fat := mount.Mount{Target: firmwareDir, Type: "vfat", Flags: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, Data: "umask=0077"}
	var err error
	if fat.Source, err = s.disk.partition("/dev", boards.PartFirmware); err != nil || fat.Apply() != nil {
		return r, false
	}
	defer unix.Unmount(firmwareDir, 0)
	id, done, err := askedByFile(filepath.Join(firmwareDir, ResetFile), s.disk.dev)
	r = reset{true, id}
	if err != nil || id == "" || done || writeReset(s.disk.dev, r) != nil {
		return r, false
	}
	return r, true
}

// askReset is the status API's way to a factory reset.
func (s *System) askReset() error {
	dev := s.recall().disk.dev
	if dev == "" {
		return errors.New("factory reset: no disk")
	}
	mark, err := readReset(dev)
	if err != nil {
		return err
	}
	mark.due = true // a file that can't be removed must not ask once more
	if err := writeReset(dev, mark); err != nil {
		return err
	}
	s.request(Request{unix.LINUX_REBOOT_CMD_RESTART, "factory reset"})
	return nil
}
