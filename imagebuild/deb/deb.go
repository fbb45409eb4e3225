// Package deb takes files out of Debian packages that are pinned by name,
// version and sha256, without dpkg, apt or root.
//
//	packages-*.yaml ── Resolve ──> lock-*.json ── Fetch ──> .deb files ── Unpack ──> File, File, …
//
// ParseList and ReadList read a packages-*.yaml. Archive.Resolve finds today's
// versions through the chain InRelease (OpenPGP) → Packages.xz (sha256) → .deb
// (sha256); ReadLock and Lock.Write keep the result. Archive.Fetch brings what
// a lock names into the cache and returns a Set; when the archive has dropped
// a locked file it resolves the whole list again, says so, and Set.Newer is
// true: the caller then writes Set.Lock below build/. Set.Path gives
// a package's .deb, Unpack walks through it. LockAll is `make lock`.
//
// The address of the archive is not here: FindMirrors takes it from
// SKERRY_DEBIAN_MIRROR or from the host's own apt sources.
//
// Left out: maintainer scripts (nothing is ever installed, files are picked)
// and a dependency solver. A list names every package that it wants, and
// Resolve refuses a list that forgets one: what goes into an image that people
// update over a thin link should be somebody's decision. All packages of a list
// are of one release, but for those that its From names.
package deb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"
	"pault.ag/go/debian/version"

	"skerry.internal/skerry/agent/atomicfile"
	"skerry.internal/skerry/imagebuild/fetch"
)

// List is a packages-*.yaml: which packages, from which release of Debian.
type List struct {
	// Architectures gets a lock each.
	Architectures []string `yaml:"architectures"`
	// Suite is the release's code name. Its -updates and -security suites are
	// always read too.
	Suite string `yaml:"suite"`
	// Fallback is the release to take everything from that From does not place
	// elsewhere when the index of Suite can't be read, as it happens while a
	// mirror is being updated. Empty means that this is an error.
	Fallback string `yaml:"fallback"`
	// From names, by entry of Packages, another release than Suite that it is
	// taken from, with what a metapackage stands for.
	From map[string]string `yaml:"from"`
	// MayLack names, by architecture, the -updates and -security suites that
	// are left out while their index can't be read. Without an entry that is
	// an error, since it takes packages back to what these suites corrected.
	MayLack map[string][]string `yaml:"mayLack"`
	// Components of the archive, such as main.
	Components []string `yaml:"components"`
	// Packages by name. "a | b" is b where a release has no a.
	Packages []string `yaml:"packages"`
	// Metapackages are those of Packages that hold nothing: what they depend
	// on takes their place (the kernel's package has its version in its name).
	Metapackages []string `yaml:"metapackages"`
	// Ignore holds dependencies that are left out on purpose, with the reason.
	Ignore map[string]string `yaml:"ignore"`
	// Data are those of Packages of which only files are taken that need no
	// other package: nobody looks what these depend on.
	Data []string `yaml:"data"`
}

// ReadList reads the list in a file.
func ReadList(name string) (*List, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read package list: %w", err)
	}
	l, err := ParseList(text)
	if err != nil {
		return nil, fmt.Errorf("read package list %q: %w", name, err)
	}
	return l, nil
}

