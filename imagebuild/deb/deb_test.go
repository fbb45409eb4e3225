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
