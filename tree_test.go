// Package skerry holds no code; its test keeps the rules of the tree.
package skerry

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const module = "skerry.internal/skerry/"

// pkg is what go list says of a package.
type pkg struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
	Deps                               []string
}

func list(t *testing.T) map[string]pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports,Deps", "./agent/...", "./imagebuild/...", "./rootfs/...", "./boards/...", "./manifests/...", "./qemu/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	pkgs := map[string]pkg{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs[strings.TrimPrefix(p.ImportPath, module)] = p
	}
	if len(pkgs) < 10 {
		t.Fatalf("%d packages; want the whole tree", len(pkgs))
	}
	return pkgs
}

// layers of agent, lowest first: a package imports packages of lower layers
// only. Features don't import each other: main hands one what it needs of
// another.
var layers = [][]string{
	{"atomicfile"},
	{"config", "slots", "provision", "notify", "api"},
	{"store", "pki", "registry", "unit", "kubeconfig", "boot", "mount", "supervise", "watchdog", "clock", "network", "modules", "verity", "status", "discovery", "claim", "console", "zram", "snapshots"},
	{"datastore", "controlplane", "kubelet", "proxy", "podnet", "dns", "addons", "hub", "tunnel", "offline", "devices", "broker", "update", "health"},
	{"cmd"},
}

func layer(name string) int {
	name = strings.SplitN(name, "/", 2)[0]
	for i, l := range layers {
		for _, p := range l {
			if p == name {
				return i
			}
		}
	}
	return -1
}

// only says which of our packages may import, directly, paths with a prefix.
var only = []struct {
	prefix string
	by     *regexp.Regexp
	why    string
}{
	{"k8s.io/kubernetes/", regexp.MustCompile(`^agent/(controlplane|kubelet|proxy)$`), "Kubernetes' globals live in three packages"},
	{"github.com/k3s-io/kine/", regexp.MustCompile(`^agent/datastore$`), "kine is one way to store"},
	{"github.com/mattn/go-sqlite3", regexp.MustCompile(`^agent/store$`), "one place decides durability"},
	{"github.com/containerd/containerd/v2/", regexp.MustCompile(`^agent/(kubelet|addons)$`), "containerd is reached over CRI"},
}

// initNever is what PID 1 must not even depend on.
var initNever = []string{"k8s.io/", "sigs.k8s.io/", "github.com/k3s-io/", "github.com/mattn/go-sqlite3", "github.com/containerd/containerd/", "github.com/google/go-containerregistry", "go.etcd.io/"}

// breaks returns the rules that an import breaks.
func breaks(from, to string) []string {
	var bad []string
	for _, r := range only {
		if strings.HasPrefix(to, r.prefix) && !r.by.MatchString(from) {
			bad = append(bad, r.why)
		}
	}
	to, ours := strings.CutPrefix(to, module)
	if !ours {
		return bad
	}
	fromTop, _, _ := strings.Cut(from, "/")
	toTop, toName, _ := strings.Cut(to, "/")
	switch {
	case fromTop == "agent" && toTop == "agent":
		l, m := layer(strings.TrimPrefix(from, "agent/")), layer(toName)
		if l < 0 || m < 0 {
			bad = append(bad, "a package of agent stands in no layer")
		} else if m > l || m == l && m == 3 {
			bad = append(bad, "imports go downward, and features don't import each other")
		}
	case fromTop == "agent" && toTop != "boards" && toTop != "manifests":
		bad = append(bad, "agent imports nothing from outside agent but data")
	case fromTop == "imagebuild" && toTop == "agent":
		// pki is shared on purpose: the operator's machine and the node make
		// certificates by the same code.
		if m := layer(toName); m > 1 && toName != "pki" {
			bad = append(bad, "imagebuild imports only the contracts of agent")
		}
	case (fromTop == "boards" || fromTop == "rootfs" || fromTop == "manifests") && fromTop != toTop:
		bad = append(bad, "boards, rootfs and manifests are data")
	case fromTop == "qemu" && toTop != "qemu" && toTop != "boards" && to != "imagebuild/fat":
		bad = append(bad, "qemu sees the product from outside")
	}
	return bad
}

func TestImports(t *testing.T) {
	for name, p := range list(t) {
		for _, to := range p.Imports {
			for _, why := range breaks(name, to) {
				t.Errorf("%s imports %s: %s", name, to, why)
			}
		}
		if name == "agent/cmd/init" {
			for _, dep := range p.Deps {
				for _, never := range initNever {
					if strings.HasPrefix(dep, never) {
						t.Errorf("init depends on %s", dep)
					}
				}
			}
		}
	}
	if _, ok := list(t)["agent/cmd/init"]; !ok {
		t.Error("agent/cmd/init is gone; its rule checked nothing")
	}
}

// The rules themselves must be able to fail.
func TestImportsNegative(t *testing.T) {
	for _, tt := range [][2]string{
		{"agent/datastore", module + "agent/controlplane"},
		{"agent/pki", module + "agent/dns"},
		{"agent/config", module + "imagebuild/deb"},
		{"agent/dns", "k8s.io/kubernetes/pkg/util"},
		{"imagebuild/deb", module + "agent/controlplane"},
		{"boards", module + "agent/slots"},
		{"qemu", module + "imagebuild/disk"},
		{"agent/nowhere", module + "agent/pki"},
		{"agent/hub", "github.com/mattn/go-sqlite3"},
	} {
		if len(breaks(tt[0], tt[1])) == 0 {
			t.Errorf("breaks(%s, %s) = none; want one", tt[0], tt[1])
		}
	}
}

// Each package says once what it is for; only commands end the process.
func TestSources(t *testing.T) {
	docs := map[string]int{}
	dirs := map[string]bool{}
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); n == "build" || n == "testdata" || file != "." && strings.HasPrefix(n, ".") {
				return filepath.SkipDir
			}
			return nil
		}
		if path.Ext(file) != ".go" {
			return nil
		}
		src, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if out, err := format.Source(src); err != nil || !bytes.Equal(out, src) {
			t.Errorf("%s: not gofmt-ed (%v)", file, err)
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, src, parser.ParseComments)
		if err != nil {
			return err
		}
		test := strings.HasSuffix(file, "_test.go")
		if !test || file == "tree_test.go" {
			dirs[filepath.Dir(file)] = true
			if f.Doc != nil {
				docs[filepath.Dir(file)]++
			}
		}
		if !test && f.Name.Name != "main" {
			ast.Inspect(f, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					if x, ok := s.X.(*ast.Ident); ok && (x.Name == "os" && s.Sel.Name == "Exit" || x.Name == "log" && strings.HasPrefix(s.Sel.Name, "Fatal")) {
						t.Errorf("%s: %s.%s outside a command", file, x.Name, s.Sel.Name)
					}
				}
				return true
			})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir := range dirs {
		if docs[dir] != 1 && dir != "qemu/e2e" {
			t.Errorf("%s: %d package comments; want one", dir, docs[dir])
		}
	}
}
