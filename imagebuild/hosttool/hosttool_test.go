package hosttool

import (
	"archive/tar"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/imagebuild/deb"
	"skerry.internal/skerry/imagebuild/deb/debtest"
	"skerry.internal/skerry/imagebuild/fetch"
)

// libc returns the host's own C library, its loader and a program that needs
// no more than these, as the files of a package.
func libc(t *testing.T, triplet, loader string) debtest.Package {
	t.Helper()
	p := debtest.Package{Name: "tools", Version: "1", Arch: runtime.GOARCH, Content: map[string]string{}}
	add := func(host, name string) {
		text, err := os.ReadFile(host)
		if err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("this host's C library is not where Debian has it: %v", err)
			}
			t.Skipf("this host's C library is not where Debian has it: %v", err)
		}
		p.Files = append(p.Files, tar.Header{Name: name, Mode: 0o755})
		p.Content[name] = string(text)
	}
	libs := "lib/" + triplet
	add("/"+libs+"/"+loader, "./"+libs+"/"+loader)
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	program, err := elf.Open(cat)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	needed, err := program.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	for _, lib := range needed {
		add("/"+libs+"/"+lib, "./"+libs+"/"+lib)
	}
	add(cat, "./bin/cat")
	p.Files = append(p.Files, tar.Header{Typeflag: tar.TypeSymlink, Name: "./usr/sbin/othername", Linkname: "../bin/cat"})
	return p
}

func newTools(t *testing.T) *Tools {
	t.Helper()
	host, ok := loaders[runtime.GOARCH]
	if !ok {
		if os.Getenv("CI") != "" {
			t.Fatalf("no tools for %s", runtime.GOARCH)
		}
		t.Skipf("no tools for %s", runtime.GOARCH)
	}
	archive := debtest.New(t)
	archive.Publish(t, "trixie", runtime.GOARCH, libc(t, host.triplet, host.loader))
	cache, err := fetch.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	a := &deb.Archive{Cache: cache, Keyring: archive.Keyring, Now: time.Now, Mirrors: deb.Mirrors{deb.Main: archive.URL, deb.Security: archive.URL + "-security"}}
	list := &deb.List{Suite: "trixie", Components: []string{"main"}, Packages: []string{"tools"}}
	lock, err := a.Resolve(t.Context(), list, runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	set, err := a.Fetch(t.Context(), list, lock)
	if err != nil {
		t.Fatal(err)
	}
	tools, err := New(t.Context(), cache, set)
	if err != nil {
		t.Fatal(err)
	}
	again, err := New(t.Context(), cache, set)
	if err != nil || *again != *tools {
		t.Errorf("New again = %v, %v, want the same tools %v", again, err, tools)
	}
	if left, err := os.ReadDir(filepath.Join(cache.Dir, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("left in the cache: %v, %v", left, err)
	}
	return tools
}

func TestCommand(t *testing.T) {
	tools := newTools(t)

	// Everything that the running tool has mapped is its own.
	maps, err := Run(t.Context(), tools.Command(t.Context(), "cat", "/proc/self/maps"))
	if err != nil {
		t.Fatal(err)
	}
	own := 0
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		if len(f) < 6 || !strings.HasPrefix(f[5], "/") {
			continue
		}
		if !strings.HasPrefix(f[5], tools.dir) {
			t.Errorf("the tool has mapped %s", f[5])
		}
		own++
	}
	if own == 0 {
		t.Errorf("the tool has mapped no files: %s", maps)
	}

	t.Setenv("SKERRY_LEAK", "x")
	env, err := Run(t.Context(), tools.Command(t.Context(), "cat", "/proc/self/environ"))
	if err != nil || strings.Contains(string(env), "SKERRY_LEAK") || !strings.Contains(string(env), "LC_ALL=C\x00TZ=UTC") {
		t.Errorf("the tool's environment is %q, %v", env, err)
	}

	_, err = Run(t.Context(), tools.Command(t.Context(), "othername", "/nonexistent/file"))
	if err == nil || !strings.Contains(err.Error(), "run othername") || !strings.Contains(err.Error(), "othername: /nonexistent/file: No such file") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a tool that fails = %v, want its name and its own words in one line", err)
	}
	_, err = Run(t.Context(), tools.Command(t.Context(), "mkfs.nope"))
	if err == nil || !strings.Contains(err.Error(), `"mkfs.nope"`) || !strings.Contains(err.Error(), "make lock") {
		t.Errorf("a tool that isn't there = %v, want its name and what to do", err)
	}
}

func TestNewUnknownArchitecture(t *testing.T) {
	_, err := New(t.Context(), nil, &deb.Set{Lock: &deb.Lock{Architecture: "m68k"}})
	if err == nil || !strings.Contains(err.Error(), "m68k") {
		t.Errorf("New = %v, want an error that names m68k", err)
	}
}
