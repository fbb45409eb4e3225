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
	"unsafe"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/boards"
)

// disk is the disk that this system was flashed to.
type disk struct {
	sys string // for example /sys/devices/…/block/mmcblk0
	dev string // for example /dev/mmcblk0
}

// findDisk looks for the disk with our signature through sysfs; there is no
// udev. Of several the first by name counts.
func findDisk(sys, dev string) (disk, error) {
	entries, err := os.ReadDir(filepath.Join(sys, "class/block"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return disk{}, fmt.Errorf("list block devices: %w", err)
	}
	for _, e := range entries {
		d := disk{filepath.Join(sys, "class/block", e.Name()), devNode(dev, e.Name())}
		if _, err := os.Stat(filepath.Join(d.sys, "partition")); err == nil {
			continue
		}
		if mbr, err := readSector(d.dev, 0); err == nil && hasSignature(mbr) {
			return d, nil
		}
	}
	return disk{}, fmt.Errorf("disk with signature %08x: %w", boards.DiskSignature, errNotFound)
}

// devNode is the path of a block device: sysfs writes / as !.
func devNode(dev, name string) string {
	return filepath.Join(dev, strings.ReplaceAll(name, "!", "/"))
}

// partition returns the device of the disk's partition with that number.
func (d disk) partition(dev string, number int) (string, error) {
	files, _ := filepath.Glob(filepath.Join(d.sys, "*", "partition"))
	for _, f := range files {
		data, err := os.ReadFile(f)
		if n, cerr := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && cerr == nil && n == number {
			return devNode(dev, filepath.Base(filepath.Dir(f))), nil
		}
	}
	return "", fmt.Errorf("partition %d of %s: %w", number, d.dev, errNotFound)
}

// parsePartUUID reads "PARTUUID=534b5259-02".
func parsePartUUID(s string) (number int, err error) {
	sig, num, ok := strings.Cut(strings.TrimPrefix(s, "PARTUUID="), "-")
	n, err := strconv.ParseUint(num, 16, 8)
	if !strings.HasPrefix(s, "PARTUUID=") || !ok || err != nil || n < 1 || n > 4 {
		return 0, fmt.Errorf("parse skerry.part %q: want PARTUUID=%08x-02 or -03", s, boards.DiskSignature)
	}
	if !strings.EqualFold(sig, fmt.Sprintf("%08x", boards.DiskSignature)) {
		return 0, fmt.Errorf("parse skerry.part %q: got disk %s, want %08x", s, sig, boards.DiskSignature)
	}
	return int(n), nil
}

func readSector(path string, n int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, boards.SectorSize)
	_, err = f.ReadAt(b, n*boards.SectorSize)
	return b, err
}

// writeSector writes one sector and flushes it. A disk writes a sector whole
// or not at all, so a power cut leaves the old or the new one.
func writeSector(path string, n int64, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, n*boards.SectorSize)
	return errors.Join(err, f.Sync(), f.Close())
}

func hasSignature(mbr []byte) bool {
	return binary.LittleEndian.Uint32(mbr[440:]) == boards.DiskSignature && mbr[510] == 0x55 && mbr[511] == 0xaa
}

const (
	mbrTable   = 446
	mbrEntry   = 16
	growAlign  = boards.MiB / boards.SectorSize
	maxSectors = 1<<32 - 1
)

