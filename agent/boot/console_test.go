package boot

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSerialLine(t *testing.T) {
	for _, tt := range []struct{ active, want string }{
		{"tty0 ttyS1\n", "/dev/ttyS1"},
		{"ttyAMA0 tty0\n", "/dev/ttyAMA0"},
		{"ttyS0 ttyS1\n", "/dev/ttyS1"},
		{"hvc0\n", "/dev/hvc0"},
		{"tty0\n", ""},
		{"tty1\n", ""},
		{"", ""},
	} {
		file := filepath.Join(t.TempDir(), "active")
		if err := os.WriteFile(file, []byte(tt.active), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := serialLine(file, "/dev"); got != tt.want || err != nil {
			t.Errorf("serialLine(%q) = %q, %v; want %q", tt.active, got, err, tt.want)
		}
	}
	if got, err := serialLine("/none", "/dev"); got != "" || err != nil {
		t.Errorf("serialLine() without a list = %q, %v; want none", got, err)
	}
}
