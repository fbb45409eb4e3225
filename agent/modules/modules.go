// Package modules loads kernel modules: by name, by alias, for the hardware
// that is there (coldplug) and for hardware that turns up later (uevents). It
// is what the kernel's own request_module reaches through /sbin/modprobe too.
//
// Left out: unloading, blacklists, install commands and modprobe.d options (an
// image's hardware is known to its builder), and making modules.dep and
// modules.alias (the builder writes them for what it kept). u-root's kmodule
// was not used: it knows no aliases and unpacks .xz in user space.
package modules

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Tree is one /lib/modules/<release>. It is not safe for concurrent use: two
// trees over the same folder are, since the kernel knows what is loaded.
type Tree struct {
	dir     string
	files   map[string]string   // module name → file below dir; "" is built in
	deps    map[string][]string // module name → files it needs
	softs   map[string][]string // module name → names or aliases worth loading before
	aliases map[string][]alias  // first part of a pattern, up to the colon → patterns
	insert  func(file string) error
	done    map[string]error // what was tried by this tree
	seen    map[string]bool  // aliases that Plug was called for
}

type alias struct {
	pattern, literal, module string // literal: the longest part without wildcards
}

// ErrUnknown says that a tree holds no module for a name.
var ErrUnknown = errors.New("no such module")

// Open reads the tree of the running kernel below root.
func Open(root string) (*Tree, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, fmt.Errorf("read kernel release: %w", err)
	}
	return open(filepath.Join(root, "lib/modules", unix.ByteSliceToString(u.Release[:])))
}

