// Package image builds the image file of a board: it runs the plan's steps from
// the locked packages to the compressed file, and it describes what it made.
// inspect.go reads such files back.
//
// Every step's result depends only on its inputs, and the expensive ones are
// kept by the content of these inputs (store.go), so a build after a small change
// does only what the change asks for. Nothing appears under its final name before
// it is whole.
//
// Left out: where packages and tools come from (deb, fetch, hosttool), file
// formats (tree, kmod, fat, disk), and what belongs into an image (rootfs, boards,
// plan).
package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/deb"
	"skerry.internal/skerry/imagebuild/fetch"
	"skerry.internal/skerry/imagebuild/hosttool"
	"skerry.internal/skerry/imagebuild/kmod"
	"skerry.internal/skerry/imagebuild/plan"
	"skerry.internal/skerry/imagebuild/tree"
	"skerry.internal/skerry/rootfs"
)

// Options say what to build.
type Options struct {
	Project string // the folder with go.mod
	Board   string
	Out     string   // the folder for the results
	Without []string // programs to leave out; for work on the others
	Cache   *fetch.Cache
	Archive *deb.Archive
	Keep    string // the folder for results that the next build may use; empty: in Cache
	Notice  func(string)

	standIns map[string]string // programs that a test does not compile: name → file
	limits   limits            // smaller ones than plan's, for tests
}

// limits in bytes; 0 is plan's.
type limits struct{ program, root, compressed int64 }

// Build is one build on its way. Its fields are filled by the steps, in the
// order of Plan.
type Build struct {
	Options
	board   *boards.Board
	source  Source
	work    string   // temporary folder, removed at the end
	store   store    // what this build makes
	unpacks store    // packages
	modules []string // patterns

	list, hostList *deb.List
	lock, hostLock *deb.Lock
	packages       map[string]string // name in the list → folder
	tools          *hosttool.Tools

	programs  map[string]string // name → file
	compilers map[string]string
	pause     []byte // image archive
	kernel    *kernel
	root      tree.Tree

	rootFS      made   // the file system, whole blocks
	hashes      string // file with the verity tree
	rootHash    string
	initrd      made
	packed      made // Image.gz
	slot        slotBlob
	firmware    string // file with the FAT
	image       string // raw, not under its final name yet
	raw         made   // the same, once it is whole
	packedImage made

	steps []stepTime
}

type kernel struct {
	dir     string // of the unpacked package
	release string
	modules *kmod.Dir
}

// made is a file with the digest of its content.
type made struct {
	path, sha256 string
	size         int64
}

type stepTime struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// New checks the options and makes a build of them.
func New(o Options) (*Build, error) {
	board, err := boards.ByName(o.Board)
	if err != nil {
		return nil, err
	}
	if o.Notice == nil {
		o.Notice = func(string) {}
	}
	b := &Build{Options: o, board: board}
	if b.modules, err = rootfs.Modules(board.Arch.Name); err != nil {
		return nil, err
	}
	for _, l := range []struct {
		list, lock string
		list_      **deb.List
		lock_      **deb.Lock
	}{
		{packagesImage, b.lockFile(), &b.list, &b.lock},
		{"packages-host.yaml", hosttool.HostLock(), &b.hostList, &b.hostLock},
	} {
		text, err := rootfs.List(l.list)
		if err != nil {
			return nil, fmt.Errorf("read package list: %w", err)
		}
		if *l.list_, err = deb.ParseList(text); err != nil {
			return nil, fmt.Errorf("rootfs/%s: %w", l.list, err)
		}
		if l.list == packagesImage {
			addPackages(*l.list_, board.Arch)
		}
		if text, err = rootfs.List(l.lock); err != nil {
			return nil, fmt.Errorf("read lock (make lock makes it): %w", err)
		}
		if *l.lock_, err = deb.ParseLock(text); err != nil {
			return nil, fmt.Errorf("rootfs/%s: %w", l.lock, err)
		}
	}
	if b.source, err = ReadSource(o.Project); err != nil {
		return nil, err
	}
	return b, nil
}

const packagesImage = "packages-image.yaml"

// lockFile is the name of the lock of this image's packages.
func (b *Build) lockFile() string { return deb.LockFile(packagesImage, b.board.Arch.Debian) }

// addPackages adds to the list what the boards of an architecture take files of.
func addPackages(list *deb.List, arch *boards.Arch) {
	list.Metapackages = append(list.Metapackages, arch.Kernel.Package)
	list.Data = append(append(list.Data, arch.Kernel.Package), arch.Packages...)
	list.Packages = append(list.Packages, list.Data...)
}

// CompleteList adds to a list of rootfs/ what boards want of Debian's architecture, for deb.LockAll.
func CompleteList(name, debian string, list *deb.List) error {
	all, err := boards.Architectures()
	if err != nil {
		return err
	}
	for _, a := range all {
		if name == packagesImage && a.Debian == debian {
			addPackages(list, a)
		}
	}
	return nil
}

