//go:build !wedge

package main

import "skerry.internal/skerry/agent/boot"

// nextInit is what the initramfs goes on with in the root file system.
const nextInit = boot.Init

// wedge does nothing; in the build that tests the watchdog it hangs.
func wedge(*boot.System) {}
