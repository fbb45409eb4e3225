//go:build full

package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/boot"
	"skerry.internal/skerry/agent/config"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/image"
	"skerry.internal/skerry/qemu"
)

// mistaken is what stands before the rest of skerry.yaml, which holds: with a byte order mark, CRLF, an unknown key, a
// tab, values of wrong types, and a key that the rest has again.
const mistaken = "\xef\xbb\xbfhostnam: barn-7\r\nntp:\r\n\t- time.example.org\r\nmaxPods: many\r\noverlays: {dac: true}\r\nhostname: barn-1\r\n"

// mistakes are its lines, and what is said of each.
var mistakes = map[int]string{1: `unknown key "hostnam"`, 3: "", 4: "many", 5: "want a list", 7: `key "hostname" stands in line 6 already`}

// TestStatus looks at a node through its status API while skerryd is dead and
// while it hangs; then it restarts the node and empties it.
func TestStatus(t *testing.T) {
	n := startNode(t, withStatus, func(c *qemu.Config) {
		put := c.Firmware
		c.Firmware = func(files map[string][]byte) error {
			err := put(files)
			files[config.FileName] = append([]byte(mistaken), files[config.FileName]...)
			return err
		}
	})
	o := n.operator()
	n.ops()
	o.look()
	o.facts(description(t, bootImage(t)))
	// The rest of the file holds: it gives the node its name and the registry's password.
	got := o.wrongWith(config.FileName)
	for line, part := range mistakes {
		if want := fmt.Sprintf("skerry.yaml:%d: ", line); !strings.Contains(got, want) || !strings.Contains(got, part) {
			t.Errorf("the status says of %s %q; want %s%s", config.FileName, got, want, part)
		}
	}

	pid := o.unit("skerryd").PID
	n.soon("busybox kill -KILL $(busybox pidof skerryd)")
	n.expect(`skerry: unit skerryd started`, 3*time.Minute)
	if u := o.unit("skerryd"); u.Restarts != 1 || !strings.Contains(u.LastExit, "SIGKILL") || u.PID == pid {
		t.Errorf("skerryd after SIGKILL = %+v; want one restart, and why", u)
	}
	n.expect(`skerry: unit skerryd ready`, bootTime)
	n.eventually("exec works again", func() error { _, err := n.on("true"); return err })
	pid = o.unit("skerryd").PID
	n.soon("busybox kill -STOP $(busybox pidof skerryd)")
	n.expect(`skerry: error: unit skerryd: no sign of life`, 3*time.Minute)
	if u := o.unit("skerryd"); u.State == "ready" && u.PID == pid {
		t.Errorf("skerryd after SIGSTOP = %+v; want it hung, or another process", u)
	}
	n.expect(`skerry: unit skerryd ready`, bootTime)

	o.do("reboot")
	n.expect(`skerry: going down: reboot, by the status API`, time.Minute)
	n.expect(`U-Boot`, 3*time.Minute)
	n.expect(`skerry: node ready`, bootTime)
	if st := o.status(); st.Node.Cluster != "e2e" || st.Uptime > 10*time.Minute { // the twin of the reset
		t.Errorf("status after a reboot = %+v; want the same node, just started", st)
	}

	if out, errs, err := o.skerry("reset", o.address, "--yes", "barn-2"); err == nil || !strings.Contains(errs, "barn-1") {
		t.Errorf("reset with another's name = %q, %q, %v; want it refused", out, errs, err)
	}
	o.do("reset", "--yes", "barn-1")
	n.expect(`skerry: factory reset: STATE is made anew`, 3*time.Minute)
	n.expect(`skerry: status API is not started: this node belongs to no cluster`, 3*time.Minute)
	if out, errs, err := o.skerry("status", o.address); err == nil {
		t.Errorf("status of an empty node = %q, %q; want an error", out, errs)
	}
	// STATE alone was emptied: the slots hold what the image holds.
	n.vm.Cut()
	raw := filepath.Join(n.home, "emptied.raw")
	if err := n.vm.CopyDisk(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("cmp", fmt.Sprintf("--ignore-initial=%d", boards.SlotAStart), fmt.Sprintf("--bytes=%d", boards.StateStart-boards.SlotAStart), raw, bootImage(t)).CombinedOutput()
	if err != nil {
		t.Errorf("the slots after a factory reset: %v: %s", err, out)
	}
}

// facts holds what the status says of the image, the machine and the clock against
// what the builder says of the image, what QEMU was given, and this host's clock.
func (o *operator) facts(made image.Description) {
	o.t.Helper()
	st := o.status()
	if want := (api.Version{Skerry: made.Version, Kernel: made.Kernel, Arch: made.Arch}); st.Version != want {
		o.t.Errorf("version = %+v; want %+v", st.Version, want)
	}
	if st.Slots[0] != (api.Slot{Name: "a", Status: "ok", Good: true, Version: made.Version}) || st.Slots[1] != (api.Slot{Name: "b", Status: "empty"}) {
		o.t.Errorf("slots = %+v; want a as it was made, and b empty", st.Slots)
	}
	if st.Node.Board != "virt" || st.Node.Role != "server" || len(st.Node.MachineID) != 32 {
		o.t.Errorf("node = %+v; want a server on virt with a machine ID", st.Node)
	}
	const whole = 2 << 30 // of the machine; the kernel keeps some
	if m := st.Memory; m.Total > whole || m.Total < whole*9/10 || m.Available <= 0 || m.Available >= m.Total || m.SwapTotal != 0 {
		o.t.Errorf("memory = %+v; want nearly 2 GiB, some of it free, and no swap", m)
	}
	if s := st.State; s.Free <= 0 || s.Free >= s.Size || s.InodesFree <= 0 || s.InodesFree >= s.Inodes || s.ReadOnly {
		o.t.Errorf("STATE = %+v; want it in use, and room on it", s)
	}
	if st.Clock.Source == "" || time.Since(st.Time).Abs() > time.Minute || st.Uptime <= 0 {
		o.t.Errorf("time = %v by %+v, %v after power-on; want about %v", st.Time, st.Clock, st.Uptime, time.Now())
	}
	if i := st.Network.Interfaces; len(i) != 1 || i[0].Name != "eth0" || !i[0].Plugged || len(i[0].Addresses) == 0 {
		o.t.Errorf("interfaces = %+v; want eth0, plugged in, with an address", i)
	}
	for _, m := range st.Mistakes {
		if part, ok := mistakes[m.Line]; !ok || !strings.Contains(m.Text, part) {
			o.t.Errorf("mistake %+v; want those of %v", m, mistakes)
		}
	}
	if len(st.Mistakes) != len(mistakes) {
		o.t.Errorf("mistakes = %+v; want one for each of %v", st.Mistakes, mistakes)
	}
}

// TestResetFile boots a card on whose FIRMWARE somebody has put skerry-reset:
// it is carried out once, also when the card forgets that the file was removed. Its
// twin is every other test: STATE stays.
func TestResetFile(t *testing.T) {
	t.Parallel()
	vm := newMachine(t, "rpi4", "virt", bootImage(t), nil, func(c *qemu.Config) {
		c.Firmware = func(files map[string][]byte) error { files[boot.ResetFile] = []byte("please\n"); return nil }
	})
	const limit = 4 * time.Minute
	raw, firmware := filepath.Join(t.TempDir(), "raw"), filepath.Join(t.TempDir(), "firmware")
	if err := vm.CopyDisk(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
	dd := exec.Command("dd", "if="+raw, "of="+firmware, "bs=1M", fmt.Sprintf("skip=%d", boards.FirmwareStart/boards.MiB), fmt.Sprintf("count=%d", boards.FirmwareSize/boards.MiB), "status=none")
	if out, err := dd.CombinedOutput(); err != nil {
		t.Fatalf("dd: %v: %s", err, out)
	}
	powerOn(t, vm)
	for _, line := range []string{
		`skerry: STATE formatted`, // the first boot
		`skerry: going down: factory reset, FIRMWARE holds skerry-reset`,
		`skerry: factory reset: STATE is made anew`,
		`skerry: skerry-reset on FIRMWARE was carried out`,
		`skerry: unit containerd ready`,
	} {
		await(t, vm, line, limit)
	}
	vm.Cut()
	writeFile(t, vm, boards.FirmwareStart, firmware, boards.FirmwareSize)
	powerOn(t, vm)
	await(t, vm, `skerry: skerry-reset on FIRMWARE was carried out`, limit) // so it was there again
	await(t, vm, `skerry: unit containerd ready`, limit)
	if again := vm.Console(); strings.Contains(again, "factory reset") || strings.Contains(again, "STATE formatted") {
		t.Errorf("the reset was carried out again:\n%s", again)
	}
}

// TestUnreadableConfiguration boots cards whose skerry.yaml is none: that is said,
// and the node comes up without it. An empty one is a right one, and the twin.
func TestUnreadableConfiguration(t *testing.T) {
	noise := make([]byte, 5000)
	rand.NewChaCha8([32]byte{3}).Read(noise)
	for name, content := range map[string][]byte{"empty": {}, "binary": noise, "large": bytes.Repeat([]byte("ntp: [time.example.org]\n"), 10<<20/24)} {
		t.Run(name, func(t *testing.T) {
			vm := newMachine(t, "rpi4", "virt", bootImage(t), nil, func(c *qemu.Config) {
				c.Firmware = func(files map[string][]byte) error { files[config.FileName] = content; return nil }
			})
			powerOn(t, vm)
			await(t, vm, `skerry: unit containerd ready`, 3*time.Minute)
			said := regexp.MustCompile(`skerry: error: skerry\.yaml: .*`).FindAllString(vm.Console(), -1)
			if (len(said) > 0) != (name != "empty") {
				t.Errorf("the console says of skerry.yaml: %q", said)
			}
			t.Logf("%q", said)
		})
	}
}