// Plan is what this build will do.
func (b *Build) Plan() *plan.Plan {
	p := &plan.Plan{Board: b.board, Without: b.Without}
	for _, pkg := range b.lock.Packages {
		p.Packages = append(p.Packages, pkg.Name+" "+pkg.Version)
	}
	for _, pkg := range b.hostLock.Packages {
		p.Tools = append(p.Tools, pkg.Name+" "+pkg.Version)
	}
	for _, s := range []plan.Step{
		{Name: "fetch packages", Run: b.fetchPackages},
		{Name: "unpack packages", Run: b.unpackPackages},
		{Name: "compile programs", Run: b.compile},
		{Name: "make container images", Run: b.makeImages},
		{Name: "choose kernel modules", Run: b.openKernel},
		{Name: "collect root file system", Run: b.collectRoot},
		{Name: "pack root file system", Run: b.packRoot},
		{Name: "make verity tree", Run: b.makeVerity},
		{Name: "pack initramfs", Run: b.packInitramfs},
		{Name: "pack kernel", Run: b.packKernel},
		{Name: "make slot", Run: b.makeSlot},
		{Name: "make FIRMWARE", Run: b.makeFirmware},
		{Name: "write image", Run: b.writeImage},
		{Name: "compress image", Run: b.compressImage},
		{Name: "publish", Run: b.publish},
	} {
		p.Steps = append(p.Steps, b.timed(s))
	}
	return p
}

func (b *Build) timed(s plan.Step) plan.Step {
	run := s.Run
	s.Run = func(ctx context.Context, p *plan.Progress) error {
		start := time.Now()
		err := run(ctx, p)
		b.steps = append(b.steps, stepTime{s.Name, time.Since(start).Round(time.Millisecond).Seconds()})
		return err
	}
	return s
}

// Run builds. Whatever happens, nothing half-written is left.
func (b *Build) Run(ctx context.Context, run func(context.Context, []plan.Step) error) (err error) {
	if err := os.MkdirAll(b.Out, 0o755); err != nil {
		return fmt.Errorf("make folder for the image: %w", err)
	}
	// Beside the results, so that renaming into place can't fail for want of room.
	if b.work, err = os.MkdirTemp(b.Out, ".work-"); err != nil {
		return fmt.Errorf("make folder for the build: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.work)) }()
	b.unpacks = store{dir: filepath.Join(b.Cache.Dir, "made"), notice: b.Notice}
	b.store = b.unpacks
	if b.Keep != "" {
		b.store.dir = b.Keep
	}
	return run(ctx, b.Plan().Steps)
}

func (b *Build) fetchPackages(ctx context.Context, p *plan.Progress) error {
	set, err := b.Archive.Fetch(ctx, b.list, b.lock)
	if err != nil {
		return err
	}
	host, err := b.Archive.Fetch(ctx, b.hostList, b.hostLock)
	if err != nil {
		return err
	}
	for name, s := range map[string]*deb.Set{b.lockFile(): set, hosttool.HostLock(): host} {
		if !s.Newer {
			continue
		}
		file := filepath.Join(b.Out, name)
		if err := s.Lock.Write(file); err != nil {
			return err
		}
		b.Notice(fmt.Sprintf("the archive no longer has what rootfs/%s names: built from newer packages, their lock is %s (make lock takes over today's)", name, file))
	}
	b.lock, b.hostLock = set.Lock, host.Lock
	b.packages = map[string]string{}
	for _, pkg := range set.Lock.Packages {
		name := pkg.Name
		if pkg.For != "" {
			name = pkg.For
		}
		if b.packages[name], err = set.Path(name); err != nil {
			return err
		}
	}
	if b.tools, err = hosttool.New(ctx, b.Cache, host); err != nil {
		return err
	}
	p.Note("%d packages, %d tools", len(set.Lock.Packages), len(host.Lock.Packages))
	return nil
}

// unpackPackages replaces each package file by the folder that holds what is
// in it.
func (b *Build) unpackPackages(ctx context.Context, p *plan.Progress) error {
	p.Total(int64(len(b.packages)))
	for name, file := range b.packages {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		p.Note("%s", name)
		pkg, err := b.lock.Find(name)
		if err != nil {
			return err
		}
		dir, err := b.unpacks.folder("package-"+name, pkg.SHA256.String(), func(dir string) error { return deb.UnpackTo(dir, file) })
		if err != nil {
			return err
		}
		b.packages[name] = dir
		p.Add(1)
	}
	p.Note("")
	return nil
}

// pkgFile returns the one file that a glob names in a package.
func (b *Build) pkgFile(pkg, glob string) (string, error) {
	if pkg == boards.KernelPackage {
		pkg = b.board.Arch.Kernel.Package
	}
	dir, ok := b.packages[pkg]
	if !ok {
		return "", fmt.Errorf("find %q in package %s: the lock has no such package", glob, pkg)
	}
	matches, err := filepath.Glob(filepath.Join(dir, glob))
	if err != nil || len(matches) != 1 {
		return "", fmt.Errorf("find %q in package %s: got %d files, want one", glob, pkg, len(matches))
	}
	return matches[0], nil
}

func (b *Build) openKernel(ctx context.Context, p *plan.Progress) error {
	modules, err := b.pkgFile(boards.KernelPackage, "usr/lib/modules/*")
	if err != nil {
		return err
	}
	b.kernel = &kernel{release: filepath.Base(modules)}
	if b.kernel.dir, err = b.pkgFile(boards.KernelPackage, "boot/vmlinuz-*"); err != nil {
		return err
	}
	b.kernel.modules, err = kmod.Open(modules)
	p.Note("kernel %s", b.kernel.release)
	return err
}

// size prints a number of bytes for people.
func size(n int64) string {
	switch {
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", (n+1<<19)>>20)
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%d KiB", (n+1<<9)>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}

// tooLarge says by how much something outgrew its limit and what is largest in it.
func tooLarge(what string, got, limit int64, largest []tree.Sized) error {
	var names []string
	for _, f := range largest {
		names = append(names, fmt.Sprintf("%s %s", f.Path, size(f.Size)))
	}
	return fmt.Errorf("%s is too large by %s: got %s, want at most %s; the largest: %s", what, size(got-limit), size(got), size(limit), strings.Join(names, ", "))
}
