package tree

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"path"
	"strings"
)

// CheckLibraries reads every ELF file of the tree and makes sure that its
// interpreter and each library it needs are in the tree too, where the dynamic
// linker looks: in dirs, in this order. All that is missing is reported, each
// with the file that needs it. A file for another machine is an error as well.
func (t *Tree) CheckLibraries(machine elf.Machine, dirs ...string) error {
	var errs []error
	for _, e := range t.Entries() {
		if !e.Mode.IsRegular() || strings.HasPrefix(e.Path, "usr/lib/modules/") {
			continue
		}
		f, err := openELF(e)
		if err != nil {
			errs = append(errs, fmt.Errorf("read %q from %s: %w", e.Path, e.From, err))
			continue
		}
		if f == nil {
			continue
		}
		if f.Machine != machine {
			errs = append(errs, fmt.Errorf("%s from %s: it is for %v, want %v", e.Path, e.From, f.Machine, machine))
			continue
		}
		errs = append(errs, t.checkFile(e, f, dirs)...)
	}
	return errors.Join(errs...)
}

func (t *Tree) checkFile(e Entry, f *elf.File, dirs []string) []error {
	var errs []error
	if s := f.Section(".interp"); s != nil {
		if b, err := s.Data(); err == nil {
			interp := strings.TrimRight(string(b), "\x00")
			if _, ok := t.Resolve(interp); !ok {
				errs = append(errs, fmt.Errorf("%s from %s needs the interpreter %s, which no package of the list brings", e.Path, e.From, interp))
			}
		}
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return append(errs, fmt.Errorf("read libraries of %q: %w", e.Path, err))
	}
	for _, lib := range needed {
		if !t.findLibrary(lib, dirs) {
			errs = append(errs, fmt.Errorf("%s from %s needs %s, which no package of the list brings", e.Path, e.From, lib))
		}
	}
	return errs
}

func (t *Tree) findLibrary(lib string, dirs []string) bool {
	for _, dir := range dirs {
		if _, ok := t.Resolve(path.Join(dir, lib)); ok {
			return true
		}
	}
	return false
}

// openELF returns nil for a file that is no ELF file.
func openELF(e Entry) (*elf.File, error) {
	r, size, err := e.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	head := make([]byte, 4)
	if n, _ := r.Read(head); n < 4 || size < 52 || !bytes.Equal(head, []byte(elf.ELFMAG)) {
		return nil, nil
	}
	b, err := e.Bytes()
	if err != nil {
		return nil, err
	}
	return elf.NewFile(bytes.NewReader(b))
}
