//go:build full

package qemu_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/qemu"
)

// TestBootScriptPauses has U-Boot refuse the only slot, on one architecture for its kernel and
// on the other for its initramfs: it tries again and again, each pause twice as long as the last, says so each time,
// and begins anew with a reset. Whole slots, in TestBootScript, are the twin.
func TestBootScriptPauses(t *testing.T) {
	for _, c := range []struct{ board, file string }{{"rpi4", "Image.gz"}, {"rpi2", "initrd.img"}} {
		t.Run(c.file, func(t *testing.T) {
			t.Parallel() // it waits, most of the time
			b := board(t, c.board)
			m := machine(t, b, "virt")
			qemu.Require(t, m)
			d := newTestDisk(t, b, slots.New(slots.A))
			d.b = nil
			damage(slotA, c.file, flip)(&d)
			file := tempFile(t, "disk.img")
			d.write(t, file, boards.ImageSize)
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
			defer cancel()
			vm := powerOn(ctx, t, m, file)
			var said time.Time
			for pause := 5; pause <= 160; pause *= 2 {
				if _, err := vm.Expect(ctx, fmt.Sprintf(`no bootable slot: .* next attempt in %d s`, pause)); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(said); pause > 5 && took < time.Duration(pause/2)*time.Second {
					t.Errorf("the pause before the one of %[1]d s took %[2]v; want it half as long", pause, took)
				}
				said = time.Now()
			}
			if _, err := vm.Expect(ctx, `no bootable slot: .* next attempt in 5 s`); err != nil {
				t.Fatalf("after the last pause: %v", err)
			}
			if n := strings.Count(vm.Console(), "U-Boot 20"); n != 2 {
				t.Errorf("U-Boot has started %d times; want twice:\n%s", n, vm.Console())
			}
		})
	}
}
