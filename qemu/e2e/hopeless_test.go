//go:build full

package e2e

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/boards"
)

const hopeless = `skerry: error: .*the last boots \(3\) did not get as far as containerd`

// TestNoContainerd has a byte flipped in containerd's program, in a slot that has always run: after three boots in which
// it does not start the other slot has its turn. (A slot without another stays up: TestTamper.)
func TestNoContainerd(t *testing.T) {
	image := bootImage(t)
	slot := readSlotA(t, image)
	vm := newMachine(t, "rpi4", "virt", image, nil)
	writeBoth(t, vm, slot)
	at := programIn(t, slot, "path\tgithub.com/containerd/containerd/v2/cmd/containerd\n")
	writeByte(t, vm, boards.SlotAStart+at, slot[at]^0x10)
	powerOn(t, vm)
	for range 3 {
		await(t, vm, `skerry: slot a: starting `, bootTime)
		await(t, vm, `skerry: error: .*slot a: containerd does not start; slot b is whole and is next after 3 such boots`, bootTime)
	}
	for _, want := range []string{hopeless, `skerry: error: slot a is marked bad; slot b is next`, `skerry: slot b: starting `, `skerry: unit containerd ready`, `skerry: note slot done`} {
		await(t, vm, want, bootTime)
	}
}

// programIn returns the offset in the slot of a byte in the first block of the Go program that says text of itself.
func programIn(t *testing.T, slot []byte, text string) (offset int) {
	t.Helper()
	begin := 0
	frames(t, slot[boards.SlotBootSize:], func(at int, data []byte) {
		if bytes.HasPrefix(data, []byte("\x7fELF")) {
			begin = at
		}
		if offset == 0 && bytes.Contains(data, []byte(text)) {
			offset = boards.SlotBootSize + begin + verityBlock // the frame's first block holds the end of another file, too
		}
	})
	if offset == 0 || begin == 0 {
		t.Fatalf("unpack the root file system: no program holds %q", text)
	}
	return offset
}

// TestHopelessBoots cuts the power again and again before containerd runs. After
// three such boots the slot is refused: the other one has its turn, or, where there is
// none, the same one again. Two such boots, the twin, change nothing.
func TestHopelessBoots(t *testing.T) {
	image := bootImage(t)
	slot := readSlotA(t, image)
	const limit = 3 * time.Minute
	for _, tt := range []struct {
		name string
		both bool
		cuts int
		want []string // on the console of the boot after them
	}{
		{"alone", false, 3, []string{hopeless, `skerry: error: slot a is marked bad, and there is no other: .*flash the card anew`, `skerry: rebooting in 10s`,
			`skerry: slot a: starting `, `skerry: unit containerd ready`, `skerry: note slot done`}},
		{"other slot", true, 3, []string{hopeless, `skerry: error: slot a is marked bad; slot b is next`, `skerry: slot b: starting `, `skerry: unit containerd ready`,
			`skerry: note slot done`}},
		{"other slot, two cuts", true, 2, []string{`skerry: slot a: starting `, `skerry: unit containerd ready`, `skerry: note slot done`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			vm := newMachine(t, "rpi4", "virt", image, nil)
			if tt.both {
				writeBoth(t, vm, slot)
			}
			for range tt.cuts {
				powerOn(t, vm)
				await(t, vm, `skerry: count boot done`, limit)
				vm.Cut()
			}
			powerOn(t, vm)
			for _, want := range tt.want {
				await(t, vm, want, limit)
			}
			if tt.cuts < 3 && strings.Contains(vm.Console(), "marked bad") {
				t.Errorf("after %d cuts the console says\n%s", tt.cuts, vm.Console())
			}
			// The slot that came up is the one that is taken from now on.
			vm.Cut()
			powerOn(t, vm)
			last := "a"
			if tt.both && tt.cuts == 3 {
				last = "b"
			}
			await(t, vm, `skerry: slot `+last+`: starting `, limit)
			await(t, vm, `skerry: unit containerd ready`, limit)
			if console := vm.Console(); strings.Contains(console, "did not get as far as containerd") || strings.Contains(console, "marked bad") {
				t.Errorf("the boot after that says\n%s", console)
			}
		})
	}
}
