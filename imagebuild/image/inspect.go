package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/disk"
	"skerry.internal/skerry/imagebuild/fat"
)

// Report is what Inspect found.
type Report struct {
	File       string          `json:"file"`
	Size       int64           `json:"size"`
	Partitions []PartitionInfo `json:"partitions"`
	// Loaders are whole blocks of 4 KiB before the first partition in which something lies.
	Loaders    []Area     `json:"loaders,omitempty"`
	BootState  string     `json:"bootState"`
	StateError string     `json:"bootStateError,omitempty"`
	Firmware   []string   `json:"firmware"`
	FATError   string     `json:"firmwareError,omitempty"`
	Slots      []SlotInfo `json:"slots"`
}

// PartitionInfo is one partition, in bytes.
type PartitionInfo struct {
	disk.Partition
	Start int64 `json:"start"`
	Size  int64 `json:"size"`
}

// SlotInfo is one slot.
type SlotInfo struct {
	Slot     string         `json:"slot"`
	Written  bool           `json:"written"`
	Version  string         `json:"version,omitempty"`
	Arch     string         `json:"arch,omitempty"`
	RootHash string         `json:"rootHash,omitempty"`
	RootSize int64          `json:"rootSize,omitempty"`
	Args     string         `json:"args,omitempty"`
	Files    []BootFileInfo `json:"files,omitempty"`
	Damage   []string       `json:"damage,omitempty"`
}

// Area is a part of a disk, in bytes.
type Area struct {
	Start int64 `json:"start"`
	Size  int64 `json:"size"`
}

// BootFileInfo is a boot file of a slot.
type BootFileInfo struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
	OK   bool   `json:"ok"`
}

// Damage lists everything that is wrong.
func (r *Report) Damage() []string {
	var all []string
	if r.StateError != "" {
		all = append(all, "boot state: "+r.StateError)
	}
	if r.FATError != "" {
		all = append(all, "FIRMWARE: "+r.FATError)
	}
	for _, s := range r.Slots {
		for _, d := range s.Damage {
			all = append(all, "slot "+s.Slot+": "+d)
		}
	}
	return all
}

func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s\n\npartitions\n", r.File, size(r.Size))
	for _, p := range r.Partitions {
		fmt.Fprintf(&b, "  %d %-8s type %02x  %9s at %s\n", p.Number, p.Name, p.Type, size(p.Size), size(p.Start))
	}
	for _, l := range r.Loaders {
		fmt.Fprintf(&b, "  - loader            %9s at %s\n", size(l.Size), size(l.Start))
	}
	fmt.Fprintf(&b, "\nboot state  %s\n", r.BootState)
	fmt.Fprintf(&b, "FIRMWARE    %s\n", strings.Join(r.Firmware, " "))
	for _, s := range r.Slots {
		if !s.Written {
			fmt.Fprintf(&b, "\nslot %s: never written\n", s.Slot)
			continue
		}
		fmt.Fprintf(&b, "\nslot %s: version %s for %s\n", s.Slot, s.Version, s.Arch)
		for _, f := range s.Files {
			verdict := "ok"
			if !f.OK {
				verdict = "BAD"
			}
			fmt.Fprintf(&b, "  %-12s %10s  %s\n", f.Name, size(f.Size), verdict)
		}
		if s.RootHash != "" {
			fmt.Fprintf(&b, "  root file system %s, root hash %s\n  %s\n", size(s.RootSize), s.RootHash, s.Args)
		}
		for _, d := range s.Damage {
			fmt.Fprintf(&b, "  DAMAGED: %s\n", d)
		}
	}
	if n := len(r.Damage()); n == 0 {
		fmt.Fprintf(&b, "\nall of it is whole\n")
	}
	return b.String()
}

