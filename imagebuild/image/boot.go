package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/fat"
	"skerry.internal/skerry/imagebuild/plan"
	"skerry.internal/skerry/imagebuild/tree"
)

// openingModules are needed to open and mount the root file system on any board;
// they are loaded when their time comes, not from the list.
var openingModules = []string{"dm-mod", "dm-verity", rootKind}

// packInitramfs makes the first root: init, the modules to find and open the
// real one, and the list of those that are loaded at once.
func (b *Build) packInitramfs(ctx context.Context, p *plan.Progress) error {
	var t tree.Tree
	listed := b.board.Arch.Modules.Early()
	modules, err := b.kernel.modules.Select(slices.Concat(listed, b.board.Arch.Modules.Verity, openingModules))
	if err != nil {
		return err
	}
	for _, e := range []tree.Entry{
		tree.Dir("dev", 0o755), tree.Dir("proc", 0o555), tree.Dir("sys", 0o555), tree.Dir("newroot", 0o755),
		{Path: "init", Mode: 0o755, Source: b.programs["init"]},
		tree.Symlink("sbin/modprobe", "../init"),
		tree.File("etc/skerry/modules", 0o644, []byte(strings.Join(listed, "\n")+"\n")),
	} {
		e.From = "the builder"
		if err := t.Add(e); err != nil {
			return err
		}
	}
	if err := b.kernel.modules.AddTo(&t, "lib/modules", modules); err != nil {
		return err
	}
	digest, err := t.Digest()
	if err != nil {
		return err
	}
	b.initrd, err = b.store.file("initrd", key(digest), func(file string) error {
		return writeZstd(file, zstd.SpeedBestCompression, func(w *zstd.Encoder) error { return t.WriteCpio(w) })
	})
	p.Note("%s, %d kernel modules", size(b.initrd.size), len(modules))
	return err
}

// writeZstd compresses what write writes. One goroutine: the output must not
// depend on the number of processors.
func writeZstd(file string, level zstd.EncoderLevel, write func(*zstd.Encoder) error) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	w, err := zstd.NewWriter(f, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	if err := write(w); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return f.Close()
}

// kernelMagic is what a kernel has at an offset that U-Boot's command starts
// (Documentation/arch/arm64/booting.rst and arch/arm/boot/compressed/head.S of Linux).
var kernelMagic = map[string]struct {
	at    int
	magic string
}{
	"booti": {56, "ARM\x64"},
	"bootz": {36, "\x18\x28\x6f\x01"},
}

// packKernel compresses a kernel that does not unpack itself: a Raspberry Pi 3's card reads 1.5 MiB/s
// in U-Boot. gzip is what all boards' U-Boots can unpack.
func (b *Build) packKernel(ctx context.Context, p *plan.Progress) error {
	raw, err := os.ReadFile(b.kernel.dir)
	if err != nil {
		return err
	}
	kind := b.board.Arch.Kernel
	want, ok := kernelMagic[kind.Start]
	if !ok {
		return fmt.Errorf("pack kernel: boards/%s/arch.yaml starts it by %q, want booti or bootz", b.board.Arch.Name, kind.Start)
	}
	if len(raw) < 64 || string(raw[want.at:want.at+4]) != want.magic {
		return fmt.Errorf("read kernel %s: U-Boot's %s does not start such a file", b.kernel.release, kind.Start)
	}
	if room := boards.SlotBootSize; len(raw) > room {
		return fmt.Errorf("read kernel %s: got %s, want at most %s", b.kernel.release, size(int64(len(raw))), size(int64(room)))
	}
	vmlinuz, err := describe(b.kernel.dir)
	if err != nil {
		return err
	}
	if !kind.Packed() {
		b.packed = vmlinuz
		p.Note("%s", size(b.packed.size))
		return nil
	}
	b.packed, err = b.store.file("kernel", key(vmlinuz.sha256, runtime.Version()), func(file string) error {
		var buf bytes.Buffer
		w, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
		if err != nil {
			return err
		}
		if _, err := w.Write(raw); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		return os.WriteFile(file, buf.Bytes(), 0o644)
	})
	p.Note("%s of %s", size(b.packed.size), size(int64(len(raw))))
	return err
}

// slotBlob is what is written into a slot's partition.
type slotBlob struct {
	fat      string // file
	manifest *slots.Manifest
	files    []fat.File
}

const (
	initrdFile = "initrd.img"
	dtbFolder  = "dtb"
)

