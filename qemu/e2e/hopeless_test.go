//go:build full

package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestHopelessBoots cuts the power again and again before containerd runs. After
// three such boots the slot is refused: the other one has its turn, or, where there is
// none, the same one again. Two such boots, the twin, change nothing.
func TestHopelessBoots(t *testing.T) {
	image := bootImage(t)
	slot := readSlotA(t, image)
	const limit = 3 * time.Minute
	const hopeless = `skerry: error: .*the last boots \(3\) did not get as far as containerd`
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
