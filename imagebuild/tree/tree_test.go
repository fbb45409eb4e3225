package tree

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func add(t *testing.T, tr *Tree, entries ...Entry) {
	t.Helper()
	for _, e := range entries {
		e.From = "test"
		if err := tr.Add(e); err != nil {
			t.Fatal(err)
		}
	}
}

// merged is a tree as ours are: bin, sbin and lib lead into usr.
func merged(t *testing.T) *Tree {
	t.Helper()
	var tr Tree
	add(t, &tr, Dir("usr/bin", 0o755), Dir("usr/lib", 0o755), Symlink("usr/sbin", "bin"), Symlink("bin", "usr/bin"), Symlink("sbin", "/usr/sbin"), Symlink("lib", "usr/lib"))
	return &tr
}

func paths(tr *Tree) []string {
	var all []string
	for _, e := range tr.Entries() {
		all = append(all, e.Path)
	}
	return all
}

func TestAddFollowsLinks(t *testing.T) {
	tr := merged(t)
	add(t, tr, File("sbin/init", 0o755, []byte("i")), File("lib/x/y.so", 0o644, nil), File("usr/sbin/nft", 0o755, nil))
	want := []string{"bin", "lib", "sbin", "usr", "usr/bin", "usr/bin/init", "usr/bin/nft", "usr/lib", "usr/lib/x", "usr/lib/x/y.so", "usr/sbin"}
	if got := paths(tr); !slices.Equal(got, want) {
		t.Errorf("Entries() = %q; want %q", got, want)
	}
	for in, want := range map[string]string{"/sbin/init": "usr/bin/init", "lib/x/y.so": "usr/lib/x/y.so", "usr/../sbin": ""} {
		got, ok := tr.Resolve(in)
		if in == "usr/../sbin" {
			want = "usr/bin"
		}
		if !ok || got != want {
			t.Errorf("Resolve(%q) = %q, %v; want %q", in, got, ok, want)
		}
	}
	if got, ok := tr.Resolve("/sbin/none"); ok {
		t.Errorf("Resolve(/sbin/none) = %q; want nothing", got)
	}
}

func TestAddRefuses(t *testing.T) {
	tr := merged(t)
	add(t, tr, File("etc/a", 0o644, nil), Symlink("etc/loop", "loop"), Symlink("etc/gone", "/none"))
	for _, e := range []Entry{
		File("/etc/b", 0o644, nil), File("../b", 0o644, nil), File("etc//b", 0o644, nil), File("", 0o644, nil),
		File("etc/a", 0o644, nil),      // twice
		File("sbin", 0o644, nil),       // over a link
		File("etc/a/b", 0o644, nil),    // below a file
		File("etc/loop/b", 0o644, nil), // below a link to itself
		File("etc/gone/b", 0o644, nil), // below a link to nowhere
		Symlink("etc", "usr"),          // over a folder with files
		Dir("usr/bin", 0o700),          // another mode
	} {
		if err := tr.Add(e); err == nil {
			t.Errorf("Add(%q, %v) = nil; want an error", e.Path, e.Mode)
		}
	}
	if err := tr.Add(Dir("usr/bin", 0o755)); err != nil {
		t.Errorf("Add() of a folder that is there = %v; want nil", err)
	}
	if err := tr.Add(Dir("etc", 0o700)); err != nil {
		t.Errorf("Add() of a folder that was only implied = %v; want nil", err)
	}
	if e, _ := tr.Get("etc"); e.Mode.Perm() != 0o700 {
		t.Errorf("its mode is %v; want what was asked for", e.Mode)
	}
}

