package boot

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skerry.internal/skerry/agent/config"
	"skerry.internal/skerry/boards"
)

// A change of skerry.yaml's overlays restarts the node once, whatever the card
// does with what is written.
func TestStoreOverlays(t *testing.T) {
	firmware, state := t.TempDir(), t.TempDir()
	tried, file := filepath.Join(state, "overlays"), filepath.Join(firmware, boards.OverlaysFile)
	if err := os.MkdirAll(filepath.Join(firmware, boards.OverlaysDir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(firmware, boards.OverlaysDir, "dac.dtbo"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	block := func(names ...string) []byte {
		data, err := boards.OverlaysEnv(names)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	readOnly := errors.New("read-only")
	for _, tt := range []struct { // each after the one before, like boots
		name    string
		list    []config.Overlay
		before  func() // what befell FIRMWARE since
		fault   error
		restart bool
		console string
		stored  []byte
	}{
		{name: "none, ever"},
		{name: "new", list: []config.Overlay{"dac"}, restart: true, console: "overlays stored for U-Boot: dac", stored: block("dac")},
		{name: "applied", list: []config.Overlay{"dac"}, stored: block("dac")},
		{name: "torn", list: []config.Overlay{"dac"}, before: func() { os.WriteFile(file, block("dac")[:100], 0o600) }, restart: true, console: "stored", stored: block("dac")},
		{name: "applied again", list: []config.Overlay{"dac"}, stored: block("dac")},
		{name: "another", list: []config.Overlay{"rtc", "dac"}, restart: true, console: "there is no overlays/rtc.dtbo on FIRMWARE", stored: block("rtc", "dac")},
		{name: "lost", list: []config.Overlay{"rtc", "dac"}, before: func() { os.WriteFile(file, block("dac"), 0o600) }, fault: errNotKept, console: "no overlays/rtc.dtbo", stored: block("rtc", "dac")},
		{name: "applied after all", list: []config.Overlay{"rtc", "dac"}, console: "no overlays/rtc.dtbo", stored: block("rtc", "dac")},
		{name: "read-only", list: []config.Overlay{"dac"}, fault: readOnly, stored: block("rtc", "dac")},
		{name: "writable again", list: []config.Overlay{"dac"}, restart: true, console: "stored", stored: block("dac")},
		{name: "applied at last", list: []config.Overlay{"dac"}, stored: block("dac")},
		{name: "taken out", restart: true, console: "stored", stored: block()},
		{name: "gone", stored: block()},
	} {
		if tt.before != nil {
			tt.before()
		}
		s, console := system(t)
		s.config.Overlays = tt.list
		wrote := false
		restart, err := s.storeOverlays(firmware, tried, func() error {
			if tt.fault == readOnly {
				return readOnly
			}
			wrote = true
			return nil
		})
		if restart != tt.restart || !errors.Is(err, tt.fault) || tt.fault == nil && err != nil {
			t.Errorf("%s: storeOverlays() = %v, %v; want %v, %v", tt.name, restart, err, tt.restart, tt.fault)
		}
		if got := console(); !strings.Contains(got, tt.console) || tt.console == "" && got != "" {
			t.Errorf("%s: console = %q; want %q", tt.name, got, tt.console)
		}
		if got, err := os.ReadFile(file); !bytes.Equal(got, tt.stored) || err != nil && tt.stored != nil {
			t.Errorf("%s: FIRMWARE has %q, %v; want %q", tt.name, got, err, tt.stored)
		}
		if wrote != (tt.restart || tt.fault == errNotKept) {
			t.Errorf("%s: FIRMWARE made writable: %v", tt.name, wrote)
		}
	}
}
