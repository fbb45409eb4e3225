//go:build full

package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/boot"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/qemu"
)

// TestStatus looks at a node through its status API while skerryd is dead and
// while it hangs; then it restarts the node and empties it.
func TestStatus(t *testing.T) {
	n := startNode(t, withStatus)
	o := n.operator()
	n.ops()
	o.look()

	pid := o.unit("skerryd").PID
	n.must("(busybox sleep 1; busybox kill -KILL $(busybox pidof skerryd)) >/dev/null 2>&1 &")
	n.expect(`skerry: unit skerryd started`, 3*time.Minute)
	if u := o.unit("skerryd"); u.Restarts != 1 || !strings.Contains(u.LastExit, "SIGKILL") || u.PID == pid {
		t.Errorf("skerryd after SIGKILL = %+v; want one restart, and why", u)
	}
	n.expect(`skerry: unit skerryd ready`, bootTime)
	n.eventually("exec works again", func() error { _, err := n.on("true"); return err })
	pid = o.unit("skerryd").PID
	n.must("(busybox sleep 1; busybox kill -STOP $(busybox pidof skerryd)) >/dev/null 2>&1 &")
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

// TestResetFile boots a card on whose FIRMWARE somebody has put skerry-reset:
// it is carried out once. Its twin is every other test: STATE stays.
func TestResetFile(t *testing.T) {
	t.Parallel()
	vm := newMachine(t, "rpi4", "virt", bootImage(t), nil, func(c *qemu.Config) {
		c.Firmware = func(files map[string][]byte) error { files[boot.ResetFile] = []byte("please\n"); return nil }
	})
	const limit = 4 * time.Minute
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
	powerOn(t, vm)
	await(t, vm, `skerry: unit containerd ready`, limit)
	if again := vm.Console(); strings.Contains(again, "factory reset") || strings.Contains(again, "STATE formatted") {
		t.Errorf("the reset was carried out again:\n%s", again)
	}
}
