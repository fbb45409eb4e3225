package qemu_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/qemu"
)

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// newVM prepares a machine on virt over an image with two whole slots.
func newVM(t *testing.T, change func(*qemu.Config, *testDisk)) *qemu.VM {
	t.Helper()
	b := board(t, "rpi4")
	m := machine(t, b, "virt")
	qemu.Require(t, m)
	d := newTestDisk(t, b, steady(slots.A, slots.OK, slots.OK))
	cfg := qemu.Config{Dir: t.TempDir() + "/a, b", Machine: m, Image: tempFile(t, "an image, raw.img"), Memory: 512}
	if change != nil {
		change(&cfg, &d)
	}
	if cfg.Image != "" {
		d.write(t, cfg.Image, boards.ImageSize)
	}
	vm, err := qemu.New(bounded(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.Cut)
	return vm
}

func start(t *testing.T, vm *qemu.VM) {
	t.Helper()
	if err := vm.Start(bounded(t)); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, vm *qemu.VM, pattern string) []string {
	t.Helper()
	got, err := vm.Expect(bounded(t), pattern)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// prompt is a FIRMWARE whose boot script ends at once: U-Boot then shows its
// prompt and obeys, for as long as a test needs a machine that stays.
func prompt(cfg *qemu.Config, d *testDisk) {
	d.firmware[boards.BootScriptFile] = boards.ScriptImage("echo at the prompt\n")
	m := *cfg.Machine
	m.Env.Vars = map[string]string{}
	for k, v := range cfg.Machine.Env.Vars {
		m.Env.Vars[k] = v
	}
	m.Env.Vars["bootcmd"] = "pci enum; virtio scan; load virtio 0:1 ${scriptaddr} boot.scr && source ${scriptaddr}"
	cfg.Machine = &m
}

func TestMachineEnds(t *testing.T) {
	vm := newVM(t, nil)
	start(t, vm)
	_, err := vm.Expect(bounded(t), "this is never printed")
	for _, want := range []string{"the machine ended (exit status 0)", "skerry: slot a: starting 1.0", ":stub"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Expect when the machine ends = %v, want %q in it", err, want)
		}
	}
	log, err := os.ReadFile(vm.Dir() + "/" + qemu.ConsoleFile)
	if err != nil || !bytes.Contains(log, []byte(":stub")) {
		t.Errorf("%s = %q, %v, want all that was printed", qemu.ConsoleFile, log, err)
	}
}

func TestExpectIsBounded(t *testing.T) {
	vm := newVM(t, prompt)
	start(t, vm)
	expect(t, vm, "at the prompt")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err := vm.Expect(ctx, "this is never printed")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "at the prompt") {
		t.Errorf("Expect of what never comes = %v, want deadline exceeded and the console's end", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("Expect of what never comes took %v, want about 300ms", took)
	}
}

func TestQEMURefuses(t *testing.T) {
	vm := newVM(t, func(cfg *qemu.Config, _ *testDisk) { cfg.Extra = []string{"-device", "no-such-device"} })
	if err := vm.Start(bounded(t)); err == nil || !strings.Contains(err.Error(), "no-such-device") {
		t.Errorf("Start with a wrong device = %v, want what QEMU says", err)
	}
	rpi3 := machine(t, board(t, "rpi3"), "raspi3b")
	if _, err := qemu.New(bounded(t), qemu.Config{Dir: t.TempDir(), Machine: rpi3, Memory: 2048}); err == nil || !strings.Contains(err.Error(), "want 1024 and 4") {
		t.Errorf("New of raspi3b with 2048 MiB = %v, want an error that names 1024", err)
	}
	if _, err := qemu.New(bounded(t), qemu.Config{Dir: t.TempDir(), Machine: rpi3, Image: os.DevNull}); err == nil {
		t.Error("New with an image that has no FIRMWARE = nil, want an error")
	}
}

// TestCut: a machine that was cut starts again with its disk; the image is never touched.
func TestCut(t *testing.T) {
	var image string
	vm := newVM(t, func(cfg *qemu.Config, d *testDisk) {
		d.state[0] = encode(t, trial(3))
		image = cfg.Image
	})
	before := states(t, image)
	start(t, vm)
	expect(t, vm, "slot b: on trial, 2 tries left")
	vm.Cut()
	if pid := vm.PID(); pid != 0 {
		t.Errorf("PID() after Cut = %d, want 0", pid)
	}
	start(t, vm)
	expect(t, vm, "slot b: on trial, 1 tries left")
	if err := vm.Wait(bounded(t)); err != nil {
		t.Errorf("Wait = %v, want nil", err)
	}
	raw := tempFile(t, "disk.img")
	if err := vm.CopyDisk(bounded(t), raw); err != nil {
		t.Fatal(err)
	}
	if got, _, err := readState(raw); err != nil || got.Tries != 1 {
		t.Errorf("boot state after two boots = %v, %v, want 1 try", got, err)
	}
	if states(t, image) != before {
		t.Error("the image was written to")
	}
}

func readState(file string) (slots.State, int, error) {
	f, err := os.Open(file)
	if err != nil {
		return slots.State{}, 0, err
	}
	defer f.Close()
	return slots.Read(f, stateOffsets)
}

// TestFirmwareHook: the hook's files are on FIRMWARE of the overlay, where U-Boot finds them, and nowhere else.
func TestFirmwareHook(t *testing.T) {
	var image string
	vm := newVM(t, func(cfg *qemu.Config, d *testDisk) {
		image = cfg.Image
		prompt(cfg, d)
		cfg.Firmware = func(files map[string][]byte) error {
			files["provision.json"] = []byte(`{"secret":"marmot"}`)
			files[boards.BootScriptFile] = boards.ScriptImage("load virtio 0:1 46400000 provision.json; md.b 46400000 ${filesize}; echo loaded ${filesize}\n")
			return nil
		}
	})
	start(t, vm)
	expect(t, vm, "loaded 13\r")
	if !strings.Contains(vm.Console(), `{"secret":"marmo`) {
		t.Errorf("console = %q, want the hook's file in it", vm.Console())
	}
	data, err := os.ReadFile(image)
	if err != nil || bytes.Contains(data, []byte("marmot")) {
		t.Errorf("the image holds what the hook wrote (%v)", err)
	}
}

func TestSnapshotAndFork(t *testing.T) {
	vm := newVM(t, prompt)
	start(t, vm)
	expect(t, vm, "at the prompt")
	type_(t, vm, "setenv memory before\n")
	type_(t, vm, "echo memory is ${memory}\n")
	expect(t, vm, "memory is before\r")
	if err := vm.Snapshot(bounded(t), "ready"); err != nil {
		t.Fatal(err)
	}
	type_(t, vm, "setenv memory after\necho memory is ${memory}\n")
	expect(t, vm, "memory is after\r")
	if err := vm.Restore(bounded(t), "ready"); err != nil {
		t.Fatal(err)
	}
	type_(t, vm, "echo memory is ${memory}\n")
	expect(t, vm, "memory is before\r")
	if err := vm.Restore(bounded(t), "nosuch"); err == nil {
		t.Error("Restore of a snapshot that isn't there = nil, want an error")
	}
	vm.Cut()
	fork, err := vm.Fork(bounded(t), t.TempDir(), func(c *qemu.Config) { c.LoadVM = "ready" })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fork.Cut)
	start(t, fork)
	type_(t, fork, "echo memory is ${memory}\n")
	expect(t, fork, "memory is before\r")
}

