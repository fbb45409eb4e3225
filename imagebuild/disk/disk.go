// Package disk writes and reads what lies on a Skerry disk: the partition
// table, the image file, and the dm-verity tree of a slot. Everything it writes depends only on what it was given: no random serial
// numbers, no time of day. Sizes and places are boards/layout.go's.
//
// Left out: FAT (package fat), making the root file system itself, ext4 (the device makes STATE at
// its first boot), and the meaning of boot state and slot.txt (package slots).
package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"skerry.internal/skerry/boards"
)

// Partition is one entry of the master boot record, in bytes.
type Partition struct {
	Number      int    `json:"number"`
	Name        string `json:"name"`
	Type        byte   `json:"type"`
	Start, Size int64  `json:"-"`
}

// Partitions is the partition table of every image.
func Partitions() []Partition {
	return []Partition{
		{boards.PartFirmware, "FIRMWARE", boards.TypeFirmware, boards.FirmwareStart, boards.FirmwareSize},
		{boards.PartSlotA, "SLOT-A", boards.TypeSlot, boards.SlotAStart, boards.SlotSize},
		{boards.PartSlotB, "SLOT-B", boards.TypeSlot, boards.SlotBStart, boards.SlotSize},
		{boards.PartState, "STATE", boards.TypeState, boards.StateStart, boards.StateSize},
	}
}

// Where a master boot record keeps things.
const (
	mbrSignature = 440
	mbrEntries   = 446
	mbrEntrySize = 16
	mbrMagic     = 510
)

// MBR returns the master boot record with the partition table. Its code area
// is empty: no board of ours executes it.
func MBR(parts []Partition) []byte {
	b := make([]byte, boards.SectorSize)
	binary.LittleEndian.PutUint32(b[mbrSignature:], boards.DiskSignature)
	for _, p := range parts {
		e := b[mbrEntries+(p.Number-1)*mbrEntrySize:]
		if p.Number == boards.PartFirmware {
			e[0] = 0x80 // active: U-Boot looks for boot.scr on active partitions first
		}
		// Places beyond what cylinders, heads and sectors can tell.
		copy(e[1:4], "\xfe\xff\xff")
		e[4] = p.Type
		copy(e[5:8], "\xfe\xff\xff")
		binary.LittleEndian.PutUint32(e[8:], uint32(p.Start/boards.SectorSize))
		binary.LittleEndian.PutUint32(e[12:], uint32(p.Size/boards.SectorSize))
	}
	b[mbrMagic], b[mbrMagic+1] = 0x55, 0xaa
	return b
}

// ErrNotSkerry says that something is no Skerry disk.
var ErrNotSkerry = errors.New("not a Skerry image")

// ReadMBR reads the partition table of a Skerry disk.
func ReadMBR(r io.ReaderAt) ([]Partition, error) {
	b := make([]byte, boards.SectorSize)
	if _, err := r.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("%w: it is too short for a partition table", ErrNotSkerry)
	}
	if b[mbrMagic] != 0x55 || b[mbrMagic+1] != 0xaa {
		return nil, fmt.Errorf("%w: no partition table", ErrNotSkerry)
	}
	if got := binary.LittleEndian.Uint32(b[mbrSignature:]); got != boards.DiskSignature {
		return nil, fmt.Errorf("%w: disk signature %08x, want %08x", ErrNotSkerry, got, boards.DiskSignature)
	}
	parts := Partitions()
	for i := range parts {
		e := b[mbrEntries+i*mbrEntrySize:]
		parts[i].Type = e[4]
		parts[i].Start = int64(binary.LittleEndian.Uint32(e[8:])) * boards.SectorSize
		parts[i].Size = int64(binary.LittleEndian.Uint32(e[12:])) * boards.SectorSize
		if parts[i].Start == 0 || parts[i].Size == 0 {
			return nil, fmt.Errorf("%w: partition %d is missing", ErrNotSkerry, i+1)
		}
	}
	return parts, nil
}

// Part is content at a place in an image.
type Part struct {
	Name   string
	Offset int64
	Room   int64
	Data   []byte // or
	File   string
}

// WriteImage writes the parts into a new sparse file of the given size.
// It is the caller who renames it once all is well.
func WriteImage(file string, size int64, parts []Part, wrote func(n int64)) (err error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return fmt.Errorf("create image: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("create image: %w", err)
	}
	for _, p := range parts {
		if err := p.writeTo(f, wrote); err != nil {
			return fmt.Errorf("write %s into image: %w", p.Name, err)
		}
	}
	return nil
}

func (p Part) writeTo(w io.WriterAt, wrote func(int64)) error {
	var r io.Reader = bytes.NewReader(p.Data)
	if p.File != "" {
		f, err := os.Open(p.File)
		if err != nil {
			return err
		}
		defer f.Close()
		r = f
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); ; {
		n, err := io.ReadFull(r, buf)
		if off+int64(n) > p.Room {
			return fmt.Errorf("it is larger than its room of %d bytes", p.Room)
		}
		if werr := WriteSparse(w, buf[:n], p.Offset+off); werr != nil {
			return werr
		}
		off += int64(n)
		if wrote != nil {
			wrote(int64(n))
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// WriteSparse writes and leaves holes where there are only zeros.
func WriteSparse(w io.WriterAt, b []byte, off int64) error {
	const block = 4096
	for len(b) > 0 {
		n := min(block, len(b))
		for n < len(b) && isZero(b[:min(block, len(b))]) == isZero(b[n:min(n+block, len(b))]) {
			n = min(n+block, len(b))
		}
		if !isZero(b[:min(block, len(b))]) {
			if _, err := w.WriteAt(b[:n], off); err != nil {
				return err
			}
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

var zeros [4096]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }
