package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A clone in another folder, that shares no cache with this one, neither Go's nor
// ours, makes the bytes that make image made here. A quarter of an hour, so
// only in the full run; the assembly and init are compared in every run by package image.
func TestSameBytesCold(t *testing.T) {
	if os.Getenv("SKERRY_TEST_ALL") == "" {
		t.Skip("only in the full run (make test-all): it compiles Kubernetes")
	}
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

// BenchmarkOneLine is what whoever works on skerryd waits for: the image after
// one line was added to it, all else being built.
func BenchmarkOneLine(b *testing.B) {
	dir := clone(b, "tree")
	buildIn(b, dir)
	file := filepath.Join(dir, "agent/cmd/skerryd/main.go")
	text, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		changed := strings.Replace(string(text), "func main() {\n", fmt.Sprintf("func main() {\n\tprintln(\"line %d of %d\")\n", i, os.Getpid()), 1)
		if changed == string(text) {
			b.Fatalf("%s holds no func main", file)
		}
		if err := os.WriteFile(file, []byte(changed), 0o644); err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		buildIn(b, dir)
		b.Logf("built in %.1f s", time.Since(begin).Seconds())
	}
}

// clone clones the commit that is checked out.
func clone(t testing.TB, folder string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), folder)
	if out, err := exec.Command("git", "clone", "-q", "../../..", dir).CombinedOutput(); err != nil {
		t.Fatalf("clone: %v\n%s", err, out)
	}
	return dir
}

// buildIn makes the image of a tree in its folder out.
func buildIn(t testing.TB, dir string, env ...string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "image", "build", "--board", "rpi4", "-o", "out")
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), beSkerry+"=1"), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build in %s: %v\n%s", dir, err, out)
	}
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
