package deb_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/imagebuild/deb"
	"skerry.internal/skerry/imagebuild/deb/debtest"
	"skerry.internal/skerry/imagebuild/fetch"
	"skerry.internal/skerry/imagebuild/image"
)

const listText = `
architectures: [arm64]
suite: trixie
components: [main]
packages: [linux-image-arm64, tool, "libx2 | libx1"]
metapackages: [linux-image-arm64]
ignore: {installer: never installed}
`

// packages are what listText asks for and a bit more.
func packages() []debtest.Package {
	file := func(name, version, depends, suites string) debtest.Package {
		path := "./usr/share/" + name
		return debtest.Package{Name: name, Version: version, Arch: "arm64", Depends: depends, Suites: suites,
			Files: []tar.Header{{Name: path, Mode: 0o644}}, Content: map[string]string{path: name + version}}
	}
	provider := file("libx1", "1.0", "", "")
	provider.Provides = "libx (= 1.0)"
	return []debtest.Package{
		file("linux-image-arm64", "6.12.1-1", "linux-image-6.12.1-arm64 (= 6.12.1-1)", ""),
		file("linux-image-6.12.1-arm64", "6.12.1-1", "installer | other-installer", ""),
		file("tool", "1:1.9-1", "libx (>= 1.0)", ""),
		file("tool", "1:1.10-1", "libx (>= 1.0)", "trixie-security"),
		file("tool", "1:1.10~rc1-1", "libx (>= 1.0)", "trixie-updates"),
		provider,
	}
}

type world struct {
	*debtest.Archive
	archive *deb.Archive
	list    *deb.List
	notices []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Archive: debtest.New(t)}
	w.Publish(t, "trixie", "arm64", packages()...)
	w.list = parseList(t, listText)
	w.forget(t)
	return w
}

// forget is another run with the same cache folder: nothing in memory.
func (w *world) forget(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	if w.archive != nil {
		dir = w.archive.Cache.Dir
	}
	cache, err := fetch.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	notice := func(line string) { w.notices = append(w.notices, line) }
	cache.Notice = notice
	w.archive = &deb.Archive{Cache: cache, Keyring: w.Keyring, Now: time.Now, Notice: notice,
		Mirrors: deb.Mirrors{deb.Main: w.URL, deb.Security: w.URL + "-security"}}
}

func (w *world) resolve(t *testing.T) *deb.Lock {
	t.Helper()
	lock, err := w.archive.Resolve(t.Context(), w.list, "arm64")
	if err != nil {
		t.Fatal(err)
	}
	return lock
}

func parseList(t *testing.T, text string) *deb.List {
	t.Helper()
	list, err := deb.ParseList([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// oneLine checks that err is one line that holds all of want, and that nothing
// half-written is left in the cache.
func (w *world) oneLine(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want one with %q", want)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error has more than one line: %v", err)
	}
	for _, s := range want {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q lacks %q", err, s)
		}
	}
	left, err := os.ReadDir(filepath.Join(w.archive.Cache.Dir, "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("left in the cache: %v", left)
	}
}

func names(l *deb.Lock) string {
	var all []string
	for _, p := range l.Packages {
		all = append(all, p.Name+" "+p.Version+" "+string(p.Archive))
	}
	return strings.Join(all, ", ")
}

func TestResolve(t *testing.T) {
	w := newWorld(t)
	lock := w.resolve(t)
	want := "libx1 1.0 debian, linux-image-6.12.1-arm64 6.12.1-1 debian, tool 1:1.10-1 debian-security"
	if got := names(lock); got != want {
		t.Errorf("Resolve = %s, want %s", got, want)
	}
	for listed, name := range map[string]string{"linux-image-arm64": "linux-image-6.12.1-arm64", "libx2": "libx1", "tool": "tool"} {
		if p, err := lock.Find(listed); err != nil || p.Name != name {
			t.Errorf("Find(%q) = %q, %v, want %q", listed, p.Name, err, name)
		}
	}
	_, err := lock.Find("nano")
	w.oneLine(t, err, `"nano"`, "make lock")
	if !slices.ContainsFunc(w.Asked(), func(p string) bool { return strings.Contains(p, "/by-hash/SHA256/") }) {
		t.Errorf("asked for %q, want an address by hash among them", w.Asked())
	}

	text, err := lock.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, err := deb.ParseLock(text)
	if err != nil {
		t.Fatal(err)
	}
	if changes := again.Changes(lock); len(changes) > 0 {
		t.Errorf("after Marshal and ParseLock: %q", changes)
	}
}

func TestResolveRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		list string // replaces the first by the second in listText
		with string
		want []string
	}{
		{"a package that isn't there", "tool", "tuul", []string{`"tuul"`, "correct its name"}},
		{"a forgotten library", `"libx2 | libx1"`, "", []string{"libx (>= 1.0) (needed by tool)", "add to packages, or to ignore"}},
		{"an ignored name that nothing needs", "installer: never", "gone: x, installer: never", []string{"nothing depends on gone"}},
		{"a package twice", "tool", "tool, tool", []string{`"tool" is listed twice`}},
		{"an unknown component", "[main]", "[man]", []string{"man/binary-arm64", "components"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.list = parseList(t, strings.Replace(listText, c.list, c.with, 1))
			_, err := w.archive.Resolve(t.Context(), w.list, "arm64")
			w.oneLine(t, err, c.want...)
		})
	}
}

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

