//go:build full

package e2e

import (
	"strings"
	"testing"

	"skerry.internal/skerry/qemu"
)

// TestNodeARMv7 is TestNode on the other architecture.
func TestNodeARMv7(t *testing.T) { testNode(t, armv7) }

// TestPi2 boots the image of the Pi 2 with its own U-Boot, from its SD card, with a network
// adaptor on USB, until its API is ready: Kubernetes' clients give a TLS handshake ten seconds, in which that machine
// answers at one time and not at another once kubelet runs. Its card is at the second of its controllers, see boards/rpi2.
func TestPi2(t *testing.T) {
	testPi(t, target{board: "rpi2", machine: "raspi2b", patience: 2}, `MMC: +mmc@7e300000: 0`, false)
}

// TestBananaPi boots the image of the Banana Pi M2 Ultra from its SD card, with nothing
// beside it: the boot ROM, U-Boot's two stages, boot.scr. It ends with a pod whose image
// comes from the host's registry, through the chip's own network interface.
func TestBananaPi(t *testing.T) {
	n := startNodeOf(t, target{board: "bananapi-m2-ultra", machine: "bpim2u", patience: 6}, func(c *qemu.Config) {
		c.Memory, c.SMP, c.DiskSize = 1024, 4, 2<<30 // the board's own
	})
	console := n.vm.Console()
	for _, stage := range []string{`U-Boot SPL`, `Trying to boot from MMC1`, `skerry: slot a: starting `} {
		n.saw(console, stage)
	}
	n.ops()
	n.want(`^armv7l`, "exec", "ops", "--", "/bin/busybox", "uname", "-m")
}

// saw wants the console to have said that.
func (n *node) saw(console, text string) {
	n.t.Helper()
	if !strings.Contains(console, text) {
		n.t.Errorf("the console has not said %q:\n%s", text, console[:min(len(console), 3000)])
	}
}
