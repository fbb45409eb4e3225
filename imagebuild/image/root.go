package image

import (
	"bytes"
	"cmp"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"skerry.internal/skerry/imagebuild/disk"
	"skerry.internal/skerry/imagebuild/ociimage"
	"skerry.internal/skerry/imagebuild/plan"
	"skerry.internal/skerry/imagebuild/tree"
	"skerry.internal/skerry/rootfs"
)

// PauseImage is the name of the image that containerd's configuration names.
const PauseImage = "skerry.internal/pause:1"

func (b *Build) makeImages(ctx context.Context, p *plan.Progress) error {
	img, err := ociimage.Build([]ociimage.File{{Path: "/pause", Mode: 0o755, Source: b.programs["pause"]}},
		ociimage.Config{Arch: b.board.Arch.GOARCH, Entrypoint: []string{"/pause"}, User: "65534:65534"})
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	if err := ociimage.WriteArchive(&archive, map[string]v1.Image{PauseImage: img}); err != nil {
		return err
	}
	b.pause = archive.Bytes()
	p.Note("%s, %s", PauseImage, size(int64(archive.Len())))
	return nil
}

// collectRoot puts the root file system together.
func (b *Build) collectRoot(ctx context.Context, p *plan.Progress) error {
	b.root = tree.Tree{}
	static, err := rootfs.Files()
	if err != nil {
		return err
	}
	for _, f := range static {
		if err := b.root.Add(tree.Entry{Path: f.Path, Mode: f.Mode, Link: f.Link, Data: f.Content, From: "rootfs/"}); err != nil {
			return err
		}
	}
	contents, err := rootfs.Contents(b.board.Arch.Triplet)
	if err != nil {
		return err
	}
	for _, pkg := range slices.Sorted(maps.Keys(contents)) {
		dir, ok := b.packages[pkg]
		if !ok {
			return fmt.Errorf("take files of package %s: the lock has no such package", pkg)
		}
		if err := b.root.AddFiles(dir, "package "+pkg, contents[pkg]); err != nil {
			return err
		}
	}
	for _, prog := range b.Plan().Programs() {
		if prog.Dest == "" {
			continue
		}
		if err := b.root.Add(tree.Entry{Path: path.Join(prog.Dest, prog.Name), Mode: 0o755, Source: b.programs[prog.Name], From: "our programs"}); err != nil {
			return err
		}
	}
	modules, err := b.kernel.modules.Select(slices.Concat(b.modules, b.board.Arch.Modules.Early(), b.board.Arch.Modules.Root))
	if err != nil {
		return err
	}
	if err := b.kernel.modules.AddTo(&b.root, "usr/lib/modules", modules); err != nil {
		return err
	}
	certificates, err := b.certificates()
	if err != nil {
		return err
	}
	for _, e := range []tree.Entry{
		tree.File("etc/ssl/certs/ca-certificates.crt", 0o644, certificates),
		tree.File("etc/os-release", 0o644, b.osRelease()),
		tree.File("etc/skerry/build-time", 0o644, fmt.Appendf(nil, "%d\n", b.source.Time.Unix())),
		tree.File("etc/skerry/version", 0o644, []byte(b.source.Version+"\n")),
		tree.File("usr/share/skerry/images/pause.tar", 0o644, b.pause),
	} {
		e.From = "the builder"
		if err := b.root.Add(e); err != nil {
			return err
		}
	}
	p.Note("%d files, %d kernel modules", len(b.root.Entries()), len(modules))
	init, err := elf.Open(b.programs["init"])
	if err != nil {
		return err
	}
	defer init.Close()
	return errors.Join(b.root.CheckLibraries(init.Machine, "usr/lib/"+b.board.Arch.Triplet, "usr/lib"), CheckPolicy(&b.root))
}

// CheckPolicy holds the promises about what is never in a root file system.
func CheckPolicy(t *tree.Tree) error {
	var errs []error
	shells := []string{"sh", "bash", "dash", "ash", "busybox", "zsh", "ssh", "sshd", "dropbear", "su", "sudo", "login", "getty", "agetty", "apt", "dpkg", "perl", "python3"}
	for _, e := range t.Entries() {
		if slices.Contains(shells, path.Base(e.Path)) && !e.Mode.IsDir() {
			errs = append(errs, fmt.Errorf("%s from %s: no shell, login or package manager belongs into the image", e.Path, e.From))
		}
		if e.Mode&(os.ModeSetuid|os.ModeSetgid|os.ModeSticky) != 0 {
			errs = append(errs, fmt.Errorf("%s from %s: it has mode %v, want no setuid, setgid or sticky bit", e.Path, e.From, e.Mode))
		}
		if e.Mode&os.ModeSymlink == 0 && e.Mode.Perm()&0o022 != 0 {
			errs = append(errs, fmt.Errorf("%s from %s: it has mode %v, want it writable by its owner only", e.Path, e.From, e.Mode))
		}
	}
	return errors.Join(errs...)
}

