package boards

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata anew")

func TestByName(t *testing.T) {
	if got := Names(); !slices.Contains(got, "rpi4") || !slices.Contains(got, "bananapi-m2-ultra") || !slices.IsSorted(got) {
		t.Errorf("Names() = %q, want rpi4 and bananapi-m2-ultra among them, sorted", got)
	}
	for _, name := range Names() {
		b, err := ByName(name)
		if err != nil {
			t.Errorf("ByName(%q) = %v", name, err)
			continue
		}
		names := map[string]bool{}
		for _, f := range b.Firmware {
			if f.Package == "" || f.Path == "" || f.Name == "" || names[f.Name] {
				t.Errorf("%s: firmware file %+v, want package, path and a name of its own", name, f)
			}
			names[f.Name] = true
		}
		for _, m := range b.QEMU {
			if m.UBoot.Name != "" && m.Kernel != "" || m.UBoot.Name == "" && m.Kernel == "" && len(b.Loaders) == 0 {
				t.Errorf("%s on %s: got U-Boot %q and kernel %q, want one of them, or a loader on the disk", name, m.Name, m.UBoot.Name, m.Kernel)
			}
			for _, processor := range m.Park { // it is done by what moves the kernel, to those that nobody starts
				if off := m.Tree[fmt.Sprintf("/cpus/cpu@%d", processor)]["status"]; m.KernelAt == 0 || off == nil || off == "okay" {
					t.Errorf("%s on %s: park has processor %d; want kernelAt, and that processor off in tree", name, m.Name, processor)
				}
			}
			if m.Kernel != "" && (!names[m.Kernel] || !names[m.DTB]) {
				t.Errorf("%s on %s: FIRMWARE has no %q or no %q", name, m.Name, m.Kernel, m.DTB)
			}
		}
		if strings.Contains(b.ConfigTxt, "\nkernel=u-boot.bin\n") != names["u-boot.bin"] || !names["u-boot.bin"] && len(b.Loaders) == 0 {
			t.Errorf("%s: nothing starts U-Boot: config.txt or FIRMWARE lack u-boot.bin, and there is no loader", name)
		}
		at := int64(0)
		for _, l := range b.Loaders {
			if LoaderRoom(l.At, b.Loaders) <= 0 || l.At <= at {
				t.Errorf("%s: loader at %d; want it in the gap, after the one before", name, l.At)
			}
			at = l.At
		}
		a := b.Arch
		if a.Name == "" || a.GOARCH == "" || a.Debian == "" || a.Triplet == "" || a.Kernel.Package == "" || a.Kernel.Start == "" || a.Kernel.File == "" || len(a.Modules.Storage) == 0 || len(a.Modules.Root) == 0 {
			t.Errorf("%s: architecture %+v; want no field of these empty", name, a)
		}
		var own *Machine
		for i := range a.Machines {
			if a.Machines[i].Name == name {
				own = &a.Machines[i]
			}
		}
		switch {
		case own == nil || own.UBoot == "" || len(own.Consoles) == 0:
			t.Errorf("%s: boot.scr knows it as %+v; want U-Boot's name for it and consoles", name, own)
		case own.FDT == "" && !slices.ContainsFunc(a.DTBs, func(f File) bool { return f.Name == name }):
			t.Errorf("%s: no device tree, neither from its firmware nor in the slot", name)
		}
	}
	want := `find board "rpi9": want one of: ` + strings.Join(Names(), ", ")
	if b, err := ByName("rpi9"); err == nil || err.Error() != want {
		t.Errorf(`ByName("rpi9") = %v, %v, want error %q`, b, err, want)
	}
	b, err := ByName("rpi4")
	if err != nil {
		t.Fatal(err)
	}
	if m, err := b.Machine(""); err != nil || m.Name != "virt" {
		t.Errorf(`Machine("") = %v, %v, want virt`, m, err)
	}
	if m, err := b.Machine("raspi3b"); err == nil || !strings.Contains(err.Error(), "want one of: virt") {
		t.Errorf(`Machine("raspi3b") of rpi4 = %v, %v, want an error that lists virt`, m, err)
	}
}

// TestOneFirmware: rpi3 and rpi4 have the same FIRMWARE.
func TestOneFirmware(t *testing.T) {
	three, err3 := ByName("rpi3")
	four, err4 := ByName("rpi4")
	if err3 != nil || err4 != nil {
		t.Fatal(err3, err4)
	}
	if !slices.Equal(three.Firmware, four.Firmware) || three.ConfigTxt != four.ConfigTxt {
		t.Error("FIRMWARE of rpi3 and rpi4 differ")
	}
}