func type_(t *testing.T, vm *qemu.VM, text string) {
	t.Helper()
	if err := vm.Send(text); err != nil {
		t.Fatal(err)
	}
}

func TestForwardsAndStats(t *testing.T) {
	vm := newVM(t, func(cfg *qemu.Config, d *testDisk) {
		prompt(cfg, d)
		cfg.Forwards = map[int]int{6443: 0, 9443: 0}
	})
	start(t, vm)
	expect(t, vm, "at the prompt")
	first := vm.Ports()
	if first[6443] == 0 || first[9443] == 0 || first[6443] == first[9443] || vm.Port(6443) != first[6443] {
		t.Errorf("Ports() = %v, want two different ports", first)
	}
	type_(t, vm, "virtio dev 0; mw.b 46400000 a5 200; virtio write 46400000 7000 1; setenv w written; echo has ${w}\n")
	expect(t, vm, "has written\r")
	s, err := vm.Stats(bounded(t))
	if err != nil || s.Written != 512 || s.Read == 0 || s.Resident == 0 {
		t.Errorf("Stats() = %+v, %v, want 512 bytes written", s, err)
	}
	vm.Cut()
	start(t, vm)
	if again := vm.Ports(); fmt.Sprint(again) != fmt.Sprint(first) {
		t.Errorf("Ports() after a second start = %v, want %v as before", again, first)
	}
}

