package qemu_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/qemu"
)

// bootCase is one disk that U-Boot has to decide about.
type bootCase struct {
	name   string
	state  slots.State                // in both copies, the second one older
	change func(d *testDisk)          // damage
	boots  slots.Slot                 // none: it must say so
	says   []string                   // on the console, in this order
	whole  func(slot slots.Slot) bool // which slots are intact; none: both
}

// damage changes one file of a slot.
func damage(pick func(*testDisk) map[string][]byte, name string, how func([]byte) []byte) func(*testDisk) {
	return func(d *testDisk) { files := pick(d); files[name] = how(bytes.Clone(files[name])) }
}

func slotA(d *testDisk) map[string][]byte { return d.a }
func slotB(d *testDisk) map[string][]byte { return d.b }
func flip(b []byte) []byte                { b[len(b)/2] ^= 0x10; return b }
func truncate(b []byte) []byte            { return b[:len(b)-1] }
func onlyA(s slots.Slot) bool             { return s == slots.A }
func onlyB(s slots.Slot) bool             { return s == slots.B }
func neither(slots.Slot) bool             { return false }

func trial(tries uint8) slots.State {
	return slots.State{Seq: 0x1ff, Good: slots.A, Trial: slots.B, Tries: tries, A: slots.OK, B: slots.OK}
}

func steady(good slots.Slot, a, b slots.Status) slots.State {
	return slots.State{Seq: 7, Good: good, A: a, B: b}
}

// bootCases are the disks; kernel is the name of its file in a slot.
func bootCases(kernel string) []bootCase {
	both := steady(slots.A, slots.OK, slots.OK)
	mismatch := func(slot, what, file string) string {
		return "slot " + slot + ": " + what + " CRC mismatch in " + file + ": got "
	}
	return []bootCase{
		{name: "fresh", state: slots.New(slots.A), change: func(d *testDisk) { d.b = nil }, boots: slots.A, says: []string{"slot a: starting 1.0"}},
		{name: "b good", state: steady(slots.B, slots.OK, slots.OK), boots: slots.B},
		{name: "trial, 3 tries", state: trial(3), boots: slots.B, says: []string{"slot b: on trial, 2 tries left", "slot b: starting 2.0"}},
		{name: "trial, 2 tries", state: trial(2), boots: slots.B, says: []string{"slot b: on trial, 1 tries left"}},
		{name: "trial, the last", state: trial(1), boots: slots.B, says: []string{"slot b: on trial, 0 tries left"}},
		{name: "trial used up", state: trial(0), boots: slots.A, says: []string{"slot b: no tries left, refused", "slot a: starting"}},
		{name: "trial of a, b good", state: slots.State{Seq: 9, Good: slots.B, Trial: slots.A, Tries: 9, A: slots.OK, B: slots.OK}, boots: slots.A},
		{name: "trial with a broken kernel", state: trial(2), change: damage(slotB, kernel, flip), whole: onlyA, boots: slots.A,
			says: []string{"on trial, 1 tries", mismatch("b", "kernel", kernel), "refused", "slot a: starting"}},
		{name: "kernel flipped", state: both, change: damage(slotA, kernel, flip), whole: onlyB, boots: slots.B, says: []string{mismatch("a", "kernel", kernel), "refused"}},
		{name: "initrd flipped", state: both, change: damage(slotA, "initrd.img", flip), whole: onlyB, boots: slots.B, says: []string{mismatch("a", "initrd", "initrd.img"), "refused"}},
		{name: "slot.txt flipped", state: both, change: damage(slotA, "slot.txt", flip), whole: onlyB, boots: slots.B, says: []string{mismatch("a", "slot.txt", "slot.txt"), "refused"}},
		{name: "slot.crc flipped", state: both, change: damage(slotA, "slot.crc", flip), whole: onlyB, boots: slots.B, says: []string{"slot a: slot.txt", "refused"}},
		{name: "kernel truncated", state: both, change: damage(slotA, kernel, truncate), whole: onlyB, boots: slots.B, says: []string{"slot a: kernel length mismatch in " + kernel + ": got ", "refused"}},
		{name: "initrd gone", state: both, change: func(d *testDisk) { delete(d.a, "initrd.img") }, whole: onlyB, boots: slots.B, says: []string{"slot a: initrd initrd.img can not be loaded, refused"}},
		{name: "slot gone", state: both, change: func(d *testDisk) { d.a = nil }, whole: onlyB, boots: slots.B, says: []string{"slot a: slot.crc can not be loaded, refused"}},
		{name: "good one bad", state: steady(slots.A, slots.Bad, slots.OK), boots: slots.B},
		{name: "both bad", state: steady(slots.B, slots.Bad, slots.Bad), boots: slots.B},
		{name: "other one bad", state: steady(slots.A, slots.OK, slots.Bad), change: damage(slotA, kernel, flip), whole: onlyB, boots: slots.B},
		{name: "first copy zeros", state: trial(3), change: func(d *testDisk) { d.state[0] = make([]byte, 512) }, boots: slots.A, says: []string{"one copy of two is damaged"}},
		{name: "second copy torn", state: trial(3), change: func(d *testDisk) { copy(d.state[1][200:], "torn") }, boots: slots.B},
		{name: "second copy newer", state: trial(3), change: func(d *testDisk) { d.state[0], d.state[1] = d.state[1], d.state[0] }, boots: slots.B},
		{name: "newer copy torn", state: steady(slots.B, slots.OK, slots.OK), change: func(d *testDisk) { copy(d.state[0][8:], "torn") }, boots: slots.A},
		{name: "both copies bad", state: both, change: func(d *testDisk) { d.state[0], d.state[1] = make([]byte, 512), flip(d.state[1]) }, boots: slots.A,
			says: []string{"both copies are damaged", "slot a: starting"}},
		{name: "both copies bad, a broken", state: both, change: func(d *testDisk) {
			d.state = [2][]byte{make([]byte, 512), make([]byte, 512)}
			damage(slotA, kernel, flip)(d)
		}, whole: onlyB, boots: slots.B},
		{name: "never written", state: steady(slots.A, slots.OK, slots.Empty), change: damage(slotA, kernel, flip), whole: onlyB, boots: "",
			says: []string{mismatch("a", "kernel", kernel), "no bootable slot: slots tried: a, slot a is ok, slot b is empty", "next attempt in 5 s"}},
		{name: "both broken, one on trial", state: trial(2), change: func(d *testDisk) { damage(slotA, kernel, flip)(d); damage(slotB, kernel, truncate)(d) }, whole: neither, boots: "",
			says: []string{"slot b: kernel length mismatch", mismatch("a", "kernel", kernel), "no bootable slot: slots tried: b a, slot a is ok, slot b is ok"}},
		{name: "both broken", state: both, change: func(d *testDisk) { damage(slotA, "slot.txt", flip)(d); damage(slotB, "initrd.img", truncate)(d) }, whole: neither, boots: "",
			says: []string{mismatch("a", "slot.txt", "slot.txt"), "slot b: initrd length mismatch", "no bootable slot: slots tried: a b"}},
	}
}