// TestLoaderRoom: a loader ends where the boot state, FIRMWARE or the board's next loader begins.
func TestLoaderRoom(t *testing.T) {
	loaders := []Loader{{At: 0x8000}, {At: 8 * MiB}}
	for at, want := range map[int64]int64{
		0: 0, 0x2000: 0x6000, 0x8000: BootState0 - 0x8000, 6 * MiB: 2 * MiB, 8 * MiB: BootState1 - 8*MiB,
		BootState0: 0, StateMark: -128 << 10, BootState1 + SectorSize: 2*MiB - SectorSize, FirmwareStart: 0,
	} {
		if got := LoaderRoom(at, loaders); got != want {
			t.Errorf("LoaderRoom(%#x) = %#x, want %#x", at, got, want)
		}
	}
}

// TestDistinct: two boards that boot.scr can't tell from each other are refused by name.
func TestDistinct(t *testing.T) {
	one, two := Machine{Name: "one", UBoot: "sunxi"}, Machine{Name: "two", UBoot: "sunxi"}
	if err := distinct([]Machine{one, two}); err == nil || !strings.Contains(err.Error(), "nothing tells one from two") {
		t.Errorf("two of one U-Boot without fdtFiles: %v; want them refused", err)
	}
	one.FDTFiles, two.FDTFiles = []string{"a.dtb"}, []string{"b.dtb", "a.dtb"}
	if err := distinct([]Machine{one, two}); err == nil || !strings.Contains(err.Error(), "a.dtb") {
		t.Errorf("two of one device tree: %v; want them refused", err)
	}
	two.FDTFiles = []string{"b.dtb"}
	if err := distinct([]Machine{one, two, {Name: "rest", UBoot: "sunxi"}}); err != nil {
		t.Errorf("two with files of their own, and one for the rest: %v", err)
	}
}

// TestLoadAddresses: nothing that boot.scr loads runs over something else.
func TestLoadAddresses(t *testing.T) {
	all, err := Architectures()
	if err != nil {
		t.Fatal(err)
	}
	for _, arch := range all {
		t.Run(arch.Name, func(t *testing.T) { testLoadAddresses(t, arch) })
	}
}

func testLoadAddresses(t *testing.T, arch *Arch) {
	type area struct {
		name     string
		from, to uint64
	}
	for _, m := range arch.Machines {
		l := m.Load
		areas := []area{
			{"kernel", l.Kernel, l.Kernel + l.KernelRoom},
			{"initrd", l.Initrd, l.Initrd + l.InitrdRoom},
			{"scratch", l.Scratch, l.Scratch + 0x10000},
			{"checksum", l.ScratchCRC, l.ScratchCRC + 4},
			{"device trees and overlay", l.Tree, l.Tree + 3*TreeRoom},
		}
		if arch.Kernel.Packed() {
			areas = append(areas, area{"packed kernel", l.Packed, l.Packed + l.PackedRoom})
		}
		// Memory begins at a multiple of what the smallest board has. boot.scr itself is not in the way of
		// anything: U-Boot runs a copy of it.
		base := l.Kernel &^ (512*MiB - 1)
		switch {
		case m.UBoot == "rpi":
			areas = append(areas, area{"device tree in QEMU", 0x8000000, 0x8200000}, area{"spin table", 0, 0x1000})
		default:
			areas = append(areas, area{"device tree in QEMU", base, base + 0x100000})
		}
		for i, a := range areas {
			if a.from < base || a.to > base+448*MiB {
				t.Errorf("%s: %s lies at %#x to %#x, want within 448 MiB from %#x", m.Name, a.name, a.from, a.to, base)
			}
			for _, o := range areas[i+1:] {
				if a.from < o.to && o.from < a.to {
					t.Errorf("%s: %s at %#x and %s at %#x overlap", m.Name, a.name, a.from, o.name, o.from)
				}
			}
		}
		// A zImage moves out of the way of itself, and of nothing else (Documentation/arch/arm/booting.rst).
		for _, a := range areas[1:] {
			if unpacked := base + 0x8000; arch.Kernel.Start == "bootz" && a.name != "scratch" && a.name != "checksum" && a.from < unpacked+40*MiB && unpacked < a.to && a.name != "device tree in QEMU" {
				t.Errorf("%s: %s at %#x lies where the kernel unpacks itself, %#x to %#x", m.Name, a.name, a.from, unpacked, unpacked+40*MiB)
			}
		}
		if arch.Kernel.Start == "booti" && l.Kernel%(2*MiB) != 0 {
			t.Errorf("%s: kernel at %#x, want a multiple of 2 MiB", m.Name, l.Kernel)
		}
		if l.PackedRoom > SlotBootSize || l.InitrdRoom > SlotBootSize {
			t.Errorf("%s: more room than a slot has", m.Name)
		}
	}
}