// TestTapForwardsNothing: ports of the host lead through QEMU's own network only.
// That a machine boots with a tap alone is TestAddress, in qemu/e2e.
func TestTapForwardsNothing(t *testing.T) {
	vm := newVM(t, func(cfg *qemu.Config, d *testDisk) {
		prompt(cfg, d)
		cfg.Tap, cfg.Forwards = "tap0", map[int]int{6443: 0}
	})
	if err := vm.Start(bounded(t)); err == nil || !strings.Contains(err.Error(), "forward ports") {
		t.Errorf("Start() with a tap and Forwards = %v; want it refused", err)
	}
}

// TestAttach: a detached machine is found again by its folder, and started again as it was.
func TestAttach(t *testing.T) {
	vm := newVM(t, func(cfg *qemu.Config, d *testDisk) {
		prompt(cfg, d) // U-Boot stays at its prompt here; the machine that is started again boots as boards says
		cfg.Detach, cfg.Forwards = true, map[int]int{6443: 0}
	})
	start(t, vm)
	expect(t, vm, "at the prompt")
	memory, smp := vm.Size()
	r := qemu.Record{Board: "rpi4", Machine: "virt", Memory: memory, SMP: smp, PID: vm.PID(), Ports: vm.Ports()}
	if err := r.Save(vm.Dir()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := qemu.Reopen(bounded(t), vm.Dir()); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("Reopen of a running machine = %v, want an error", err)
	}
	if _, err := qemu.Attach(bounded(t), vm.Dir()); err == nil || !strings.Contains(err.Error(), "another command holds it") {
		t.Errorf("Attach to a machine that somebody else holds = %v, want it to say so", err)
	}
	vm.Disconnect()
	again, err := qemu.Attach(bounded(t), vm.Dir())
	if err != nil {
		t.Fatal(err)
	}
	type_(t, again, "setenv w attached; echo is ${w}\n")
	expect(t, again, "is attached\r")
	again.Cut()
	if err := vm.Wait(bounded(t)); err == nil {
		t.Error("Wait of a machine that was cut = nil, want how it ended")
	}
	if _, err := qemu.Attach(bounded(t), vm.Dir()); !errors.Is(err, qemu.ErrOff) {
		t.Errorf("Attach to a machine that is off = %v, want ErrOff", err)
	}
	once, r2, err := qemu.Reopen(bounded(t), vm.Dir())
	if err != nil || r2.Ports[6443] != r.Ports[6443] {
		t.Fatalf("Reopen = %+v, %v, want the ports of before", r2, err)
	}
	t.Cleanup(once.Cut)
	start(t, once)
	expect(t, once, "boot.scr on FIRMWARE can not be run|at the prompt")
	if once.Port(6443) != r.Ports[6443] {
		t.Errorf("Port(6443) = %d, want %d as before", once.Port(6443), r.Ports[6443])
	}
}

// TestBuiltInEnvironment: with nothing but the image, U-Boot's own search finds boot.scr too.
func TestBuiltInEnvironment(t *testing.T) {
	vm := newVM(t, func(cfg *qemu.Config, _ *testDisk) { cfg.NoEnv = true })
	start(t, vm)
	expect(t, vm, "Hit any key")
	expect(t, vm, "stub: .* skerry.slot=a .* :stub")
}

