// Package flash writes an image to a card and reads it back. On the way it puts
// what belongs to one node (provisioning bundle, configuration) on FIRMWARE;
// the image file itself stays the same for everybody.
//
// It also lists the disks there are, and says which it would not touch. Left
// out: choosing one; the operator names the device.
package flash

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cheggaaa/pb/v3"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/fat"
)

// Options says what to write where.
type Options struct {
	Image  string            // .img or .img.zst
	Device string            // a whole disk, or an existing regular file
	Files  map[string][]byte // what FIRMWARE gets besides the image's own files
	Out    io.Writer         // progress
}

const chunk = 4 * boards.MiB

// Flash writes, flushes, and compares what it reads back. The device's first
// sector, the partition table, is written last: a card that was pulled out half
// way does not look like one that is whole.
func Flash(ctx context.Context, o Options) error {
	in, err := os.Open(o.Image)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	defer in.Close()
	var r io.Reader = in
	if strings.HasSuffix(o.Image, ".zst") {
		z, err := zstd.NewReader(in)
		if err != nil {
			return fmt.Errorf("read image %q: %w", o.Image, err)
		}
		defer z.Close()
		r = z
	}
	if err := refuse(o.Device); err != nil {
		return err
	}
	// O_EXCL on a block device: the kernel refuses one that is in use.
	out, err := os.OpenFile(o.Device, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		return fmt.Errorf("open device: %w", err)
	}
	defer out.Close()
	if size, err := out.Seek(0, io.SeekEnd); err != nil {
		return fmt.Errorf("measure device %q: %w", o.Device, err)
	} else if st, err := out.Stat(); err == nil && st.Mode()&os.ModeDevice != 0 && size < boards.ImageSize {
		return fmt.Errorf("device %q holds %d MiB, want at least %d MiB", o.Device, size/boards.MiB, boards.ImageSize/boards.MiB)
	}

	first := make([]byte, boards.SectorSize)
	sum := sha256.New()
	bar := newBar(o.Out, "writing  ", boards.ImageSize)
	n, err := write(ctx, out, r, o.Files, first, sum, bar)
	bar.Finish()
	if err != nil {
		return fmt.Errorf("write %q to %q: %w", o.Image, o.Device, err)
	}
	if err := out.Sync(); err != nil {
		return fmt.Errorf("flush %q: %w", o.Device, err)
	}
	if _, err := out.WriteAt(first, 0); err != nil {
		return fmt.Errorf("write partition table to %q: %w", o.Device, err)
	}
	if err := out.Sync(); err != nil {
		return fmt.Errorf("flush %q: %w", o.Device, err)
	}
	// What comes back must come from the card, not from memory.
	if err := unix.Fadvise(int(out.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("drop cache of %q: %w", o.Device, err)
	}
	bar = newBar(o.Out, "verifying", n)
	defer bar.Finish()
	if err := readBack(bar.NewProxyReader(&ctxReader{ctx, io.NewSectionReader(out, 0, n)}), sum.Sum(nil)); err != nil {
		return fmt.Errorf("read %q back: %w", o.Device, err)
	}
	return nil
}

// readBack wants what a device returns to have the SHA-256 of what was written.
func readBack(device io.Reader, want []byte) error {
	got := sha256.New()
	if _, err := io.Copy(got, device); err != nil {
		return err
	}
	if !bytes.Equal(got.Sum(nil), want) {
		return errors.New("got other bytes than were written: the card is bad, or too small for what it claims; use another")
	}
	return nil
}

// write copies the image, but for its first sector, which it returns in first,
// and FIRMWARE, which gets more files. sum is over what will be on the device.
func write(ctx context.Context, out io.WriterAt, r io.Reader, files map[string][]byte, first []byte, sum hash.Hash, bar *pb.ProgressBar) (int64, error) {
	buf := make([]byte, chunk)
	for off := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return off, err
		}
		b := buf
		if off == boards.FirmwareStart {
			b = make([]byte, boards.FirmwareSize)
		}
		n, err := io.ReadFull(r, b)
		if n == 0 && errors.Is(err, io.EOF) {
			if off != boards.ImageSize {
				return off, fmt.Errorf("the image has %d bytes, want %d: it is damaged", off, int64(boards.ImageSize))
			}
			return off, nil
		}
		// An unexpected end after some bytes is the image's last piece; without
		// any it is the decompressor's word for a file that was cut off.
		if err != nil && (n == 0 || !errors.Is(err, io.ErrUnexpectedEOF)) {
			return off, fmt.Errorf("read image: %w", err)
		}
		b = b[:n]
		at := off
		off += int64(n)
		switch {
		case off > boards.ImageSize:
			return off, fmt.Errorf("the image is longer than %d bytes: it is damaged", int64(boards.ImageSize))
		case at == 0:
			if n < boards.SectorSize || b[510] != 0x55 || b[511] != 0xaa {
				return off, errors.New("no partition table: this is not a Skerry image")
			}
			copy(first, b)
			sum.Write(b)
			b = slices.Concat(make([]byte, boards.SectorSize), b[boards.SectorSize:])
		case at == boards.FirmwareStart:
			if b, err = addFiles(b, files); err != nil {
				return off, err
			}
			sum.Write(b)
		default:
			sum.Write(b)
		}
		if _, err := out.WriteAt(b, at); err != nil {
			return off, err
		}
		bar.Add(n)
	}
}