func TestResolveChecksProvidedVersion(t *testing.T) {
	w := newWorld(t)
	all := packages()
	all[3].Depends = "libx (>= 2.0)"
	w.Publish(t, "trixie", "arm64", all...)
	_, err := w.archive.Resolve(t.Context(), w.list, "arm64")
	w.oneLine(t, err, "libx (>= 2.0) (needed by tool)")
}

func TestMirrorInMotion(t *testing.T) {
	t.Run("old address, right by hash", func(t *testing.T) {
		w := newWorld(t)
		w.Change(t, "binary-arm64/Packages.xz", flip)
		w.resolve(t)
	})
	t.Run("fallback", func(t *testing.T) {
		w := newWorld(t)
		var all []debtest.Package
		for _, p := range packages() {
			p.Suites = strings.ReplaceAll(p.Suites, "trixie", "bookworm")
			all = append(all, p)
		}
		w.Publish(t, "bookworm", "arm64", all...)
		w.list.Fallback = "bookworm"
		if lock := w.resolve(t); lock.Suite != "bookworm" {
			t.Errorf("resolved from %q, want bookworm", lock.Suite)
		}
		if len(w.notices) != 1 || !strings.Contains(w.notices[0], "from bookworm") {
			t.Errorf("notices %q, want one that names bookworm", w.notices)
		}
	})
	t.Run("no fallback from a bad signature", func(t *testing.T) {
		w := newWorld(t)
		w.Publish(t, "bookworm", "arm64", packages()...)
		w.Publish(t, "trixie", "arm64", packages()...)
		w.list.Fallback = "bookworm"
		w.archive.Keyring = debtest.New(t).Keyring
		_, err := w.archive.Resolve(t.Context(), w.list, "arm64")
		w.oneLine(t, err, "signature is not good")
		if len(w.notices) > 0 {
			t.Errorf("notices %q, want none", w.notices)
		}
	})
}

