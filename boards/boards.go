// Package boards is the table of what Skerry runs on: per architecture the
// kernel, the modules and the machines boot.scr knows, per board its FIRMWARE
// and its QEMU machine. All of it is data in YAML files; the disk's layout, one
// for all boards, is in layout.go. The package also makes what U-Boot reads from FIRMWARE:
// boot.scr and uboot.env. It leaves out how the boot state and slot.txt look
// (package slots), fetching packages and writing images (imagebuild).
package boards

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

//go:embed boot.scr.tmpl */*.yaml
var files embed.FS

// KernelPackage stands, as the Package of a File, for the kernel image package
// of the architecture, whose real name holds the kernel's version.
const KernelPackage = "kernel"

// File is a file of a Debian package. Path may hold *, which must match one file.
type File struct {
	Package string
	Path    string
	Name    string // name on FIRMWARE, or under build/qemu
}

// Env is a U-Boot environment as it lies on FIRMWARE or in flash.
type Env struct {
	Size int
	Vars map[string]string
}

// Load holds addresses and the room at each.
type Load struct {
	Kernel     uint64
	KernelRoom uint64 `yaml:"kernelRoom"`
	Packed     uint64 // the compressed kernel
	PackedRoom uint64 `yaml:"packedRoom"`
	Initrd     uint64
	InitrdRoom uint64 `yaml:"initrdRoom"`
	Scratch    uint64 // boot state, slot.txt
	ScratchCRC uint64 `yaml:"scratchCRC"`
	Tree       uint64 // two copies of the device tree and an overlay, TreeRoom each
}

// TreeRoom is how large a device tree with its overlays, and an overlay, may be.
const TreeRoom = 0x100000

// trees are the places of the two copies and of the overlay.
func (l Load) trees() [3]uint64 {
	return [3]uint64{l.Tree, l.Tree + TreeRoom, l.Tree + 2*TreeRoom}
}

// Machine is a machine as boot.scr tells it from others. The last console is /dev/console.
type Machine struct {
	Name     string
	UBoot    string   `yaml:"uboot"`    // U-Boot's ${board}
	FDTFiles []string `yaml:"fdtFiles"` // U-Boot's ${fdtfile}; none: any that no other machine names
	FDT      string   // the variable with the device tree's address; none: the slot brings the tree
	PassArgs []string `yaml:"passArgs"` // kernel arguments handed on if one is all that the device tree has
	Consoles []string
	Load     Load
}

// Loader is what a boot ROM looks for at a fixed place before the first partition.
type Loader struct {
	Package string
	Path    string
	At      int64 // bytes from the start of the disk
}

// Modules are kernel modules by when they are loaded: those of the first three at once, in this
// order, those of Verity when the root is opened, those of Root when the hardware asks for them.
type Modules struct{ Reset, Storage, Entropy, Verity, Root []string }

func (m *Modules) add(o Modules) {
	for _, l := range []struct {
		to   *[]string
		from []string
	}{{&m.Reset, o.Reset}, {&m.Storage, o.Storage}, {&m.Entropy, o.Entropy}, {&m.Verity, o.Verity}, {&m.Root, o.Root}} {
		for _, name := range l.from {
			if !slices.Contains(*l.to, name) {
				*l.to = append(*l.to, name)
			}
		}
	}
}

// Early lists what the initramfs loads at once.
func (m Modules) Early() []string { return slices.Concat(m.Reset, m.Storage, m.Entropy) }

// Kernel is the kernel of an architecture.
type Kernel struct {
	Package string // the meta package that depends on the one to use
	File    string // its name in the slot; with .gz U-Boot unpacks it, else it does so itself
	Start   string // U-Boot's command: booti or bootz
}

// Packed says that U-Boot unpacks it.
func (k Kernel) Packed() bool { return strings.HasSuffix(k.File, ".gz") }