// addFiles returns FIRMWARE with files added or replaced.
func addFiles(firmware []byte, files map[string][]byte) ([]byte, error) {
	if len(files) == 0 {
		return firmware, nil
	}
	list, err := fat.Read(bytes.NewReader(firmware), int64(len(firmware)))
	if err != nil {
		return nil, fmt.Errorf("FIRMWARE: %w", err)
	}
	list = slices.DeleteFunc(list, func(f fat.File) bool { _, replaced := files[f.Name]; return replaced })
	for name, data := range files {
		list = append(list, fat.File{Name: name, Data: data})
	}
	slices.SortFunc(list, func(a, b fat.File) int { return strings.Compare(a.Name, b.Name) })
	w := &memory{make([]byte, len(firmware))}
	if err := fat.Write(w, fat.Spec{Size: int64(len(firmware)), Bits: 32, Label: "FIRMWARE", Time: time.Now()}, list); err != nil {
		return nil, fmt.Errorf("FIRMWARE: %w", err)
	}
	return w.b, nil
}

type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m.b)) {
		return 0, io.ErrShortWrite
	}
	return copy(m.b[off:], p), nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// newBar shows speed and the time left on a terminal, nothing elsewhere.
func newBar(out io.Writer, what string, total int64) *pb.ProgressBar {
	bar := pb.New64(total).Set(pb.Bytes, true).
		SetTemplateString(what + ` {{counters . }} {{bar . }} {{percent . }} {{speed . }} {{rtime . "%s left"}}`)
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		bar.SetWriter(out)
	} else {
		bar.SetWriter(io.Discard)
	}
	return bar.Start()
}

// refuse says why a device must not be written: a partition, or a disk that
// something uses. A mounted disk is found by the numbers of its partitions,
// whatever name it was mounted by.
func refuse(device string) error {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return fmt.Errorf("look at device %q: %w", device, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return nil
	case unix.S_IFBLK:
	default:
		return fmt.Errorf("%q is neither a disk nor a file", device)
	}
	number := func(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + number(uint64(st.Rdev)))
	if err != nil {
		return fmt.Errorf("look at device %q: %w", device, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		return fmt.Errorf("%q is a partition; name the whole disk, /dev/%s", device, filepath.Base(filepath.Dir(dir)))
	}
	mounts, swaps, err := ThisHost.uses()
	if err != nil {
		return err
	}
	return inUse(device, dir, mounts, swaps)
}

// inUse looks at a disk and its partitions in sysfs.
func inUse(device, sysfs, mounts, swaps string) error {
	parts, err := filepath.Glob(filepath.Join(sysfs, "*", "partition"))
	if err != nil {
		return err
	}
	dirs := []string{sysfs}
	for _, p := range parts {
		dirs = append(dirs, filepath.Dir(p))
	}
	for _, dir := range dirs {
		name := "/dev/" + filepath.Base(dir)
		if value(dir, "dev") == "" {
			return fmt.Errorf("look at device %q: sysfs has no number for %s", device, name)
		}
		if at := mountPoints(dir, mounts); len(at) > 0 {
			return fmt.Errorf("%s is mounted at %s; unmount it first, if it is the right disk", name, at[0])
		}
		for _, line := range strings.Split(swaps, "\n") {
			if f := strings.Fields(line); len(f) > 0 && f[0] == name {
				return fmt.Errorf("%s is this machine's swap", name)
			}
		}
		if holders, err := os.ReadDir(filepath.Join(dir, "holders")); err == nil && len(holders) > 0 {
			return fmt.Errorf("%s is used by %s (RAID, LVM or encryption)", name, holders[0].Name())
		}
	}
	return nil
}
