package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// sources names what a case depends on, so that what has passed need not run
// again. For a package it is what git lists at HEAD, without docs (where the record
// is kept) and without other packages' test files: nothing imports them, but for
// the project's own package, whose tests read them all. For one of the tests that
// are recorded one by one it is the same, and of its own package's test files the
// declarations that the test uses.
type sources struct {
	all, built string            // sha256, with all test files and with none
	tests      map[string]string // the lines of git's list that are test files, by folder
	folder     string
	single     *testFiles
}

// findSources reads the project in the working directory, and the test files of a folder in it.
func findSources(folder string) (*sources, error) {
	files, err := exec.Command("git", "ls-tree", "-r", "HEAD").Output()
	if err != nil {
		return nil, fmt.Errorf("list files: %w", err)
	}
	s := &sources{folder: folder, tests: map[string]string{}}
	if s.single, err = readTestFiles(folder); err != nil {
		return nil, err
	}
	all, built := sha256.New(), sha256.New()
	for line := range strings.Lines(string(files)) {
		_, file, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if strings.HasPrefix(file, "docs/") {
			continue
		}
		all.Write([]byte(line))
		if strings.HasSuffix(file, "_test.go") {
			s.tests[path.Dir(file)] += line
		} else {
			built.Write([]byte(line))
		}
	}
	s.all, s.built = hex.EncodeToString(all.Sum(nil)), hex.EncodeToString(built.Sum(nil))
	return s, nil
}

// of returns what a case depends on: a package, or a package and one of its tests.
func (s *sources) of(p string) (string, error) {
	// What of a test is built, and how much of it is run, is the environment's.
	how := os.Getenv("GOFLAGS") + "\n" + os.Getenv("SKERRY_TEST_ALL") + "\n"
	folder, test, single := strings.Cut(p, ":")
	if !single {
		own := s.built + "\n" + s.tests[path.Clean(folder)]
		if path.Clean(folder) == "." {
			own = s.all
		}
		sum := sha256.Sum256([]byte(how + own))
		return hex.EncodeToString(sum[:]), nil
	}
	if folder != s.folder {
		return "", fmt.Errorf("%s: only the tests of %s are recorded one by one", p, s.folder)
	}
	used, err := s.single.used(test)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintln(h, how, s.built)
	for _, text := range used {
		fmt.Fprintf(h, "%d\n%s\n", len(text), text)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// testFiles are the declarations in the test files of one package.
type testFiles struct {
	declarations map[string][]*declaration // by name; a method by its own name, of whatever type
	always       []string                  // names that something outside the package calls
}

type declaration struct {
	text string
	uses []string
}

func readTestFiles(folder string) (*testFiles, error) {
	paths, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil || len(paths) == 0 {
		return nil, fmt.Errorf("%s has no test files: %v", folder, err)
	}
	f := &testFiles{declarations: map[string][]*declaration{}}
	var methods []string
	usedByName := map[string]bool{}
	for _, file := range paths {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		fset := token.NewFileSet()
		tree, err := parser.ParseFile(fset, file, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		add := func(name *ast.Ident, n ast.Node) {
			d := &declaration{text: string(text[fset.Position(n.Pos()).Offset:fset.Position(n.End()).Offset])}
			ast.Inspect(n, func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok && id != name {
					d.uses = append(d.uses, id.Name)
					usedByName[id.Name] = true
				}
				return true
			})
			f.declarations[name.Name] = append(f.declarations[name.Name], d)
		}
		for _, d := range tree.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv != nil {
					methods = append(methods, d.Name.Name)
				}
				add(d.Name, d)
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch spec := spec.(type) {
					case *ast.TypeSpec:
						add(spec.Name, d)
					case *ast.ValueSpec:
						for _, name := range spec.Names {
							add(name, d) // whole, for iota and for what a line inherits
							if name.Name == "_" {
								f.always = append(f.always, "_")
							}
						}
					}
				}
			}
		}
	}
	f.always = append(f.always, "init", "TestMain")
	for _, m := range methods { // such as String: an interface's method, called from elsewhere
		if !usedByName[m] {
			f.always = append(f.always, m)
		}
	}
	return f, nil
}

// used returns, sorted, the text of each declaration that a test may reach by a
// name. It rather takes too many: types are not resolved.
func (f *testFiles) used(test string) ([]string, error) {
	if len(f.declarations[test]) == 0 {
		return nil, fmt.Errorf("no test %s", test)
	}
	seen, next := map[string]bool{}, append([]string{test}, f.always...)
	texts := map[string]bool{}
	for len(next) > 0 {
		name := next[0]
		next = next[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		for _, d := range f.declarations[name] {
			texts[d.text] = true
			next = append(next, d.uses...)
		}
	}
	var list []string
	for text := range texts {
		list = append(list, text)
	}
	slices.Sort(list)
	return list, nil
}
