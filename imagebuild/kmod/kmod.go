// Package kmod chooses kernel modules out of a kernel package: those that a
// list names and all that they need. It writes the index files beside them
// (modules.dep, modules.alias, modules.softdep) from what each module says of
// itself in its .modinfo section, as depmod would, so that no tool of the
// target's version is needed on the build machine.
//
// Left out: the binary indexes (*.bin), which only kmod reads, and symbol
// tables: modpost already wrote each module's dependencies into it.
package kmod

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ulikunitz/xz"

	"skerry.internal/skerry/imagebuild/tree"
)

// Dir is one lib/modules/<release> of an unpacked kernel package.
type Dir struct {
	root    string            // the folder
	Release string            // its name, as uname -r tells it on the device
	files   map[string]string // module name → file below root
	builtin map[string]bool
	info    map[string]*info
}

type info struct {
	depends, softdeps, aliases []string
}

// Open reads the names of all modules below root.
func Open(root string) (*Dir, error) {
	d := &Dir{root: root, Release: filepath.Base(root), files: map[string]string{}, builtin: map[string]bool{}, info: map[string]*info{}}
	err := filepath.WalkDir(filepath.Join(root, "kernel"), func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.Contains(e.Name(), ".ko") {
			return err
		}
		rel, err := filepath.Rel(root, p)
		d.files[name(rel)] = filepath.ToSlash(rel)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read kernel modules in %q: %w", root, err)
	}
	builtin, err := os.ReadFile(filepath.Join(root, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("read built-in modules: %w", err)
	}
	for _, line := range strings.Fields(string(builtin)) {
		d.builtin[name(line)] = true
	}
	return d, nil
}

// name returns a module's name as the kernel spells it.
func name(file string) string {
	base, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(base, "-", "_")
}

// Select returns the names of all modules that the patterns name, together with
// what they depend on. A pattern is a module's name ("nft_nat"), a folder below
// kernel/ with everything in it ("drivers/net/phy/") or a glob of files
// ("net/netfilter/nf_*"); with a leading "-" it takes away again what the
// patterns before it chose, but never what a chosen module needs. A pattern that
// names nothing is an error: a kernel update moved it. A name that is built into
// this kernel is none.
func (d *Dir) Select(patterns []string) ([]string, error) {
	chosen := map[string]bool{}
	var errs []error
	for _, pattern := range patterns {
		take, without := strings.CutPrefix(pattern, "-")
		names := d.match(take)
		if len(names) == 0 && !d.builtin[name(take)] {
			errs = append(errs, fmt.Errorf("choose kernel modules %q: kernel %s has none", pattern, d.Release))
		}
		for _, n := range names {
			if without {
				delete(chosen, n)
			} else {
				chosen[n] = true
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return d.Closure(slices.Sorted(maps.Keys(chosen)))
}

func (d *Dir) match(pattern string) []string {
	if !strings.Contains(pattern, "/") {
		if _, ok := d.files[name(pattern)]; ok {
			return []string{name(pattern)}
		}
		return nil
	}
	var names []string
	glob := path.Join(path.Dir(pattern), name(pattern))
	for n, file := range d.files {
		in := strings.TrimPrefix(file, "kernel/")
		ok := strings.HasSuffix(pattern, "/") && strings.HasPrefix(in, pattern)
		if m, _ := path.Match(glob, path.Join(path.Dir(in), n)); m || ok {
			names = append(names, n)
		}
	}
	return names
}

// Closure returns the modules with everything that they depend on and the
// modules worth loading before them that this kernel has.
func (d *Dir) Closure(names []string) ([]string, error) {
	all := map[string]bool{}
	for queue := names; len(queue) > 0; queue = queue[1:] {
		n := name(queue[0])
		if all[n] || d.builtin[n] {
			continue
		}
		in, err := d.read(n)
		if err != nil {
			return nil, err
		}
		all[n] = true
		queue = append(queue, in.depends...)
		for _, soft := range in.softdeps {
			for _, s := range strings.Fields(soft) {
				if _, ok := d.files[name(s)]; ok {
					queue = append(queue, s)
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(all)), nil
}

// read returns what a module says of itself.
func (d *Dir) read(n string) (*info, error) {
	if in, ok := d.info[n]; ok {
		return in, nil
	}
	file, ok := d.files[n]
	if !ok {
		return nil, fmt.Errorf("read kernel module %q: kernel %s has none of this name", n, d.Release)
	}
	b, err := os.ReadFile(filepath.Join(d.root, file))
	if err != nil {
		return nil, err
	}
	in, err := parse(file, b)
	if err != nil {
		return nil, fmt.Errorf("read kernel module %q: %w", file, err)
	}
	d.info[n] = in
	return in, nil
}

func parse(file string, b []byte) (*info, error) {
	if strings.HasSuffix(file, ".xz") {
		r, err := xz.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		if b, err = io.ReadAll(r); err != nil {
			return nil, err
		}
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("it has no .modinfo section")
	}
	modinfo, err := section.Data()
	if err != nil {
		return nil, err
	}
	in := &info{}
	for _, field := range strings.Split(string(modinfo), "\x00") {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "depends":
			in.depends = append(in.depends, strings.FieldsFunc(value, func(r rune) bool { return r == ',' })...)
		case "softdep":
			in.softdeps = append(in.softdeps, value)
		case "alias":
			in.aliases = append(in.aliases, value)
		}
	}
	return in, nil
}

// AddTo puts the modules and their indexes into a tree below usr/lib/modules.
// What is not chosen leaves no trace in the indexes.
func (d *Dir) AddTo(t *tree.Tree, base string, names []string) error {
	var dep, alias, softdep strings.Builder
	for _, n := range names {
		in, err := d.read(n)
		if err != nil {
			return err
		}
		deps, err := d.ordered(n)
		if err != nil {
			return err
		}
		fmt.Fprintf(&dep, "%s:", d.files[n])
		for _, need := range deps {
			fmt.Fprintf(&dep, " %s", d.files[need])
		}
		fmt.Fprintln(&dep)
		for _, a := range in.aliases {
			fmt.Fprintf(&alias, "alias %s %s\n", a, n)
		}
		for _, s := range in.softdeps {
			fmt.Fprintf(&softdep, "softdep %s %s\n", n, s)
		}
		e := tree.Entry{Path: path.Join(base, d.Release, d.files[n]), Mode: 0o644, Source: filepath.Join(d.root, d.files[n]), From: "kernel " + d.Release}
		if err := t.Add(e); err != nil {
			return err
		}
	}
	for file, text := range map[string]string{"modules.dep": dep.String(), "modules.alias": alias.String(), "modules.softdep": softdep.String()} {
		if err := t.Add(tree.Entry{Path: path.Join(base, d.Release, file), Mode: 0o644, Data: []byte(text), From: "kernel " + d.Release}); err != nil {
			return err
		}
	}
	return t.Add(tree.Entry{Path: path.Join(base, d.Release, "modules.builtin"), Mode: 0o644,
		Source: filepath.Join(d.root, "modules.builtin"), From: "kernel " + d.Release})
}

// ordered returns all that a module depends on, directly or not: what needs
// something comes before what it needs, as in depmod's modules.dep, since the
// loader goes through a line from its end.
func (d *Dir) ordered(n string) ([]string, error) {
	var order []string
	seen := map[string]bool{n: true}
	var visit func(string) error
	visit = func(m string) error {
		in, err := d.read(m)
		if err != nil {
			return err
		}
		for _, dep := range in.depends {
			dep = name(dep)
			if seen[dep] || d.builtin[dep] {
				continue
			}
			seen[dep] = true
			if err := visit(dep); err != nil {
				return err
			}
			order = append(order, dep)
		}
		return nil
	}
	if err := visit(n); err != nil {
		return nil, err
	}
	slices.Reverse(order)
	return order, nil
}
