package image

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"skerry.internal/skerry/agent/config"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/deb"
	"skerry.internal/skerry/imagebuild/fat"
	"skerry.internal/skerry/imagebuild/fetch"
	"skerry.internal/skerry/imagebuild/plan"
	"skerry.internal/skerry/imagebuild/tree"
)

var update = flag.Bool("update", false, "write testdata anew")

// options need the locked packages: they come from the cache, which any image
// build fills, or from the network.
func options(t *testing.T, out string) Options {
	t.Helper()
	cache, err := fetch.Open()
	if err != nil {
		t.Fatal(err)
	}
	archive, err := deb.NewArchive(cache)
	if err != nil {
		t.Fatal(err)
	}
	return Options{Project: "../..", Board: "rpi4", Out: out, Cache: cache, Archive: archive, Keep: filepath.Join(out, "keep"), Notice: func(s string) { t.Log(s) }}
}

// standIns replaces the large programs by a small real one.
func standIns(t *testing.T, dir string, large ...string) map[string]string {
	t.Helper()
	small := filepath.Join(dir, "small")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", small, "../cmd/pause")
	cmd.Env = append(os.Environ(), "GOARCH=arm64", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compile stand-in: %v\n%s", err, out)
	}
	m := map[string]string{}
	for _, p := range large {
		m[p] = small
	}
	return m
}

func run(ctx context.Context, b *Build) error {
	return b.Run(ctx, func(ctx context.Context, steps []plan.Step) error { return plan.Run(ctx, steps, io.Discard) })
}

// small is a real image of stand-in programs, built once for all tests, into two
// folders; the second from a copy of the sources elsewhere.
type smallImages struct {
	a, b  string // image files
	build *Build
}

var (
	small     smallImages
	smallOnce sync.Once
	smallErr  error
)

func built(t *testing.T) smallImages {
	t.Helper()
	smallOnce.Do(func() {
		dir, err := os.MkdirTemp("", "skerry-image-test-")
		if err != nil {
			smallErr = err
			return
		}
		cleanup = append(cleanup, func() { os.RemoveAll(dir) })
		for _, name := range []string{"one", "another/folder"} {
			o := options(t, filepath.Join(dir, name))
			if small.build != nil {
				o.Project = filepath.Join(dir, "sources")
				if smallErr = copySources(o.Project, "../.."); smallErr != nil {
					return
				}
			}
			o.standIns = standIns(t, dir, "skerryd", "containerd", "containerd-shim-runc-v2", "bridge", "host-local", "portmap")
			b, err := New(o)
			if err != nil {
				smallErr = err
				return
			}
			if small.build != nil {
				b.source = small.build.source // HEAD may move while this test runs
			}
			if smallErr = run(t.Context(), b); smallErr != nil {
				return
			}
			small.build = b
			small.a, small.b = small.b, filepath.Join(o.Out, "skerry-rpi4.img")
		}
	})
	if errors.Is(smallErr, fetch.ErrOffline) && os.Getenv("CI") == "" {
		t.Skip("the locked packages are not in the cache, and there is no network")
	}
	if smallErr != nil {
		t.Fatal(smallErr)
	}
	return small
}

// TestDescribeWithoutSuites: who reads what is in an image must learn what was left out.
func TestDescribeWithoutSuites(t *testing.T) {
	board, err := boards.ByName("rpi2")
	if err != nil {
		t.Fatal(err)
	}
	b := &Build{board: board, kernel: &kernel{}, lock: &deb.Lock{Without: []string{"trixie-security"}}, hostLock: &deb.Lock{}}
	d, err := b.describeImage()
	if err != nil || !slices.Equal(d.WithoutSuites, b.lock.Without) {
		t.Errorf("describeImage() is without %q, %v; want without %q", d.WithoutSuites, err, b.lock.Without)
	}
}

// copySources copies what git has of a project, as it is in the tree, with its history.
func copySources(to, from string) error {
	const script = `git clone -q --no-checkout --shared "$1" "$2"; cd "$1"; git ls-files -co --exclude-standard -z >"$2/.git/files"; xargs -0 cp --parents -t "$2" <"$2/.git/files"`
	from, err := filepath.Abs(from)
	if err != nil {
		return err
	}
	if out, err := exec.Command("sh", "-ec", script, "sh", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the sources: %w: %s", err, out)
	}
	return nil
}

