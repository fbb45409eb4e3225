// Package tree holds a root file system as values: paths, modes, links and
// where the bytes come from. It keeps them in one order with one time, so that
// what is written from a tree depends on nothing but its entries. It writes the
// two forms that the image needs, a tar stream for the tool that makes the root
// file system and a cpio archive for the initramfs, and it checks what would
// otherwise show only on the device: programs whose libraries are missing.
//
// Owners, device nodes and extended attributes are left out: everything belongs
// to root, and the kernel makes the nodes.
package tree

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Entry is one file, directory or symbolic link.
type Entry struct {
	Path   string      // slash-separated, relative to the root of the tree, "usr/bin/nft"
	Mode   fs.FileMode // type and permissions
	Link   string      // the target of a symbolic link
	Data   []byte      // a file's content, unless Source names it
	Source string      // a file on this machine that holds the content
	From   string      // who put it there, for error messages: "package crun", "rootfs"
}

// Tree is a set of entries by path. The zero value is empty and ready.
type Tree struct {
	entries map[string]Entry
}

// File returns an entry for a file with its content in memory.
func File(path string, perm fs.FileMode, data []byte) Entry {
	return Entry{Path: path, Mode: perm, Data: data}
}

// Dir returns an entry for a directory.
func Dir(path string, perm fs.FileMode) Entry { return Entry{Path: path, Mode: fs.ModeDir | perm} }

// Symlink returns an entry for a symbolic link.
func Symlink(path, target string) Entry {
	return Entry{Path: path, Mode: fs.ModeSymlink | 0o777, Link: target}
}

// Add puts an entry into the tree and makes the directories above it. Links
// among these directories are followed, so that a package's lib/x lands in
// usr/lib/x of a merged root. Adding what is already there is an error, except a
// directory with the same mode: two sources of one file would hide each other.
func (t *Tree) Add(e Entry) error {
	clean := path.Clean(e.Path)
	if clean != e.Path || clean == "." || clean == ".." || strings.HasPrefix(clean, "/") || strings.HasPrefix(clean, "../") {
		return fmt.Errorf("add %q from %s: not a clean relative path", e.Path, e.From)
	}
	if t.entries == nil {
		t.entries = map[string]Entry{}
	}
	dir, err := t.mkdirs(path.Dir(e.Path), e.From)
	if err != nil {
		return fmt.Errorf("add %q from %s: %w", e.Path, e.From, err)
	}
	e.Path = path.Join(dir, path.Base(e.Path))
	if old, ok := t.entries[e.Path]; ok {
		if old.Mode.IsDir() && e.Mode.IsDir() {
			if old.Mode != e.Mode && old.From != implied && e.From != implied {
				return fmt.Errorf("add %q from %s: %s has it with mode %v, got %v", e.Path, e.From, old.From, old.Mode, e.Mode)
			}
			if old.From != implied {
				return nil
			}
		} else if !(old.Mode.IsDir() && e.Mode&fs.ModeSymlink != 0 && old.From == implied) {
			return fmt.Errorf("add %q from %s: %s already has it", e.Path, e.From, old.From)
		} else {
			return fmt.Errorf("add link %q from %s: there already are files in this folder", e.Path, e.From)
		}
	}
	t.entries[e.Path] = e
	return nil
}

// implied marks a directory that was made because something lies in it.
const implied = "(implied)"

// mkdirs makes dir and returns its path with links resolved.
func (t *Tree) mkdirs(dir, from string) (string, error) {
	if dir == "." {
		return dir, nil
	}
	parent, err := t.mkdirs(path.Dir(dir), from)
	if err != nil {
		return "", err
	}
	p := path.Join(parent, path.Base(dir))
	old, ok := t.entries[p]
	if !ok {
		t.entries[p] = Entry{Path: p, Mode: fs.ModeDir | 0o755, From: implied}
		return p, nil
	}
	if old.Mode&fs.ModeSymlink != 0 {
		resolved, ok := t.Resolve(p)
		if !ok {
			return "", fmt.Errorf("the link %q leads nowhere", p)
		}
		old = t.entries[resolved]
		p = resolved
	}
	if !old.Mode.IsDir() {
		return "", fmt.Errorf("%q from %s is not a directory", p, old.From)
	}
	return p, nil
}

