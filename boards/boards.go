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

// Machine is a machine as boot.scr tells it from others.
type Machine struct {
	Name     string
	Board    string   // U-Boot's ${board}
	FDTFiles []string `yaml:"fdtFiles"` // U-Boot's ${fdtfile}; none: any
	FDT      string   // the variable with the device tree's address
	PassArgs []string `yaml:"passArgs"` // kernel arguments handed on if one is all that the device tree has
	Consoles []string
	Load     Load
}

// QEMUMachine says how QEMU plays a board.
type QEMUMachine struct {
	Name           string
	Arch           string
	Args           []string
	UBoot          File     `yaml:"uboot"` // for -bios, under build/qemu/NAME/u-boot.bin; no name: Kernel is used
	Env            Env      // in the second flash; no size: none
	Kernel         string   // file on FIRMWARE for -kernel
	DTB            string   // file on FIRMWARE for -dtb
	Append         string   // kernel arguments to put into that, which boot.scr must let pass
	Disk           string   // a device, or "sd"
	DiskPowerOfTwo bool     `yaml:"diskPowerOfTwo"`
	Net            string   // a device
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
	Arch     string
	Hardware string // who ran it on hardware; empty: nobody

	// Kernel is the meta package that depends on the kernel to use.
	Kernel           string
	InitramfsModules []string // in the order they are loaded
	RootModules      []string

	Firmware  []File // to copy to FIRMWARE; boot.scr and uboot.env come from the methods
	ConfigTxt string
	Env       Env

	QEMU []QEMUMachine // the first is the default
	boot []Machine
}

type archFile struct {
	KernelPackage    string   `yaml:"kernelPackage"`
	InitramfsModules []string `yaml:"initramfsModules"`
	RootModules      []string `yaml:"rootModules"`
	Machines         []Machine
	QEMU             []QEMUMachine `yaml:"qemu"`
}

type firmwareFile struct {
	Files     []File
	ConfigTxt string `yaml:"configTxt"`
	Env       Env
}

type boardFile struct {
	Title    string
	Arch     string
	Firmware string
	Hardware string
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
	var b boardFile
	if err := read(name+"/board.yaml", &b); err != nil {
		return nil, err
	}
	var a archFile
	if err := read(b.Arch+"/arch.yaml", &a); err != nil {
		return nil, err
	}
	var f firmwareFile
	if err := read(b.Firmware+"/firmware.yaml", &f); err != nil {
		return nil, err
	}
	return &Board{
		Name: name, Title: b.Title, Arch: b.Arch, Hardware: b.Hardware,
		Kernel: a.KernelPackage, InitramfsModules: a.InitramfsModules, RootModules: a.RootModules,
		Firmware: f.Files, ConfigTxt: f.ConfigTxt, Env: f.Env,
		QEMU: append(a.QEMU, b.QEMU...), boot: a.Machines,
	}, nil
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
