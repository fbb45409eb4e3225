package qemu_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/qemu"
	"skerry.internal/skerry/qemu/writelog"
)

// TestRecordedBootState: when a kernel runs on trial, the try that it cost is on
// the disk, wherever the power is cut from then on; and while it is written, one of the
// two copies is whole. A disk that forgets flushes must fail that: else the test can't see.
func TestRecordedBootState(t *testing.T) {
	vm := newVM(t, func(cfg *qemu.Config, d *testDisk) {
		d.state[0] = encode(t, trial(3))
		cfg.Record = true
	})
	var taken []int // where the log stood when a kernel had started
	for _, left := range []int{2, 1} {
		start(t, vm)
		expect(t, vm, fmt.Sprintf("slot b: on trial, %d tries left", left))
		expect(t, vm, `stub: .* :stub`)
		if err := vm.Wait(bounded(t)); err != nil {
			t.Fatal(err)
		}
		n, err := writelog.Count(vm.WriteLog())
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, n)
	}
	log, err := writelog.Open(vm.WriteLog())
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if got := len(log.Writing(0, taken[0], boards.BootState0, boards.BootState1+boards.SectorSize)); got != 1 || taken[1] <= taken[0] {
		t.Fatalf("%d writes of the boot state at the first boot, the log at %v; want one, and more at the second", got, taken)
	}
	lost := func(log *writelog.Log) (bad, states int) {
		raw := tempFile(t, "raw.img")
		if err := vm.CopyUnwritten(bounded(t), raw); err != nil {
			t.Fatal(err)
		}
		disk, err := log.Follow(raw, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		dir := t.TempDir()
		for cut := range len(log.Entries) + 1 {
			if err := disk.Advance(cut); err != nil {
				t.Fatal(err)
			}
			most := 3
			for _, n := range taken {
				if cut >= n {
					most--
				}
			}
			for seed := range uint64(10) {
				file := filepath.Join(dir, fmt.Sprint(cut, "-", seed))
				if err := disk.Write(file, log.Choose(cut, seed), 0, boards.FirmwareStart); err != nil {
					t.Fatal(err)
				}
				states++
				if s, _, err := readState(file); err != nil || int(s.Tries) > most {
					bad++
				}
			}
		}
		return bad, states
	}
	if bad, states := lost(log); bad != 0 {
		t.Errorf("%d of %d power cuts lost the boot state or gave a try back", bad, states)
	}
	bad, states := lost(log.WithoutFlushes(0))
	if bad == 0 {
		t.Errorf("a boot state that was never flushed was there after all of %d power cuts", states)
	}
	t.Logf("without flushes %d of %d power cuts lose a try", bad, states)
}

// TestDiskFaults: U-Boot reads and writes while the disk is well, failing, stalled, and well again.
func TestDiskFaults(t *testing.T) {
	vm := newVM(t, func(cfg *qemu.Config, d *testDisk) {
		prompt(cfg, d)
		cfg.Faults, cfg.Record = true, true
	})
	start(t, vm)
	expect(t, vm, "at the prompt")
	serial := 0
	try := func(command, want string) {
		t.Helper()
		serial++
		type_(t, vm, fmt.Sprintf("if %s; then setenv r worked; else setenv r failed; fi; echo %d ${r}\n", command, serial))
		if got := expect(t, vm, fmt.Sprintf(`%d (worked|failed)\r`, serial))[1]; got != want {
			t.Errorf("%s: %s; want it %s", command, got, want)
		}
	}
	fail := func(f qemu.Fault) {
		t.Helper()
		if err := vm.FailDisk(bounded(t), f); err != nil {
			t.Fatal(err)
		}
	}
	const read, write, other = "virtio read 46400000 7000 1", "virtio write 46400000 7000 1", "virtio read 46400000 8000 1"
	type_(t, vm, "virtio dev 0\n")
	for _, step := range []struct {
		name                string
		fault               qemu.Fault
		read, write, others string
	}{
		{"well", qemu.Fault{}, "worked", "worked", "worked"},
		{"writes fail", qemu.Fault{Kinds: []qemu.IOKind{qemu.Writes}}, "worked", "failed", "worked"},
		{"one sector fails", qemu.Fault{Kinds: []qemu.IOKind{qemu.Reads, qemu.Writes}, Sector: 0x7000}, "failed", "failed", "worked"},
		{"once", qemu.Fault{Kinds: []qemu.IOKind{qemu.Reads}, Once: true}, "failed", "worked", "worked"},
		{"well again", qemu.Fault{}, "worked", "worked", "worked"},
	} {
		fail(step.fault)
		t.Log(step.name)
		try(read, step.read)
		try(write, step.write)
		try(other, step.others)
	}

	stall := func(stalled bool) {
		t.Helper()
		if err := vm.StallDisk(bounded(t), stalled); err != nil {
			t.Fatal(err)
		}
	}
	stall(true)
	// A throttled disk lets the first request through; the ones after it wait.
	// U-Boot keeps what it has read, so it writes.
	type_(t, vm, write+"; "+write+"; "+write+"; setenv r through; echo came ${r}\n")
	short, cancel := contextFor(t, 3*time.Second)
	defer cancel()
	if _, err := vm.Expect(short, `came through\r`); err == nil {
		t.Error("a stalled disk answered within three seconds")
	}
	stall(false)
	expect(t, vm, `came through\r`)
	try(write, "worked")
}

// TestFaultsAreAskedFor: a machine without the layer says so, and so does a record that would have no beginning.
func TestFaultsAreAskedFor(t *testing.T) {
	vm := newVM(t, func(cfg *qemu.Config, d *testDisk) { prompt(cfg, d) })
	start(t, vm)
	if err := vm.FailDisk(bounded(t), qemu.Fault{Kinds: []qemu.IOKind{qemu.Reads}}); err == nil {
		t.Error("FailDisk of a machine without Faults = nil; want an error")
	}
	vm.Cut()
	_, err := vm.Fork(bounded(t), t.TempDir(), func(c *qemu.Config) { c.Record = true })
	if err == nil {
		t.Error("Fork into a recorded machine = nil; want an error")
	}
}

func contextFor(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(t.Context(), d)
}
