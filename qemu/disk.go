package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/fat"
)

// flashFile is the second flash of machines whose U-Boot keeps its environment there.
const flashFile = "flash.img"

// flashSize is what QEMU's virt machines want of a flash's file.
const flashSize = 64 * boards.MiB

func (vm *VM) prepareDisk(ctx context.Context) error {
	c, m := vm.cfg, vm.cfg.Machine
	if m.Env.Size > 0 {
		env, err := m.Env.Bytes()
		if err != nil {
			return err
		}
		if err := os.WriteFile(vm.path(flashFile), env, 0o644); err != nil {
			return fmt.Errorf("write U-Boot's flash: %w", err)
		}
		if err := os.Truncate(vm.path(flashFile), flashSize); err != nil {
			return fmt.Errorf("write U-Boot's flash: %w", err)
		}
	}
	source := c.Image
	if source == "" {
		source = c.RawDisk
	}
	if source == "" {
		if _, err := os.Stat(vm.path(OverlayFile)); err != nil {
			return fmt.Errorf("prepare machine %q: it has no disk and no image was named: %w", c.Dir, err)
		}
		return nil
	}
	source, err := filepath.Abs(source)
	if err != nil {
		return fmt.Errorf("prepare disk: %w", err)
	}
	if m.Kernel != "" {
		files, err := ReadFirmware(source)
		if err != nil {
			return err
		}
		for _, name := range []string{m.Kernel, m.DTB} {
			data, ok := files[name]
			if !ok {
				return fmt.Errorf("prepare machine %s: FIRMWARE of %q has no %s: use an image of a board that this machine plays", m.Name, source, name)
			}
			if name == m.Kernel && m.KernelAt != 0 {
				data, err = moved(data, m.KernelAt, m.Park)
			} else if name == m.DTB && len(m.Tree) > 0 {
				data, err = changedTree(data, m.Tree)
			}
			if err != nil {
				return fmt.Errorf("prepare machine %s: %w", m.Name, err)
			}
			if err := os.WriteFile(vm.path(name), data, 0o644); err != nil {
				return fmt.Errorf("prepare machine %s: %w", m.Name, err)
			}
		}
	}
	if c.RawDisk != "" {
		vm.cfg.RawDisk = source
		return nil
	}
	return vm.makeOverlay(ctx, source)
}

// makeOverlay makes the overlay under another name first: half an overlay would be taken for a whole one.
func (vm *VM) makeOverlay(ctx context.Context, image string) (err error) {
	info, err := os.Stat(image)
	if err != nil {
		return fmt.Errorf("prepare disk: %w", err)
	}
	size := max(vm.cfg.DiskSize, info.Size())
	if vm.cfg.Machine.DiskPowerOfTwo && size&(size-1) != 0 {
		size = 1 << bits.Len64(uint64(size))
	}
	part := OverlayFile + ".part"
	defer os.Remove(vm.path(part))
	if err := vm.tool(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image, part, fmt.Sprint(size)); err != nil {
		return fmt.Errorf("prepare disk: %w", err)
	}
	if vm.cfg.Firmware != nil {
		if err := vm.changeFirmware(ctx, image, part); err != nil {
			return err
		}
	}
	if vm.cfg.Record {
		if err := vm.beginRecord(ctx, part); err != nil {
			return err
		}
	}
	if err := os.Rename(vm.path(part), vm.path(OverlayFile)); err != nil {
		return fmt.Errorf("prepare disk: %w", err)
	}
	return nil
}

