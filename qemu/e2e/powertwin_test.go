//go:build full

package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestSynchronousOff is the twin of TestRecordedCuts: an image that differs in
// one word, whose database does not wait for the disk. It must lose objects.
// It builds that image, so it is in make test-all only.
func TestSynchronousOff(t *testing.T) {
	bootImage(t) // says what is missing
	rnd := seeded(t)
	r := record(t, careless(t))
	last := len(r.phases) - 1
	disk, err := r.log.Follow(r.raw, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	r.phases = r.phases[last:]
	const states = 40
	caught := 0
	for _, c := range r.choose(states, 0, rnd) {
		if err := r.judge(disk, r.log, c); err != nil {
			if caught++; caught == 1 {
				t.Logf("the first to be caught: %.200s", err)
			}
		}
	}
	t.Logf("%d of %d power cuts lost what a database with synchronous=OFF had acknowledged", caught, states)
	if caught == 0 {
		t.Errorf("a database with synchronous=OFF lost nothing in %d power cuts: these checks see nothing", states)
	}
}

// careless builds the image from these sources with synchronous=OFF.
func careless(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	sources, out := filepath.Join(dir, "sources"), filepath.Join(dir, "out")
	r := &node{t: t}
	r.host("git", "clone", "-q", "../..", sources)
	file := filepath.Join(sources, "agent/store/store.go")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Replace(text, []byte("&_synchronous=FULL&"), []byte("&_synchronous=OFF&"), 1)
	if bytes.Equal(changed, text) {
		t.Fatal("agent/store/store.go has no _synchronous=FULL to change")
	}
	if err := os.WriteFile(file, changed, 0o644); err != nil {
		t.Fatal(err)
	}
	r.host(skerryCommand(t), "image", "build", "--board", "rpi4", "--project", sources, "-o", out)
	return filepath.Join(out, "skerry-rpi4.img")
}