// Inspect reads an image file, .img or .img.zst, and checks all of it.
func Inspect(ctx context.Context, name string) (*Report, error) {
	f, done, err := openImage(ctx, name)
	if err != nil {
		return nil, err
	}
	defer done()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	r := &Report{File: name, Size: info.Size()}
	parts, err := disk.ReadMBR(f)
	if err != nil {
		return nil, fmt.Errorf("inspect %q: %w", name, err)
	}
	for _, p := range parts {
		if p.Start+p.Size > r.Size && p.Number != boards.PartState {
			return nil, fmt.Errorf("inspect %q: it is truncated: partition %d ends at %d, the file at %d; get or build it again", name, p.Number, p.Start+p.Size, r.Size)
		}
		r.Partitions = append(r.Partitions, PartitionInfo{p, p.Start, p.Size})
	}
	if r.Loaders, err = loaders(f); err != nil {
		return nil, fmt.Errorf("inspect %q: %w", name, err)
	}
	state, _, err := slots.Read(f, [2]int64{boards.BootState0, boards.BootState1})
	if err != nil {
		r.StateError = err.Error()
		state = slots.New(slots.A)
	} else {
		r.BootState = state.String()
	}
	fw := parts[boards.PartFirmware-1]
	files, err := fat.Read(io.NewSectionReader(f, fw.Start, fw.Size), fw.Size)
	if err != nil {
		r.FATError = err.Error()
	}
	for _, f := range files {
		r.Firmware = append(r.Firmware, f.Name)
	}
	for _, s := range []struct {
		slot slots.Slot
		part int
	}{{slots.A, boards.PartSlotA}, {slots.B, boards.PartSlotB}} {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		p := parts[s.part-1]
		r.Slots = append(r.Slots, inspectSlot(io.NewSectionReader(f, p.Start, p.Size), p.Size, s.slot, state.Status(s.slot)))
	}
	return r, nil
}

// loaders finds what lies before the first partition besides partition table and boot state.
func loaders(r io.ReaderAt) (found []Area, err error) {
	const (
		block = 4096
		hole  = 64 << 10 // zeros that a loader may have in it
	)
	buf := make([]byte, block)
	for at := int64(0); at < boards.FirmwareStart; at += block {
		if _, err := r.ReadAt(buf, at); err != nil {
			return nil, err
		}
		if at == 0 {
			clear(buf[:boards.SectorSize])
		}
		if bytes.Equal(buf, make([]byte, block)) || boards.LoaderRoom(max(at, boards.SectorSize), nil) <= 0 || at >= boards.BootState0 && at <= boards.StateMark || at == boards.BootState1 {
			continue
		}
		if n := len(found); n > 0 && at-found[n-1].Start-found[n-1].Size <= hole && at-found[n-1].Start < boards.LoaderRoom(max(found[n-1].Start, boards.SectorSize), nil) {
			found[n-1].Size = at + block - found[n-1].Start
		} else {
			found = append(found, Area{at, block})
		}
	}
	return found, nil
}

func inspectSlot(r io.ReaderAt, size int64, slot slots.Slot, status slots.Status) SlotInfo {
	s := SlotInfo{Slot: string(slot), Written: status != slots.Empty}
	if !s.Written {
		return s
	}
	bad := func(format string, args ...any) { s.Damage = append(s.Damage, fmt.Sprintf(format, args...)) }
	files, err := fat.Read(io.NewSectionReader(io.NewSectionReader(r, 0, size), 0, boards.SlotBootSize), boards.SlotBootSize)
	if err != nil {
		bad("boot files: %v", err)
		if files == nil {
			return s
		}
	}
	content := map[string][]byte{}
	for _, f := range files {
		content[f.Name] = f.Data
	}
	if err := slots.CheckChecksum(content[slots.ManifestFile], content[slots.ChecksumFile]); err != nil {
		bad("%v", err)
	}
	m, err := slots.Parse(content[slots.ManifestFile])
	if err != nil {
		bad("%v", err)
		return s
	}
	s.Version, s.Arch, s.RootHash, s.Args = m.Version, m.Arch, m.RootHash, strings.Join(m.Args, " ")
	for _, f := range m.Files() {
		err := f.Check(content[f.Name])
		if err != nil {
			bad("%v", err)
		}
		s.Files = append(s.Files, BootFileInfo{f.Name, int64(len(content[f.Name])), err == nil})
	}
	s.inspectRoot(r, m, bad)
	return s
}

