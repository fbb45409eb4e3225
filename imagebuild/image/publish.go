package image

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"

	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/disk"
	"skerry.internal/skerry/imagebuild/plan"
)

func (b *Build) writeImage(ctx context.Context, p *plan.Progress) error {
	state, err := slots.New(slots.A).Encode()
	if err != nil {
		return err
	}
	hashes, err := describe(b.hashes)
	if err != nil {
		return err
	}
	b.image = filepath.Join(b.work, "image")
	p.Total(boards.FirmwareSize + boards.SlotBootSize + b.rootFS.size + hashes.size)
	rootAt := int64(boards.SlotAStart + boards.SlotBootSize)
	parts := []disk.Part{
		{Name: "partition table", Room: boards.SectorSize, Data: disk.MBR(disk.Partitions())},
		{Name: "boot state", Offset: boards.BootState0, Room: boards.SectorSize, Data: state},
		{Name: "boot state", Offset: boards.BootState1, Room: boards.SectorSize, Data: state},
		{Name: "FIRMWARE", Offset: boards.FirmwareStart, Room: boards.FirmwareSize, File: b.firmware},
		{Name: "slot A, boot files", Offset: boards.SlotAStart, Room: boards.SlotBootSize, File: b.slot.fat},
		{Name: "slot A, root file system", Offset: rootAt, Room: plan.MaxRoot, File: b.rootFS.path},
		{Name: "slot A, verity tree", Offset: rootAt + b.rootFS.size, Room: plan.MaxRoot - b.rootFS.size, File: b.hashes},
	}
	for _, l := range b.board.Loaders {
		file, err := b.pkgFile(l.Package, l.Path)
		if err != nil {
			return err
		}
		parts = append(parts, disk.Part{Name: "loader " + filepath.Base(l.Path), Offset: l.At, Room: boards.LoaderRoom(l.At, b.board.Loaders), File: file})
	}
	return disk.WriteImage(b.image, boards.ImageSize, parts, p.Add)
}

// compressImage: nearly all of it is compressed already, and the rest is zeros.
// A higher level would cost seconds and save next to nothing.
func (b *Build) compressImage(ctx context.Context, p *plan.Progress) error {
	raw, err := describe(b.image)
	if err != nil {
		return err
	}
	b.raw = raw
	p.Total(raw.size)
	b.packedImage, err = b.store.file("image", key(raw.sha256, b.compilers["go"]), func(file string) error {
		return writeZstd(file, zstd.SpeedFastest, func(w *zstd.Encoder) error {
			f, err := os.Open(b.image)
			if err != nil {
				return err
			}
			defer f.Close()
			return copyUntil(ctx, p.Writer(w), f)
		})
	})
	if err != nil {
		return err
	}
	if got, limit := b.packedImage.size, cmp.Or(b.limits.compressed, plan.MaxCompressed); got > limit {
		return tooLarge("the compressed image", got, limit, b.root.Largest(5))
	}
	p.Note("%s", size(b.packedImage.size))
	return nil
}