// TestMayLack: a suite whose index can't be read is left out whole where the
// list allows that for the architecture, and stops everything elsewhere.
func TestMayLack(t *testing.T) {
	const (
		allowed = "arm64: [trixie-security]"
		dists   = "debian-security/dists/trixie-security/"
	)
	drop := func(part string) func(*testing.T, *world) {
		return func(t *testing.T, w *world) { w.Drop(t, part) }
	}
	change := func(part string) func(*testing.T, *world) {
		return func(t *testing.T, w *world) { w.Change(t, part, flip) }
	}
	for _, c := range []struct {
		name, mayLack string
		harm          func(*testing.T, *world)
		want          []string // in the error; nil: the suite is left out
	}{
		{"no index", allowed, drop(dists + "main"), nil},
		{"another index than was signed", allowed, change(dists + "main"), nil},
		{"the second component's", allowed, drop(dists + "non-free-firmware"), nil},
		{"another architecture may", "armhf: [trixie-security]", drop(dists + "main"),
			[]string{"trixie-security for arm64", "mayLack", "try again later", deb.MirrorEnv}},
		{"another suite, and no way back to an older release", allowed, func(t *testing.T, w *world) {
			w.list.Fallback = "bookworm"
			w.Change(t, "dists/trixie-updates/main", flip)
		}, []string{"trixie-updates for arm64", "mayLack", "not what was asked for", "try again later", deb.MirrorEnv}},
		{"the main suite", "arm64: [trixie-updates, trixie-security]", drop("dists/trixie/non-free-firmware"),
			[]string{"trixie for arm64", "try again later", deb.MirrorEnv}},
		{"a bad signature", allowed, change(dists + "InRelease"), []string{"trixie-security for arm64", "signature is not good"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.Publish(t, "trixie", "arm64", append(packages(),
				debtest.Package{Name: "firmware", Version: "1", Arch: "arm64", Component: "non-free-firmware"},
				debtest.Package{Name: "firmware", Version: "2", Arch: "arm64", Component: "non-free-firmware", Suites: "trixie-security"})...)
			w.list = parseList(t, strings.NewReplacer("[arm64]", "[arm64, armhf]", "[main]", "[main, non-free-firmware]", "tool", "tool, firmware").
				Replace(listText)+"mayLack: {"+c.mayLack+"}\n")
			c.harm(t, w)
			if c.want != nil {
				_, err := w.archive.Resolve(t.Context(), w.list, "arm64")
				w.oneLine(t, err, c.want...)
				if len(w.notices) > 0 {
					t.Errorf("notices %q, want none", w.notices)
				}
				return
			}
			text, err := w.resolve(t).Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if len(w.notices) != 1 || !strings.Contains(w.notices[0], "no trixie-security for arm64") {
				t.Errorf("notices %q, want one about trixie-security", w.notices)
			}
			lock, err := deb.ParseLock(text)
			if err != nil {
				t.Fatal(err)
			}
			if p, err := lock.Find("tool"); err != nil || p.Version != "1:1.10~rc1-1" || !slices.Equal(lock.Without, []string{"trixie-security"}) {
				t.Errorf("tool is %s, %v, without %q, want the one of trixie-updates, without trixie-security", p.Version, err, lock.Without)
			}
			w.notices = nil
			if _, err := w.archive.Fetch(t.Context(), w.list, lock); err != nil {
				t.Fatal(err)
			}
			if len(w.notices) != 1 || !strings.Contains(w.notices[0], "without trixie-security") {
				t.Errorf("notices of a build %q, want one about trixie-security", w.notices)
			}
		})
	}
}