// ParseList reads a list and refuses one that is incomplete.
func ParseList(text []byte) (*List, error) {
	l := &List{}
	d := yaml.NewDecoder(strings.NewReader(string(text)))
	d.KnownFields(true)
	if err := d.Decode(l); err != nil {
		return nil, err
	}
	for name, empty := range map[string]bool{
		"architectures": len(l.Architectures) == 0, "suite": l.Suite == "",
		"components": len(l.Components) == 0, "packages": len(l.Packages) == 0,
	} {
		if empty {
			return nil, fmt.Errorf("%s is empty", name)
		}
	}
	for _, m := range l.Metapackages {
		if !slices.Contains(l.Packages, m) {
			return nil, fmt.Errorf("metapackage %q is not one of packages", m)
		}
	}
	for name, why := range l.Ignore {
		if strings.TrimSpace(why) == "" {
			return nil, fmt.Errorf("ignored dependency %q has no reason", name)
		}
	}
	for name, release := range l.From {
		if release == "" {
			return nil, fmt.Errorf("from names no release for %q", name)
		}
	}
	for arch, suites := range l.MayLack {
		if !slices.Contains(l.Architectures, arch) {
			return nil, fmt.Errorf("mayLack names %q, which is not one of architectures", arch)
		}
		for _, s := range suites {
			if !slices.ContainsFunc(l.releases(), func(release string) bool { return beside(release, s) }) {
				return nil, fmt.Errorf("mayLack of %s names %q: want -updates or -security of a suite that is used", arch, s)
			}
		}
	}
	return l, nil
}

// releases are those that packages may be taken from.
func (l *List) releases() []string {
	all := append(slices.Sorted(maps.Values(l.From)), l.Suite)
	if l.Fallback != "" {
		all = append(all, l.Fallback)
	}
	return all
}

// Lock is a lock-*.json: exactly which files.
type Lock struct {
	Architecture string    `json:"architecture"`
	Suite        string    `json:"suite"`
	Without      []string  `json:"without,omitempty"` // suites that could not be read and may be lacking
	Packages     []Package `json:"packages"`          // sorted by name
}

// Package is one locked .deb.
type Package struct {
	Name string `json:"name"`
	// For is the name in the list, where that is another one.
	For          string       `json:"for,omitempty"`
	Version      string       `json:"version"`
	Architecture string       `json:"architecture"` // may be "all"
	Archive      Kind         `json:"archive"`
	Suite        string       `json:"suite"`
	Path         string       `json:"path"` // below the archive's address
	SHA256       fetch.SHA256 `json:"sha256"`
	Size         int64        `json:"size"`
}

// ReadLock reads the lock in a file.
func ReadLock(name string) (*Lock, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read lock (make lock writes it): %w", err)
	}
	l, err := ParseLock(text)
	if err != nil {
		return nil, fmt.Errorf("read lock %q (make lock writes it anew): %w", name, err)
	}
	return l, nil
}

// ParseLock reads a lock and refuses one that could lead outside the archive.
func ParseLock(text []byte) (*Lock, error) {
	l := &Lock{}
	if err := json.Unmarshal(text, l); err != nil {
		return nil, err
	}
	if l.Architecture == "" || len(l.Packages) == 0 {
		return nil, errors.New("it names no architecture or no packages")
	}
	for i, s := range l.Without {
		used := beside(l.Suite, s) || slices.ContainsFunc(l.Packages, func(p Package) bool { return beside(releaseOf(p.Suite), s) })
		if !used || slices.Contains(l.Without[:i], s) {
			return nil, fmt.Errorf("without names %q: want -updates or -security of %q or of another release that packages are from, once", s, l.Suite)
		}
	}
	for _, p := range l.Packages {
		if err := p.validate(); err != nil {
			return nil, err
		}
		if slices.Contains(l.Without, p.Suite) {
			return nil, fmt.Errorf("package %q is from %s, which without says was left out", p.Name, p.Suite)
		}
	}
	return l, nil
}

func (p Package) validate() error {
	switch {
	case p.Name == "" || p.Version == "" || p.Size <= 0 || p.SHA256 == fetch.SHA256{}:
		return fmt.Errorf("package %q has no name, version, size or sha256", p.Name)
	case p.Archive != Main && p.Archive != Security:
		return fmt.Errorf("package %q is from archive %q: want %s or %s", p.Name, p.Archive, Main, Security)
	case path.Clean(p.Path) != p.Path || !strings.HasPrefix(p.Path, "pool/"):
		return fmt.Errorf("package %q has path %q: want one below pool/", p.Name, p.Path)
	}
	return nil
}

// Marshal returns the text of a lock file.
func (l *Lock) Marshal() ([]byte, error) {
	text, err := json.MarshalIndent(l, "", "\t")
	return append(text, '\n'), err
}

