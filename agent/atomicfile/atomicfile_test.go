package atomicfile

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, data := range [][]byte{[]byte("first, the longer one"), []byte("second"), {}} {
		if err := WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("WriteFile(%q) left %q, %v", data, got, err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("WriteFile() left mode %v, %v; want 0600", fi.Mode(), err)
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("WriteFile() left %v, %v; want the file alone", names, err)
	}
}

func TestWriteFileFailure(t *testing.T) {
	dir := t.TempDir()
	if err := WriteFile(filepath.Join(dir, "none", "f"), nil, 0o600); err == nil {
		t.Error("WriteFile() into a missing directory = nil; want an error")
	}
	// A directory can't be replaced by a file: the failed rename must leave
	// neither a changed target nor a temporary file.
	target := filepath.Join(dir, "d")
	if err := os.MkdirAll(filepath.Join(target, "child"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(target, []byte("x"), 0o600); err == nil {
		t.Error("WriteFile() over a directory = nil; want an error")
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("WriteFile() left %v, %v; want the directory alone", names, err)
	}
}

// What is so already is not written again.
func TestWriteFileEqual(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write := func(data string, mode os.FileMode) os.FileInfo {
		t.Helper()
		if err := WriteFile(path, []byte(data), mode); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	first := write("a", 0o600)
	if !os.SameFile(first, write("a", 0o600)) {
		t.Error("equal content was written again")
	}
	second := write("b", 0o600)
	if os.SameFile(first, second) {
		t.Error("other content was not written")
	}
	if third := write("b", 0o644); os.SameFile(second, third) || third.Mode() != 0o644 {
		t.Errorf("another mode was not set: %v", third.Mode())
	}
}
