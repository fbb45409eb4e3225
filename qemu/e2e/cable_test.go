//go:build full

package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestCable powers a node on for the first time with its network cable out, and plugs
// it in later, with which it becomes Ready; then it pulls it out and plugs it in again.
func TestCable(t *testing.T) {
	t.Parallel()
	_, bundle := newBundle(t)
	vm := newMachine(t, "rpi4", "virt", bootImage(t), bundle)
	const limit = 3 * time.Minute
	plug := func(plugged bool) {
		t.Helper()
		if err := vm.Link(t.Context(), plugged); err != nil {
			t.Fatal(err)
		}
	}
	powerOn(t, vm)
	plug(false) // U-Boot has not looked at the network by then
	await(t, vm, `skerry: error: wait for network: no address yet; going on without`, limit)
	await(t, vm, `! network: no cable is plugged in`, limit) // on the screen; skerryd waits for an address
	if console := vm.Console(); strings.Contains(console, "has a link") || strings.Contains(console, "has address") || strings.Contains(console, "node ready") {
		t.Fatalf("the cable is not out:\n%s", console)
	}
	for _, step := range []struct {
		plugged bool
		says    string
	}{
		{true, `skerry: network: eth0 .*has a link`},
		{true, `skerry: network: eth0 has address 10\.0\.2\.15/24, gateway 10\.0\.2\.2`},
		{false, `skerry: network: eth0 has no link; its address is kept`},
		{false, `! network: eth0: no cable is plugged in; its address 10\.0\.2\.15 is kept`}, // on the screen
		{true, `skerry: network: eth0 .*has a link`},
	} {
		plug(step.plugged)
		await(t, vm, step.says, limit)
		if strings.Contains(step.says, "has address") {
			await(t, vm, `skerry: node ready`, bootTime)
		}
	}
}

// talker says on the console that it has started, where no network is needed to hear it.
const talker = `
apiVersion: v1
kind: Pod
metadata: {name: talker}
spec:
  containers:
  - name: main
    image: IMAGE
    args: [sh, -c, "echo '<3>talker has started' >/dev/kmsg; exec busybox sleep 1000000"]
    securityContext: {privileged: true}
`

// TestBootWithoutCable reboots a node that has had an address with its cable out: it
// uses the last lease, and its pods run, before anything is plugged in.
func TestBootWithoutCable(t *testing.T) {
	n := startNode(t)
	n.testWorkloads()
	if out, err := n.try(strings.ReplaceAll(talker, "IMAGE", n.image), "create", "-f", "-"); err != nil {
		t.Fatalf("create talker: %v\n%s", err, out)
	}
	const started = `talker has started`
	n.expect(started, 3*time.Minute) // the twin: it is heard
	n.soon("busybox kill -TERM 1")
	n.expect(`U-Boot`, 3*time.Minute)
	if err := n.vm.Link(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	from := len(n.vm.Console())
	n.expect(`skerry: network: no DHCP server has answered on eth0 in 10s; using the last lease`, bootTime)
	n.expect(`skerry: node ready`, bootTime)
	ready := time.Now()
	n.expect(started, bootTime) // as all pods of the test start again
	t.Logf("without a cable a pod runs %.0f s after the node is Ready", time.Since(ready).Seconds())
	if said := n.vm.Console()[from:]; strings.Contains(said, "has a link") {
		t.Fatalf("the cable is not out:\n%s", said)
	}
	if err := n.vm.Link(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	n.everythingRuns()
}