// Write replaces the lock file name.
func (l *Lock) Write(name string) error {
	text, err := l.Marshal()
	if err != nil {
		return err
	}
	if err := atomicfile.WriteFile(name, text, 0o644); err != nil {
		return fmt.Errorf("write lock %q: %w", name, err)
	}
	return nil
}

// Find returns the package that the list calls name.
func (l *Lock) Find(name string) (Package, error) {
	for _, p := range l.Packages {
		if p.Name == name || p.For == name {
			return p, nil
		}
	}
	return Package{}, fmt.Errorf("package %q is not in the %s lock: add it to the list in rootfs/ and run make lock", name, l.Architecture)
}

// Changes says what differs from old (which may be nil) to l, a line each.
func (l *Lock) Changes(old *Lock) []string {
	was := map[string]Package{}
	if old != nil {
		for _, p := range old.Packages {
			was[p.listed()] = p
		}
	}
	var lines []string
	for _, p := range l.Packages {
		o, ok := was[p.listed()]
		delete(was, p.listed())
		switch {
		case !ok:
			lines = append(lines, fmt.Sprintf("%s %s (new)", p.Name, p.Version))
		case o.Version != p.Version:
			lines = append(lines, fmt.Sprintf("%s %s -> %s", p.listed(), o.Version, p.Version))
		case o != p:
			lines = append(lines, fmt.Sprintf("%s %s (another file of the same version)", p.Name, p.Version))
		}
	}
	for name, o := range was {
		lines = append(lines, fmt.Sprintf("%s %s (gone)", name, o.Version))
	}
	slices.Sort(lines)
	return lines
}

// older is Changes of those packages whose version is lower than in old.
func (l *Lock) older(old *Lock) ([]string, error) {
	var lines []string
	for _, p := range l.Packages {
		o, err := old.Find(p.listed())
		if err != nil {
			continue // new in the list
		}
		was, err := version.Parse(o.Version)
		if err != nil {
			return nil, fmt.Errorf("read version of %q in the lock: %w", o.Name, err)
		}
		is, err := version.Parse(p.Version)
		if err != nil {
			return nil, fmt.Errorf("read version of %q: %w", p.Name, err)
		}
		if version.Compare(is, was) < 0 {
			lines = append(lines, fmt.Sprintf("%s %s -> %s", p.listed(), o.Version, p.Version))
		}
	}
	return lines, nil
}

func (p Package) listed() string {
	if p.For != "" {
		return p.For
	}
	return p.Name
}

// Archive is where packages come from. Set its fields before the first use.
type Archive struct {
	Cache   *fetch.Cache
	Mirrors Mirrors
	// Keyring holds the keys that may sign an InRelease file.
	Keyring string
	// Strict makes a locked file that the archive has dropped an error.
	Strict bool
	// Notice receives one line at a time that somebody should read. May be nil.
	Notice func(string)
	// Now is the clock that signatures are judged by.
	Now func() time.Time

	mu       sync.Mutex // guards what was read from the archive in this run
	releases map[string]*release
	indexes  map[string]index
}

// DefaultKeyring is where Debian's package debian-archive-keyring puts its keys.
const DefaultKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// NewArchive returns the archive of this host's apt sources. LOCKED=strict in
// the environment makes it strict. Notices go where those of the cache go.
func NewArchive(cache *fetch.Cache) (*Archive, error) {
	mirrors, err := FindMirrors("/etc/apt")
	if err != nil {
		return nil, err
	}
	locked := os.Getenv("LOCKED")
	if locked != "" && locked != "strict" {
		return nil, fmt.Errorf("LOCKED is %q: it is either strict or not set", locked)
	}
	return &Archive{
		Cache: cache, Mirrors: mirrors, Keyring: DefaultKeyring,
		Strict: locked == "strict", Notice: cache.Notice, Now: time.Now,
	}, nil
}