// certificates makes one file of the certificate authorities that Debian (that
// is Mozilla) trusts.
func (b *Build) certificates() ([]byte, error) {
	files, err := filepath.Glob(filepath.Join(b.packages["ca-certificates"], "usr/share/ca-certificates/mozilla/*.crt"))
	if err != nil || len(files) < 50 {
		return nil, fmt.Errorf("read certificates: got %d files in package ca-certificates, want at least 50", len(files))
	}
	slices.Sort(files)
	var all bytes.Buffer
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("read certificates: %w", err)
		}
		all.Write(bytes.TrimSpace(text))
		all.WriteByte('\n')
	}
	return all.Bytes(), nil
}

func (b *Build) osRelease() []byte {
	return fmt.Appendf(nil, "NAME=Skerry\nID=skerry\nID_LIKE=debian\nPRETTY_NAME=\"Skerry %s\"\nVERSION=%q\nVERSION_ID=%s\nBUILD_ID=%s\nIMAGE_ID=skerry-%s\n",
		b.source.Version, b.source.Version, Release, b.source.Commit, b.board.Arch.Name)
}

// Root file system: squashfs with zstd, see docs/decisions/0001-root-file-system.md.
const (
	rootKind  = "squashfs"
	rootLevel = "9"
	rootBlock = "131072"
)

// packRoot makes the root file system out of a tar stream, so that owners and
// modes come from the tree and not from files on this machine.
func (b *Build) packRoot(ctx context.Context, p *plan.Progress) error {
	digest, err := b.root.Digest()
	if err != nil {
		return err
	}
	at := fmt.Sprint(b.source.Time.Unix())
	args := []string{"-tar", "-noappend", "-comp", "zstd", "-Xcompression-level", rootLevel, "-b", rootBlock, "-no-xattrs", "-mkfs-time", at,
		"-all-time", at, "-default-mode", "0755", "-default-uid", "0", "-default-gid", "0", "-no-progress", "-quiet"}
	lock, err := b.hostLock.Marshal()
	if err != nil {
		return err
	}
	var total int64
	for _, e := range b.root.Entries() {
		n, err := e.Size()
		if err != nil {
			return err
		}
		total += n
	}
	p.Total(total)
	b.rootFS, err = b.store.file("root", key(digest, string(lock), strings.Join(args, " ")), func(file string) error {
		if err := b.mksquashfs(ctx, p, append([]string{"-", file}, args...)); err != nil {
			return err
		}
		_, err := disk.PadFile(file)
		return err
	})
	if err != nil {
		return err
	}
	p.Note("%s of %s", size(b.rootFS.size), size(total))
	return nil
}

func (b *Build) mksquashfs(ctx context.Context, p *plan.Progress, args []string) error {
	cmd := b.tools.Command(ctx, "mksquashfs", args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run mksquashfs: %w", err)
	}
	tarErr := b.root.WriteTar(p.Writer(stdin), b.source.Time)
	err = errors.Join(tarErr, stdin.Close(), cmd.Wait())
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("run mksquashfs: %w: %s", err, strings.Join(strings.Fields(said.String()), " "))
	}
	return nil
}

func (b *Build) makeVerity(ctx context.Context, p *plan.Progress) error {
	b.hashes = filepath.Join(b.work, "hashes")
	var err error
	if b.rootHash, err = disk.MakeVerity(b.rootFS.path, b.hashes); err != nil {
		return err
	}
	info, err := os.Stat(b.hashes)
	if err != nil {
		return err
	}
	if got, limit := b.rootFS.size+info.Size(), cmp.Or(b.limits.root, plan.MaxRoot); got > limit {
		return tooLarge("the root file system with its verity tree", got, limit, b.root.Largest(5))
	}
	p.Note("root hash %s…", b.rootHash[:16])
	return nil
}
