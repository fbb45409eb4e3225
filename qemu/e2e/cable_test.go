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
	await(t, vm, `skerry: boot complete`, limit)
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
		{true, `skerry: network: eth0 .*has a link`},
	} {
		plug(step.plugged)
		await(t, vm, step.says, limit)
		if strings.Contains(step.says, "has address") {
			await(t, vm, `skerry: node ready`, bootTime)
		}
	}
}
