package deb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"pault.ag/go/debian/control"
	"pault.ag/go/debian/dependency"
	"pault.ag/go/debian/version"

	"skerry.internal/skerry/imagebuild/fetch"
)

// found is a package in an index.
type found struct {
	Package
	version  version.Version
	depends  []dependency.Relation
	provides []dependency.Possibility
}

// Resolve returns today's newest version of each package of list.
func (a *Archive) Resolve(ctx context.Context, list *List, arch string) (*Lock, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	lock, err := a.resolve(ctx, list, list.Suite, arch)
	if errors.Is(err, errNoIndex) && list.Fallback != "" {
		a.notice("WARNING: taking for %s what from does not place elsewhere from %s: %v", arch, list.Fallback, err)
		lock, err = a.resolve(ctx, list, list.Fallback, arch)
	}
	return lock, err
}

func (a *Archive) resolve(ctx context.Context, list *List, suite, arch string) (*Lock, error) {
	r := &resolver{list: list, suite: suite, places: map[string][]place{}}
	lock := &Lock{Architecture: arch, Suite: suite}
	releases := []string{suite}
	for _, entry := range list.Packages {
		if release := list.From[entry]; release != "" && !slices.Contains(releases, release) {
			releases = append(releases, release)
		}
	}
	for _, release := range releases {
		for _, p := range parts(release) {
			places, err := a.places(ctx, p, list.Components, arch)
			switch {
			case err == nil:
				r.places[release] = append(r.places[release], places...)
			case p.suite == suite || !errors.Is(err, errNoIndex):
				return nil, fmt.Errorf("read %s for %s: %w", p.suite, arch, err)
			case p.suite == release:
				// Without %w, here and below: what Fallback is for is the main suite's index.
				return nil, fmt.Errorf("read %s for %s, which from in the package list names: %v", p.suite, arch, err)
			case slices.Contains(list.MayLack[arch], p.suite):
				a.notice("WARNING: no %s for %s, so what it corrects is missing: %v", p.suite, arch, err)
				lock.Without = append(lock.Without, p.suite)
			default:
				return nil, fmt.Errorf("read %s for %s, which mayLack in the package list does not allow to be missing: %v", p.suite, arch, err)
			}
		}
	}
	if err := r.pick(); err != nil {
		return nil, fmt.Errorf("resolve packages of %s for %s: %w", suite, arch, err)
	}
	if err := r.check(suite == list.Suite); err != nil {
		return nil, fmt.Errorf("resolve packages of %s for %s: %w", suite, arch, err)
	}
	for _, p := range r.picked {
		lock.Packages = append(lock.Packages, p.Package)
	}
	slices.SortFunc(lock.Packages, func(p, q Package) int { return cmp.Compare(p.Name, q.Name) })
	return lock, nil
}

// part is one of the suites that a release of Debian is spread over.
type part struct {
	kind  Kind
	suite string
}

// parts begins with the main suite, which nothing can do without.
func parts(suite string) []part {
	return []part{{Main, suite}, {Main, suite + "-updates"}, {Security, suite + "-security"}}
}

// releaseOf is the release that a suite is part of.
func releaseOf(suite string) string {
	return strings.TrimSuffix(strings.TrimSuffix(suite, "-updates"), "-security")
}

// beside says whether name is one of the suites beside the main one.
func beside(suite, name string) bool {
	return slices.ContainsFunc(parts(suite)[1:], func(p part) bool { return p.suite == name })
}

type place struct {
	part
	index index
}

// places returns the indexes of all components of a suite, or none: packages of
// half a suite need not fit together.
func (a *Archive) places(ctx context.Context, p part, components []string, arch string) ([]place, error) {
	rel, err := a.release(ctx, p.kind, p.suite)
	if err != nil {
		return nil, err
	}
	var all []place
	for _, component := range components {
		i, err := a.index(ctx, rel, component, arch)
		if err != nil {
			return nil, err
		}
		all = append(all, place{p, i})
	}
	return all, nil
}

type resolver struct {
	list   *List
	suite  string
	places map[string][]place // by release
	picked []*found
}

// pick finds each listed package and puts what metapackages stand for in
// their place.
func (r *resolver) pick() error {
	seen := map[string]bool{}
	add := func(p *found, listed string) error {
		if seen[p.Name] {
			return fmt.Errorf("package %q is listed twice", p.Name)
		}
		seen[p.Name] = true
		if p.Name != listed {
			p.For = listed
		}
		r.picked = append(r.picked, p)
		return nil
	}
	for _, entry := range r.list.Packages {
		release := cmp.Or(r.list.From[entry], r.suite)
		p, listed, err := r.newestOf(release, entry)
		if err != nil {
			return err
		}
		if !slices.Contains(r.list.Metapackages, entry) {
			if err := add(p, listed); err != nil {
				return err
			}
			continue
		}
		for _, dep := range p.depends {
			real, err := r.newest(release, dep.Possibilities[0].Name)
			if err != nil {
				return err
			}
			if real == nil {
				return fmt.Errorf("metapackage %q depends on %q, which %s does not have", entry, dep.Possibilities[0].Name, release)
			}
			if err := add(real, listed); err != nil {
				return err
			}
		}
	}
	return nil
}

