package deb_test

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"skerry.internal/skerry/imagebuild/deb"
	"skerry.internal/skerry/imagebuild/deb/debtest"
)

// sample has each kind of entry that Debian's packages have.
func sample() debtest.Package {
	dir := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755} }
	return debtest.Package{
		Name: "sample", Version: "1", Arch: "arm64",
		Files: []tar.Header{
			dir("./"), dir("./bin/"), dir("./usr/"), dir("./usr/lib/"),
			{Name: "./bin/su", Mode: 0o4755},
			{Name: "./usr/lib/x.so.1.0", Mode: 0o644},
			{Typeflag: tar.TypeSymlink, Name: "./usr/lib/x.so.1", Linkname: "x.so.1.0", Mode: 0o777},
			{Typeflag: tar.TypeLink, Name: "./usr/lib/x.hard", Linkname: "./usr/lib/x.so.1.0", Mode: 0o644},
			{Name: "./usr/lib/empty", Mode: 0o600},
			{Name: "./usr/lib/" + strings.Repeat("long", 60), Mode: 0o644},
		},
		Content: map[string]string{"./bin/su": "su", "./usr/lib/x.so.1.0": strings.Repeat("library ", 9999)},
	}
}

func writeDeb(t *testing.T, p debtest.Package) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), p.Name+".deb")
	if err := os.WriteFile(name, debtest.Build(t, p), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestUnpack(t *testing.T) {
	p := sample()
	want := []string{
		"drwxr-xr-x usr/bin", "drwxr-xr-x usr", "drwxr-xr-x usr/lib",
		"urwxr-xr-x usr/bin/su 2", "-rw-r--r-- usr/lib/x.so.1.0 79992", "Lrwxrwxrwx usr/lib/x.so.1 -> x.so.1.0",
		"-rw-r--r-- usr/lib/x.hard = usr/lib/x.so.1.0", "-rw------- usr/lib/empty 0", "-rw-r--r-- usr/lib/" + strings.Repeat("long", 60) + " 0",
	}
	for _, p.Compress = range []string{"xz", "zst", "gz"} {
		var got []string
		for f, err := range deb.Unpack(writeDeb(t, p)) {
			if err != nil {
				t.Fatalf("%s: %v", p.Compress, err)
			}
			line := f.Mode.String() + " " + f.Path
			switch {
			case f.Link != "":
				line += " -> " + f.Link
			case f.Hard != "":
				line += " = " + f.Hard
			case f.Mode.IsRegular():
				content, err := io.ReadAll(f.Content)
				if err != nil || int64(len(content)) != f.Size {
					t.Errorf("%s: read %d bytes, %v, want %d", f.Path, len(content), err, f.Size)
				}
				line += fmt.Sprint(" ", len(content))
			}
			got = append(got, line)
		}
		if !slices.Equal(got, want) {
			t.Errorf("Unpack of data.tar.%s =\n%s\nwant\n%s", p.Compress, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// TestUnpackAgainstDpkg lets Debian's own tool judge both the reader and the
// packages that these tests make.
func TestUnpackAgainstDpkg(t *testing.T) {
	dpkg, err := exec.LookPath("dpkg-deb")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("no dpkg-deb on this machine")
		}
		t.Skip("no dpkg-deb on this machine")
	}
	name := writeDeb(t, sample())
	out, err := exec.Command(dpkg, "-c", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		path := strings.Replace(strings.TrimSuffix(strings.TrimPrefix(f[5], "./"), "/"), "bin", "usr/bin", 1)
		if path != "" {
			want[f[0][1:]+" "+path+" "+strings.Join(f[6:], " ")] = true
		}
	}
	got := map[string]bool{}
	for f, err := range deb.Unpack(name) {
		if err != nil {
			t.Fatal(err)
		}
		mode := []byte(f.Mode.Perm().String()[1:])
		if f.Mode&fs.ModeSetuid != 0 {
			mode[2] = 's'
		}
		link := ""
		if f.Link != "" {
			link = "-> " + f.Link
		} else if f.Hard != "" {
			link = "link to ./" + f.Hard
		}
		got[string(mode)+" "+f.Path+" "+link] = true
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("Unpack =\n%v\ndpkg-deb -c says\n%v", got, want)
	}
}

func TestUnpackStopsEarly(t *testing.T) {
	n := 0
	for range deb.Unpack(writeDeb(t, sample())) {
		n++
		break
	}
	if n != 1 {
		t.Errorf("the loop ran %d times after break", n)
	}
}

func TestUnpackRefuses(t *testing.T) {
	entry := func(h tar.Header) func(*testing.T) string {
		return func(t *testing.T) string {
			return writeDeb(t, debtest.Package{Name: "bad", Version: "1", Arch: "all", Files: []tar.Header{h}})
		}
	}
	cut := func(keep func(size int) int) func(*testing.T) string {
		return func(t *testing.T) string {
			name := writeDeb(t, sample())
			st, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(name, int64(keep(int(st.Size())))); err != nil {
				t.Fatal(err)
			}
			return name
		}
	}
	for _, c := range []struct {
		name string
		file func(*testing.T) string
		want string
	}{
		{"path outside", entry(tar.Header{Name: "./usr/../../etc/passwd"}), "leads outside"},
		{"hard link outside", entry(tar.Header{Typeflag: tar.TypeLink, Name: "./a", Linkname: "../b"}), "leads outside"},
		{"device", entry(tar.Header{Typeflag: tar.TypeChar, Name: "./null"}), "neither file"},
		{"cut in the data", cut(func(n int) int { return n - n/4 }), "data.tar.xz"},
		{"cut before the data", cut(func(int) int { return 100 }), "data.tar"},
		{"empty", cut(func(int) int { return 0 }), "outer archive"},
		{"absent", func(t *testing.T) string { return filepath.Join(t.TempDir(), "x") }, "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got error
			for _, err := range deb.Unpack(c.file(t)) {
				if got != nil {
					t.Errorf("the loop went on after %v", got)
				}
				got = err
			}
			if got == nil || !strings.Contains(got.Error(), c.want) || strings.Contains(got.Error(), "\n") {
				t.Errorf("Unpack = %v, want one line with %q", got, c.want)
			}
		})
	}
}

func TestUnpackTo(t *testing.T) {
	dir := t.TempDir()
	if err := deb.UnpackTo(dir, writeDeb(t, sample())); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(dir, "usr/bin/su"))
	if err != nil || st.Mode() != 0o755 {
		t.Errorf("usr/bin/su has mode %v, %v, want 0755 without setuid", st.Mode(), err)
	}
	for _, name := range []string{"x.so.1", "x.hard"} {
		if text, err := os.ReadFile(filepath.Join(dir, "usr/lib", name)); err != nil || len(text) != 79992 {
			t.Errorf("%s holds %d bytes, %v, want the library", name, len(text), err)
		}
	}

	// A link that leads out, and a file behind it.
	outside := t.TempDir()
	err = deb.UnpackTo(t.TempDir(), writeDeb(t, debtest.Package{Name: "bad", Version: "1", Arch: "all", Files: []tar.Header{
		{Typeflag: tar.TypeSymlink, Name: "./out", Linkname: outside},
		{Name: "./out/evil", Mode: 0o644},
	}}))
	if err == nil {
		t.Error("a file behind a link that leads outside was written")
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("%s holds %v", outside, left)
	}
}
