package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// BenchmarkOneLine is what whoever works on skerryd waits for: the image after
// one line was added to it, all else being built.
func BenchmarkOneLine(b *testing.B) {
	dir := clone(b, "tree")
	buildIn(b, "rpi4", dir)
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
		buildIn(b, "rpi4", dir)
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

// buildIn makes a board's image of a tree in its folder out.
func buildIn(t testing.TB, board, dir string, env ...string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "image", "build", "--board", board, "-o", "out")
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), beSkerry+"=1"), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s in %s: %v\n%s", board, dir, err, out)
	}
}