var cleanup []func()

func TestMain(m *testing.M) {
	code := m.Run()
	for _, f := range cleanup {
		f()
	}
	os.Exit(code)
}

func TestPlan(t *testing.T) {
	b, err := New(Options{Project: "../..", Board: "rpi4"})
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "plan-rpi4.txt")
	p := b.Plan()
	// Versions change with every lock.
	for _, l := range [][]string{p.Packages, p.Tools} {
		for i := range l {
			l[i], _, _ = strings.Cut(l[i], " ")
			if strings.HasPrefix(l[i], "linux-image-") {
				l[i] = "linux-image-VERSION"
			}
		}
	}
	got := p.String()
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the plan is not what %s says (go test -update writes it):\n%s", golden, got)
	}
}

func TestSameBytes(t *testing.T) {
	s := built(t)
	for _, suffix := range []string{"", ".zst"} {
		a, err := describe(s.a + suffix)
		if err != nil {
			t.Fatal(err)
		}
		b, err := describe(s.b + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if a.sha256 != b.sha256 {
			t.Errorf("two builds of the same in different folders differ: %s and %s", s.a+suffix, s.b+suffix)
		}
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(s.a), ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("a build leaves %q behind", left)
	}
}

const plantedKey = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIOjYjnm7p0l2tYQe0bzQ1pVvRr3mNqH8kq5y6C1mJmZVoAoGCCqGSM49\n-----END EC PRIVATE KEY-----\n"

// TestRootContents pins what is in the root file system besides kernel modules,
// with folders that hold nothing: what is new shows in review.
func TestRootContents(t *testing.T) {
	s := built(t)
	var b strings.Builder
	entries := s.build.root.Entries()
	for i, e := range entries {
		full := i+1 < len(entries) && strings.HasPrefix(entries[i+1].Path, e.Path+"/")
		if strings.HasPrefix(e.Path, "usr/lib/modules/") || e.Mode.IsDir() && full {
			continue
		}
		line := e.Mode.String() + " /" + e.Path
		if e.Link != "" {
			line += " -> " + e.Link
		}
		// A package's update may bring libraries with a later version after the first number.
		b.WriteString(regexp.MustCompile(`\.so\.(\d+)\.[\d.]+`).ReplaceAllString(line, ".so.$1.VERSION") + "\n")
	}
	golden := filepath.Join("testdata", "root-arm64.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the root file system is not what %s says (go test -update writes it):\n%s", golden, b.String())
	}
	if err := CheckPolicy(&s.build.root); err != nil {
		t.Error(err)
	}
}

func TestCheckPolicy(t *testing.T) {
	for name, e := range map[string]tree.Entry{
		"shell":         tree.File("usr/bin/sh", 0o755, nil),
		"shell by link": tree.Symlink("usr/bin/bash", "crun"),
		"ssh":           tree.File("usr/bin/sshd", 0o755, nil),
		"setuid":        {Path: "usr/bin/x", Mode: os.ModeSetuid | 0o755},
		"setgid":        {Path: "usr/bin/x", Mode: os.ModeSetgid | 0o755},
		"for everybody": tree.File("etc/x", 0o666, nil),
		"open folder":   tree.Dir("tmp", 0o777),
	} {
		var tr tree.Tree
		if err := tr.Add(e); err != nil {
			t.Fatal(err)
		}
		if err := CheckPolicy(&tr); err == nil {
			t.Errorf("CheckPolicy(%s) = nil; want an error", name)
		}
	}
}

