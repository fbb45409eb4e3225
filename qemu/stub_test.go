package qemu_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/disk"
	"skerry.internal/skerry/imagebuild/fat"
)

// stubKernel is a kernel that prints "stub: ", its command line and " :stub" and powers off by PSCI.
// It finds the command line, which must begin with "ro p", in the device tree.
func stubKernel(b *boards.Board) []byte {
	var code []uint32
	switch b.Arch.Kernel.Start {
	case "booti":
		code = stubImage
	case "bootz":
		code = stubZImage
		if b.Name == "bananapi-m2-ultra" {
			code = append(slices.Clone(code[:len(code)-1]), 0x01c28000) // its first 16550, in place of virt's PL011
		}
	}
	var data bytes.Buffer
	binary.Write(&data, binary.LittleEndian, code)
	data.WriteString("stub: \x00 :stub\r\n\x00")
	return append(data.Bytes(), make([]byte, 0x1000-data.Len())...)
}

// stubImage is an arm64 Image for QEMU's virt.
var stubImage = []uint32{
	0x14000010, 0, // b code
	0, 0, // text offset
	0x1000, 0, // image size
	0xa, 0, // little-endian, 4 KiB pages, anywhere in memory
	0, 0, 0, 0, 0, 0,
	0x644d5241, 0, // "ARM\x64"
	0xaa0003f3,    // code: mov x19, x0 (the device tree)
	0x100002e1,    // adr x1, begin
	0x9400000e,    // bl puts
	0x528dee42,    // mov w2, "ro"
	0x72ae0402,    // movk w2, " p", lsl 16
	0xb8404663,    // next: ldr w3, [x19], 4
	0x6b02007f,    // cmp w3, w2
	0x54ffffc1,    // b.ne next
	0xd1001261,    // sub x1, x19, 4
	0x94000007,    // bl puts
	0x700001e1,    // adr x1, end
	0x94000005,    // bl puts
	0x52800100,    // mov w0, 8
	0x72b08000,    // movk w0, 0x8400, lsl 16 (SYSTEM_OFF)
	0xd4000002,    // hvc 0
	0x14000000,    // b .
	0x580000c5,    // puts: ldr x5, uart
	0x38401424,    // loop: ldrb w4, [x1], 1
	0x34000064,    // cbz w4, out
	0x390000a4,    // strb w4, [x5]
	0x17fffffd,    // b loop
	0xd65f03c0,    // out: ret
	0x09000000, 0, // uart
}

// stubZImage is a 32-bit ARM zImage for QEMU's virt. A machine whose processor has no hvc stays, or resets.
var stubZImage = []uint32{
	0xea00000a, // b code
	0, 0, 0, 0, 0, 0, 0, 0,
	0x016f2818, 0, 0x1000, // magic, start, end
	0xe1a04002, // code: mov r4, r2 (the device tree)
	0xe59f504c, // ldr r5, uart
	0xe28f104c, // adr r1, begin
	0xeb00000c, // bl puts
	0xe3062f72, // movw r2, "ro"
	0xe3472020, // movt r2, " p"
	0xe4943004, // next: ldr r3, [r4], 4
	0xe1530002, // cmp r3, r2
	0x1afffffc, // bne next
	0xe2441004, // sub r1, r4, 4
	0xeb000005, // bl puts
	0xe28f102f, // adr r1, end
	0xeb000003, // bl puts
	0xe3a00008, // mov r0, 8
	0xe3480400, // movt r0, 0x8400 (SYSTEM_OFF)
	0xe1400070, // hvc 0
	0xeafffffe, // b .
	0xe4d10001, // puts: ldrb r0, [r1], 1
	0xe3500000, // cmp r0, 0
	0x012fff1e, // bxeq lr
	0xe5c50000, // strb r0, [r5]
	0xeafffffa, // b puts
	0x09000000, // uart
}

// stubTree is a device tree that has what U-Boot changes before it starts a kernel.
func stubTree() []byte {
	return flatten(treeNode{children: []treeNode{{name: "cpus"}}})
}