func open(dir string) (*Tree, error) {
	t := &Tree{dir: dir, files: map[string]string{}, deps: map[string][]string{}, softs: map[string][]string{},
		aliases: map[string][]alias{}, insert: insert, done: map[string]error{}, seen: map[string]bool{}}
	err := errors.Join(
		t.each("modules.dep", false, func(f []string) {
			file := strings.TrimSuffix(f[0], ":")
			t.files[Name(file)] = file
			t.deps[Name(file)] = f[1:]
		}),
		t.each("modules.builtin", true, func(f []string) { t.files[Name(f[0])] = "" }),
		t.each("modules.softdep", true, func(f []string) {
			if len(f) > 2 && f[0] == "softdep" && f[2] == "pre:" {
				for _, name := range f[3:] {
					if strings.HasSuffix(name, ":") {
						break
					}
					t.softs[Name(f[1])] = append(t.softs[Name(f[1])], name)
				}
			}
		}),
		t.each("modules.alias", true, func(f []string) {
			if len(f) == 3 && f[0] == "alias" {
				t.addAlias(f[1], f[2])
			}
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("read module tree: %w", err)
	}
	return t, nil
}

func (t *Tree) each(file string, optional bool, line func(fields []string)) error {
	f, err := os.Open(filepath.Join(t.dir, file))
	if optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if fields := strings.Fields(s.Text()); len(fields) > 0 && fields[0][0] != '#' {
			line(fields)
		}
	}
	return s.Err()
}

// Name returns a module's name as the kernel spells it, from a file name or
// any spelling of the name.
func Name(file string) string {
	name := path.Base(file)
	if i := strings.Index(name, ".ko"); i > 0 {
		name = name[:i]
	}
	return strings.ReplaceAll(name, "-", "_")
}

func (t *Tree) addAlias(pattern, module string) {
	// path.Match treats / as a separator, which no alias means.
	a := alias{pattern: strings.ReplaceAll(pattern, "/", "\x01"), module: Name(module)}
	for _, part := range strings.FieldsFunc(a.pattern, func(r rune) bool { return strings.ContainsRune("*?[]", r) }) {
		if len(part) > len(a.literal) && !strings.Contains(pattern, "["+part+"]") {
			a.literal = part
		}
	}
	key := bus(pattern)
	t.aliases[key] = append(t.aliases[key], a)
}

func bus(s string) string {
	if i := strings.IndexAny(s, ":*?["); i >= 0 {
		return s[:i]
	}
	return s
}

// Match returns the names of the modules that claim an alias, in the order of
// modules.alias, each once.
func (t *Tree) Match(name string) []string {
	var found []string
	s := strings.ReplaceAll(name, "/", "\x01")
	for _, a := range t.aliases[bus(name)] {
		if !strings.Contains(s, a.literal) {
			continue // thirty times cheaper than Match, and true of nearly all
		}
		if ok, err := path.Match(a.pattern, s); err == nil && ok {
			seen := false
			for _, m := range found {
				seen = seen || m == a.module
			}
			if !seen {
				found = append(found, a.module)
			}
		}
	}
	return found
}

// Load loads a module, and first what it needs; a name that is no module is
// taken as an alias, and all modules that claim it are tried. Loading what is
// built in or loaded already succeeds. A module that finds no hardware may
// return ENODEV.
func (t *Tree) Load(name string) error {
	n := Name(name)
	if _, ok := t.files[n]; ok {
		return t.load(n)
	}
	found := t.Match(name)
	if len(found) == 0 {
		return fmt.Errorf("load module %q: %w", name, ErrUnknown)
	}
	var errs []error
	for _, m := range found {
		if err := t.load(m); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) < len(found) {
		return nil // one that works is what the caller asked for
	}
	return errors.Join(errs...)
}

func (t *Tree) load(name string) error {
	if err, tried := t.done[name]; tried {
		return err
	}
	file, ok := t.files[name]
	switch {
	case !ok:
		return fmt.Errorf("load module %q: %w", name, ErrUnknown)
	case file == "":
		return nil
	}
	// What comes back here before this is loaded would wait for itself.
	t.done[name] = fmt.Errorf("load module %q: its dependencies form a circle", name)
	t.done[name] = t.loadAfter(name, file)
	return t.done[name]
}

func (t *Tree) loadAfter(name, file string) error {
	for _, soft := range t.softs[name] {
		t.Load(soft) // a wish, not a need; names a module or an alias like crc32c
	}
	for _, dep := range t.deps[name] {
		if err := t.load(Name(dep)); err != nil {
			return err
		}
	}
	if err := t.insert(filepath.Join(t.dir, file)); err != nil {
		return fmt.Errorf("load module %q: %w", name, err)
	}
	return nil
}

// insert gives one file to the kernel, which unpacks it itself.
func insert(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(file, ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// ReadList reads a list of modules from a file, one a line; # begins a comment.
func ReadList(file string) (names []string, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read module list: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		name, _, _ := strings.Cut(line, "#")
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	return names, nil
}

// LoadAll loads modules in order. All are tried; those for other boards'
// hardware (ENODEV) are no error.
func (t *Tree) LoadAll(names []string) error {
	var errs []error
	for _, name := range names {
		if err := t.Load(name); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Coldplug loads the modules for every device below sys (normally /sys), and
// again while loading one makes new devices appear. It returns what went
// wrong; a device no module claims and a module that finds no hardware are
// normal.
func (t *Tree) Coldplug(sys string) error {
	var errs []error
	for grown := true; grown; {
		grown = false
		err := filepath.WalkDir(filepath.Join(sys, "devices"), func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != "modalias" {
				return nil // devices may go while we walk
			}
			data, err := os.ReadFile(p)
			name := strings.TrimSpace(string(data))
			if err != nil || name == "" || t.seen[name] {
				return nil
			}
			grown = true
			errs = append(errs, t.Plug(name))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

// Plug loads the modules for one device's alias, once.
func (t *Tree) Plug(alias string) error {
	if t.seen[alias] {
		return nil
	}
	t.seen[alias] = true
	var errs []error
	for _, m := range t.Match(alias) {
		if err := t.load(m); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Seen is the set of aliases that Plug was called for.
func (t *Tree) Seen() map[string]bool { return t.seen }

// Modprobe is the command line of /sbin/modprobe, as the kernel, kube-proxy
// and container tools call it: options are accepted and mean nothing, since
// loading is all there is.
func Modprobe(args []string) error {
	t, err := Open("/")
	if err != nil {
		return err
	}
	for _, name := range args {
		switch {
		case strings.HasPrefix(name, "-"):
			if name == "-r" || name == "--remove" {
				return errors.New("unload module: not supported")
			}
		case strings.Contains(name, "="):
			return fmt.Errorf("set module parameter %q: not supported; put it on the kernel command line", name)
		default:
			if err := t.Load(name); err != nil {
				return err
			}
		}
	}
	return nil
}