// Arch is what all boards of an architecture have in common: one kernel, one root file system, one slot.
type Arch struct {
	Name      string
	GOARCH    string   `yaml:"goarch"`
	GOARM     string   `yaml:"goarm"`
	Debian    string   // Debian's name for it
	Triplet   string   // GNU's: the C cross compiler is Triplet-gcc
	LinkFlags []string `yaml:"linkFlags"` // for the C compiler when it links a static program
	Kernel    Kernel
	Packages  []string  // Debian packages that boards take files of, besides the kernel
	Modules   Modules   // of all boards
	Machines  []Machine // that boot.scr knows, those that take any fdtFile first
	DTBs      []File    // of boards whose firmware brings none; Name is the Machine's
}

// QEMUMachine says how QEMU plays a board.
type QEMUMachine struct {
	Name     string
	Arch     string
	Args     []string
	UBoot    File   `yaml:"uboot"` // for -bios, under build/qemu/NAME/u-boot.bin; no name: Kernel is used
	Env      Env    // in the second flash; no size: none
	Kernel   string // file on FIRMWARE for -kernel
	KernelAt int    `yaml:"kernelAt"` // the address that Kernel, a raw image, is linked for; 0: where QEMU puts it
	Park     []int  `yaml:"park"`     // with KernelAt: the processors that Tree has off, which would wait without pause
	DTB      string // file on FIRMWARE for -dtb
	// Tree changes properties of that tree, by the node's path, to what the emulation can do.
	Tree           map[string]map[string]any
	Append         string   // kernel arguments to put into that, which boot.scr must let pass
	Disk           string   // a device, or "sd"
	DiskPowerOfTwo bool     `yaml:"diskPowerOfTwo"`
	Net            string   // a device
	OnBoardNIC     bool     `yaml:"onBoardNIC"` // instead of Net: the interface that it has
	Devices        []string // further devices
	Watchdog       string   // a device; none: nothing that could be fed
	Console        int      // which serial line
	Memory         int      // MiB, default
	SMP            int      `yaml:"smp"` // default
	Fixed          bool     // memory and SMP can't be chosen
	NoPowerOff     bool     `yaml:"noPowerOff"` // powering off does not end QEMU
}

// Board is everything the image builder and the harness need to know of one board.
type Board struct {
	Name     string
	Title    string
	Arch     *Arch
	Tested   string // how far, and by what
	Hardware string // who ran it on hardware; empty: nobody

	Firmware  []File // to copy to FIRMWARE; boot.scr and uboot.env come from the methods
	ConfigTxt string
	Env       Env
	Loaders   []Loader

	QEMU []QEMUMachine // the first is the default
}

// archFile, firmwareFile and boardFile are what the files of a folder hold.
type archFile struct {
	Arch    `yaml:",inline"`
	Machine Machine
	QEMU    []QEMUMachine `yaml:"qemu"`
}

type firmwareFile struct {
	Files     []File
	ConfigTxt string `yaml:"configTxt"`
	Env       Env
	Loaders   []Loader
	DTB       File `yaml:"dtb"`
	Modules   Modules
	UBoot     string `yaml:"uboot"`
	FDT       string
	Consoles  []string
	Load      Load
}

type boardFile struct {
	Title    string
	Arch     string
	Firmware string
	Tested   string
	Hardware string
	FDTFiles []string      `yaml:"fdtFiles"`
	PassArgs []string      `yaml:"passArgs"`
	QEMU     []QEMUMachine `yaml:"qemu"`
}

// Names lists the boards there are.
func Names() []string {
	paths, err := fs.Glob(files, "*/board.yaml")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	names := make([]string, len(paths))
	for i, p := range paths {
		names[i] = path.Dir(p)
	}
	slices.Sort(names)
	return names
}

// ByName looks a board up.
func ByName(name string) (*Board, error) {
	if !slices.Contains(Names(), name) {
		return nil, fmt.Errorf("find board %q: want one of: %s", name, strings.Join(Names(), ", "))
	}
	b, f, err := readBoard(name)
	if err != nil {
		return nil, err
	}
	a, qemu, err := readArch(b.Arch)
	if err != nil {
		return nil, err
	}
	return &Board{
		Name: name, Title: b.Title, Arch: a, Tested: b.Tested, Hardware: b.Hardware,
		Firmware: f.Files, ConfigTxt: f.ConfigTxt, Env: f.Env, Loaders: f.Loaders,
		QEMU: append(qemu, b.QEMU...),
	}, nil
}

