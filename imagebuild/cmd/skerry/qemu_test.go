package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"skerry.internal/skerry/boards"
)

// TestQEMUCalls: what is called wrongly ends with status 2, what fails with 1, each with one clear line, and nothing is left behind.
func TestQEMUCalls(t *testing.T) {
	build := t.TempDir()
	t.Setenv("SKERRY_BUILD", build)
	damaged := filepath.Join(t.TempDir(), "skerry-rpi4.img")
	if err := os.WriteFile(damaged, bytes.Repeat([]byte("not an image"), 1<<16), 0o644); err != nil {
		t.Fatal(err)
	}
	var machines []string // of all boards
	for _, name := range boards.Names() {
		b, err := boards.ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range b.QEMU {
			machines = append(machines, m.Name)
		}
	}
	slices.Sort(machines)
	machines = slices.Compact(machines)
	for _, test := range []struct {
		args  string
		usage bool
		want  string
	}{
		{"qemu up", true, "--name or --image is missing"},
		{"qemu up --bogus", true, "unknown flag: --bogus"},
		{"qemu bogus", true, `unknown command "bogus" for skerry qemu`},
		{"qemu up --name a_b --image " + damaged, true, `machine name "a_b"`},
		{"qemu up --name one --board-machine vax --image " + damaged, true, `"vax": want one of: ` + strings.Join(machines, ", ")},
		{"qemu up --name one --board rpi9 --image " + damaged, true, "want one of: " + strings.Join(boards.Names(), ", ")},
		{"qemu up --name one --board-machine raspi3b --watchdog --image " + damaged, true, "--watchdog"},
		{"qemu up --name one --image " + damaged, false, "not a Skerry image"},
		{"qemu up --name one --image " + damaged + ".zst", false, "is compressed"},
		{"qemu up --name one --image " + damaged + ".nosuch", false, "no such file"},
		{"qemu cut one", false, `there is no machine "one"`},
		{"qemu start", true, "got no name"},
		{"qemu link one --unplug", false, `there is no machine "one"`},
	} {
		root := newRoot()
		root.SetArgs(strings.Fields(test.args))
		err := root.ExecuteContext(t.Context())
		var usage usageError
		if err == nil || errors.As(err, &usage) != test.usage || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("skerry %s = %v, want one line with %q, called wrongly: %v", test.args, err, test.want, test.usage)
		}
	}
	if left, err := filepath.Glob(build + "/*/*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}
