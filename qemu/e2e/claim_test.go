//go:build full

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/qemu"
)

// TestClaim boots a card that holds no cluster, reads its console as a person
// does, claims the node with the operator's command, and finds it Ready. The
// twin comes first, on the same machine: a wrong code and a wrong fingerprint
// leave the node unclaimed. That the claim is kept is seen after a power cut.
func TestClaim(t *testing.T) {
	n := &node{t: t, home: t.TempDir(), kubectl: kubectl(t)}
	command := skerryCommand(t)
	n.vm = newMachine(t, "rpi4", "virt", bootImage(t), nil, func(c *qemu.Config) {
		c.Memory, c.SMP, c.Forwards = 2048, 2, map[int]int{6443: 0, api.Port: 0}
		c.Firmware = func(files map[string][]byte) error { files["skerry.yaml"] = []byte("hostname: barn-1\n"); return nil }
	})
	powerOn(t, n.vm)
	ctx, cancel := context.WithTimeout(t.Context(), bootTime)
	defer cancel()
	shown, err := n.vm.Expect(ctx, `skerry: fingerprint ([0-9A-Z-]+)  code ([0-9A-Z-]+)\r?\n`)
	if err != nil {
		t.Fatal(err)
	}
	fingerprint, code := shown[1], shown[2]
	if !strings.Contains(n.vm.Console(), "skerry: boot complete") { // it may be told before or after
		n.expect(`skerry: boot complete`, bootTime)
	}
	if console := n.vm.Console(); strings.Contains(console, "unit skerryd started") {
		t.Errorf("skerryd runs on a node without a cluster:\n%s", console)
	}
	skerry := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, command, args...)
		cmd.Env = append(os.Environ(), "SKERRY_HOME="+n.home)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := skerry("cluster", "create", "e2e"); err != nil {
		t.Fatalf("skerry cluster create: %v\n%s", err, out)
	}
	address := fmt.Sprintf("127.0.0.1:%d", n.vm.Port(api.Port))
	for _, tt := range []struct{ name, fingerprint, code, want string }{
		{"wrong code", fingerprint, "0000-0000", "wrong code"},
		{"wrong fingerprint", "0000-0000-0000-0000", code, "the fingerprint is another"},
	} {
		out, err := skerry("cluster", "claim", "e2e", address, "--fingerprint", tt.fingerprint, "--code", tt.code)
		if err == nil || !strings.Contains(out, tt.want) {
			t.Fatalf("%s: %v\n%s\nwant %q", tt.name, err, out, tt.want)
		}
	}
	if console := n.vm.Console(); strings.Contains(console, "skerry: claimed for") {
		t.Fatalf("claimed by a wrong claim:\n%s", console)
	}

	begin := time.Now()
	out, err := skerry("cluster", "claim", "e2e", address, "--fingerprint", fingerprint, "--code", code)
	if err != nil || !strings.Contains(out, "barn-1 belongs to cluster e2e now") || !strings.Contains(out, "now type: skerry cluster kubeconfig e2e --server https://") {
		t.Fatalf("skerry cluster claim: %v\n%s", err, out)
	}
	n.expect(`skerry: claimed for cluster e2e`, time.Minute)
	n.expect(`skerry: node ready`, bootTime)
	t.Logf("node Ready %.0f s after the claim", time.Since(begin).Seconds())
	n.kubeconfig = filepath.Join(n.home, "kubeconfig")
	if out, err := skerry("cluster", "kubeconfig", "e2e", "--server", fmt.Sprintf("https://127.0.0.1:%d", n.vm.Port(6443)), "-o", n.kubeconfig); err != nil {
		t.Fatalf("skerry cluster kubeconfig: %v\n%s", err, out)
	}
	n.want(`(?m)^barn-1 +Ready `, "get", "nodes", "--no-headers")
	// A claimed node serves no claims.
	if out, err := skerry("cluster", "claim", "e2e", address, "--fingerprint", fingerprint, "--code", code); err == nil {
		t.Errorf("a second claim succeeds:\n%s", out)
	}
	n.vm.Cut()
	n.start()
	if console := n.vm.Console(); strings.Contains(console, "belongs to no cluster") {
		t.Errorf("after a power cut the node has no cluster:\n%s", console)
	}
	n.want(`(?m)^barn-1 +Ready `, "get", "nodes", "--no-headers")
}
