package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// files lists what is in dir, but directories.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return list
}

// lastLine is the error among the lines that say how far a build came.
func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

func build(t *testing.T, out string, env ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "image", "build", "--board", "rpi4", "-o", out, "--without", "skerryd")
	cmd.Dir = "../../.."
	cmd.Env = append(append(os.Environ(), beSkerry+"=1"), env...)
	return cmd
}

func TestNoNetwork(t *testing.T) {
	out, cache := filepath.Join(t.TempDir(), "out"), t.TempDir()
	// Nothing listens on port 1 of the loopback.
	cmd := build(t, out, "SKERRY_CACHE="+cache, "SKERRY_DEBIAN_MIRROR=http://127.0.0.1:1/debian")
	text, _ := cmd.CombinedOutput()
	if got := lastLine(string(text)); cmd.ProcessState.ExitCode() != 1 || !strings.HasPrefix(got, "skerry: ") || !strings.Contains(got, "network") {
		t.Errorf("build with no network: status %d, says %q; want 1 and a line about the network", cmd.ProcessState.ExitCode(), text)
	}
	if left := append(files(t, out), files(t, cache)...); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A small file system, in a mount namespace of its own.
func TestNoSpace(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root, to mount a small file system")
		}
		t.Skip("needs root, to mount a small file system")
	}
	small, dump := t.TempDir(), filepath.Join(t.TempDir(), "left")
	cmd := build(t, filepath.Join(small, "out"))
	shell := exec.Command("unshare", append([]string{"-m", "sh", "-c",
		`mount -t tmpfs -o size=40m none "$1"; d=$1 l=$2; shift 2; "$@"; s=$?; find "$d" -type f >"$l"; exit $s`, "sh", small, dump}, cmd.Args...)...)
	shell.Dir, shell.Env = cmd.Dir, cmd.Env
	text, err := shell.CombinedOutput()
	if shell.ProcessState == nil {
		t.Fatal(err)
	}
	if got := lastLine(string(text)); shell.ProcessState.ExitCode() != 1 || !strings.Contains(got, "no space left") || !strings.Contains(got, "make room") {
		t.Errorf("build with no space left: status %d, says %q; want 1 and what to do", shell.ProcessState.ExitCode(), text)
	}
	if left, err := os.ReadFile(dump); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}