// growState returns the boot record with STATE reaching to the end of a disk
// of that many sectors, and STATE's place. changed is false when it does so
// already: then there is nothing to write.
func growState(mbr []byte, sectors uint64) (out []byte, start, length uint64, changed bool, err error) {
	if len(mbr) != boards.SectorSize || !hasSignature(mbr) {
		return nil, 0, 0, false, fmt.Errorf("grow STATE: the boot record is not ours")
	}
	le := binary.LittleEndian
	e := mbr[mbrTable+(boards.PartState-1)*mbrEntry:][:mbrEntry]
	start, length = uint64(le.Uint32(e[8:])), uint64(le.Uint32(e[12:]))
	if e[4] != boards.TypeState || start != boards.StateStart/boards.SectorSize {
		return nil, 0, 0, false, fmt.Errorf("grow STATE: got partition 4 of type %#x at sector %d, want %#x at %d", e[4], start, boards.TypeState, boards.StateStart/boards.SectorSize)
	}
	end := min(sectors, maxSectors) / growAlign * growAlign
	if end <= start+length {
		return mbr, start, length, false, nil // a smaller disk is an error of whoever flashed it; never shrink
	}
	out = bytes.Clone(mbr)
	length = end - start
	e = out[mbrTable+(boards.PartState-1)*mbrEntry:][:mbrEntry]
	copy(e[5:8], "\xfe\xff\xff") // cylinders can't say it
	le.PutUint32(e[12:], uint32(length))
	return out, start, length, true, nil
}

// grow makes STATE reach to the end of the disk. A power cut at any point
// leaves a disk with which the next boot does the same again.
func (d disk) grow() (grown bool, err error) {
	mbr, err := readSector(d.dev, 0)
	if err != nil {
		return false, fmt.Errorf("grow STATE: %w", err)
	}
	data, err := os.ReadFile(filepath.Join(d.sys, "size"))
	if err != nil {
		return false, fmt.Errorf("grow STATE: %w", err)
	}
	sectors, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return false, fmt.Errorf("grow STATE: %w", err)
	}
	out, start, length, changed, err := growState(mbr, sectors)
	if err != nil || !changed {
		return false, err
	}
	if err := writeSector(d.dev, 0, out); err != nil {
		return false, fmt.Errorf("write boot record: %w", err)
	}
	// The kernel keeps its own table while partitions are in use.
	if err := resizePartition(d.dev, boards.PartState, start, length); err != nil {
		return false, fmt.Errorf("tell the kernel of the grown STATE: %w", err)
	}
	return true, nil
}

func resizePartition(dev string, number int, start, length uint64) error {
	f, err := os.Open(dev)
	if err != nil {
		return err
	}
	defer f.Close()
	p := unix.BlkpgPartition{Start: int64(start) * boards.SectorSize, Length: int64(length) * boards.SectorSize, Pno: int32(number)}
	arg := unix.BlkpgIoctlArg{Op: unix.BLKPG_RESIZE_PARTITION, Datalen: int32(unsafe.Sizeof(p)), Data: (*byte)(unsafe.Pointer(&p))}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return errno
	}
	return nil
}

// formatted is in STATE's first sector, which ext4 leaves to boot loaders,
// once its file system was made whole. It is written after everything else has
// been flushed: without it, making the file system was cut short.
const formatted = "skerry: STATE is formatted\n"

// stateKind is what a STATE partition holds.
type stateKind int

const (
	stateBlank   stateKind = iota // nothing, or half a file system that never was mounted
	stateReady                    // ours, made whole
	stateInUse                    // no mark, but a file system that has been mounted: somebody's data
	stateErrors                   // ours, and the kernel has found errors in it
	stateDamaged                  // ours by the mark outside of it; its first page is lost
)

const (
	ext4Super     = 1024 // offset of the superblock
	ext4Magic     = 0xef53
	ext4MagicAt   = ext4Super + 56
	ext4MountTime = ext4Super + 44
	ext4MountNum  = ext4Super + 52
	ext4State     = ext4Super + 58
	ext4HasErrors = 2
)

// examine says what the first 2048 bytes of STATE mean.
func examine(head []byte) stateKind {
	le := binary.LittleEndian
	isExt4 := le.Uint16(head[ext4MagicAt:]) == ext4Magic
	switch {
	case bytes.HasPrefix(head, []byte(formatted)):
		if isExt4 && le.Uint16(head[ext4State:])&ext4HasErrors != 0 {
			return stateErrors
		}
		return stateReady
	case isExt4 && (le.Uint32(head[ext4MountTime:]) != 0 || le.Uint16(head[ext4MountNum:]) != 0):
		return stateInUse
	}
	return stateBlank
}
