package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSecretsReplaceNothing(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("SKERRY_HOME", filepath.Join(dir, "home"))
	if status, _, stderr := skerry(t, "cluster", "create", "home"); status != 0 {
		t.Fatalf("cluster create: status %d, says %q", status, stderr)
	}
	for _, args := range [][]string{{"kubeconfig", "home", "--server", "https://192.0.2.10:6443"}, {"bundle", "home"}} {
		file := filepath.Join(dir, args[0])
		args = append([]string{"cluster"}, append(args, "-o", file)...)
		if status, _, stderr := skerry(t, args...); status != 0 {
			t.Fatalf("skerry %q: status %d, says %q", args, status, stderr)
		}
		if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
			t.Errorf("skerry %q: %v, %v; want a file of mode 0600", args, info, err)
		}
		const before = "credentials that are nowhere else"
		if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
		status, _, stderr := skerry(t, args...)
		if status != 1 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "name another file, or remove it") {
			t.Errorf("skerry %q over a file: status %d, says %q; want 1 and one line that says what to do", args, status, stderr)
		}
		if after, err := os.ReadFile(file); string(after) != before {
			t.Errorf("skerry %q: the file now holds %d bytes, %v; want it as it was", args, len(after), err)
		}
	}
}