func pack(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// slotFiles makes the files of a whole slot with the stub kernel.
func slotFiles(t testing.TB, b *boards.Board, version string) map[string][]byte {
	t.Helper()
	kernel := stubKernel(b)
	if b.Arch.Kernel.Packed() {
		kernel = pack(t, kernel)
	}
	files := map[string][]byte{
		b.Arch.Kernel.File: kernel,
		"initrd.img":       bytes.Repeat([]byte("initramfs of "+version+"\n"), 1000),
	}
	m := slots.Manifest{
		Version: version, Arch: b.Arch.Name, RootHash: strings.Repeat("5c", 32),
		Args:   []string{"ro", "panic=10", "oops=panic", "skerry.roothash=" + strings.Repeat("5c", 32), "skerry.rootoff=67108864"},
		Kernel: slots.NewBootFile(b.Arch.Kernel.File, kernel),
		Initrd: slots.NewBootFile("initrd.img", files["initrd.img"]),
		DTBs:   map[string]slots.BootFile{},
	}
	for _, f := range b.Arch.DTBs {
		name := "dtb/" + f.Name + ".dtb"
		files[name] = stubTree()
		m.DTBs[boards.DTBKey(f.Name)] = slots.NewBootFile(name, files[name])
	}
	manifest(t, files, &m)
	return files
}

// manifest writes slot.txt and slot.crc.
func manifest(t testing.TB, files map[string][]byte, m *slots.Manifest) {
	t.Helper()
	text, err := m.Format()
	if err != nil {
		t.Fatal(err)
	}
	files["slot.txt"], files["slot.crc"] = text, slots.FormatChecksum(text)
}

// testDisk is what goes on a disk: no files, no file system.
type testDisk struct {
	firmware, a, b map[string][]byte
	state          [2][]byte
	loaders        map[int64][]byte // by their place
}

func (d testDisk) write(t testing.TB, file string, size int64) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(f.Truncate(size))
	_, err = f.WriteAt(disk.MBR(disk.Partitions()), 0)
	check(err)
	for offset, loader := range d.loaders {
		_, err = f.WriteAt(loader, offset)
		check(err)
	}
	for i, offset := range stateOffsets {
		_, err = f.WriteAt(d.state[i], offset)
		check(err)
	}
	for _, p := range []struct {
		files  map[string][]byte
		offset int64
		spec   fat.Spec
	}{
		{d.firmware, boards.FirmwareStart, fat.Spec{Size: boards.FirmwareSize, Bits: 32, Label: "FIRMWARE"}},
		{d.a, boards.SlotAStart, fat.Spec{Size: boards.SlotBootSize, Bits: 16, Label: "SLOT"}},
		{d.b, boards.SlotBStart, fat.Spec{Size: boards.SlotBootSize, Bits: 16, Label: "SLOT"}},
	} {
		var list []fat.File
		for name, data := range p.files {
			list = append(list, fat.File{Name: name, Data: data})
		}
		if len(list) > 0 {
			p.spec.Time = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
			check(fat.Write(writerAt{f, p.offset}, p.spec, list))
		}
	}
}

type writerAt struct {
	f      *os.File
	offset int64
}

func (w writerAt) WriteAt(b []byte, off int64) (int, error) { return w.f.WriteAt(b, w.offset+off) }

var stateOffsets = [2]int64{boards.BootState0, boards.BootState1}

// firmwareFiles is FIRMWARE as far as it is made and not taken from packages.
func firmwareFiles(t testing.TB, board *boards.Board) map[string][]byte {
	t.Helper()
	script, err := board.BootScript()
	if err != nil {
		t.Fatal(err)
	}
	env, err := board.UBootEnv()
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{boards.BootScriptFile: boards.ScriptImage(script), boards.UBootEnvFile: env}
}

func encode(t testing.TB, s slots.State) []byte {
	t.Helper()
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func board(t testing.TB, name string) *boards.Board {
	t.Helper()
	b, err := boards.ByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func machine(t testing.TB, b *boards.Board, name string) *boards.QEMUMachine {
	t.Helper()
	m, err := b.Machine(name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func tempFile(t testing.TB, name string) string { return filepath.Join(t.TempDir(), name) }
