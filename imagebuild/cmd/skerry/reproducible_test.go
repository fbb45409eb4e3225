package main

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Everything twice: clones in different folders that share no cache, neither
// Go's nor ours. Half an hour, so only in the full run; the assembly and init
// are compared in every run by package image.
func TestSameBytesCold(t *testing.T) {
	if os.Getenv("SKERRY_TEST_ALL") == "" {
		t.Skip("only in the full run (make test-all): it compiles Kubernetes twice")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var sums [2]string
	for i, folder := range []string{"a", "another/and/longer"} {
		dir := filepath.Join(t.TempDir(), folder)
		if out, err := exec.Command("git", "clone", "-q", "../../..", dir).CombinedOutput(); err != nil {
			t.Fatalf("clone: %v\n%s", err, out)
		}
		cache := t.TempDir()
		cmd := exec.Command(self, "image", "build", "--board", "rpi4", "-o", "out")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), beSkerry+"=1", "GOCACHE="+filepath.Join(cache, "go"), "SKERRY_CACHE="+filepath.Join(cache, "skerry"), "LOCKED=strict")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build in %s: %v\n%s", folder, err, out)
		}
		f, err := os.Open(filepath.Join(dir, "out", "skerry-rpi4.img"))
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		sums[i] = hex.EncodeToString(h.Sum(nil))
		os.RemoveAll(cache)
	}
	if sums[0] != sums[1] {
		t.Errorf("two cold builds of one commit: %s and %s", sums[0], sums[1])
	}
	t.Log(sums[0])
}
