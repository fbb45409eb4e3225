// Package hosttool runs tools from locked Debian packages on the host, without
// installing them and without root, so that image bytes don't depend on which
// distribution the host has, or on what is configured there.
//
// Left out: a sandbox. The tools see the host's files; only libraries,
// configuration and environment are their own.
package hosttool

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/imagebuild/deb"
	"skerry.internal/skerry/imagebuild/fetch"
)

// loaders is how programs of each Debian architecture are started by hand.
var loaders = map[string]struct{ triplet, loader string }{
	"amd64": {"x86_64-linux-gnu", "ld-linux-x86-64.so.2"},
	"arm64": {"aarch64-linux-gnu", "ld-linux-aarch64.so.1"},
}

// HostLock returns the name of the lock of this machine's tools, which is in
// the folder of the package lists.
func HostLock() string { return deb.LockFile("packages-host.yaml", runtime.GOARCH) }

// Tools is a folder with unpacked tools.
type Tools struct {
	dir    string // root of the unpacked packages
	libs   string // below dir
	loader string // in libs
}

// New unpacks the packages of set, unless this cache already has them.
func New(ctx context.Context, cache *fetch.Cache, set *deb.Set) (*Tools, error) {
	arch, ok := loaders[set.Lock.Architecture]
	if !ok {
		return nil, fmt.Errorf("run tools for %q: no loader is known for that architecture", set.Lock.Architecture)
	}
	text, err := set.Lock.Marshal()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache.Dir, "tools", fmt.Sprintf("%x", sha256.Sum256(text)))
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		err = unpack(ctx, cache, set, dir)
		if err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, fmt.Errorf("look for unpacked tools: %w", err)
	}
	libs := filepath.Join(dir, "usr", "lib", arch.triplet)
	return &Tools{dir: dir, libs: libs, loader: filepath.Join(libs, arch.loader)}, nil
}

// unpack fills a temporary folder and renames it, so that dir is whole if it
// is there.
func unpack(ctx context.Context, cache *fetch.Cache, set *deb.Set, dir string) (err error) {
	temp, err := cache.Temp()
	if err != nil {
		return fmt.Errorf("unpack tools: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	for _, p := range set.Lock.Packages {
		if err := ctx.Err(); err != nil {
			return err
		}
		name, err := set.Path(p.Name)
		if err != nil {
			return err
		}
		if err := deb.UnpackTo(temp, name); err != nil {
			return fmt.Errorf("unpack tool %s: %w", p.Name, err)
		}
	}
	if err := flush(temp); err != nil {
		return fmt.Errorf("unpack tools: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	err = os.Rename(temp, dir)
	if _, there := os.Stat(dir); err != nil && there == nil {
		return nil // another process was faster
	}
	return err
}

// flush waits until the file system that dir is on has all data on disk: a
// rename could otherwise survive a crash that the files did not.
func flush(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}

// Command returns the tool name (such as mksquashfs) ready to run with args;
// as with exec.Command, a tool that isn't there is an error when it is started.
// Its environment is the same on every host; append to Env what a call needs
// besides, such as SOURCE_DATE_EPOCH.
func (t *Tools) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	path, err := t.find(name)
	cmd := exec.CommandContext(ctx, t.loader, append([]string{
		"--inhibit-cache", "--library-path", t.libs, "--argv0", name, path}, args...)...)
	cmd.Err = err
	cmd.Env = []string{
		"PATH=/nonexistent", "HOME=/nonexistent", "LC_ALL=C", "TZ=UTC",
		"TMPDIR=" + os.TempDir(),
		// Where these tools would look into /etc and /usr of the host.
		"MKE2FS_CONFIG=" + filepath.Join(t.dir, "etc", "mke2fs.conf"),
		"MTOOLSRC=/dev/null",
		"GCONV_PATH=" + filepath.Join(t.libs, "gconv"),
	}
	return cmd
}

// Run starts cmd, waits for it and returns what it printed. The error of a
// tool that fails has its own words in it.
func Run(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil || cmd.Err != nil {
		return out, err
	}
	name := cmd.Args[0]
	if i := slices.Index(cmd.Args, "--argv0"); i > 0 {
		name = cmd.Args[i+1]
	}
	if ctx.Err() != nil {
		return out, fmt.Errorf("run %s: %w", name, context.Cause(ctx))
	}
	said := strings.Fields(stderr.String())
	if len(said) == 0 {
		said = strings.Fields(string(out))
	}
	return out, fmt.Errorf("run %s: %w: %s", name, err, strings.Join(said, " "))
}

func (t *Tools) find(name string) (string, error) {
	for _, bin := range []string{"usr/bin", "usr/sbin"} {
		path := filepath.Join(t.dir, bin, name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("run %q: no package of the host lock has this tool: add it to packages-host.yaml and run make lock", name)
}
