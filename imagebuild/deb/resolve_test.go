package deb_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"skerry.internal/skerry/imagebuild/deb"
	"skerry.internal/skerry/imagebuild/deb/debtest"
)

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