func TestLimits(t *testing.T) {
	var tr tree.Tree
	for i, n := range []int{5, 300, 20, 7000, 1, 60} {
		if err := tr.Add(tree.File(string(rune('a'+i)), 0o644, make([]byte, n))); err != nil {
			t.Fatal(err)
		}
	}
	err := tooLarge("the root file system", 130<<20, 120<<20, tr.Largest(5))
	want := "the root file system is too large by 10 MiB: got 130 MiB, want at most 120 MiB; the largest: d 7 KiB, b 300 bytes, f 60 bytes, c 20 bytes, a 5 bytes"
	if err.Error() != want {
		t.Errorf("tooLarge() = %q; want %q", err, want)
	}
	b := &Build{work: t.TempDir()}
	files := []fat.File{{Name: "Image.gz", Data: make([]byte, 70<<20)}}
	err = b.writeFAT(filepath.Join(b.work, "f"), "the boot part", fat.Spec{Size: boards.SlotBootSize, Bits: 16, Label: "S"}, files)
	if err == nil || !strings.Contains(err.Error(), "too large by 7.0 MiB") || !strings.Contains(err.Error(), "Image.gz") {
		t.Errorf("writeFAT() of 70 MiB = %v; want it refused with the file", err)
	}
}

// A build that outgrows a limit fails, says what is large, and publishes nothing.
func TestOutgrown(t *testing.T) {
	s := built(t)
	for _, tt := range []struct {
		limits limits
		want   string
	}{
		{limits{program: 1 << 20}, "program init is too large by "},
		{limits{root: 1 << 20}, "the root file system with its verity tree is too large by "},
		{limits{compressed: 1 << 20}, "the compressed image is too large by "},
	} {
		o := s.build.Options
		o.Out, o.limits = t.TempDir(), tt.limits
		b, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := run(t.Context(), b); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("build with limits %+v = %v; want %q", tt.limits, err, tt.want)
		}
		if left, err := filepath.Glob(filepath.Join(o.Out, "*")); err != nil || len(left) > 0 {
			t.Errorf("build with limits %+v leaves %q, %v", tt.limits, left, err)
		}
	}
}

func TestStore(t *testing.T) {
	var notices []string
	s := store{dir: t.TempDir(), notice: func(n string) { notices = append(notices, n) }}
	var made int
	get := func(key string) string {
		m, err := s.file("thing", key, func(p string) error { made++; return os.WriteFile(p, []byte("content of "+key), 0o644) })
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(m.path)
		if err != nil || m.size != int64(len(b)) {
			t.Fatalf("%v; size %d of %q", err, m.size, b)
		}
		return string(b)
	}
	if a, b := get("a"), get("a"); a != "content of a" || a != b || made != 1 {
		t.Errorf("file() gives %q, then %q, made %d times; want it made once", a, b, made)
	}
	if err := os.Truncate(filepath.Join(s.dir, "thing-a"), 3); err != nil {
		t.Fatal(err)
	}
	if a := get("a"); a != "content of a" || made != 2 || len(notices) != 1 {
		t.Errorf("file() after truncation gives %q, made %d times, notices %q; want it made again, and said", a, made, notices)
	}
	wrong := errors.New("wrong")
	if _, err := s.file("thing", "bad", func(p string) error { os.WriteFile(p, []byte("half"), 0o644); return wrong }); !errors.Is(err, wrong) {
		t.Errorf("file() = %v; want %v", err, wrong)
	}
	for _, k := range []string{"b", "c", "d", "e", "f"} {
		get(k)
	}
	left, _ := filepath.Glob(filepath.Join(s.dir, "*"))
	if len(left) != 2*kept {
		t.Errorf("%d files are kept: %q; want %d with their sums", len(left), left, kept)
	}
	if hidden, _ := filepath.Glob(filepath.Join(s.dir, ".*")); len(hidden) > 0 {
		t.Errorf("file() leaves %q behind", hidden)
	}
}