func (a *Archive) notice(format string, args ...any) {
	if a.Notice != nil {
		a.Notice(fmt.Sprintf(format, args...))
	}
}

// Set is a lock whose files are in the cache.
type Set struct {
	Lock *Lock
	// Newer says that Lock is not the one that was asked for.
	Newer bool

	paths map[string]string
}

// Path returns the path of the .deb that the list calls name.
func (s *Set) Path(name string) (string, error) {
	p, err := s.Lock.Find(name)
	if err != nil {
		return "", err
	}
	return s.paths[p.Name], nil
}

// Fetch brings every package of lock into the cache. It needs no network when
// they are all there.
//
// When the archive has dropped one of them, the whole of list is resolved
// again, not that package alone: packages of one archive state fit together,
// old and new ones need not. Nothing goes back to a lower version that way: that
// is how a mirror looks that is behind, or that somebody holds back.
func (a *Archive) Fetch(ctx context.Context, list *List, lock *Lock) (*Set, error) {
	paths, gone, err := a.fetchAll(ctx, lock)
	if err != nil {
		return nil, err
	}
	if len(gone) == 0 {
		for _, s := range lock.Without {
			a.notice("WARNING: the %s lock was made without %s, so what that suite corrects is missing", lock.Architecture, s)
		}
		return &Set{Lock: lock, paths: paths}, nil
	}
	if a.Strict {
		return nil, fmt.Errorf("the archive no longer has %s, and LOCKED=strict forbids newer ones: run make lock", strings.Join(gone, ", "))
	}
	a.notice("WARNING: the archive no longer has %s", strings.Join(gone, ", "))
	newer, err := a.Resolve(ctx, list, lock.Architecture)
	if err != nil {
		return nil, fmt.Errorf("resolve a newer %s lock: %w", lock.Architecture, err)
	}
	older, err := newer.older(lock)
	if err != nil {
		return nil, err
	}
	if len(older) > 0 {
		return nil, fmt.Errorf("the archive has older packages than the %s lock (%s): try again later, set %s to another mirror, or run make lock if that is right", lock.Architecture, strings.Join(older, "; "), MirrorEnv)
	}
	a.notice("WARNING: this build uses what the archive has today instead of the %s lock (%s); make lock makes that the lock", lock.Architecture, strings.Join(newer.Changes(lock), "; "))
	paths, gone, err = a.fetchAll(ctx, newer)
	if err != nil {
		return nil, err
	}
	if len(gone) > 0 {
		return nil, fmt.Errorf("the archive's own index names %s, which it does not have: it is being updated; try again later or set %s to another mirror", strings.Join(gone, ", "), MirrorEnv)
	}
	return &Set{Lock: newer, Newer: true, paths: paths}, nil
}

// fetchAll returns where each package's file is, and which ones the archive
// no longer has.
func (a *Archive) fetchAll(ctx context.Context, lock *Lock) (paths map[string]string, gone []string, err error) {
	paths = map[string]string{}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, p := range lock.Packages {
		g.Go(func() error {
			name, err := a.get(ctx, p)
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(err, fetch.ErrGone) {
				gone = append(gone, p.Name+" "+p.Version)
				return nil
			}
			paths[p.Name] = name
			return err
		})
	}
	err = g.Wait()
	slices.Sort(gone)
	return paths, gone, err
}

func (a *Archive) get(ctx context.Context, p Package) (string, error) {
	name, err := a.Cache.Get(ctx, fetch.Item{
		Name:   fmt.Sprintf("%s_%s_%s.deb", p.Name, p.Version, p.Architecture),
		URLs:   []string{a.Mirrors[p.Archive] + "/" + p.Path},
		SHA256: p.SHA256, Size: p.Size,
	})
	return name, a.hint(err)
}

// hint adds what can be done about an archive that doesn't answer.
func (a *Archive) hint(err error) error {
	if errors.Is(err, fetch.ErrOffline) {
		return fmt.Errorf("%w; or set %s to a mirror that answers", err, MirrorEnv)
	}
	return err
}
