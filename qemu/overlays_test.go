package qemu_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/qemu"
)

// treeNode is a node of a flattened device tree.
type treeNode struct {
	name     string
	props    [][2]string
	children []treeNode
}

// flatten writes a device tree as the specification has it
// (https://www.devicetree.org/specifications, chapter 5).
func flatten(root treeNode) []byte {
	var structs, names bytes.Buffer
	word := func(b *bytes.Buffer, values ...int) {
		for _, v := range values {
			binary.Write(b, binary.BigEndian, uint32(v))
		}
	}
	text := func(s string) {
		structs.WriteString(s)
		structs.Write(make([]byte, (4-structs.Len()%4)%4))
	}
	var write func(n treeNode)
	write = func(n treeNode) {
		word(&structs, 1) // FDT_BEGIN_NODE
		text(n.name + "\x00")
		for _, p := range n.props {
			word(&structs, 3, len(p[1]), names.Len()) // FDT_PROP
			text(p[1])
			names.WriteString(p[0] + "\x00")
		}
		for _, c := range n.children {
			write(c)
		}
		word(&structs, 2) // FDT_END_NODE
	}
	write(root)
	word(&structs, 9) // FDT_END
	const header, reserved = 40, 16
	at := header + reserved
	var b bytes.Buffer
	word(&b, 0xd00dfeed, at+structs.Len()+names.Len(), at, at+structs.Len(), header, 17, 16, 0, names.Len(), structs.Len())
	b.Write(make([]byte, reserved))
	b.Write(structs.Bytes())
	b.Write(names.Bytes())
	return b.Bytes()
}

// overlayFor adds the node of that name, with one property, at target.
func overlayFor(target, node, value string) []byte {
	return flatten(treeNode{children: []treeNode{{name: "fragment@0", props: [][2]string{{"target-path", target + "\x00"}},
		children: []treeNode{{name: "__overlay__", children: []treeNode{{name: node, props: [][2]string{{"skerry,test", value + "\x00"}}}}}}}}})
}

// withOverlays is a disk whose slot A is good, with that on FIRMWARE.
func withOverlays(t *testing.T, b *boards.Board, names []string, files map[string][]byte) testDisk {
	t.Helper()
	d := newTestDisk(t, b, steady(slots.A, slots.OK, slots.OK))
	list, err := boards.OverlaysEnv(names)
	if err != nil {
		t.Fatal(err)
	}
	d.firmware[boards.OverlaysFile] = list
	for name, data := range files {
		d.firmware[boards.OverlaysDir+"/"+name+".dtbo"] = data
	}
	return d
}

func inOrder(t *testing.T, console string, wants ...string) {
	t.Helper()
	rest := console
	for _, want := range wants {
		_, after, found := strings.Cut(rest, want)
		if !found {
			t.Errorf("U-Boot doesn't say %q (in this order: %q)\n%s", want, wants, console)
			return
		}
		rest = after
	}
}

// TestOverlaysLeftOut: whatever is wrong with overlays costs the overlays, not
// the boot. Debian's U-Boot for QEMU's virt has no "fdt apply": there all of them are left out.
func TestOverlaysLeftOut(t *testing.T) {
	b := board(t, "rpi4")
	m := machine(t, b, "virt")
	qemu.Require(t, m)
	good := overlayFor("/", "skerry-test", "ok")
	for _, tt := range []struct {
		name   string
		change func(*testDisk)
		says   []string
	}{
		{"missing and not to be applied", func(*testDisk) {}, []string{
			"skerry: overlay a: overlays/a.dtbo on FIRMWARE can not be loaded, left out", "skerry: overlay b: does not fit this device tree, or this U-Boot applies none, left out"}},
		{"torn", func(d *testDisk) { d.firmware[boards.OverlaysFile] = d.firmware[boards.OverlaysFile][:300] }, nil},
		{"flipped", func(d *testDisk) { d.firmware[boards.OverlaysFile][7] ^= 1 }, []string{"skerry: overlays.env on FIRMWARE is damaged, no overlays"}},
		{"empty file", func(d *testDisk) { d.firmware[boards.OverlaysFile] = nil }, []string{"skerry: overlays.env on FIRMWARE is damaged, no overlays"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := withOverlays(t, b, []string{"a", "b"}, map[string][]byte{"b": good})
			tt.change(&d)
			file := tempFile(t, "disk.img")
			d.write(t, file, boards.ImageSize)
			booted, console := decide(t, m, file)
			if booted != slots.A {
				t.Errorf("U-Boot boots %q, want a\n%s", booted, console)
			}
			inOrder(t, console, append(tt.says, "slot a: starting 1.0")...)
		})
	}
}

// TestOverlaysApplied: the Pi's own U-Boot applies those that fit, one after the
// other, and what they add is in the tree that the kernel gets; one that does
// not fit does not spoil it.
func TestOverlaysApplied(t *testing.T) {
	b := board(t, "rpi3")
	m := machine(t, b, "raspi3b")
	qemu.Require(t, m)
	d := withOverlays(t, b, []string{"one", "misfit", "broken", "gone", "two"}, map[string][]byte{
		"one":    overlayFor("/", "skerry-test", "first"),
		"misfit": overlayFor("/no/such/node", "x", "y"),
		"broken": []byte("no device tree"),
		"two":    overlayFor("/skerry-test", "inner", "second"), // fits what the first has made
	})
	for name, data := range piFiles(t) {
		d.firmware[name] = data
	}
	// In place of starting the kernel, print what it would be given.
	script, err := b.BootScript()
	if err != nil {
		t.Fatal(err)
	}
	const start = "booti ${sk_kernel_at} "
	if strings.Count(script, start) != 1 {
		t.Fatalf("boot script has %q %d times, want once", start, strings.Count(script, start))
	}
	script = strings.Replace(script, start, "fdt addr ${sk_fdt}; fdt print /skerry-test; fdt get value sk_model / model; echo model ${sk_model} end; "+start, 1)
	d.firmware[boards.BootScriptFile] = boards.ScriptImage(script)
	file := tempFile(t, "disk.img")
	d.write(t, file, 1<<30)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	vm, err := qemu.New(ctx, qemu.Config{Dir: t.TempDir(), Machine: m, RawDisk: file})
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(ctx); err != nil {
		t.Fatal(err)
	}
	defer vm.Cut()
	if _, err := vm.Expect(ctx, `model .* end`); err != nil {
		t.Fatal(err)
	}
	inOrder(t, vm.Console(), "overlay one: applied", "overlay misfit: does not fit", "overlay broken: does not fit", "overlay gone: overlays/gone.dtbo on FIRMWARE can not be loaded",
		"overlay two: applied", "slot a: starting 1.0", `skerry,test = "first"`, "inner {", `skerry,test = "second"`, "model Raspberry Pi 3 Model B end")
}

// piFiles are U-Boot and device tree of build/rpi3's FIRMWARE, which a Pi's ROM would load.
func piFiles(t *testing.T) map[string][]byte {
	t.Helper()
	build, err := qemu.BuildDir()
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(build, "rpi3", "skerry-rpi3.img")
	all, err := qemu.ReadFirmware(image)
	if errors.Is(err, fs.ErrNotExist) && os.Getenv("CI") == "" {
		t.Skipf("%v; build it with: make image BOARD=rpi3", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, name := range []string{"u-boot.bin", "bcm2837-rpi-3-b.dtb"} {
		files[name] = all[name]
	}
	return files
}