func (b *Build) makeSlot(ctx context.Context, p *plan.Progress) error {
	m := &slots.Manifest{
		Version: b.source.Version, Arch: b.board.Arch.Name, RootHash: b.rootHash,
		Args: []string{"ro", "panic=10", "oops=panic", "loglevel=4",
			"skerry.roothash=" + b.rootHash,
			fmt.Sprintf("skerry.rootoff=%d", boards.SlotBootSize),
			fmt.Sprintf("skerry.hashoff=%d", boards.SlotBootSize+b.rootFS.size),
			"skerry.rootfs=" + rootKind},
	}
	for _, f := range []struct {
		name string
		made made
		into *slots.BootFile
	}{{b.board.Arch.Kernel.File, b.packed, &m.Kernel}, {initrdFile, b.initrd, &m.Initrd}} {
		data, err := os.ReadFile(f.made.path)
		if err != nil {
			return err
		}
		*f.into = slots.NewBootFile(f.name, data)
		b.slot.files = append(b.slot.files, fat.File{Name: f.name, Data: data})
	}
	for _, f := range b.board.Arch.DTBs {
		path, err := b.pkgFile(f.Package, f.Path)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name := dtbFolder + "/" + f.Name + ".dtb"
		if m.DTBs == nil {
			m.DTBs = map[string]slots.BootFile{}
		}
		m.DTBs[boards.DTBKey(f.Name)] = slots.NewBootFile(name, data)
		b.slot.files = append(b.slot.files, fat.File{Name: name, Data: data})
	}
	text, err := m.Format()
	if err != nil {
		return err
	}
	b.slot.manifest = m
	b.slot.files = append(b.slot.files, fat.File{Name: slots.ManifestFile, Data: text},
		fat.File{Name: slots.ChecksumFile, Data: slots.FormatChecksum(text)})
	b.slot.fat = filepath.Join(b.work, "slot.fat")
	return b.writeFAT(b.slot.fat, "the boot part of the slot", fat.Spec{Size: boards.SlotBootSize, Bits: 16, Label: "SKERRY-SLOT", Time: b.source.Time}, b.slot.files)
}

// firmwareReserve stays free on FIRMWARE for provisioning bundle, overlays and
// what a person puts there.
const firmwareReserve = 8 << 20

// skerryYAML is what a person finds on the card. Every line of it is a comment;
// a test takes the marks away and lets the node's own parser judge it.
const skerryYAML = `# Skerry's configuration. Edit it on any computer: it is read at each start.
# A mistake is shown on the console with its line, and the node comes up with the
# rest. To use a setting, take the # at its start away.

# The node's name, in Kubernetes too. Without it: skerry- and the end of the MAC address.
#hostname: skerry-kitchen

# A fixed address. Without it: DHCP.
#network:
#  interfaces:
#    - name: eth0
#      address: 192.168.1.20/24
#      gateway: 192.168.1.1
#      dns: [192.168.1.1]

# Time servers. Without them: those that the network names.
#ntp: [ntp.example.org]

# Where container images are pulled from, by the registry in their names.
#registries:
#  - host: docker.io
#    mirrors: ["https://mirror.example.org"]
`

func (b *Build) makeFirmware(ctx context.Context, p *plan.Progress) error {
	script, err := b.board.BootScript()
	if err != nil {
		return err
	}
	env, err := b.board.UBootEnv()
	if err != nil {
		return err
	}
	files := []fat.File{
		{Name: boards.BootScriptFile, Data: boards.ScriptImage(script)},
		{Name: boards.UBootEnvFile, Data: env},
		{Name: "skerry.yaml", Data: []byte(skerryYAML)},
	}
	if b.board.ConfigTxt != "" {
		files = append(files, fat.File{Name: boards.ConfigTxtFile, Data: []byte(b.board.ConfigTxt)})
	}
	for _, f := range b.board.Firmware {
		path, err := b.pkgFile(f.Package, f.Path)
		if err != nil {
			return err
		}
		files = append(files, fat.File{Name: f.Name, Source: path})
	}
	b.firmware = filepath.Join(b.work, "firmware.fat")
	p.Note("%d files", len(files))
	return b.writeFAT(b.firmware, "FIRMWARE", fat.Spec{Size: boards.FirmwareSize, Bits: 32, Label: "FIRMWARE", Time: b.source.Time}, files)
}

// writeFAT makes a FAT in a file, and says what is largest when it does not fit.
func (b *Build) writeFAT(file, what string, spec fat.Spec, files []fat.File) error {
	var total int64
	var largest []tree.Sized
	for _, f := range files {
		data, err := f.Bytes()
		if err != nil {
			return err
		}
		total += int64(len(data))
		largest = append(largest, tree.Sized{Path: f.Name, Size: int64(len(data))})
	}
	room := spec.Size - spec.Size/64 // its tables
	if spec.Bits == 32 {
		room -= firmwareReserve
	}
	if total > room {
		slices.SortFunc(largest, func(a, b tree.Sized) int { return int(b.Size - a.Size) })
		return tooLarge(what, total, room, largest[:min(5, len(largest))])
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(spec.Size); err != nil {
		return err
	}
	if err := fat.Write(f, spec, files); err != nil {
		return fmt.Errorf("make %s: %w", what, err)
	}
	return f.Close()
}
