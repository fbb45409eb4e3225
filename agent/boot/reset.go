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

	"skerry.internal/skerry/agent/atomicfile"
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
//	             API, file            made, mounted, noted
//	no mark ───────────────▶ mark ─────────────────────────▶ no mark
//	                         ▲  │
//	                         └──┘ cut
//
// The mark goes last, so a power cut at any moment has the next boot begin
// again. Nothing of the old STATE is used meanwhile.

// reset is the content of the mark.
type reset struct {
	// file is the identity of the file on FIRMWARE that was carried out, now
	// or before; empty if there was none.
	file string
}

const resetMagic = "skerry: make STATE anew\n"

// ResetFile is the file on FIRMWARE by which a person asks for a reset.
const ResetFile = "skerry-reset"

// resetDone remembers the file that was carried out, so that one that can't be
// removed from a worn card works once and not at every boot.
const resetDone = initDir + "/reset-done"

func (r reset) encode() []byte {
	sector := make([]byte, boards.SectorSize)
	copy(sector, resetMagic+r.file+"\n")
	return sector
}

// readReset returns nil if nobody has asked for a reset.
func readReset(dev string) (*reset, error) {
	sector, err := readSector(dev, boards.ResetMark/boards.SectorSize)
	if err != nil {
		return nil, fmt.Errorf("read reset mark: %w", err)
	}
	rest, ok := bytes.CutPrefix(sector, []byte(resetMagic))
	if !ok {
		return nil, nil
	}
	file, _, _ := strings.Cut(string(rest), "\n")
	return &reset{file}, nil
}

func writeReset(dev string, r reset) error {
	if err := writeSector(dev, boards.ResetMark/boards.SectorSize, r.encode()); err != nil {
		return fmt.Errorf("write reset mark: %w", err)
	}
	return nil
}

func clearReset(dev string) error {
	if err := writeSector(dev, boards.ResetMark/boards.SectorSize, make([]byte, boards.SectorSize)); err != nil {
		return fmt.Errorf("clear reset mark: %w", err)
	}
	return nil
}

// carryOut makes STATE anew and mounts it.
func (s *System) carryOut(dev string, r reset) error {
	s.Console.Printf("factory reset: STATE is made anew")
	state := stateMount(dev)
	return carryOut(s.disk.dev, r, func() error { return s.makeState(dev) }, state.Apply, func() error {
		return mount.Apply([]mount.Entry{mount.Dir{Path: stateDir, Mode: 0o700}, mount.Dir{Path: initDir, Mode: 0o700}})
	}, resetDone)
}

func carryOut(disk string, r reset, format, mount, folders func() error, done string) error {
	for _, step := range []func() error{format, mount, folders} {
		if err := step(); err != nil {
			return fmt.Errorf("factory reset: %w", err)
		}
	}
	if r.file != "" {
		if err := atomicfile.WriteFile(done, []byte(r.file+"\n"), 0o600); err != nil {
			return fmt.Errorf("factory reset: note its file: %w", err)
		}
	}
	return clearReset(disk)
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
	id, due, err := resetDue(path, resetDone)
	if err != nil || id == "" {
		return false, err
	}
	if !due {
		// It may be there for good, so that it fails is no error.
		if err := unix.Mount("", fat.Target, "", unix.MS_REMOUNT|unix.MS_SYNCHRONOUS|fat.Flags&^unix.MS_RDONLY, fat.Data); err == nil {
			os.Remove(path)
			unix.Mount("", fat.Target, "", unix.MS_REMOUNT|fat.Flags, fat.Data)
		}
		s.Console.Printf("%s on FIRMWARE was carried out; a new one asks again", ResetFile)
		return false, nil
	}
	if err := writeReset(s.disk.dev, reset{id}); err != nil {
		return false, err
	}
	s.request(Request{unix.LINUX_REBOOT_CMD_RESTART, "factory reset, FIRMWARE holds " + ResetFile})
	return true, nil
}

// resetDue returns the reset file's identity, empty if there is none, and
// whether it is not the one that was carried out.
func resetDue(path, done string) (id string, due bool, err error) {
	id, err = identity(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("read %s: %w", ResetFile, err)
	}
	return id, readDone(done) != id, nil
}

func readDone(done string) string {
	data, _ := os.ReadFile(done)
	return strings.TrimSpace(string(data))
}

// lastResort looks for the reset file when STATE can't be mounted, which is
// when a person needs it most. What was carried out before can't be known then:
// STATE would say. It returns nil if there is none.
func (s *System) lastResort() *reset {
	fat := mount.Mount{Target: firmwareDir, Type: "vfat", Flags: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, Data: "umask=0077"}
	var err error
	if fat.Source, err = s.disk.partition("/dev", boards.PartFirmware); err != nil || fat.Apply() != nil {
		return nil
	}
	defer unix.Unmount(firmwareDir, 0)
	id, err := identity(filepath.Join(firmwareDir, ResetFile))
	if err != nil || writeReset(s.disk.dev, reset{id}) != nil {
		return nil
	}
	return &reset{id}
}

// askReset is the status API's way to a factory reset.
func (s *System) askReset() error {
	dev := s.recall().disk.dev
	if dev == "" {
		return errors.New("factory reset: no disk")
	}
	// A file that can't be removed must not ask once more.
	if err := writeReset(dev, reset{readDone(resetDone)}); err != nil {
		return err
	}
	s.request(Request{unix.LINUX_REBOOT_CMD_RESTART, "factory reset"})
	return nil
}
