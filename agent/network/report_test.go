package network

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

func TestInterfaces(t *testing.T) {
	sys := t.TempDir()
	for name, files := range map[string]map[string]string{
		"none0": {"type": "1\n", "device/x": "", "address": "02:00:00:00:00:01\n", "carrier": "1\n"},
		"none1": {"type": "1\n", "device/x": "", "address": "02:00:00:00:00:02\n", "carrier": "0\n"},
		"cni0":  {"type": "1\n", "address": "02:00:00:00:00:03\n", "carrier": "1\n"}, // no hardware
	} {
		for file, text := range files {
			path := filepath.Join(sys, "class/net", name, file)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := Interfaces(sys)
	if len(got) != 2 || got[0].Name != "none0" || got[0].MAC != "02:00:00:00:00:01" || !got[0].Plugged || got[1].Plugged {
		t.Errorf("Interfaces() = %+v; want none0 plugged and none1 unplugged", got)
	}
}

func TestAddress(t *testing.T) {
	m := New(Config{})
	if a := m.Address(); a.IsValid() {
		t.Errorf("Address() without a lease = %v; want none", a)
	}
	m.leases[2] = Lease{Address: netip.MustParsePrefix("192.0.2.7/24")}
	if a := m.Address(); a.String() != "192.0.2.7" {
		t.Errorf("Address() = %v; want 192.0.2.7", a)
	}
}
