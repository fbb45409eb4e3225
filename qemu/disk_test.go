package qemu_test

import (
	"os"
	"path/filepath"
	"testing"

	"skerry.internal/skerry/qemu"
)

// TestFolderIsClosed: overlay and FIRMWARE hold the keys of a cluster.
func TestFolderIsClosed(t *testing.T) {
	raw := tempFile(t, "raw.img")
	there := t.TempDir() // with mode 0755
	fresh, fork := filepath.Join(there, "fresh"), filepath.Join(there, "fork")
	for _, file := range []string{raw, filepath.Join(there, qemu.OverlayFile)} {
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cfg := qemu.Config{Machine: machine(t, board(t, "rpi4"), "virt"), RawDisk: raw, UBoot: "u-boot.bin"}
	for _, cfg.Dir = range []string{fresh, there} {
		vm, err := qemu.New(bounded(t), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if cfg.Dir == there {
			// The copy's mode must not depend on what New does afterwards.
			_, err := vm.Fork(bounded(t), fork, func(c *qemu.Config) { c.Dir = filepath.Join(fork, "inner") })
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, dir := range []string{fresh, there, fork} {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != 0o700 {
			t.Errorf("%s has mode %o, want 700", dir, got)
		}
	}
}