// eachArch runs a test on each architecture's virt, where all of its boards are alike.
func eachArch(t *testing.T, test func(*testing.T, *boards.Board, *boards.QEMUMachine)) {
	for _, name := range []string{"rpi4", "rpi2"} {
		b := board(t, name)
		t.Run(b.Arch.Name, func(t *testing.T) {
			m := machine(t, b, "virt")
			qemu.Require(t, m)
			test(t, b, m)
		})
	}
}

// TestBootScript lets U-Boot itself decide, and holds what it boots and what it
// writes against the transitions of package slots.
func TestBootScript(t *testing.T) {
	eachArch(t, func(t *testing.T, b *boards.Board, m *boards.QEMUMachine) {
		for _, c := range bootCases(b.Arch.Kernel.File) {
			t.Run(c.name, func(t *testing.T) { c.run(t, m, newTestDisk(t, b, c.state), boards.ImageSize) })
		}
	})
}

func (c bootCase) run(t *testing.T, m *boards.QEMUMachine, d testDisk, size int64) {
	if c.change != nil {
		c.change(&d)
	}
	file := tempFile(t, "disk.img")
	d.write(t, file, size)
	booted, console := decide(t, m, file)
	if booted != c.boots {
		t.Errorf("U-Boot boots %q, want %q\n%s", booted, c.boots, console)
	}
	inOrder(t, console, c.says...)
	wantBoot, want := byGo(d.state, c.whole)
	if booted != wantBoot {
		t.Errorf("U-Boot boots %q, package slots %q", booted, wantBoot)
	}
	if got := states(t, file); got != want {
		t.Errorf("U-Boot leaves boot state\n%q, package slots\n%q", got, want)
	}
}

