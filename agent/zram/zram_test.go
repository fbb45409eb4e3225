package zram

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestSize(t *testing.T) {
	for _, tt := range []struct{ memory, want int64 }{
		{0, 0},
		{480 << 20, 240 << 20},
		{Limit, Limit / 2},
		{Limit + 1, 0},
		{8 << 30, 0},
		{(480 << 20) + 5000, 240 << 20}, // whole pages
	} {
		if got := Size(tt.memory); got != tt.want {
			t.Errorf("Size(%d) = %d; want %d", tt.memory, got, tt.want)
		}
	}
}

// The header is judged by util-linux.
func TestFormat(t *testing.T) {
	blkid, err := exec.LookPath("/sbin/blkid")
	if err != nil {
		lack := t.Skipf
		if os.Getenv("CI") != "" {
			lack = t.Fatalf
		}
		lack("no blkid: apt install util-linux")
	}
	file := filepath.Join(t.TempDir(), "swap")
	probe := func() string {
		out, _ := exec.Command(blkid, "-p", "-o", "export", file).CombinedOutput()
		return string(out)
	}
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := probe(); strings.Contains(got, "TYPE=swap") {
		t.Fatalf("blkid of zeros = %q; want no swap", got)
	}
	if err := format(file, 1<<20); err != nil {
		t.Fatal(err)
	}
	if got := probe(); !strings.Contains(got, "TYPE=swap") || !strings.Contains(got, "VERSION=1") {
		t.Errorf("blkid = %q; want a swap space, version 1", got)
	}
	if err := format(filepath.Join(t.TempDir(), "none"), 1<<20); err == nil {
		t.Error("format() of a device that is not there = nil; want an error")
	}
}
