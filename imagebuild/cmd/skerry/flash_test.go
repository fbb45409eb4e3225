package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/flash"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// All mistakes of a skerry.yaml are told, each with its line, before anything is
// written; a right one takes along what boot.scr has to know.
func TestAddConfig(t *testing.T) {
	overlay := write(t, "dac.dtbo", "tree")
	var warned bytes.Buffer
	files := map[string][]byte{}
	if err := addConfig(files, write(t, "a.yaml", "overlays: [dac, rtc]\n"), []string{overlay}, &warned); err != nil {
		t.Fatal(err)
	}
	want, err := boards.OverlaysEnv([]string{"dac", "rtc"})
	if err != nil {
		t.Fatal(err)
	}
	if string(files["skerry.yaml"]) != "overlays: [dac, rtc]\n" || string(files["overlays/dac.dtbo"]) != "tree" || !bytes.Equal(files["overlays.env"], want) || len(files) != 3 {
		t.Errorf("addConfig() = %q", files)
	}
	if got := warned.String(); !strings.Contains(got, "overlay rtc") || strings.Contains(got, "overlay dac") {
		t.Errorf("addConfig() warns of %q; want rtc only", got)
	}
	err = addConfig(files, write(t, "b.yaml", "hostnam: x\nntp: a\nrole: worker\nregistries: [{host: a, password: hunter2}]\n"), nil, &warned)
	if err == nil {
		t.Fatal("addConfig() takes mistakes")
	}
	for _, want := range []string{"b.yaml is not right, nothing was written", "skerry.yaml:1: ", "skerry.yaml:2: ", "skerry.yaml:3: role worker: not yet", "skerry.yaml:4: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("addConfig() = %v; want %q in it", err, want)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("addConfig() tells a password: %v", err)
	}
	if err := addConfig(files, write(t, "c.yaml", "hostname: a\n"), nil, &warned); err != nil || files["overlays.env"] != nil {
		t.Errorf("addConfig() without overlays = %v, leaves %q", err, files["overlays.env"])
	}
}

// On the machine of this test: what is listed is what the package finds.
func TestFlashList(t *testing.T) {
	disks, err := flash.ThisHost.Disks()
	if err != nil {
		t.Fatal(err)
	}
	status, out, errs := skerry(t, "flash", "--list", "--json")
	var got []flash.Disk
	if err := json.Unmarshal([]byte(out), &got); status != 0 || err != nil || len(got) != len(disks) {
		t.Errorf("skerry flash --list --json: status %d, %v, %q %q; want %d disks", status, err, out, errs, len(disks))
	}
	status, out, _ = skerry(t, "flash")
	for _, d := range disks {
		if status != 0 || !strings.Contains(out, d.Device+" ") {
			t.Errorf("skerry flash: status %d, %q; want %s in it", status, out, d.Device)
		}
	}
	if status, _, errs := skerry(t, "flash", "some.img"); status != 2 || !strings.Contains(errs, "DEVICE is missing") {
		t.Errorf("skerry flash some.img: status %d, %q; want 2 and what is missing", status, errs)
	}
}
