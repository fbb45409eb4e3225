package deb_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"skerry.internal/skerry/imagebuild/deb"
	"skerry.internal/skerry/imagebuild/deb/debtest"
)

func flip(b []byte) []byte {
	b[len(b)/2] ^= 1
	return b
}

func TestIndexIsVerified(t *testing.T) {
	other := debtest.New(t)
	for _, c := range []struct {
		name string
		harm func(t *testing.T, w *world)
		want []string
	}{
		{"InRelease says another hash", func(t *testing.T, w *world) {
			w.Change(t, "dists/trixie/InRelease", func(b []byte) []byte {
				i := bytes.Index(b, []byte("SHA256:\n ")) + len("SHA256:\n ")
				b[i] = "10"[b[i]&1]
				return b
			})
		}, []string{"verify", "InRelease", "signature is not good"}},
		{"InRelease is not signed", func(t *testing.T, w *world) {
			w.Change(t, "dists/trixie/InRelease", func([]byte) []byte { return []byte("Codename: trixie\n") })
		}, []string{"InRelease", "not signed"}},
		{"signed by somebody else", func(t *testing.T, w *world) { w.archive.Keyring = other.Keyring },
			[]string{"signature is not good", "debian-archive-keyring"}},
		{"no keys on this machine", func(t *testing.T, w *world) { w.archive.Keyring += ".none" },
			[]string{"install the package debian-archive-keyring"}},
		{"another suite's index", func(t *testing.T, w *world) {
			var updates []byte
			w.Change(t, "dists/trixie-updates/InRelease", func(b []byte) []byte { updates = b; return b })
			w.Change(t, "dists/trixie/InRelease", func([]byte) []byte { return updates })
		}, []string{`about "trixie-updates"`}},
		{"an old index", func(t *testing.T, w *world) { w.PublishStale(t, "trixie", "arm64", packages()...) },
			[]string{"valid until", "clock"}},
		{"Packages is not what was signed", func(t *testing.T, w *world) { w.Change(t, "dists/trixie/main", flip) },
			[]string{"Packages.xz", "not what was asked for", "being updated", deb.MirrorEnv}},
		{"Packages has another size", func(t *testing.T, w *world) {
			w.Change(t, "dists/trixie/main", func(b []byte) []byte { return b[:len(b)-1] })
		}, []string{"Packages.xz", "bytes, want", "being updated"}},
		{"no Packages", func(t *testing.T, w *world) { w.Drop(t, "dists/trixie/main") },
			[]string{"Packages.xz", "being updated"}},
		{"no security archive", func(t *testing.T, w *world) { w.Drop(t, "debian-security") },
			[]string{"trixie-security", deb.MirrorEnv}},
		{"no network", func(t *testing.T, w *world) { w.archive.Mirrors[deb.Main] = "http://127.0.0.1:1/debian" },
			[]string{"trixie's InRelease", "connect this machine", deb.MirrorEnv}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			c.harm(t, w)
			_, err := w.archive.Resolve(t.Context(), w.list, "arm64")
			w.oneLine(t, err, c.want...)
		})
	}
}

// TestOnlySignedTextCounts puts lines of an attacker around a good InRelease.
func TestOnlySignedTextCounts(t *testing.T) {
	w := newWorld(t)
	want := names(w.resolve(t))
	w.forget(t)
	evil := []byte("Codename: trixie\nSHA256:\n " + strings.Repeat("0", 64) + " 1 main/binary-arm64/Packages.xz\n\n")
	w.Change(t, "dists/trixie/InRelease", func(b []byte) []byte { return slices.Concat(evil, b, evil) })
	if got := names(w.resolve(t)); got != want {
		t.Errorf("Resolve = %s, want %s", got, want)
	}
}
