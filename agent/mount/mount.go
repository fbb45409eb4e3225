// Package mount describes the file system tree that init makes as values: what
// to mount, which folders and links to make, which kernel settings to write.
// A list of them can be read, compared and printed before any is applied.
//
// Left out: deciding what is needed (package boot) and block devices.
package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Entry is one thing in the tree. Apply makes it so, whether it was so before
// or not; String names it in messages.
type Entry interface {
	Apply() error
	String() string
}

// Apply applies entries in order. It goes on after an error, so that one
// missing kernel feature does not cost the rest, and returns all of them.
func Apply(entries []Entry) error {
	var errs []error
	for _, e := range entries {
		if err := e.Apply(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", e, err))
		}
	}
	return errors.Join(errs...)
}

// Mount is one mounted file system. Its mount point is made if it is missing
// and can be.
type Mount struct {
	Source, Target, Type string
	Flags                uintptr
	Data                 string
}

var (
	_ Entry = Mount{}
	_ Entry = Propagation{}
	_ Entry = Dir{}
	_ Entry = Symlink{}
	_ Entry = Setting{}
)

func (m Mount) String() string { return fmt.Sprintf("mount %s on %s", m.Type, m.Target) }

// Apply mounts; a file system of the same type that is there already is left.
func (m Mount) Apply() error {
	if err := os.MkdirAll(m.Target, 0o755); err != nil {
		return err
	}
	err := unix.Mount(m.Source, m.Target, m.Type, m.Flags, m.Data)
	if errors.Is(err, unix.EBUSY) && mounted(m.Target, m.Type) {
		return nil
	}
	return err
}

func mounted(target, fstype string) bool {
	points, err := Points()
	if err != nil {
		return false
	}
	for _, p := range points {
		if p.Target == target && p.Type == fstype {
			return true
		}
	}
	return false
}

// Propagation changes how mounts below Target reach other mount namespaces:
// unix.MS_SHARED, MS_SLAVE or MS_PRIVATE, with MS_REC for the whole tree.
type Propagation struct {
	Target string
	Flags  uintptr
}

func (p Propagation) String() string { return "set mount propagation of " + p.Target }

// Apply sets it.
func (p Propagation) Apply() error { return unix.Mount("", p.Target, "", p.Flags, "") }

// Dir is a folder with exactly this mode; its parents get mode 0755.
type Dir struct {
	Path string
	Mode os.FileMode
}

func (d Dir) String() string { return "make folder " + d.Path }

// Apply makes it.
func (d Dir) Apply() error {
	if err := os.MkdirAll(d.Path, 0o755); err != nil {
		return err
	}
	return os.Chmod(d.Path, d.Mode)
}

// Symlink is a link at Path that points to Target.
type Symlink struct{ Target, Path string }

func (s Symlink) String() string { return "link " + s.Path }

// Apply makes it, and replaces another link.
func (s Symlink) Apply() error {
	if old, err := os.Readlink(s.Path); err == nil {
		if old == s.Target {
			return nil
		}
		if err := os.Remove(s.Path); err != nil {
			return err
		}
	}
	return os.Symlink(s.Target, s.Path)
}

// Setting is a value written to one file of a kernel file system.
type Setting struct {
	Path, Value string
	Optional    bool // a kernel without the file is fine
}

// Sysctl is the setting that sysctl(8) calls key; dots separate.
func Sysctl(key, value string) Setting {
	return Setting{Path: "/proc/sys/" + strings.ReplaceAll(key, ".", "/"), Value: value}
}

func (s Setting) String() string {
	return fmt.Sprintf("set %s to %s", s.Path, strings.TrimSpace(s.Value))
}

// Apply writes it. It never makes a file.
func (s Setting) Apply() error {
	f, err := os.OpenFile(s.Path, os.O_WRONLY, 0)
	if err != nil {
		if s.Optional && errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	_, err = f.WriteString(s.Value)
	return errors.Join(err, f.Close())
}

// Point is one line of the list of mounts.
type Point struct{ Target, Type string }

// Points lists this namespace's mounts, in the order they were made.
func Points() ([]Point, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return parsePoints(string(data)), nil
}

func parsePoints(text string) []Point {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var points []Point
	for line := range strings.Lines(text) {
		before, after, ok := strings.Cut(line, " - ")
		f := strings.Fields(before)
		g := strings.Fields(after)
		if ok && len(f) >= 5 && len(g) >= 1 {
			points = append(points, Point{unescape.Replace(f[4]), g[0]})
		}
	}
	return points
}

// UnmountBelow unmounts everything mounted below dir, the deepest first, and
// then dir itself. A file system that is still in use is made read-only, which
// is what protects it.
func UnmountBelow(dir string) error {
	points, err := Points()
	if err != nil {
		return err
	}
	var errs []error
	for _, target := range below(points, dir) {
		if unix.Unmount(target, 0) == nil {
			continue
		}
		if target != dir {
			unix.Unmount(target, unix.MNT_DETACH) // what counts is the file system at dir
			continue
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			errs = append(errs, fmt.Errorf("unmount %q: it is in use, and making it read-only: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// below lists the mount points at or below dir in the order to unmount them.
// A point that is mounted over twice stands there twice.
func below(points []Point, dir string) []string {
	var found []string
	for _, p := range points {
		if rel, err := filepath.Rel(dir, p.Target); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			found = append(found, p.Target)
		}
	}
	sort.SliceStable(found, func(i, j int) bool {
		return strings.Count(found[i], "/") > strings.Count(found[j], "/") && found[i] != "/"
	})
	return found
}
