//go:build full

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// A clone in another folder, that shares no cache with this one, neither Go's nor
// ours, makes the bytes that make image made here. A quarter of an hour, so
// in make test-all only, which sets the tag; the assembly and init are compared in every run by package image.
func TestSameBytesCold(t *testing.T) {
	if out, err := exec.Command("git", "status", "--porcelain").Output(); err != nil || len(out) > 0 {
		t.Fatalf("the tree has changes, which a clone has not: %v\n%s", err, out)
	}
	dir, cache := clone(t, "another/and/longer"), t.TempDir()
	begin := time.Now()
	buildIn(t, dir, "GOCACHE="+filepath.Join(cache, "go"), "SKERRY_CACHE="+filepath.Join(cache, "skerry"), "LOCKED=strict")
	t.Logf("built in %.0f s", time.Since(begin).Seconds())
	here, there := sum(t, "../../../build/rpi4/skerry-rpi4.img"), sum(t, filepath.Join(dir, "out", "skerry-rpi4.img"))
	if here != there {
		t.Errorf("two builds of one commit: %s here, %s cold and elsewhere", here, there)
	}
	t.Log("sha256 of both: ", here)
}

func sum(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}
