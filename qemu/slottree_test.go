package qemu_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/qemu"
)

// TestTreeInSlot boots a board whose firmware brings no device tree from its card alone, boot ROM and
// loader included: the tree of the slot is checked like its kernel, and the slot refused without one.
func TestTreeInSlot(t *testing.T) {
	b := board(t, "bananapi-m2-ultra")
	m := machine(t, b, "bpim2u")
	qemu.Require(t, m)
	loaders := builtLoaders(t, b)
	const tree = "dtb/bananapi-m2-ultra.dtb"
	unnamed := func(pick func(*testDisk) map[string][]byte) func(*testDisk) {
		return func(d *testDisk) {
			files := pick(d)
			text, err := slots.Parse(files[slots.ManifestFile])
			if err != nil {
				t.Fatal(err)
			}
			delete(text.DTBs, boards.DTBKey(b.Name))
			manifest(t, files, text)
		}
	}
	both := steady(slots.A, slots.OK, slots.OK)
	mismatch := "slot a: device tree CRC mismatch in " + tree + ": got "
	for _, c := range []bootCase{
		// The loader has a tree of its own: the kernel must get what lies where the slot's was loaded.
		{name: "whole", state: both, boots: slots.A, says: []string{"slot a: starting 1.0", "Flattened Device Tree blob at 48200000"}},
		{name: "flipped", state: both, change: damage(slotA, tree, flip), whole: onlyB, boots: slots.B, says: []string{mismatch, "refused", "slot b: starting 2.0"}},
		{name: "truncated, on trial", state: trial(2), change: damage(slotB, tree, truncate), whole: onlyA, boots: slots.A,
			says: []string{"slot b: on trial, 1 tries left", "slot b: device tree length mismatch in " + tree + ": got ", "refused", "slot a: starting 1.0"}},
		{name: "gone", state: both, change: func(d *testDisk) { delete(d.a, tree) }, whole: onlyB, boots: slots.B,
			says: []string{"slot a: device tree " + tree + " can not be loaded, refused", "slot b: starting 2.0"}},
		{name: "not named", state: both, change: unnamed(slotA), whole: onlyB, boots: slots.B,
			says: []string{"slot a: it has no device tree for bananapi-m2-ultra, refused", "slot b: starting 2.0"}},
		// What slot a says of its tree must not be taken for b's.
		{name: "flipped, the other not named", state: both, change: func(d *testDisk) { damage(slotA, tree, flip)(d); unnamed(slotB)(d) }, whole: neither,
			says: []string{mismatch, "slot b: it has no device tree for bananapi-m2-ultra, refused", "no bootable slot: slots tried: a b"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newTestDisk(t, b, c.state)
			d.loaders = loaders
			c.run(t, m, d, 1<<30)
		})
	}
}

// builtLoaders is what lies in the gap before the first partition of the board's image, by its place.
func builtLoaders(t *testing.T, b *boards.Board) map[int64][]byte {
	t.Helper()
	build, err := qemu.BuildDir()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(build, b.Name, "skerry-"+b.Name+".img"))
	if errors.Is(err, fs.ErrNotExist) && os.Getenv("CI") == "" {
		t.Skipf("%v; build it with: make image BOARD=%s", err, b.Name)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	loaders := map[int64][]byte{}
	for _, l := range b.Loaders {
		loaders[l.At] = make([]byte, boards.LoaderRoom(l.At, b.Loaders))
		if _, err := f.ReadAt(loaders[l.At], l.At); err != nil {
			t.Fatal(err)
		}
	}
	return loaders
}
