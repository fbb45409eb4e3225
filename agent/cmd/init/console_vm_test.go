package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
)

// The screen of docs/console.md is what the kernel has on its terminal when a
// console shows it: read back from a running machine, character by character.
// The machine runs agent/console's test program, which says how.
func TestConsoleScreen(t *testing.T) {
	p := load(t)
	program := filepath.Join(t.TempDir(), "init")
	build := exec.Command("go", "test", "-c", "-vet=off", "-o", program, "../../console")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=arm64", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build program: %v: %s", err, out)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := cpio.Newc.Writer(&archive)
	if err := cpio.WriteRecords(w, []cpio.Record{cpio.StaticFile("init", string(data), 0o755)}); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.initrd, archive.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}

	const screen = "crash-loop"
	m := p.start(t, map[string]string{"SKERRY_SCREEN": screen, "console": "tty0 console=ttyAMA0", "printk.devkmsg": "on", "loglevel": "6"})
	m.expect("80, colours", "vm: error")
	var got []string
	for _, line := range m.seen {
		if _, text, ok := strings.Cut(line, "vcs2|"); ok {
			got = append(got, strings.TrimRight(text, "\r"))
		}
	}
	golden, err := os.ReadFile(filepath.Join("../../console/testdata", screen+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(string(golden), "\n")
	for len(want) < 25 {
		want = append(want, "")
	}
	if want = want[:25]; !slices.Equal(got, want) {
		t.Errorf("the terminal has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// Light red on black. A kernel that blanks the screen would need a keyboard.
	if facts := m.seen[len(m.seen)-1]; !regexp.MustCompile(`25 rows of 80, colours of the first character 0c, consoleblank 0\b`).MatchString(facts) {
		t.Errorf("of the terminal: %q", facts)
	}

	// The serial line: once unasked, again for Enter.
	const problem = "! unit skerryd: not running; exit status 1"
	m.expect(problem, "vm: error")
	m.send("\r")
	m.expect(problem, "vm: error")
	m.send("q")
	m.expect("vm: end", "vm: error")
}
