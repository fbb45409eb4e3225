//go:build full

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/qemu"
)

// TestRottenSlot flips one bit in the root file system of a slot that has
// always run. With another slot the node goes there and stays there; without
// one it tries again, ever more slowly, and says so.
func TestRottenSlot(t *testing.T) {
	t.Parallel()
	image := bootImage(t)
	slot := readSlotA(t, image)
	const super = boards.SlotBootSize
	const limit = 3 * time.Minute

	t.Run("alone", func(t *testing.T) {
		t.Parallel()
		vm := newMachine(t, "rpi4", "virt", image, nil)
		writeByte(t, vm, boards.SlotAStart+super, slot[super]^0x10)
		powerOn(t, vm)
		for _, pause := range []string{"10s", "20s", "40s"} {
			await(t, vm, `skerry: error: slot a: root file system refused: mount `, limit)
			await(t, vm, `skerry: error: slot a is marked bad, and there is no other: .*flash the card anew`, limit)
			await(t, vm, `skerry: rebooting in `+pause+`\b`, limit)
		}
	})

	// Two slots, one of them rotten, and the same with both whole.
	for _, flip := range []byte{0x10, 0} {
		t.Run(fmt.Sprintf("other slot, flip %#x", flip), func(t *testing.T) {
			t.Parallel()
			vm := newMachine(t, "rpi4", "virt", image, nil)
			writeBoth(t, vm, slot)
			writeByte(t, vm, boards.SlotAStart+super, slot[super]^flip)
			powerOn(t, vm)
			if flip == 0 {
				await(t, vm, `skerry: unit containerd ready`, limit)
				await(t, vm, `skerry: start skerryd|unit skerryd started`, limit)
				if console := vm.Console(); !strings.Contains(console, "slot a: starting") || strings.Contains(console, "slot b") || strings.Contains(console, "marked bad") {
					t.Errorf("two whole slots: the console says\n%s", console)
				}
				return
			}
			for _, want := range []string{
				`skerry: error: slot a: root file system refused: mount `,
				`skerry: error: slot a is marked bad; slot b is next`,
				`skerry: slot b: starting `,
				`skerry: unit containerd ready`,
				`skerry: note slot done`,
			} {
				await(t, vm, want, limit)
			}
			// The power goes at once; the verdict stays.
			vm.Cut()
			powerOn(t, vm)
			await(t, vm, `skerry: slot b: starting `, limit)
			await(t, vm, `skerry: unit containerd ready`, limit)
			if strings.Contains(vm.Console(), "slot a: starting") {
				t.Errorf("after a power cut the bad slot is tried first:\n%s", vm.Console())
			}
		})
	}
}

// TestRotAtRunTime flips one bit of the root file system that only skerryd reads, when the
// slot has come up: with another slot the node goes there, and becomes Ready. (Without one
// it runs on and says what is wrong: TestTamper.)
func TestRotAtRunTime(t *testing.T) {
	image := bootImage(t)
	slot := readSlotA(t, image)
	_, bundle := newBundle(t)
	vm := newMachine(t, "rpi4", "virt", image, bundle)
	writeBoth(t, vm, slot)
	at := packedWith(t, slot, pauseImage)
	writeByte(t, vm, boards.SlotAStart+at, slot[at]^0x10)
	powerOn(t, vm)
	for _, want := range []string{
		`skerry: slot a: starting `,
		`skerry: note slot done`,
		`skerry: error: slot a: its root file system is damaged`,
		`skerry: error: slot a is marked bad; slot b is next`,
		`skerry: slot b: starting `,
		`skerry: slot b has come up; it is the good one now`,
		`skerry: node ready`,
	} {
		await(t, vm, want, bootTime)
	}
}

// writeBoth has a machine that is off hold the same in both slots.
func writeBoth(t *testing.T, vm *qemu.VM, slot []byte) {
	t.Helper()
	both := slots.New(slots.A)
	both.B, both.Seq = slots.OK, 2
	sector, err := both.Encode()
	if err != nil {
		t.Fatal(err)
	}
	blob, state := filepath.Join(t.TempDir(), "slot"), filepath.Join(t.TempDir(), "state")
	if err := errors.Join(os.WriteFile(blob, slot, 0o600), os.WriteFile(state, sector, 0o600)); err != nil {
		t.Fatal(err)
	}
	writeFile(t, vm, boards.SlotBStart, blob, len(slot))
	writeFile(t, vm, boards.BootState1, state, len(sector))
}

// writeFile writes a file of this machine to the overlay of a machine that is off.
func writeFile(t *testing.T, vm *qemu.VM, at int, file string, size int) {
	t.Helper()
	size = (size + 511) &^ 511
	if err := os.Truncate(file, int64(size)); err != nil {
		t.Fatal(err)
	}
	write := fmt.Sprintf("write -q -s %s %d %d", file, at, size)
	if out, err := exec.Command("qemu-io", "-f", "qcow2", "-c", write, filepath.Join(vm.Dir(), qemu.OverlayFile)).CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("qemu-io %s: %v\n%s", write, err, out)
	}
}
