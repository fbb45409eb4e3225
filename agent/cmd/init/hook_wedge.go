//go:build wedge

package main

import "skerry.internal/skerry/agent/boot"

// nextInit is this very program: the test puts it into the initramfs, and
// can't put it into the verified root.
const nextInit = "/proc/self/exe"

// wedge hangs init's loop for ever when the kernel's command line says so.
func wedge(s *boot.System) {
	if s.Args["skerry.test"] == "wedge" {
		s.Console.Printf("test: init hangs from here on")
		select {}
	}
}