func TestWriteTar(t *testing.T) {
	at := time.Unix(1_800_000_001, 999)
	write := func(first, second Entry) []byte {
		var tr Tree
		add(t, &tr, first, second, Symlink("l", "a"))
		var b bytes.Buffer
		if err := tr.WriteTar(&b, at); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	a, b := File("d/a", 0o755, []byte("hello")), File("d/b", 0o600, nil)
	one := write(a, b)
	if !bytes.Equal(one, write(b, a)) {
		t.Error("the order of Add changes what WriteTar writes")
	}
	var got []string
	for r := tar.NewReader(bytes.NewReader(one)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != at.Unix() {
			t.Errorf("%s belongs to %d:%d at %v; want 0:0 at %v", h.Name, h.Uid, h.Gid, h.ModTime, at)
		}
		got = append(got, h.FileInfo().Mode().String()+" "+h.Name)
	}
	if want := []string{"drwxr-xr-x d/", "-rwxr-xr-x d/a", "-rw------- d/b", "Lrwxrwxrwx l"}; !slices.Equal(got, want) {
		t.Errorf("the archive holds %q; want %q", got, want)
	}
}

// lack skips a test for want of a tool; in CI it fails.
func lack(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

func TestWriteCpioIsWhatCpioReads(t *testing.T) {
	var tr Tree
	add(t, &tr, File("init", 0o755, []byte("program")), Dir("proc", 0o555), Symlink("sbin/modprobe", "../init"), File("etc/skerry/modules", 0o644, []byte("ext4\n")))
	var b bytes.Buffer
	if err := tr.WriteCpio(&b); err != nil {
		t.Fatal(err)
	}
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		lack(t, "cpio is not installed")
	}
	cmd := exec.Command(cpio, "-t", "--quiet")
	cmd.Stdin = &b
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	if got, want := strings.Fields(string(out)), paths(&tr); !slices.Equal(got, want) {
		t.Errorf("cpio lists %q; want %q", got, want)
	}
}

func TestDigest(t *testing.T) {
	base := func() *Tree {
		var tr Tree
		add(t, &tr, File("a", 0o644, []byte("x")), Symlink("l", "a"))
		return &tr
	}
	want, err := base().Digest()
	if err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(src, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	var same Tree
	add(t, &same, Symlink("l", "a"), Entry{Path: "a", Mode: 0o644, Source: src})
	if got, err := same.Digest(); got != want || err != nil {
		t.Errorf("the same content from a file gives %s, %v; want %s", got, err, want)
	}
	for name, e := range map[string]Entry{"content": File("a", 0o644, []byte("y")), "mode": File("a", 0o755, []byte("x"))} {
		var other Tree
		add(t, &other, e, Symlink("l", "a"))
		if got, _ := other.Digest(); got == want {
			t.Errorf("another %s gives the same digest", name)
		}
	}
	var gone Tree
	add(t, &gone, Entry{Path: "a", Mode: 0o644, Source: "/nonexistent"})
	if _, err := gone.Digest(); err == nil {
		t.Error("Digest() with a source that is gone = nil; want an error")
	}
}

func TestAddFiles(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]fs.FileMode{"usr/bin/a": 0o4755, "usr/lib/x.so.1.2": 0o600, "usr/lib/skip": 0o644} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode.Perm()|fs.ModeSetuid); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("x.so.1.2", filepath.Join(dir, "usr/lib/x.so.1")); err != nil {
		t.Fatal(err)
	}
	tr := merged(t)
	if err := tr.AddFiles(dir, "package a", []string{"usr/bin/a", "usr/lib/x.so.1*"}); err != nil {
		t.Fatal(err)
	}
	if e, ok := tr.Get("usr/bin/a"); !ok || e.Mode != 0o755 {
		t.Errorf("usr/bin/a has mode %v; want 0755 without setuid", e.Mode)
	}
	if e, ok := tr.Get("usr/lib/x.so.1"); !ok || e.Link != "x.so.1.2" {
		t.Errorf("usr/lib/x.so.1 = %+v; want the link", e)
	}
	if _, ok := tr.Get("usr/lib/skip"); ok {
		t.Error("AddFiles() took a file that no pattern names")
	}
	err := tr.AddFiles(dir, "package a", []string{"usr/bin/gone"})
	if err == nil || !strings.Contains(err.Error(), "package a") {
		t.Errorf("AddFiles() of a file that is not there = %v; want an error with the package", err)
	}
}

func TestCheckLibraries(t *testing.T) {
	// A real dynamic program of this machine and what it needs.
	program, err := exec.LookPath("mount")
	if err != nil {
		lack(t, "no dynamic program to look at")
	}
	f, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	libs, err := f.ImportedLibraries()
	if err != nil || len(libs) == 0 {
		lack(t, "%s needs no libraries (%v)", program, err)
	}
	interp, err := f.Section(".interp").Data()
	if err != nil {
		t.Fatal(err)
	}
	complete := func(without string) *Tree {
		tr := merged(t)
		add(t, tr, Entry{Path: "usr/bin/mount", Mode: 0o755, Source: program})
		for _, lib := range append(libs, strings.Trim(string(interp), "/\x00")) {
			if lib != without && !strings.HasPrefix(lib, "ld-") {
				p := lib
				if !strings.Contains(lib, "/") {
					p = "usr/lib/arch/" + lib
				}
				add(t, tr, File(p, 0o644, []byte("library")))
			}
		}
		return tr
	}
	if err := complete("").CheckLibraries(f.Machine, "usr/lib/arch"); err != nil {
		t.Errorf("CheckLibraries() of a complete tree = %v; want nil", err)
	}
	lib := libs[len(libs)-1]
	err = complete(lib).CheckLibraries(f.Machine, "usr/lib/arch")
	if err == nil || !strings.Contains(err.Error(), "usr/bin/mount") || !strings.Contains(err.Error(), lib) {
		t.Errorf("CheckLibraries() without %s = %v; want an error with file and library", lib, err)
	}
	if err := complete("").CheckLibraries(elf.EM_RISCV, "usr/lib/arch"); err == nil {
		t.Error("CheckLibraries() for another machine = nil; want an error")
	}
}