func (s *SlotInfo) inspectRoot(r io.ReaderAt, m *slots.Manifest, bad func(string, ...any)) {
	rootOff, hashOff, hash := argument(m, "skerry.rootoff"), argument(m, "skerry.hashoff"), m.RootHash
	if got, _ := m.Arg("skerry.roothash"); got != hash {
		bad("slot.txt: the kernel is told the root hash %s, want %s", got, hash)
		return
	}
	if rootOff < boards.SlotBootSize || hashOff <= rootOff || hashOff >= boards.SlotSize || (hashOff-rootOff)%disk.VerityBlock != 0 {
		bad("slot.txt: the root file system lies from %d to %d, which can't be", rootOff, hashOff)
		return
	}
	s.RootSize = hashOff - rootOff
	const show = 8
	blocks, err := disk.CheckVerity(r, rootOff, hashOff, hash, show)
	if err != nil {
		bad("%v", err)
	}
	if len(blocks) > 0 {
		more := ""
		if len(blocks) == show {
			more = " and perhaps more"
		}
		var at []string
		for _, n := range blocks {
			at = append(at, strconv.FormatInt(n, 10))
		}
		bad("root file system: wrong blocks of 4 KiB: %s%s", strings.Join(at, ", "), more)
	}
}

func argument(m *slots.Manifest, name string) int64 {
	v, _ := m.Arg(name)
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// openImage opens an image file; a compressed one is unpacked into a temporary
// sparse file that is gone once done is called.
func openImage(ctx context.Context, name string) (f *os.File, done func(), err error) {
	f, err = os.Open(name)
	if err != nil {
		return nil, nil, fmt.Errorf("open image: %w", err)
	}
	head := make([]byte, 4)
	if n, err := f.ReadAt(head, 0); n < 4 {
		f.Close()
		return nil, nil, fmt.Errorf("open image %q: %w: it has %d bytes (%v)", name, disk.ErrNotSkerry, n, err)
	}
	if !bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		return f, func() { f.Close() }, nil
	}
	defer f.Close()
	temp, err := os.CreateTemp("", "skerry-image-")
	if err != nil {
		return nil, nil, fmt.Errorf("unpack image: %w", err)
	}
	os.Remove(temp.Name()) // it lives on until it is closed
	if err := Unpack(ctx, f, temp); err != nil {
		temp.Close()
		return nil, nil, fmt.Errorf("unpack image %q: %w; it is truncated or damaged, get or build it again", name, err)
	}
	return temp, func() { temp.Close() }, nil
}

// Unpack writes a compressed image to a file, leaving holes where it has zeros.
func Unpack(ctx context.Context, r io.Reader, w *os.File) error {
	z, err := zstd.NewReader(bufio.NewReaderSize(r, 1<<20), zstd.WithDecoderMaxWindow(128<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	buf := make([]byte, 1<<20)
	for off := int64(0); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.ReadFull(z, buf)
		if werr := disk.WriteSparse(w, buf[:n], off); werr != nil {
			return werr
		}
		off += int64(n)
		if errors.Is(err, io.EOF) || err == io.ErrUnexpectedEOF && n > 0 && atEnd(z) {
			return w.Truncate(off)
		}
		if err != nil {
			return err
		}
	}
}

// atEnd tells the end of the data from data that was cut off.
func atEnd(z *zstd.Decoder) bool {
	n, err := z.Read(make([]byte, 1))
	return n == 0 && err == io.EOF
}