// TestFrom: one package comes from another release, though the list's own has a
// higher version, and what corrects that release counts for it.
func TestFrom(t *testing.T) {
	kernel := func(version, release, suites string) []debtest.Package {
		return []debtest.Package{
			{Name: "linux-image-arm64", Version: version, Arch: "arm64", Depends: "linux-image-" + release, Suites: suites},
			{Name: "linux-image-" + release, Version: version, Arch: "arm64", Depends: "installer", Suites: suites},
		}
	}
	newMixed := func(t *testing.T) *world {
		w := newWorld(t)
		old := append(kernel("6.1.1-1", "6.1.1", ""), kernel("6.1.2-1", "6.1.2", "bookworm-security")...)
		w.PublishToo(t, "bookworm", "arm64", append(old, debtest.Package{Name: "tool", Version: "9", Arch: "arm64"})...)
		w.list = parseList(t, listText+"from: {linux-image-arm64: bookworm}\n")
		return w
	}
	w := newMixed(t)
	lock := w.resolve(t)
	want := "libx1 1.0 debian, linux-image-6.1.2 6.1.2-1 debian-security, tool 1:1.10-1 debian-security"
	if got := names(lock); got != want || lock.Suite != "trixie" {
		t.Errorf("Resolve = %s of %s, want %s of trixie", got, lock.Suite, want)
	}
	if p, err := lock.Find("linux-image-arm64"); err != nil || p.Suite != "bookworm-security" {
		t.Errorf("the kernel is from %q, %v, want bookworm-security", p.Suite, err)
	}

	for _, c := range []struct {
		name, drop, add string
		want            []string
	}{
		{"without what corrects it", "debian-security/dists/bookworm-security/main", "", []string{"bookworm-security for arm64", "mayLack"}},
		{"without it", "debian/dists/bookworm/main", "", []string{"bookworm for arm64", "from in the package list"}},
		{"without it, and no way back to an older release", "debian/dists/bookworm/main", "fallback: bookworm\n", []string{"bookworm for arm64", "from in the package list"}},
		{"a package that isn't there", "", "data: [libx1]\n", []string{`bookworm has no package "libx2 | libx1"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newMixed(t)
			w.list = parseList(t, listText+"from: {linux-image-arm64: bookworm}\n"+c.add)
			if c.drop == "" {
				w.list.From["libx2 | libx1"] = "bookworm"
			} else {
				w.Drop(t, c.drop)
			}
			_, err := w.archive.Resolve(t.Context(), w.list, "arm64")
			w.oneLine(t, err, c.want...)
		})
	}

	for _, updated := range []string{"6.1.1-1", "6.1.1-2"} { // in bookworm, and in bookworm-updates
		t.Run("what corrects it may be lacking, "+updated, func(t *testing.T) {
			w := newMixed(t)
			w.list.MayLack = map[string][]string{"arm64": {"bookworm-security"}}
			if updated == "6.1.1-2" {
				w.PublishToo(t, "bookworm", "arm64", append(kernel(updated, "6.1.1", "bookworm-updates"), kernel("6.1.2-1", "6.1.2", "bookworm-security")...)...)
			}
			w.Drop(t, "debian-security/dists/bookworm-security/main")
			text, err := w.resolve(t).Marshal()
			if err != nil {
				t.Fatal(err)
			}
			lock, err := deb.ParseLock(text)
			if err != nil {
				t.Fatal(err)
			}
			if p, err := lock.Find("linux-image-arm64"); err != nil || p.Version != updated || !slices.Equal(lock.Without, []string{"bookworm-security"}) {
				t.Errorf("the kernel is %s, %v, without %q, want %s, without bookworm-security", p.Version, err, lock.Without, updated)
			}
		})
	}

	// The twin of Fallback: what has its own release stays there.
	t.Run("with a fallback", func(t *testing.T) {
		w := newMixed(t)
		w.PublishToo(t, "bullseye", "arm64", packages()...)
		w.list.Fallback = "bullseye"
		w.Drop(t, "debian/dists/trixie/main")
		lock := w.resolve(t)
		if p, err := lock.Find("linux-image-arm64"); err != nil || p.Suite != "bookworm-security" || lock.Suite != "bullseye" {
			t.Errorf("the kernel is from %q, %v, the rest from %s, want bookworm-security and bullseye", p.Suite, err, lock.Suite)
		}
	})

	t.Run("of nothing", func(t *testing.T) {
		w := newMixed(t)
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "packages-image.yaml"), []byte(listText+"from: {linux-image-amr64: bookworm}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		w.oneLine(t, deb.LockAll(t.Context(), w.archive, dir, plain, func(string) {}), `from names ["linux-image-amr64"]`)
	})
}

func TestFetch(t *testing.T) {
	w := newWorld(t)
	lock := w.resolve(t)
	set, err := w.archive.Fetch(t.Context(), w.list, lock)
	if err != nil {
		t.Fatal(err)
	}
	if set.Newer || set.Lock != lock {
		t.Errorf("Fetch took another lock than asked for")
	}
	path, err := set.Path("linux-image-arm64")
	if err != nil {
		t.Fatal(err)
	}
	for f, err := range deb.Unpack(path) {
		if err != nil || f.Path != "usr/share/linux-image-6.12.1-arm64" {
			t.Errorf("the kernel package holds %q, %v", f.Path, err)
		}
	}

	// A second time nothing is asked for, so it works without a network.
	before := len(w.Asked())
	w.forget(t)
	if _, err := w.archive.Fetch(t.Context(), w.list, lock); err != nil {
		t.Fatal(err)
	}
	if asked := w.Asked()[before:]; len(asked) > 0 {
		t.Errorf("a full cache asked for %q", asked)
	}

	// A cut file is fetched again, and said to be.
	if err := os.Truncate(path, 10); err != nil {
		t.Fatal(err)
	}
	if _, err := w.archive.Fetch(t.Context(), w.list, lock); err != nil {
		t.Fatal(err)
	}
	if len(w.notices) != 1 || !strings.Contains(w.notices[0], "is damaged") {
		t.Errorf("notices %q, want one about a damaged file", w.notices)
	}
	w.archive.Mirrors = deb.Mirrors{deb.Main: "http://127.0.0.1:1", deb.Security: "http://127.0.0.1:1"}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	_, err = w.archive.Fetch(t.Context(), w.list, lock)
	w.oneLine(t, err, "linux-image-6.12.1-arm64_6.12.1-1_arm64.deb", "connect this machine", deb.MirrorEnv)
}

func TestFetchRefusesWrongBytes(t *testing.T) {
	w := newWorld(t)
	lock := w.resolve(t)
	w.Change(t, "tool_1:1.10-1", flip)
	_, err := w.archive.Fetch(t.Context(), w.list, lock)
	w.oneLine(t, err, "tool_1:1.10-1_arm64.deb is not what was asked for")
}

func TestLockedFileGone(t *testing.T) {
	newer := packages()
	for i := range newer {
		if newer[i].Version == "1:1.10-1" {
			newer[i].Version = "1:1.11-1"
		}
	}
	t.Run("build on", func(t *testing.T) {
		w := newWorld(t)
		lock := w.resolve(t)
		w.Publish(t, "trixie", "arm64", newer...)
		w.forget(t)
		set, err := w.archive.Fetch(t.Context(), w.list, lock)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := set.Lock.Find("tool"); err != nil || p.Version != "1:1.11-1" || !set.Newer {
			t.Errorf("got tool %s (newer: %v), %v, want 1:1.11-1", p.Version, set.Newer, err)
		}
		said := strings.Join(w.notices, "\n")
		for _, want := range []string{"WARNING: the archive no longer has tool 1:1.10-1", "tool 1:1.10-1 -> 1:1.11-1", "make lock"} {
			if !strings.Contains(said, want) {
				t.Errorf("notices %q lack %q", said, want)
			}
		}
		if p, _ := lock.Find("tool"); p.Version != "1:1.10-1" {
			t.Errorf("the given lock was changed")
		}
	})
	t.Run("nothing older", func(t *testing.T) {
		w := newWorld(t)
		lock := w.resolve(t)
		w.Drop(t, "/pool/main/tool_1:1.10-1")
		w.Drop(t, "trixie-security/main")
		w.list.MayLack = map[string][]string{"arm64": {"trixie-security"}}
		w.archive = nil // with an empty cache: it would hold the index too
		w.forget(t)
		_, err := w.archive.Fetch(t.Context(), w.list, lock)
		w.oneLine(t, err, "tool 1:1.10-1 -> 1:1.10~rc1-1", "older", "make lock", deb.MirrorEnv)
	})
	t.Run("strict", func(t *testing.T) {
		w := newWorld(t)
		lock := w.resolve(t)
		w.Publish(t, "trixie", "arm64", newer...)
		w.archive.Strict = true
		_, err := w.archive.Fetch(t.Context(), w.list, lock)
		w.oneLine(t, err, "tool 1:1.10-1", "LOCKED=strict", "make lock")
	})
	t.Run("index without its file", func(t *testing.T) {
		w := newWorld(t)
		lock := w.resolve(t)
		w.Drop(t, "/pool/main/tool_1:1.10-1")
		_, err := w.archive.Fetch(t.Context(), w.list, lock)
		w.oneLine(t, err, "tool 1:1.10-1", "being updated", deb.MirrorEnv)
	})
}

// plain adds nothing to a list.
func plain(name, arch string, list *deb.List) error { return nil }

func TestLockAll(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "packages-image.yaml"), []byte(listText), 0o600); err != nil {
		t.Fatal(err)
	}
	var said []string
	report := func(line string) { said = append(said, line) }
	if err := deb.LockAll(t.Context(), w.archive, dir, plain, report); err != nil {
		t.Fatal(err)
	}
	if _, err := deb.ReadLock(filepath.Join(dir, "lock-image-arm64.json")); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(said, "  tool 1:1.10-1 (new)") {
		t.Errorf("reported %q, want the new tool among it", said)
	}
	said = nil
	if err := deb.LockAll(t.Context(), w.archive, dir, plain, report); err != nil {
		t.Fatal(err)
	}
	if len(said) != 1 || !strings.Contains(said[0], "0 changed") {
		t.Errorf("second time reported %q, want that nothing changed", said)
	}

	// One list that can't be resolved leaves all locks as they are.
	bad := strings.Replace(listText, "tool", "tuul", 1)
	if err := os.WriteFile(filepath.Join(dir, "packages-zz.yaml"), []byte(bad), 0o600); err != nil {
		t.Fatal(err)
	}
	w.Publish(t, "trixie", "arm64", packages()[:3]...)
	before, _ := os.ReadFile(filepath.Join(dir, "lock-image-arm64.json"))
	w.oneLine(t, deb.LockAll(t.Context(), w.archive, dir, plain, report), "tuul")
	if after, _ := os.ReadFile(filepath.Join(dir, "lock-image-arm64.json")); !bytes.Equal(before, after) {
		t.Errorf("lock-image-arm64.json was changed by a lock that failed")
	}
	w.oneLine(t, deb.LockAll(t.Context(), w.archive, t.TempDir(), plain, report), "no packages-*.yaml")
}

func TestLockFile(t *testing.T) {
	for _, c := range [][3]string{
		{"rootfs/packages-image.yaml", "arm64", "rootfs/lock-image-arm64.json"},
		{"packages-host.yaml", "amd64", "lock-host-amd64.json"},
	} {
		if got := deb.LockFile(c[0], c[1]); got != c[2] {
			t.Errorf("LockFile(%q, %q) = %q, want %q", c[0], c[1], got, c[2])
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                      "EOF",
		"suite: x":              "is empty",
		listText + "\nsuits: x": "suits",
		strings.Replace(listText, "never installed", `""`, 1):      "no reason",
		strings.Replace(listText, "[linux-image-arm64]", "[x]", 1): `"x"`,
		listText + "mayLack: {armhf: [trixie-security]}":           `"armhf"`,
		listText + "mayLack: {arm64: [trixie]}":                    `"trixie"`,
		listText + "mayLack: {arm64: [bookworm-updates]}":          `"bookworm-updates"`,
		listText + "from: {tool: }":                                `"tool"`,
	} {
		if _, err := deb.ParseList([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseList(%q) = %v, want an error with %q", text, err, want)
		}
	}
	parseList(t, listText+"fallback: bookworm\nmayLack: {arm64: [bookworm-updates]}")
	parseList(t, listText+"from: {tool: bookworm}\nmayLack: {arm64: [bookworm-updates]}")
	w := newWorld(t)
	good, err := w.resolve(t).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][3]string{
		{`"pool/main/tool`, `"pool/../../tool`, "below pool/"},
		{`"pool/main/tool`, `"http://evil/tool`, "below pool/"},
		{`"sha256": "`, `"sha256": "0`, "64 hexadecimal digits"},
		{`"sha256": "`, `"sha256": "zz`, "64 hexadecimal digits"},
		{`"archive": "debian"`, `"archive": "ppa"`, `"ppa"`},
		{`"architecture": "arm64"`, `"architecture": ""`, "no architecture"},
		{`"size": `, `"size": -`, "size"},
		{`"packages"`, `"without": ["trixie"], "packages"`, `"trixie"`},
		{`"packages"`, `"without": ["bookworm-updates"], "packages"`, `"bookworm-updates"`},
		{`"packages"`, `"without": ["trixie-updates", "trixie-updates"], "packages"`, "once"},
		{`"packages"`, `"without": ["trixie-security"], "packages"`, `"tool" is from trixie-security`},
	} {
		text := strings.Replace(string(good), c[0], c[1], 1)
		if _, err := deb.ParseLock([]byte(text)); err == nil || !strings.Contains(err.Error(), c[2]) {
			t.Errorf("ParseLock with %s = %v, want an error with %q", c[1], err, c[2])
		}
	}
	if _, err := deb.ReadLock(filepath.Join(t.TempDir(), "x")); err == nil || !strings.Contains(err.Error(), "make lock") {
		t.Errorf("ReadLock of no file = %v, want a hint to make lock", err)
	}
}

func TestCancel(t *testing.T) {
	w := newWorld(t)
	lock := w.resolve(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := w.archive.Fetch(ctx, w.list, lock)
	w.oneLine(t, err, "context canceled")
}

// TestProjectLists holds the lists and locks of the project together.
func TestProjectLists(t *testing.T) {
	lists, err := fs.Glob(os.DirFS("../../rootfs"), "packages-*.yaml")
	if err != nil || len(lists) == 0 {
		t.Fatalf("found package lists %q, %v", lists, err)
	}
	for _, name := range lists {
		name = filepath.Join("../../rootfs", name)
		all, err := deb.ReadList(name)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, arch := range all.Architectures {
			list, err := deb.ReadList(name)
			if err == nil {
				err = image.CompleteList(filepath.Base(name), arch, list)
			}
			if err != nil {
				t.Error(err)
				continue
			}
			lock, err := deb.ReadLock(deb.LockFile(name, arch))
			if err != nil {
				t.Error(err)
				continue
			}
			for _, s := range lock.Without {
				if !slices.Contains(list.MayLack[arch], s) {
					t.Errorf("the %s lock of %s was made without %s, which the list does not allow: run make lock", arch, name, s)
				}
			}
			for _, entry := range list.Packages {
				first, _, _ := strings.Cut(entry, " ")
				if _, err := lock.Find(first); err != nil {
					t.Error(err)
				}
			}
			if lock.Architecture != arch || len(lock.Packages) != len(list.Packages) {
				t.Errorf("%s has %d packages for %s, its lock has %d for %s: run make lock", name, len(list.Packages), arch, len(lock.Packages), lock.Architecture)
			}
		}
	}
}
