// Package rootfs is the root file system's static part as data: the files that
// we write ourselves with their modes and links, and the lists of what is taken
// from Debian packages and from the kernel package. embed keeps neither modes nor
// links, hence the table.
//
// Left out: our programs (imagebuild/plan lists them) and whatever differs
// between two devices: the root file system is the same for every board of an
// architecture.
package rootfs

import (
	"bufio"
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"strings"

	"go.yaml.in/yaml/v3"
)

//go:embed files
var files embed.FS

//go:embed contents.yaml modules.txt packages-*.yaml lock-*.json
var lists embed.FS

// File is one entry of the root file system that no package brings.
type File struct {
	Path    string
	Mode    fs.FileMode // type and permissions
	Link    string      // a symbolic link's target
	Content []byte
}

const (
	dir  = fs.ModeDir
	link = fs.ModeSymlink | 0o777
)

// table is in the order in which entries are added: the links that merge /bin,
// /sbin and /lib into /usr come before what other lists put there.
var table = []File{
	{Path: "usr", Mode: dir | 0o755},
	{Path: "usr/bin", Mode: dir | 0o755},
	{Path: "usr/lib", Mode: dir | 0o755},
	{Path: "usr/libexec/cni", Mode: dir | 0o755},
	{Path: "usr/sbin", Mode: link, Link: "bin"},
	{Path: "bin", Mode: link, Link: "usr/bin"},
	{Path: "sbin", Mode: link, Link: "usr/bin"},
	{Path: "lib", Mode: link, Link: "usr/lib"},
	{Path: "init", Mode: link, Link: "usr/bin/init"},
	// The kernel starts this when it wants a module; init knows it by its name.
	{Path: "usr/bin/modprobe", Mode: link, Link: "init"},

	// Mount points.
	{Path: "dev", Mode: dir | 0o755},
	{Path: "proc", Mode: dir | 0o555},
	{Path: "sys", Mode: dir | 0o555},
	{Path: "run", Mode: dir | 0o755},
	{Path: "tmp", Mode: dir | 0o755},
	{Path: "var", Mode: dir | 0o755},
	{Path: "mnt", Mode: dir | 0o755},
	{Path: "boot", Mode: dir | 0o755},
	{Path: "boot/firmware", Mode: dir | 0o755},
	{Path: "root", Mode: dir | 0o700},

	{Path: "etc/containerd/config.toml", Mode: 0o644},
	{Path: "etc/passwd", Mode: 0o644},
	{Path: "etc/group", Mode: 0o644},
	{Path: "etc/nsswitch.conf", Mode: 0o644},
	{Path: "etc/protocols", Mode: 0o644},
	{Path: "etc/hosts", Mode: 0o644},
	{Path: "etc/skerry/modules-root", Mode: 0o644},
	// What init learns at boot lies in /run.
	{Path: "etc/hostname", Mode: link, Link: "/run/hostname"},
	{Path: "etc/machine-id", Mode: link, Link: "/run/machine-id"},
	{Path: "etc/resolv.conf", Mode: link, Link: "/run/resolv.conf"},
	{Path: "etc/mtab", Mode: link, Link: "/proc/self/mounts"},
	// kubelet and CNI look for their configuration where an administrator of a
	// common distribution would put it; here that is STATE.
	{Path: "etc/kubernetes", Mode: link, Link: "/var/lib/skerry/kubernetes"},
	{Path: "etc/cni", Mode: link, Link: "/var/lib/skerry/cni"},
	{Path: "opt", Mode: dir | 0o755},
	{Path: "opt/cni", Mode: dir | 0o755},
	{Path: "opt/cni/bin", Mode: link, Link: "/usr/libexec/cni"},
}

// Files returns the table with its contents.
func Files() ([]File, error) {
	out := make([]File, len(table))
	for i, f := range table {
		if f.Mode.IsRegular() {
			content, err := files.ReadFile("files/" + f.Path)
			if err != nil {
				return nil, fmt.Errorf("read static file: %w", err)
			}
			f.Content = content
		}
		out[i] = f
	}
	return out, nil
}

// Contents returns, by package, the globs of the files that belong into the
// root file system of an architecture with that name of GNU's.
func Contents(triplet string) (map[string][]string, error) {
	text, err := lists.ReadFile("contents.yaml")
	if err != nil {
		return nil, fmt.Errorf("read list of package files: %w", err)
	}
	var c map[string][]string
	if err := yaml.Unmarshal(bytes.ReplaceAll(text, []byte("${triplet}"), []byte(triplet)), &c); err != nil {
		return nil, fmt.Errorf("parse contents.yaml: %w", err)
	}
	return c, nil
}

// Modules returns the patterns of the kernel modules that belong into the root
// file system of an architecture, besides those of its boards.
func Modules(arch string) ([]string, error) {
	text, err := lists.ReadFile("modules.txt")
	if err != nil {
		return nil, fmt.Errorf("read list of kernel modules: %w", err)
	}
	var patterns []string
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		line, _, _ := strings.Cut(s.Text(), "#")
		pattern, only, restricted := strings.Cut(strings.TrimSpace(line), " ")
		if pattern != "" && (!restricted || strings.TrimSpace(only) == "["+arch+"]") {
			patterns = append(patterns, pattern)
		}
	}
	return patterns, nil
}

// List returns a package list or lock by its file name.
func List(name string) ([]byte, error) { return lists.ReadFile(name) }
