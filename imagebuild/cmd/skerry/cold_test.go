//go:build full

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/image"
)

// A clone in another folder, that shares no cache with this one, neither Go's nor
// ours, makes the bytes of each board's image that make image made here. Half an hour, so
// in make test-all only, which sets the tag; the assembly and init are compared in every run by package image.
func TestSameBytesCold(t *testing.T) {
	if out, err := exec.Command("git", "status", "--porcelain").Output(); err != nil || len(out) > 0 {
		t.Fatalf("the tree has changes, which a clone has not: %v\n%s", err, out)
	}
	// An hour is a high price for having forgotten make image.
	commit, err := exec.Command("git", "rev-parse", "HEAD").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, board := range boards.Names() {
		data, err := os.ReadFile(filepath.Join("../../../build", board, "skerry-"+board+".json"))
		var made image.Description
		if err == nil {
			err = json.Unmarshal(data, &made)
		}
		if want := strings.TrimSpace(string(commit)); err != nil || made.Commit != want {
			t.Fatalf("the image of %s is of commit %q (%v), want %s: make image BOARD=%s", board, made.Commit, err, want, board)
		}
	}
	dir, cache := clone(t, "another/and/longer"), t.TempDir()
	seen := map[string]*boards.Board{}
	for _, board := range boards.Names() {
		begin := time.Now()
		buildIn(t, board, dir, "GOCACHE="+filepath.Join(cache, "go"), "SKERRY_CACHE="+filepath.Join(cache, "skerry"), "LOCKED=strict")
		image := "skerry-" + board + ".img"
		here, there := sum(t, filepath.Join("../../../build", board, image)), sum(t, filepath.Join(dir, "out", image))
		if here != there {
			t.Errorf("%s: two builds of one commit: %s here, %s cold and elsewhere", board, here, there)
		}
		b, err := boards.ByName(board)
		if err != nil {
			t.Fatal(err)
		}
		// Boards that share all of it, as rpi3 and rpi4 do, have one image; others would not, were the right files compared.
		other := seen[here]
		if other != nil && (other.Arch.Name != b.Arch.Name || !reflect.DeepEqual(other.Firmware, b.Firmware) || !reflect.DeepEqual(other.Loaders, b.Loaders)) {
			t.Errorf("%s and %s are the same bytes: this test compares the wrong files", board, other.Name)
		}
		seen[here] = b
		t.Logf("%s: built in %.0f s, sha256 of both: %s", board, time.Since(begin).Seconds(), here)
	}
}

func sum(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}