// copyUntil copies unless it is interrupted.
func copyUntil(ctx context.Context, w io.Writer, r io.Reader) error {
	buf := make([]byte, 4<<20)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.ReadFull(r, buf)
		if _, werr := w.Write(buf[:n]); werr != nil {
			return werr
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Description is skerry-BOARD.json: what is in an image.
type Description struct {
	Board     string            `json:"board"`
	Arch      string            `json:"arch"`
	Version   string            `json:"version"`
	Commit    string            `json:"commit"`
	Time      time.Time         `json:"time"`
	RootHash  string            `json:"rootHash"`
	Image     FileInfo          `json:"image"`
	Packed    FileInfo          `json:"compressed"`
	Kernel    string            `json:"kernel"`
	Versions  map[string]string `json:"versions"`
	Compilers map[string]string `json:"compilers"`
	Sizes     map[string]int64  `json:"sizes"`
	Programs  map[string]int64  `json:"programs"`
	Without   []string          `json:"without,omitempty"`
	// WithoutSuites are the lock's: what they correct is not in Packages.
	WithoutSuites []string      `json:"withoutSuites,omitempty"`
	Packages      []PackageInfo `json:"packages"`
	Tools         []PackageInfo `json:"tools"`
}

// FileInfo is one file of the result.
type FileInfo struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// PackageInfo is one Debian package.
type PackageInfo struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	SHA256  string `json:"sha256"`
}

func (b *Build) describeImage() (*Description, error) {
	name, raw := "skerry-"+b.board.Name, b.raw
	d := &Description{
		Board: b.board.Name, Arch: b.board.Arch.Name, Version: b.source.Version, Commit: b.source.Commit, Time: b.source.Time,
		RootHash: b.rootHash, Kernel: b.kernel.release, Compilers: b.compilers, Without: b.Without, WithoutSuites: b.lock.Without,
		Image:    FileInfo{name + ".img", raw.size, raw.sha256},
		Packed:   FileInfo{name + ".img.zst", b.packedImage.size, b.packedImage.sha256},
		Versions: map[string]string{"kubernetes": plan.KubernetesVersion, "kernel": b.kernel.release},
		Sizes: map[string]int64{"root": b.rootFS.size, "initramfs": b.initrd.size, "kernel": b.packed.size,
			"image": raw.size, "compressed": b.packedImage.size},
		Programs: map[string]int64{},
	}
	for prog, file := range b.programs {
		info, err := os.Stat(file)
		if err != nil {
			return nil, err
		}
		d.Programs[prog] = info.Size()
	}
	for _, pkg := range b.lock.Packages {
		d.Packages = append(d.Packages, PackageInfo{pkg.Name, pkg.Version, pkg.SHA256.String()})
		if named := b.board.Packages(); pkg.Name == "crun" || pkg.Name == "nftables" || slices.Contains(named, pkg.Name) {
			d.Versions[pkg.Name] = pkg.Version
		}
	}
	for _, pkg := range b.hostLock.Packages {
		d.Tools = append(d.Tools, PackageInfo{pkg.Name, pkg.Version, pkg.SHA256.String()})
	}
	return d, nil
}

// publish gives everything its final name, the description last.
func (b *Build) publish(ctx context.Context, p *plan.Progress) error {
	d, err := b.describeImage()
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	packed, description := filepath.Join(b.work, "packed"), filepath.Join(b.work, "json")
	if err := errors.Join(copyFile(b.packedImage.path, packed), os.WriteFile(description, append(text, '\n'), 0o644)); err != nil {
		return err
	}
	if err := b.publishQEMU(); err != nil {
		return err
	}
	final := filepath.Join(b.Out, "skerry-"+b.board.Name)
	if err := errors.Join(remove(final+".json"), os.Rename(packed, final+".img.zst"), os.Rename(b.image, final+".img"), os.Rename(description, final+".json")); err != nil {
		return err
	}
	p.Note("%s.img", final)
	return nil
}

// publishQEMU puts the loaders that QEMU is started with beside the images:
// on a board they lie in its ROM or on FIRMWARE. U-Boot for QEMU is one package for all
// architectures, and boot.scr is tested on each, so all of it is taken.
func (b *Build) publishQEMU() error {
	dir := filepath.Join(filepath.Dir(b.Out), "qemu")
	files := map[string]string{} // name → path
	for _, name := range boards.Names() {
		o, err := boards.ByName(name)
		if err != nil {
			return err
		}
		for _, m := range o.QEMU {
			if m.UBoot.Name == "" {
				continue
			}
			if files[filepath.Join(m.UBoot.Name, "u-boot.bin")], err = b.pkgFile(m.UBoot.Package, m.UBoot.Path); err != nil {
				return err
			}
		}
	}
	for _, m := range b.board.QEMU {
		for _, f := range b.board.Firmware {
			if f.Name == m.Kernel || f.Name == m.DTB {
				path, err := b.pkgFile(f.Package, f.Path)
				if err != nil {
					return err
				}
				name := f.Name
				if f.Name == m.Kernel {
					name = filepath.Join(filepath.Base(filepath.Dir(path)), filepath.Base(path))
				}
				files[name] = path
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		target := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		data, err := os.ReadFile(files[name])
		if err != nil {
			return err
		}
		temp := target + ".new"
		if err := errors.Join(os.WriteFile(temp, data, 0o644), os.Rename(temp, target)); err != nil {
			return fmt.Errorf("copy QEMU's loader: %w", err)
		}
	}
	return nil
}

// copyFile copies a file. It is no link: who changes the copy must not change what is kept.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