func readBoard(name string) (b boardFile, f firmwareFile, err error) {
	if err := read(name+"/board.yaml", &b); err != nil {
		return b, f, err
	}
	if b.Firmware == "" {
		b.Firmware = name
	}
	return b, f, read(b.Firmware+"/firmware.yaml", &f)
}

// readArch reads an architecture with what each of its boards adds.
func readArch(name string) (*Arch, []QEMUMachine, error) {
	var a archFile
	if err := read(name+"/arch.yaml", &a); err != nil {
		return nil, nil, err
	}
	a.Name = name
	a.Machines = []Machine{a.Machine}
	var files []File
	for _, m := range a.QEMU {
		files = append(files, m.UBoot)
	}
	for _, board := range Names() {
		b, f, err := readBoard(board)
		if err != nil {
			return nil, nil, err
		}
		if b.Arch != name {
			continue
		}
		a.Modules.add(f.Modules)
		files = append(append(files, f.Files...), f.DTB)
		for _, l := range f.Loaders {
			files = append(files, File{Package: l.Package})
		}
		a.Machines = append(a.Machines, Machine{board, f.UBoot, b.FDTFiles, f.FDT, b.PassArgs, f.Consoles, f.Load})
		if f.DTB.Path != "" {
			a.DTBs = append(a.DTBs, File{f.DTB.Package, f.DTB.Path, board})
		}
	}
	for _, f := range files {
		if f.Package != "" && f.Package != KernelPackage && !slices.Contains(a.Packages, f.Package) {
			a.Packages = append(a.Packages, f.Package)
		}
	}
	slices.Sort(a.Packages)
	if err := distinct(a.Machines); err != nil {
		return nil, nil, fmt.Errorf("read boards of %s: %w", name, err)
	}
	// The last match holds.
	slices.SortStableFunc(a.Machines, func(m, o Machine) int { return min(len(m.FDTFiles), 1) - min(len(o.FDTFiles), 1) })
	return &a.Arch, a.QEMU, nil
}

// distinct wants boot.scr to be able to tell machines of the same U-Boot from each other.
func distinct(machines []Machine) error {
	by := map[[2]string]string{}
	for _, m := range machines {
		files := m.FDTFiles
		if len(files) == 0 {
			files = []string{""}
		}
		for _, f := range files {
			key := [2]string{m.UBoot, f}
			if other := by[key]; other != "" {
				return fmt.Errorf("nothing tells %s from %s: both have uboot %q and fdtFiles %q; name the ${fdtfile} of each", other, m.Name, m.UBoot, f)
			}
			by[key] = m.Name
		}
	}
	return nil
}

// Architectures lists those that boards have, by name.
func Architectures() ([]*Arch, error) {
	paths, err := fs.Glob(files, "*/arch.yaml")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	var all []*Arch
	for _, p := range paths {
		a, _, err := readArch(path.Dir(p))
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

// Packages are the Debian packages, besides the kernel, that FIRMWARE and the loaders are made of.
func (b *Board) Packages() []string {
	var names []string
	for _, f := range b.Firmware {
		names = append(names, f.Package)
	}
	for _, l := range b.Loaders {
		names = append(names, l.Package)
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool { return name == KernelPackage })
}

// Machine looks up a QEMU machine by name; without a name it is the default.
func (b *Board) Machine(name string) (*QEMUMachine, error) {
	var names []string
	for i := range b.QEMU {
		if name == "" || b.QEMU[i].Name == name {
			return &b.QEMU[i], nil
		}
		names = append(names, b.QEMU[i].Name)
	}
	return nil, fmt.Errorf("find QEMU machine %q for board %s: want one of: %s", name, b.Name, strings.Join(names, ", "))
}

func read(name string, into any) error {
	text, err := files.ReadFile(name)
	if err != nil {
		return fmt.Errorf("read board table: %w", err)
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("parse board table %q: %w", name, err)
	}
	return nil
}