// Resolve follows the symbolic links in a path to an entry that is none.
func (t *Tree) Resolve(p string) (string, bool) {
	resolved := "."
	rest := strings.Split(strings.TrimPrefix(path.Clean(p), "/"), "/")
	for hops := 0; len(rest) > 0; {
		next := path.Join(resolved, rest[0])
		rest = rest[1:]
		if next == "." || strings.HasPrefix(next, "..") {
			resolved = "."
			continue
		}
		e, ok := t.entries[next]
		if !ok {
			return "", false
		}
		if e.Mode&fs.ModeSymlink == 0 {
			resolved = next
			continue
		}
		if hops++; hops > 40 {
			return "", false
		}
		if strings.HasPrefix(e.Link, "/") {
			resolved = "."
		}
		rest = append(strings.Split(strings.TrimPrefix(path.Clean(e.Link), "/"), "/"), rest...)
	}
	return resolved, true
}

// Get returns the entry at a path, without following a link at its end.
func (t *Tree) Get(p string) (Entry, bool) {
	e, ok := t.entries[p]
	return e, ok
}

// Entries returns all entries by path, so a directory comes before what is in it.
func (t *Tree) Entries() []Entry {
	return slices.SortedFunc(maps.Values(t.entries), func(a, b Entry) int { return cmp.Compare(a.Path, b.Path) })
}

// Open opens a file's content.
func (e Entry) Open() (io.ReadCloser, int64, error) {
	if e.Source == "" {
		return io.NopCloser(bytes.NewReader(e.Data)), int64(len(e.Data)), nil
	}
	f, err := os.Open(e.Source)
	if err != nil {
		return nil, 0, fmt.Errorf("open %s of %s: %w", e.Path, e.From, err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// Size is the length of a file's content.
func (e Entry) Size() (int64, error) {
	if !e.Mode.IsRegular() {
		return 0, nil
	}
	if e.Source == "" {
		return int64(len(e.Data)), nil
	}
	info, err := os.Stat(e.Source)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Bytes reads a file's content.
func (e Entry) Bytes() ([]byte, error) {
	if e.Source == "" {
		return e.Data, nil
	}
	return os.ReadFile(e.Source)
}

// Digest identifies everything that the tree's writers depend on: what has the
// same digest has the same bytes.
func (t *Tree) Digest() (string, error) {
	sum := sha256.New()
	for _, e := range t.Entries() {
		fmt.Fprintf(sum, "%q %o %q ", e.Path, uint32(e.Mode), e.Link)
		if e.Mode.IsRegular() {
			r, size, err := e.Open()
			if err != nil {
				return "", err
			}
			content := sha256.New()
			_, err = io.Copy(content, r)
			r.Close()
			if err != nil {
				return "", fmt.Errorf("read %s of %s: %w", e.Path, e.From, err)
			}
			fmt.Fprintf(sum, "%d %x", size, content.Sum(nil))
		}
		fmt.Fprintln(sum)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// Sized is a path with the bytes below it.
type Sized struct {
	Path string
	Size int64
}

// Largest returns the n largest files, the largest first.
func (t *Tree) Largest(n int) []Sized {
	var files []Sized
	for _, e := range t.Entries() {
		if size, err := e.Size(); err == nil && e.Mode.IsRegular() {
			files = append(files, Sized{e.Path, size})
		}
	}
	slices.SortStableFunc(files, func(a, b Sized) int { return cmp.Compare(b.Size, a.Size) })
	return files[:min(n, len(files))]
}

// AddFiles copies into the tree what the patterns (of path.Match, relative to
// dir) match below dir, where a package was unpacked. A pattern that matches
// nothing is an error: the package no longer holds what we rely on. Permissions
// are reduced to 0755 or 0644; what would be setuid is not, on the device.
func (t *Tree) AddFiles(dir, from string, patterns []string) error {
	for _, pattern := range patterns {
		matches, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return fmt.Errorf("match %q in %s: %w", pattern, from, err)
		}
		if len(matches) == 0 {
			return fmt.Errorf("match %q in %s: no such file in it", pattern, from)
		}
		slices.Sort(matches)
		for _, m := range matches {
			rel, err := filepath.Rel(dir, m)
			if err != nil {
				return err
			}
			if err := t.addFile(m, filepath.ToSlash(rel), from); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *Tree) addFile(file, name, from string) error {
	info, err := os.Lstat(file)
	if err != nil {
		return err
	}
	e := Entry{Path: name, From: from}
	switch {
	case info.Mode().IsRegular():
		e.Source, e.Mode = file, 0o644
		if info.Mode()&0o111 != 0 {
			e.Mode = 0o755
		}
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(file)
		if err != nil {
			return err
		}
		e.Link, e.Mode = target, fs.ModeSymlink|0o777
	case info.IsDir():
		e.Mode = fs.ModeDir | 0o755
	default:
		return fmt.Errorf("add %q from %s: it is a %v, only files, links and directories belong into an image", name, from, info.Mode().Type())
	}
	return t.Add(e)
}
