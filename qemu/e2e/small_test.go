//go:build full

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/qemu"
)

// TestSmall runs a whole server with its pods on boards with little memory. The
// smaller one has a swap of compressed memory, the larger one has none.
func TestSmall(t *testing.T) {
	for _, memory := range []int{1024, 2048} {
		t.Run(fmt.Sprint(memory), func(t *testing.T) {
			n := startNode(t, func(c *qemu.Config) { c.Memory = memory })
			n.testWorkloads()
			n.everythingRuns()
			<-time.After(2 * time.Minute) // what the starts have used is given back
			info := n.memory()
			t.Logf("%d MiB: total %d kB, available %d kB, swap used %d of %d kB", memory, info["MemTotal"], info["MemAvailable"], info["SwapTotal"]-info["SwapFree"], info["SwapTotal"])
			if has, want := info["SwapTotal"] > 0, memory <= 1024; has != want {
				t.Errorf("swap of %d kB with %d MiB of memory", info["SwapTotal"], memory)
			}
			if console := n.vm.Console(); strings.Contains(strings.ToLower(console), "out of memory") || strings.Count(console, "unit skerryd started") != 1 {
				t.Errorf("something was ended for want of memory:\n%s", console)
			}
		})
	}
}
