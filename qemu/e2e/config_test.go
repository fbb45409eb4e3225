//go:build full

package e2e

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/config"
	"skerry.internal/skerry/qemu"
)

// TestConfiguration boots cards whose skerry.yaml a person has edited, with
// mistakes and without: each mistake is named with its line on the console,
// and the rest takes effect.
func TestConfiguration(t *testing.T) {
	t.Parallel()
	image := bootImage(t)
	boot := func(t *testing.T, yaml string) *qemu.VM {
		t.Parallel()
		vm := newMachine(t, "rpi4", "virt", image, nil, func(c *qemu.Config) {
			c.Firmware = func(files map[string][]byte) error { files[config.FileName] = []byte(yaml); return nil }
			c.Watchdog = strings.Contains(yaml, "watchdog:")
		})
		powerOn(t, vm)
		return vm
	}
	const limit = 3 * time.Minute

	t.Run("mistakes", func(t *testing.T) {
		vm := boot(t, "\xef\xbb\xbfhostnam: barn-7\r\nhostname: barn-8\r\nntp:\r\n\t- time.example.org\r\nnetwork:\r\n  interfaces:\r\n"+
			"  - {name: eth0, address: 10.0.2.20/24, gateway: 10.0.2.77}\r\n  - {name: eth1, address: 10.0.3.20}\r\nhostname: barn-9\r\n")
		for _, want := range []string{
			`skerry: error: skerry\.yaml:1: unknown key "hostnam": want one of role, hostname, `,
			`skerry: error: skerry\.yaml:4: .*tab|skerry: error: skerry\.yaml:4: .*cannot start any token`,
			`skerry: error: skerry\.yaml:8: got "10\.0\.3\.20", want an IPv4 address with the length`,
			`skerry: error: skerry\.yaml:9: key "hostname" stands in line 2 already`,
			`skerry: network: eth0 has address 10\.0\.2\.20/24, gateway 10\.0\.2\.77`,
			`skerry: unit containerd ready`,
			`skerry: error: network: eth0: gateway 10\.0\.2\.77 does not answer`,
		} {
			await(t, vm, want, limit)
		}
	})

	t.Run("network", func(t *testing.T) {
		vm := boot(t, "watchdog: 120\nnetwork:\n  interfaces:\n  - {name: eth0, dhcp: true, mtu: 1400, dns: ['fd00:1::53'], address6: 'fd00:1::5/64', gateway6: 'fe80::2'}\n"+
			"  - {name: eth0, vlan: 20, address: 10.20.0.5/24, address6: 'fd00:20::5/64'}\n")
		for _, want := range []string{
			`skerry: hardware watchdog set to 2m0s`,
			`skerry: network: eth0\.20 has address 10\.20\.0\.5/24, gateway none`,
			`skerry: network: eth0 has address 10\.0\.2\.15/24`,
			`skerry: network: eth0 has address fd00:1::5/64`,
			`skerry: network: eth0\.20 has address fd00:20::5/64`,
			`skerry: network: eth0 has address fec0:`, // QEMU's router advertises it
			`skerry: unit containerd ready`,
		} { // in any order
			if !regexp.MustCompile(want).MatchString(vm.Console()) {
				await(t, vm, want, limit)
			}
		}
		if console := vm.Console(); strings.Contains(console, "error: network") {
			t.Errorf("the network is complained of:\n%s", console)
		}
	})

	// This U-Boot applies none (docs/decisions/0011-overlays.md), and says so: it has got the list.
	t.Run("overlays", func(t *testing.T) {
		vm := boot(t, "overlays: [dac]\n")
		for _, want := range []string{
			`skerry: error: overlay dac: there is no overlays/dac\.dtbo on FIRMWARE`,
			`skerry: overlays stored for U-Boot: dac`,
			`skerry: going down: U-Boot is to apply the overlays`,
			`skerry: overlay dac: overlays/dac\.dtbo on FIRMWARE can not be loaded, left out`,
			`skerry: slot a: starting `,
			`skerry: unit containerd ready`,
		} {
			await(t, vm, want, limit)
		}
		if n := strings.Count(vm.Console(), "going down: "); n != 1 {
			t.Errorf("the node has started again %d times, want once:\n%s", n, vm.Console())
		}
	})

	t.Run("none", func(t *testing.T) {
		vm := boot(t, "network:\n  interfaces:\n  - {name: eth0, address: 10.0.2.20/24, gateway: 10.0.2.2}\n")
		await(t, vm, `skerry: network: eth0 has address 10\.0\.2\.20/24, gateway 10\.0\.2\.2`, limit)
		await(t, vm, `skerry: network: eth0: gateway 10\.0\.2\.2 answers`, limit)
		if console := vm.Console(); strings.Contains(console, "skerry.yaml:") || strings.Contains(console, "does not answer") {
			t.Errorf("a right file is complained of:\n%s", console)
		}
	})
}