func TestStoreDir(t *testing.T) {
	var notices []string
	s := store{dir: t.TempDir(), notice: func(n string) { notices = append(notices, n) }}
	var filled int
	get := func() string {
		t.Helper()
		dir, err := s.folder("package", "a", func(dir string) error {
			filled++
			return errors.Join(os.MkdirAll(filepath.Join(dir, "usr/bin"), 0o755), os.WriteFile(filepath.Join(dir, "usr/bin/x"), []byte("content"), 0o644),
				os.WriteFile(filepath.Join(dir, "usr/empty"), nil, 0o644), os.Symlink("x", filepath.Join(dir, "usr/bin/link")))
		})
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "usr/bin/link")); string(b) != "content" {
			t.Fatalf("the folder holds %q, %v; want what was filled in", b, err)
		}
		return dir
	}
	if dir := get(); get() != dir || filled != 1 || len(notices) != 0 {
		t.Errorf("filled %d times, notices %q; want it filled once", filled, notices)
	}
	// What a crash of the host leaves: any of these.
	want := 1
	for name, damage := range map[string]func(dir string) error{
		"a file is cut":   func(dir string) error { return os.Truncate(filepath.Join(dir, "usr/bin/x"), 3) },
		"a file is zeros": func(dir string) error { return os.WriteFile(filepath.Join(dir, "usr/bin/x"), make([]byte, 7), 0o644) },
		"a file is gone":  func(dir string) error { return os.Remove(filepath.Join(dir, "usr/empty")) },
		"a link is another": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "usr/bin/link")), os.Symlink("../empty", filepath.Join(dir, "usr/bin/link")))
		},
		"the folder is gone": os.RemoveAll,
		"the sum is cut":     func(dir string) error { return os.Truncate(filepath.Join(filepath.Dir(dir), "sha256"), 0) },
	} {
		if err := damage(get()); err != nil {
			t.Fatal(err)
		}
		want++
		if get(); filled != want || len(notices) != want-1 {
			t.Errorf("%s: filled %d times, notices %q; want it filled anew, and said", name, filled, notices)
		}
	}
	if hidden, _ := filepath.Glob(filepath.Join(s.dir, ".*")); len(hidden) > 0 {
		t.Errorf("folder() leaves %q behind", hidden)
	}
}

func TestInterrupted(t *testing.T) {
	s := built(t)
	o := s.build.Options
	o.Out = t.TempDir()
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	steps := b.Plan().Steps
	stop := slices.IndexFunc(steps, func(s plan.Step) bool { return s.Name == "compress image" })
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("interrupted")
	err = b.Run(ctx, func(ctx context.Context, steps []plan.Step) error {
		last := steps[stop].Run
		steps[stop].Run = func(ctx context.Context, p *plan.Progress) error {
			b.store.dir = t.TempDir() // so that it has something to do
			cancel(cause)
			return last(ctx, p)
		}
		return plan.Run(ctx, steps, io.Discard)
	})
	if !errors.Is(err, cause) {
		t.Errorf("Run() = %v; want %v", err, cause)
	}
	left, err := filepath.Glob(filepath.Join(o.Out, "*"))
	if err != nil {
		t.Fatal(err)
	}
	hidden, _ := filepath.Glob(filepath.Join(o.Out, ".*"))
	left = slices.DeleteFunc(append(left, hidden...), func(p string) bool { return filepath.Base(p) == "keep" })
	if len(left) > 0 {
		t.Errorf("an interrupted build leaves %q", left)
	}
}

func TestExampleConfiguration(t *testing.T) {
	c, mistakes := config.Parse([]byte(skerryYAML))
	if len(mistakes) > 0 || c.Hostname != "" {
		t.Errorf("the file on a new card sets something: %+v, %v", c, mistakes)
	}
	used := regexp.MustCompile(`(?m)^#([a-z ])`).ReplaceAllString(skerryYAML, "$1")
	used = regexp.MustCompile(`(?m)^ [A-Z].*$|^ (rest|node).*$`).ReplaceAllString(used, "")
	c, mistakes = config.Parse([]byte(used))
	if len(mistakes) > 0 || c.Hostname != "skerry-kitchen" || len(c.NTP) != 1 || len(c.Registries) != 1 {
		t.Errorf("the example in use gives %+v, %v from:\n%s", c, mistakes, used)
	}
}

func TestUnknownBoard(t *testing.T) {
	_, err := New(Options{Project: "../..", Board: "toaster"})
	if err == nil || !strings.Contains(err.Error(), "rpi4") {
		t.Errorf("New(toaster) = %v; want an error that lists the boards", err)
	}
	if _, err := New(Options{Project: t.TempDir(), Board: "rpi4"}); err == nil {
		t.Error("New() outside of the project = nil; want an error")
	}
}