// TestBootScriptTwin: the comparison above notices a boot script that doesn't
// write the try it takes, and one that doesn't look at the CRC.
func TestBootScriptTwin(t *testing.T) {
	eachArch(t, func(t *testing.T, b *boards.Board, m *boards.QEMUMachine) {
		t.Run("no write", func(t *testing.T) {
			d := newTestDisk(t, b, trial(3))
			d.firmware = spoiled(t, b, "if ${devtype} write ${sk_at} ${sk_next} 1; then", "if true; then")
			file := tempFile(t, "disk.img")
			d.write(t, file, boards.ImageSize)
			decide(t, m, file)
			if _, want := byGo(d.state, nil); states(t, file) == want {
				t.Error("a boot script that doesn't write leaves the same state as one that does")
			}
		})
		t.Run("no CRC", func(t *testing.T) {
			d := newTestDisk(t, b, steady(slots.A, slots.OK, slots.OK))
			d.firmware = spoiled(t, b, "if itest 0x${sk_got} != 0x${sk_crc}; then", "if false; then")
			damage(slotA, "initrd.img", flip)(&d)
			file := tempFile(t, "disk.img")
			d.write(t, file, boards.ImageSize)
			if booted, _ := decide(t, m, file); booted != slots.A {
				t.Errorf("a boot script that doesn't compare boots %q, want the damaged a", booted)
			}
		})
	})
}

// spoiled is FIRMWARE with a boot script in which one thing is changed.
func spoiled(t *testing.T, b *boards.Board, from, to string) map[string][]byte {
	t.Helper()
	script, err := b.BootScript()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(script, from) != 1 {
		t.Fatalf("boot script has %q %d times, want once", from, strings.Count(script, from))
	}
	files := firmwareFiles(t, b)
	files[boards.BootScriptFile] = boards.ScriptImage(strings.Replace(script, from, to, 1))
	return files
}

// newTestDisk has two whole slots and the state in its first copy, an older one in the second.
func newTestDisk(t *testing.T, b *boards.Board, s slots.State) testDisk {
	older := slots.New(slots.A)
	older.Seq, older.B = s.Seq-1, slots.OK
	return testDisk{
		firmware: firmwareFiles(t, b), a: slotFiles(t, b, "1.0"), b: slotFiles(t, b, "2.0"),
		state: [2][]byte{encode(t, s), encode(t, older)},
	}
}

// decide runs U-Boot until it starts a kernel or gives up.
func decide(t *testing.T, m *boards.QEMUMachine, file string) (slots.Slot, string) {
	t.Helper()
	ends := map[string]string{"virt": "skerry.board=virt console=ttyAMA0", "bpim2u": "skerry.board=bananapi-m2-ultra console=ttyS0,115200"}[m.Name]
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	vm := powerOn(ctx, t, m, file)
	got, err := vm.Expect(ctx, `stub: (.*) :stub|no bootable slot: .* next attempt in \d+ s`)
	if err != nil {
		t.Fatal(err)
	}
	if got[1] == "" {
		vm.Cut()
		return "", vm.Console()
	}
	if m.Fixed {
		vm.Cut() // the stub knows no power switch there
	} else if err := vm.Wait(ctx); err != nil {
		t.Fatalf("Wait = %v, want the stub kernel's power-off", err)
	}
	var slot slots.Slot
	for _, arg := range strings.Fields(got[1]) {
		if name, ok := strings.CutPrefix(arg, "skerry.slot="); ok {
			slot = slots.Slot(name)
		}
	}
	part := map[slots.Slot]int{slots.A: boards.PartSlotA, slots.B: boards.PartSlotB}[slot]
	want := fmt.Sprintf("ro panic=10 oops=panic skerry.roothash=%s skerry.rootoff=67108864 skerry.slot=%s skerry.part=PARTUUID=534b5259-0%d %s",
		strings.Repeat("5c", 32), slot, part, ends)
	if got[1] != want {
		t.Errorf("kernel arguments = %q, want %q", got[1], want)
	}
	return slot, vm.Console()
}

func powerOn(ctx context.Context, t *testing.T, m *boards.QEMUMachine, file string) *qemu.VM {
	t.Helper()
	c := qemu.Config{Dir: t.TempDir(), Machine: m, RawDisk: file}
	if !m.Fixed {
		c.Memory = 512
	}
	vm, err := qemu.New(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.Cut)
	return vm
}

// byGo is what package slots makes of the same disk: the slot that boots and both copies afterwards.
func byGo(before [2][]byte, whole func(slots.Slot) bool) (slots.Slot, string) {
	state, index, err := slots.Newest(before)
	order, next, write := state.Boot()
	if errors.Is(err, slots.ErrNoState) {
		order, write = []slots.Slot{slots.A, slots.B}, false
	}
	after := before
	if write {
		sector, err := next.Encode()
		if err != nil {
			return "", err.Error()
		}
		after[1-index] = sector
	}
	for _, slot := range order {
		if whole == nil || whole(slot) {
			return slot, string(after[0]) + string(after[1])
		}
	}
	return "", string(after[0]) + string(after[1])
}

func states(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var both string
	for _, offset := range stateOffsets {
		sector := make([]byte, slots.StateSize)
		if _, err := f.ReadAt(sector, offset); err != nil {
			t.Fatal(err)
		}
		both += string(sector)
	}
	return both
}
