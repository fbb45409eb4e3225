package qemu

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/dt"
)

// The words are run by a few lines that know just them: where the image ends up, and where it is entered.
func TestMoved(t *testing.T) {
	image := []byte("0123456789abcdef0123456789abcdef01234")
	out, err := moved(image, 0x8000, []int{2, 3})
	if err != nil {
		t.Fatal(err)
	}
	memory := make([]byte, 0x20000)
	copy(memory[kernelAddress:], out)
	word := func(at uint32) uint32 { return binary.LittleEndian.Uint32(memory[at:]) }
	pc := uint32(kernelAddress)
	if w := word(pc); w>>24 != 0xea {
		t.Fatalf("first word %#x; want a branch", w)
	}
	pc += 8 + word(pc)&0xffffff*4
	load := func(register uint32) uint32 { // ldr register, [pc, #offset]
		w := word(pc)
		if w&^0xfff != 0xe59f0000|register<<12 {
			t.Fatalf("at %#x: %#x; want ldr r%d", pc, w, register)
		}
		v := word(pc + 8 + w&0xfff)
		pc += 4
		return v
	}
	next := func(want ...uint32) {
		t.Helper()
		for _, want := range want {
			if got := word(pc); got != want {
				t.Fatalf("at %#x: %#x; want %#x", pc, got, want)
			}
			pc += 4
		}
	}
	// Processors 2 and 3 are sent to a loop of two instructions.
	loop := load(3)
	for i, want := range []uint32{0xe320f003, 0xeafffffd} {
		if got := load(4); got != want {
			t.Errorf("instruction %d of the loop: %#x; want %#x", i, got, want)
		}
		next(0xe5834000 + 4*uint32(i))
	}
	for _, want := range []uint32{0x400000ac, 0x400000bc} {
		if got := load(4); got != want {
			t.Errorf("mailbox %#x; want %#x", got, want)
		}
		next(0xe5843000)
	}
	if loop < 0x500 || loop > 0xff8 {
		t.Errorf("the loop lies at %#x; want it in the first page, after QEMU's own", loop)
	}
	from, to, end := load(3), load(4), load(5)
	next(0xe4936004, 0xe4846004, 0xe1540005, 0x3afffffb)
	for ; to < end; from, to = from+4, to+4 {
		copy(memory[to:to+4], memory[from:from+4])
	}
	if entry := load(15); entry != 0x8000 || !bytes.HasPrefix(memory[entry:], image) {
		t.Errorf("entered at %#x, where %q lies; want 0x8000 and the image", entry, memory[entry:entry+40])
	}
	if _, err := moved(image, kernelAddress, nil); err == nil {
		t.Error("moved() upwards = nil; want an error")
	}
}

func TestChangedTree(t *testing.T) {
	tree := dt.FDT{Header: dt.Header{Magic: dt.Magic, Version: 17, LastCompVersion: 16}, RootNode: dt.NewNode("", dt.WithChildren(dt.NewNode("soc", dt.WithChildren(
		dt.NewNode("mmc@1", dt.WithProperty(dt.PropertyString("status", "okay"))),
		dt.NewNode("pins", dt.WithProperty(dt.PropertyU32("phandle", 36)))))))}
	var raw bytes.Buffer
	if _, err := tree.Write(&raw); err != nil {
		t.Fatal(err)
	}
	out, err := changedTree(raw.Bytes(), map[string]map[string]any{"/soc/mmc@1": {"status": "disabled", "bus-width": 4, "broken-cd": true, "pinctrl-0": "&/soc/pins"}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := dt.ReadFDT(bytes.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	node, _ := got.NodeByName("mmc@1")
	for name, want := range map[string]string{"status": "disabled\x00", "bus-width": "\x00\x00\x00\x04", "broken-cd": "", "pinctrl-0": "\x00\x00\x00\x24"} {
		if p, ok := node.LookProperty(name); !ok || string(p.Value) != want {
			t.Errorf("%s = %+v; want %q", name, p, want)
		}
	}
	for _, tt := range []struct {
		changes map[string]map[string]any
		want    string
	}{
		{map[string]map[string]any{"/soc/mmc@2": {"status": "okay"}}, `no node "/soc/mmc@2"`},
		{map[string]map[string]any{"/soc/mmc@1": {"a": "&/soc/mmc@1"}}, "has no phandle"},
		{map[string]map[string]any{"/soc/mmc@1": {"a": 1.5}}, "want a text, a number or true"},
	} {
		if _, err := changedTree(raw.Bytes(), tt.changes); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("changedTree(%v) = %v; want %q", tt.changes, err, tt.want)
		}
	}
	if _, err := changedTree([]byte("no tree"), nil); err == nil {
		t.Error("changedTree() of noise = nil; want an error")
	}
}
