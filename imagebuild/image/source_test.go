package image

import (
	"os"
	"path/filepath"
	"testing"

	"skerry.internal/skerry/boards"
)

// TestCompilerIsTheProjects: a machine's own go may be older than go.mod asks for.
func TestCompilerIsTheProjects(t *testing.T) {
	project, bin := t.TempDir(), t.TempDir()
	for file, text := range map[string]string{
		filepath.Join(project, "go.mod"):            "module example\n\ngo 9.8.7\n",
		filepath.Join(bin, "go"):                    "#!/bin/sh\necho \"$GOTOOLCHAIN $GOARCH $1 $2 in $(pwd)\"\n",
		filepath.Join(bin, "aarch64-linux-gnu-gcc"): "#!/bin/sh\necho C 1.2\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin)
	t.Setenv("GOTOOLCHAIN", "local")
	board, err := boards.ByName("rpi4")
	if err != nil {
		t.Fatal(err)
	}
	b := &Build{Options: Options{Project: project}, board: board, compilers: map[string]string{}}
	if err := b.recordCompilers(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := b.compilers["go"], "go9.8.7 arm64 env GOVERSION in "+project; got != want || b.compilers["c"] != "C 1.2" {
		t.Errorf("recordCompilers() notes %q; want go %q and C 1.2", b.compilers, want)
	}
	if err := os.WriteFile(filepath.Join(project, "go.mod"), []byte("module example\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := b.recordCompilers(t.Context()); err == nil {
		t.Error("recordCompilers() with a go.mod without version = nil; want an error")
	}
}
