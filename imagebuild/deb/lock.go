package deb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// LockFile returns the name of the lock that belongs to a package list.
// packages-host.yaml has lock-host-amd64.json and so on.
func LockFile(list, arch string) string {
	dir, name := filepath.Split(list)
	return filepath.Join(dir, "lock-"+strings.TrimSuffix(strings.TrimPrefix(name, "packages-"), ".yaml")+"-"+arch+".json")
}

// LockAll resolves every packages-*.yaml in dir, with what complete adds to it
// for an architecture, and rewrites the locks beside
// them, all or none. It reports each lock and what changed in it, line by line.
func LockAll(ctx context.Context, a *Archive, dir string, complete func(name, arch string, list *List) error, report func(string)) error {
	names, err := filepath.Glob(filepath.Join(dir, "packages-*.yaml"))
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("no packages-*.yaml in %q: run this at the top of the project", dir)
	}
	type result struct {
		file string
		lock *Lock
	}
	var results []result
	for _, name := range names {
		all, err := ReadList(name)
		if err != nil {
			return err
		}
		unused := maps.Clone(all.From)
		for _, arch := range all.Architectures {
			list, err := ReadList(name)
			if err != nil {
				return err
			}
			if err := complete(filepath.Base(name), arch, list); err != nil {
				return err
			}
			for _, p := range list.Packages {
				delete(unused, p)
			}
			lock, err := a.Resolve(ctx, list, arch)
			if err != nil {
				return fmt.Errorf("lock %s: %w", filepath.Base(name), err)
			}
			results = append(results, result{LockFile(name, arch), lock})
		}
		if len(unused) > 0 {
			return fmt.Errorf("lock %s: from names %q, which no architecture takes: correct it", filepath.Base(name), slices.Sorted(maps.Keys(unused)))
		}
	}
	for _, r := range results {
		old, err := ReadLock(r.file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			// A lock that can't be read is about to be replaced.
			report(err.Error())
		}
		if err := r.lock.Write(r.file); err != nil {
			return err
		}
		changes := r.lock.Changes(old)
		report(fmt.Sprintf("%s: %d packages, %d changed", r.file, len(r.lock.Packages), len(changes)))
		for _, line := range changes {
			report("  " + line)
		}
	}
	return nil
}
