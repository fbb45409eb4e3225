package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestNothingIsSkippedForWantOfTools runs a go command that passes in CI only.
func TestNothingIsSkippedForWantOfTools(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "go"), []byte("#!/bin/sh\n[ \"$CI\" = true ]\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	t.Setenv("CI", "")
	if _, ok := test("./some/package"); !ok {
		t.Error("the tests run without CI=true, so what is missing would count as passed")
	}
}