// changeFirmware writes FIRMWARE anew with the files as the hook left them.
// qemu-io puts it into the overlay, so the image needs no copy.
func (vm *VM) changeFirmware(ctx context.Context, image, overlay string) error {
	files, err := ReadFirmware(image)
	if err != nil {
		return err
	}
	if err := vm.cfg.Firmware(files); err != nil {
		return fmt.Errorf("change FIRMWARE: %w", err)
	}
	var list []fat.File
	for _, name := range slices.Sorted(maps.Keys(files)) {
		list = append(list, fat.File{Name: name, Data: files[name]})
	}
	const temporary = "firmware.part"
	f, err := os.OpenFile(vm.path(temporary), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600) // the bundle holds secrets
	if err != nil {
		return fmt.Errorf("change FIRMWARE: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	spec := fat.Spec{Size: boards.FirmwareSize, Bits: 32, Label: "FIRMWARE", Time: time.Now()}
	if err := errors.Join(f.Truncate(boards.FirmwareSize), fat.Write(f, spec, list), f.Close()); err != nil {
		return fmt.Errorf("change FIRMWARE: %w", err)
	}
	if err := vm.tool(ctx, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q -s %s %d %d", temporary, boards.FirmwareStart, boards.FirmwareSize), overlay); err != nil {
		return fmt.Errorf("change FIRMWARE: %w", err)
	}
	return nil
}

// ReadFirmware returns the files on FIRMWARE of a raw image.
func ReadFirmware(image string) (map[string][]byte, error) {
	f, err := os.Open(image)
	if err != nil {
		return nil, fmt.Errorf("read FIRMWARE: %w", err)
	}
	defer f.Close()
	list, err := fat.Read(io.NewSectionReader(f, boards.FirmwareStart, boards.FirmwareSize), boards.FirmwareSize)
	if err != nil {
		return nil, fmt.Errorf("read FIRMWARE of %q: %w", image, err)
	}
	files := map[string][]byte{}
	for _, file := range list {
		if files[file.Name], err = file.Bytes(); err != nil {
			return nil, fmt.Errorf("read FIRMWARE of %q: %w", image, err)
		}
	}
	return files, nil
}

func (vm *VM) diskArgs() []string {
	format, file := "qcow2", vm.path(OverlayFile)
	if vm.cfg.RawDisk != "" {
		format, file = "raw", vm.cfg.RawDisk
	}
	options := "format=" + format + ",file=" + escape(file)
	if vm.cfg.Record || vm.cfg.Faults {
		options = vm.layers(format, file)
	}
	if vm.cfg.Machine.Disk == "sd" {
		return []string{"-drive", "if=sd,id=" + diskDevice + "," + options}
	}
	device := vm.cfg.Machine.Disk + ",id=" + diskDevice + ",drive="
	if vm.cfg.Faults {
		// Two nodes of their own: QEMU reopens whatever was made together with the one that changes.
		return []string{"-blockdev", "node-name=" + nodeBelow + "," + options, "-blockdev", "driver=raw,discard=unmap,node-name=" + nodeTop + ",file=" + nodeBelow, "-device", device + nodeTop}
	}
	return []string{"-drive", "if=none,id=disk,discard=unmap," + options, "-device", device + "disk"}
}

// CopyDisk writes the disk as it is now to a raw, sparse file. The machine must be off.
func (vm *VM) CopyDisk(ctx context.Context, file string) error {
	if vm.PID() != 0 {
		return fmt.Errorf("copy disk: machine %q is running", vm.cfg.Dir)
	}
	if err := vm.tool(ctx, "qemu-img", "convert", "-q", "-O", "raw", OverlayFile, file); err != nil {
		return fmt.Errorf("copy disk: %w", err)
	}
	return nil
}

// Fork prepares a second machine in dir with this one's disk, snapshots
// included: with Config.LoadVM it continues where a snapshot was taken. This machine must be off.
func (vm *VM) Fork(ctx context.Context, dir string, change func(*Config)) (*VM, error) {
	if vm.PID() != 0 {
		return nil, fmt.Errorf("fork machine: %q is running", vm.cfg.Dir)
	}
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("fork machine: %w", err)
	}
	names := []string{OverlayFile}
	if vm.cfg.Machine.Kernel != "" {
		names = append(names, vm.cfg.Machine.Kernel, vm.cfg.Machine.DTB)
	}
	for _, name := range names {
		if err := vm.tool(ctx, "cp", "--reflink=auto", "--sparse=always", name, dir+"/"); err != nil {
			return nil, fmt.Errorf("fork machine: %w", err)
		}
	}
	cfg := vm.cfg
	cfg.Dir, cfg.Image, cfg.Record = dir, "", false
	if change != nil {
		change(&cfg)
	}
	return New(ctx, cfg)
}

// tool runs a program in the machine's folder; what it printed is the error's text.
func (vm *VM) tool(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = vm.cfg.Dir
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return missing(name)
	}
	if err != nil {
		return fmt.Errorf("run %s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

func missing(program string) error {
	packages := map[string]string{"qemu-img": "qemu-utils", "qemu-io": "qemu-utils", "qemu-system-aarch64": "qemu-system-arm", "qemu-system-arm": "qemu-system-arm"}
	return fmt.Errorf("find %s: it is not installed: apt install %s", program, packages[program])
}

// Binary finds QEMU for an architecture.
func Binary(arch string) (string, error) {
	name := map[string]string{"arm64": "qemu-system-aarch64", "armv7": "qemu-system-arm"}[arch]
	if name == "" {
		return "", fmt.Errorf("find QEMU for architecture %q: want arm64 or armv7", arch)
	}
	p, err := exec.LookPath(name)
	if err != nil {
		return "", missing(name)
	}
	return p, nil
}

// BuildDir is the project's build folder: $SKERRY_BUILD, or build beside go.mod of the working directory.
func BuildDir() (string, error) {
	if dir := os.Getenv("SKERRY_BUILD"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the build folder: %w", err)
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return filepath.Join(d, "build"), nil
		}
		if d == filepath.Dir(d) {
			return filepath.Join(dir, "build"), nil // called outside of the sources
		}
	}
}

// FindUBoot finds the U-Boot that a machine brings itself: $SKERRY_UBOOT_QEMU,
// or what "skerry image build" left under the build folder.
func FindUBoot(m *boards.QEMUMachine) (string, error) {
	if file := os.Getenv("SKERRY_UBOOT_QEMU"); file != "" {
		return file, nil
	}
	build, err := BuildDir()
	if err != nil {
		return "", err
	}
	file := filepath.Join(build, "qemu", m.UBoot.Name, "u-boot.bin")
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("find U-Boot for machine %s: %q does not exist: run make image, or name one in SKERRY_UBOOT_QEMU", m.Name, file)
	} else if err != nil {
		return "", fmt.Errorf("find U-Boot for machine %s: %w", m.Name, err)
	}
	return file, nil
}
