//go:build full

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/qemu"
)

// stillRuns says twice a minute on the console that it runs.
const stillRuns = `
apiVersion: v1
kind: Pod
metadata: {name: still-runs}
spec:
  containers:
  - name: main
    image: IMAGE
    args: [sh, -c, "while busybox sleep 30; do echo '<3>the pod runs on' >/dev/kmsg; done"]
    securityContext: {privileged: true}
`

// TestDiskHeals has the disk refuse writes until the node has noticed, and takes the
// fault away: half an hour later the node reboots by itself, has STATE repaired, and is
// as it was. Until then its pods run and its status API answers. The same node before
// the fault, which is not complained of, is the twin.
func TestDiskHeals(t *testing.T) {
	n := startNode(t, withStatus, func(c *qemu.Config) { c.Faults = true })
	o := n.operator()
	n.startOne()
	// It says that it runs where no API is needed to hear it.
	if out, err := n.try(strings.ReplaceAll(stillRuns, "IMAGE", n.image), "create", "-f", "-"); err != nil {
		t.Fatalf("create still-runs: %v\n%s", err, out)
	}
	const runs = `the pod runs on`
	n.expect(runs, 3*time.Minute)
	n.k("create", "configmap", "acknowledged")
	if got := o.wrongWith("STATE"); got != "" {
		t.Errorf("the status of a node whose disk is well says of STATE %q", got)
	}

	if err := n.vm.FailDisk(t.Context(), qemu.Fault{Kinds: []qemu.IOKind{qemu.Writes}}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	n.expect(`skerry: error: STATE can't be written: .*; the node reboots in 30m0s to repair it`, 10*time.Minute)
	if err := n.vm.FailDisk(t.Context(), qemu.Fault{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("noticed after %.0f s", time.Since(begin).Seconds())
	o.answers()
	if got := o.wrongWith("STATE"); !strings.Contains(got, "nothing can be written") {
		t.Errorf("the status says of STATE %q; want that it can't be written", got)
	}
	n.goesOn()

	broken := time.Now()
	for range 40 { // of the half hour at least twenty minutes
		n.expect(runs, 2*time.Minute)
	}
	n.expect(`skerry: error: rebooting to repair STATE`, 40*time.Minute)
	if waited := time.Since(broken); waited < 25*time.Minute {
		t.Errorf("the node rebooted after %v; want half an hour, in which what runs runs on", waited)
	}
	n.goesOn()
	n.expect(`U-Boot`, 5*time.Minute)
	n.expect(`skerry: node ready`, bootTime)
	n.eventually("the API answers", func() error {
		if out, err := n.try("", "get", "--raw", "/readyz"); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	n.k("wait", "--for=condition=Ready", "pod/one", "--timeout=240s")
	n.k("get", "configmap", "acknowledged")
	n.k("create", "configmap", "afterwards")
	if got := o.wrongWith("STATE"); got != "" {
		t.Errorf("the status of the node that was repaired says of STATE %q", got)
	}
}