// newestOf resolves "a | b".
func (r *resolver) newestOf(release, entry string) (p *found, listed string, err error) {
	names := strings.Split(entry, "|")
	for i := range names {
		names[i] = strings.TrimSpace(names[i])
		if p, err = r.newest(release, names[i]); p != nil || err != nil {
			return p, names[0], err
		}
	}
	return nil, "", fmt.Errorf("%s has no package %q: correct its name in the package list", release, entry)
}

// newest returns the package's highest version in all places of a release, nil without one.
func (r *resolver) newest(release, name string) (*found, error) {
	var best *found
	for _, at := range r.places[release] {
		for _, text := range at.index[name] {
			p, err := parseParagraph(text)
			if err != nil {
				return nil, fmt.Errorf("read index entry of %q: %w", name, err)
			}
			p.Archive, p.Suite = at.kind, at.suite
			if best == nil || version.Compare(p.version, best.version) > 0 {
				best = p
			}
		}
	}
	return best, nil
}

func parseParagraph(text string) (*found, error) {
	var says struct {
		Package, Version, Architecture, Filename, SHA256 string
		Depends, Provides                                string
		PreDepends                                       string `control:"Pre-Depends"`
		Size                                             int
	}
	if err := control.Unmarshal(&says, strings.NewReader(text)); err != nil {
		return nil, err
	}
	p := &found{Package: Package{
		Name: says.Package, Version: says.Version, Architecture: says.Architecture,
		Path: says.Filename, Size: int64(says.Size),
	}}
	var err error
	if p.SHA256, err = fetch.ParseSHA256(says.SHA256); err != nil {
		return nil, err
	}
	if p.version, err = version.Parse(says.Version); err != nil {
		return nil, err
	}
	for _, field := range []string{says.PreDepends, says.Depends} {
		d, err := dependency.Parse(field)
		if err != nil {
			return nil, err
		}
		p.depends = append(p.depends, d.Relations...)
	}
	provides, err := dependency.Parse(says.Provides)
	if err != nil {
		return nil, err
	}
	p.provides = provides.GetAllPossibilities()
	return p, nil
}

// check returns an error that names every dependency which is neither listed
// nor ignored, so that nobody has to find out on a board that a library was
// forgotten. Ignored names that nothing depends on are an error too, where
// the list was written for this suite.
func (r *resolver) check(strict bool) error {
	used, missing := map[string]bool{}, map[string][]string{}
	for _, p := range r.picked {
		if slices.Contains(r.list.Data, p.listed()) {
			continue
		}
		for _, dep := range p.depends {
			ok := slices.ContainsFunc(dep.Possibilities, r.has)
			for _, alt := range dep.Possibilities {
				if _, ignored := r.list.Ignore[alt.Name]; ignored && !ok {
					used[alt.Name], ok = true, true
				}
			}
			if !ok {
				missing[dep.String()] = append(missing[dep.String()], p.Name)
			}
		}
	}
	var lines []string
	for dep, by := range missing {
		slices.Sort(by)
		lines = append(lines, fmt.Sprintf("%s (needed by %s)", dep, strings.Join(slices.Compact(by), ", ")))
	}
	slices.Sort(lines)
	if len(lines) > 0 {
		return fmt.Errorf("add to packages, or to ignore with a reason: %s", strings.Join(lines, "; "))
	}
	for name := range r.list.Ignore {
		if strict && !used[name] {
			lines = append(lines, name)
		}
	}
	slices.Sort(lines)
	if len(lines) > 0 {
		return fmt.Errorf("nothing depends on %s: take it out of ignore", strings.Join(lines, ", "))
	}
	return nil
}

func (r *resolver) has(want dependency.Possibility) bool {
	for _, p := range r.picked {
		if p.Name == want.Name && (want.Version == nil || want.Version.SatisfiedBy(p.version)) {
			return true
		}
		for _, offered := range p.provides {
			if offered.Name != want.Name {
				continue
			}
			if want.Version == nil {
				return true
			}
			if offered.Version == nil {
				continue
			}
			if v, err := version.Parse(offered.Version.Number); err == nil && want.Version.SatisfiedBy(v) {
				return true
			}
		}
	}
	return false
}