func TestBootScriptGolden(t *testing.T) {
	scripts := map[string]string{}
	for _, name := range Names() {
		b, err := ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		script, err := b.BootScript()
		if err != nil {
			t.Fatal(err)
		}
		if before, ok := scripts[b.Arch.Name]; ok && before != script {
			t.Errorf("boot.scr differs between boards of %s", b.Arch.Name)
		}
		scripts[b.Arch.Name] = script
	}
	for arch, script := range scripts {
		golden := filepath.Join("testdata", "boot-"+arch+".txt")
		if *update {
			if err := os.WriteFile(golden, []byte(script), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(golden); err != nil || script != string(want) {
			t.Errorf("BootScript() differs from %s (%v): go test ./boards -update", golden, err)
		}
	}
}

// TestUnstoppable wants no U-Boot to listen to the serial line: noise on it at power-on must not stop a boot.
func TestUnstoppable(t *testing.T) {
	for _, name := range Names() {
		b, err := ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		envs := map[string]Env{"uboot.env": b.Env}
		for _, m := range b.QEMU {
			if m.Env.Size > 0 {
				envs[m.Name] = m.Env
			}
		}
		for where, env := range envs {
			if env.Vars["bootdelay"] != "-2" || !strings.Contains(env.Vars["bootcmd"], BootScriptFile) || !strings.HasSuffix(env.Vars["bootcmd"], "reset") {
				t.Errorf("%s, %s: bootdelay %q, bootcmd %q; want -2, boot.scr, and a reset after it", name, where, env.Vars["bootdelay"], env.Vars["bootcmd"])
			}
		}
	}
}

func TestUBootEnv(t *testing.T) {
	b, err := ByName("rpi3")
	if err != nil {
		t.Fatal(err)
	}
	env, err := b.UBootEnv()
	if err != nil {
		t.Fatal(err)
	}
	if len(env) != 0x4000 {
		t.Errorf("UBootEnv() is %#x bytes, want 0x4000", len(env))
	}
	if got, want := crc32.ChecksumIEEE(env[4:]), binary.LittleEndian.Uint32(env); got != want {
		t.Errorf("UBootEnv(): CRC: got %08x, want %08x", got, want)
	}
	if !bytes.Contains(env, []byte("\x00bootdelay=-2\x00")) {
		t.Error("UBootEnv() has no bootdelay=-2")
	}
	if e, err := (Env{Size: 16, Vars: map[string]string{"name": "too long"}}).Bytes(); err == nil {
		t.Errorf("Bytes() of 14 bytes in 12 = %q, want an error", e)
	}

	// U-Boot's own tool makes the same file of the same lines.
	mkenvimage := tool(t, "mkenvimage")
	text, _, _ := bytes.Cut(env[4:], []byte{0, 0})
	dir := t.TempDir()
	in, out := filepath.Join(dir, "env.txt"), filepath.Join(dir, "uboot.env")
	if err := os.WriteFile(in, append(bytes.ReplaceAll(text, []byte{0}, []byte("\n")), '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
	if msg, err := exec.Command(mkenvimage, "-s", "0x4000", "-p", "0", "-o", out, in).CombinedOutput(); err != nil {
		t.Fatalf("mkenvimage: %v: %s", err, msg)
	}
	if want, err := os.ReadFile(out); err != nil || !bytes.Equal(env, want) {
		t.Errorf("UBootEnv() differs from what mkenvimage makes (%v)", err)
	}
}

func TestScriptImage(t *testing.T) {
	const text = "echo hello\n"
	image := ScriptImage(text)
	if !bytes.Equal(image, ScriptImage(text)) {
		t.Error("ScriptImage makes different bytes of the same text")
	}
	mkimage, dumpimage := tool(t, "mkimage"), tool(t, "dumpimage")
	file := filepath.Join(t.TempDir(), "boot.scr")
	judge := func() (string, error) {
		if err := os.WriteFile(file, image, 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(mkimage, "-l", file).CombinedOutput()
		return string(out), err
	}
	out, err := judge()
	for _, want := range []string{"Skerry boot script", "Script (uncompressed)", "Contents:", "Image 0: 11 Bytes"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("mkimage -l = %q, %v, want %q in it", out, err, want)
		}
	}
	part := file + ".txt"
	if msg, err := exec.Command(dumpimage, "-T", "script", "-p", "0", "-o", part, file).CombinedOutput(); err != nil {
		t.Fatalf("dumpimage: %v: %s", err, msg)
	}
	if got, err := os.ReadFile(part); err != nil || string(got) != "\x00\x00\x00\x0b\x00\x00\x00\x00"+text {
		t.Errorf("dumpimage finds %q, %v, want a list of one length and %q", got, err, text)
	}
	image[4] ^= 1 // the header's checksum
	if out, _ := judge(); strings.Contains(out, "Skerry boot script") {
		t.Errorf("mkimage -l of a damaged header = %q, want it refused", out)
	}
}

// tool finds a program of u-boot-tools; in CI it must be there.
func tool(t *testing.T, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil && os.Getenv("CI") != "" {
		t.Fatalf("find %s: %v: apt install u-boot-tools", name, err)
	}
	if err != nil {
		t.Skipf("find %s: %v: apt install u-boot-tools", name, err)
	}
	return p
}
