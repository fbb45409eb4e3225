//go:build full

package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/qemu"
)

// TestTenPods runs a server with ten pods on a board with 1 GiB for an hour: no process is ended
// for want of memory, no container starts anew. It tells what docs/measurements.md has of both
// architectures beside each other.
func TestTenPods(t *testing.T) { testTenPods(t, arm64) }

// TestTenPodsARMv7 is the same on the other architecture. It is a test of its own, since two such machines
// beside each other are too slow: the API server's limits for its start are over before it has started.
func TestTenPodsARMv7(t *testing.T) { testTenPods(t, armv7) }

func testTenPods(t *testing.T, x target) {
	d := description(t, x.image(t))
	t.Logf("image compressed: %d bytes; parts: %v; programs: %v", d.Packed.Size, d.Sizes, d.Programs)
	n := startNodeOf(t, x, func(c *qemu.Config) { c.Memory = 1024 })
	n.testWorkloads()
	n.k("scale", "deployment/web", "--replicas=8")
	n.k("rollout", "status", "deployment/web", "--timeout=300s")
	n.k("wait", "--for=delete", "pod/sickly", "--timeout=120s")
	// The visitor's has ended.
	if pods := strings.Fields(n.k("get", "pods", "--field-selector=status.phase=Running", "-o", "name")); len(pods) != 10 {
		t.Fatalf("pods %q; want ten", pods)
	}
	before, written, spent := n.containers(), n.written(), n.spent()
	<-time.After(time.Hour) // what is shown is that nothing happens
	t.Logf("written in the hour: %d bytes", n.written()-written)
	now := n.spent()
	for name := range now {
		now[name] -= spent[name]
	}
	t.Logf("processor time in the hour, in s: skerryd %d, containerd %d, shims %d, init %d", now["skerryd"], now["containerd"], now["containerd-shim"], now["init"])
	// Shims have little to do; containerd's default of a look each second made them spend three quarters of what skerryd does.
	if now["skerryd"] == 0 || now["containerd-shim"] > now["skerryd"]/4 {
		t.Errorf("the shims spent %d s in the hour, skerryd %d; want at most a quarter of it", now["containerd-shim"], now["skerryd"])
	}
	memory := n.memory()
	t.Logf("memory: total %d kB, available %d kB, swap used %d of %d kB", memory["MemTotal"], memory["MemAvailable"], memory["SwapTotal"]-memory["SwapFree"], memory["SwapTotal"])
	for _, program := range []string{"init", "containerd", "skerryd"} {
		rollup := n.must("busybox cat /proc/$(busybox pidof " + program + ")/smaps_rollup")
		t.Logf("%s: anonymous %s kB, PSS %s kB", program, field(rollup, "Anonymous"), field(rollup, "Pss"))
	}
	if after := n.containers(); after != before {
		t.Errorf("containers:\n%swant\n%s", after, before)
	}
	if ended := n.must("busybox grep -w oom_kill /proc/vmstat"); strings.TrimSpace(ended) != "oom_kill 0" {
		t.Errorf("%s; want none ended for want of memory", ended)
	}
	if starts := strings.Count(n.vm.Console(), "unit skerryd started"); starts != 1 {
		t.Errorf("skerryd started %d times; want once", starts)
	}
	n.everythingRuns()
}

// spent is the processor time so far of all processes of a name, in seconds (proc(5)).
func (n *node) spent() map[string]int {
	n.t.Helper()
	all := map[string]int{}
	out := n.must(`busybox cat /proc/[0-9]*/stat 2>/dev/null | busybox awk '{spent[$2] += $14 + $15} END {for (name in spent) print name, int(spent[name]/100)}'`)
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 2 {
			all[strings.Trim(f[0], "()")], _ = strconv.Atoi(f[1])
		}
	}
	return all
}

// written is what the node has written to its disk since power-on, in bytes.
func (n *node) written() int64 {
	n.t.Helper()
	n.must("busybox sync")
	s, err := n.vm.Stats(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return s.Written
}

// memory is /proc/meminfo (proc(5)), in kB.
func (n *node) memory() map[string]int {
	n.t.Helper()
	info := map[string]int{}
	for _, line := range strings.Split(n.must("busybox cat /proc/meminfo"), "\n") {
		if f := strings.Fields(line); len(f) > 1 {
			info[strings.TrimSuffix(f[0], ":")], _ = strconv.Atoi(f[1])
		}
	}
	return info
}