// TestDiesWithItsParent: a machine is gone when who started it is killed.
func TestDiesWithItsParent(t *testing.T) {
	if dir := os.Getenv("SKERRY_TEST_PARENT"); dir != "" {
		vm := newVM(t, prompt)
		start(t, vm)
		expect(t, vm, "at the prompt")
		json.NewEncoder(os.Stdout).Encode(map[string]int{"pid": vm.PID()})
		select {} // until the test kills us
	}
	qemu.Require(t, machine(t, board(t, "rpi4"), "virt"))
	cmd := exec.CommandContext(bounded(t), os.Args[0], "-test.run=^TestDiesWithItsParent$")
	cmd.Env = append(os.Environ(), "SKERRY_TEST_PARENT="+t.TempDir(), "TMPDIR="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said struct{ PID int }
	if err := json.NewDecoder(out).Decode(&said); err != nil || said.PID == 0 {
		t.Fatalf("the parent says %+v, %v, want QEMU's pid", said, err)
	}
	handle, err := pidfdOpen(said.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if !pidfdEnded(handle, 10*time.Second) {
		t.Errorf("QEMU, pid %s, outlives its killed parent", strconv.Itoa(said.PID))
	}
}

// TestRaspi3b: the Pi's own U-Boot, taken from FIRMWARE as its boot ROM does, reads
// uboot.env and boot.scr from the emulated SD card and starts a kernel,
// whatever noise the serial line carries at power-on. The twin, a
// FIRMWARE without uboot.env, shows that the noise is heard.
func TestRaspi3b(t *testing.T) {
	b := board(t, "rpi3")
	m := machine(t, b, "raspi3b")
	qemu.Require(t, m)
	firmware := builtFirmware(t)
	for name, want := range map[string]string{"with uboot.env": `Starting kernel`, "twin without": `\nU-Boot> `} {
		t.Run(name, func(t *testing.T) {
			d := newTestDisk(t, b, trial(3))
			for _, name := range []string{m.Kernel, m.DTB} {
				d.firmware[name] = firmware[name]
			}
			if name == "twin without" {
				delete(d.firmware, boards.UBootEnvFile)
			}
			image := tempFile(t, "sd.img")
			d.write(t, image, boards.ImageSize)
			vm, err := qemu.New(bounded(t), qemu.Config{Dir: t.TempDir(), Machine: m, Image: image, Extra: []string{"-no-reboot"}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(vm.Cut)
			start(t, vm)
			type_(t, vm, "noise")
			expect(t, vm, `Core: `) // what comes before goes to the other serial line
			type_(t, vm, "more noise")
			expect(t, vm, want)
			heard := strings.Contains(vm.Console(), "Hit any key")
			if name == "twin without" {
				if !heard {
					t.Errorf("console = %q, want autoboot stopped by noise", vm.Console())
				}
				return
			}
			for _, want := range []string{"slot b: on trial, 2 tries left", "slot b: starting 2.0"} {
				if !strings.Contains(vm.Console(), want) {
					t.Errorf("console = %q, want %q in it", vm.Console(), want)
				}
			}
			if err := vm.Wait(bounded(t)); err != nil { // the stub knows no power switch here and resets
				t.Fatal(err)
			}
			raw := tempFile(t, "disk.img")
			if err := vm.CopyDisk(bounded(t), raw); err != nil {
				t.Fatal(err)
			}
			if got, _, err := readState(raw); err != nil || got.Tries != 2 {
				t.Errorf("boot state = %v, %v, want 2 tries", got, err)
			}
			if info, err := os.Stat(raw); err != nil || info.Size() != 1<<30 {
				t.Errorf("the card has %d bytes, %v, want %d", info.Size(), err, 1<<30)
			}
		})
	}
}

// builtFirmware is FIRMWARE of whichever Raspberry Pi image was built: they are the same.
func builtFirmware(t *testing.T) map[string][]byte {
	t.Helper()
	build, err := qemu.BuildDir()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"rpi3", "rpi4"} {
		files, err := qemu.ReadFirmware(filepath.Join(build, name, "skerry-"+name+".img"))
		if err == nil {
			return files
		}
		if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatal("no image of rpi3 or rpi4 is built: run make image")
	}
	t.Skip("no image of rpi3 or rpi4 is built: run make image")
	return nil
}
