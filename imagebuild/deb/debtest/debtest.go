// Package debtest is a throw-away Debian archive for tests: real packages, a
// real signed index and a real web server, all made in the test's process, so
// that nothing has to be faked in the code that reads them.
//
// Left out: what no test needs, such as maintainer scripts, and uncompressed
// or differently compressed indexes.
package debtest

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Package is one binary package.
type Package struct {
	Name, Version, Arch       string
	Depends, Provides, Suites string // Suites are those that list it; empty is the one that is published
	Component                 string // empty is main
	Files                     []tar.Header
	Content                   map[string]string // by name in Files; sets the size
	Compress                  string            // of data.tar: "xz" (also if empty), "zst" or "gz"
}

// Archive is a running archive. Its addresses are URL and URL + "-security".
type Archive struct {
	URL     string
	Keyring string // a file with the public key

	key *openpgp.Entity

	mu    sync.Mutex // guards what follows
	files map[string][]byte
	asked []string
}

// New starts an empty archive that ends with the test.
func New(t testing.TB) *Archive {
	t.Helper()
	// A kind of key that takes no time to make.
	key, err := openpgp.NewEntity("debtest", "", "debtest@example.com", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	if err != nil {
		t.Fatal(err)
	}
	var public bytes.Buffer
	if err := key.Serialize(&public); err != nil {
		t.Fatal(err)
	}
	a := &Archive{Keyring: filepath.Join(t.TempDir(), "keyring.gpg"), key: key, files: map[string][]byte{}}
	if err := os.WriteFile(a.Keyring, public.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(a.serve))
	t.Cleanup(server.Close)
	a.URL = server.URL + "/debian"
	return a
}

func (a *Archive) serve(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.asked = append(a.asked, r.URL.Path)
	content, ok := a.files[r.URL.Path]
	a.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Write(content)
}

// Asked returns the paths that were asked for so far.
func (a *Archive) Asked() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.asked)
}

// Change replaces each file whose path contains part by what edit makes of it
// and drops it where that is nil. It fails the test when there is none.
func (a *Archive) Change(t testing.TB, part string, edit func([]byte) []byte) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for path, content := range a.files {
		if !strings.Contains(path, part) {
			continue
		}
		n++
		if changed := edit(bytes.Clone(content)); changed != nil {
			a.files[path] = changed
		} else {
			delete(a.files, path)
		}
	}
	if n == 0 {
		t.Fatalf("the archive has no file with %q in its path", part)
	}
}

// Drop is a Change that takes files away.
func (a *Archive) Drop(t testing.TB, part string) {
	t.Helper()
	a.Change(t, part, func([]byte) []byte { return nil })
}

// Publish makes the archive hold exactly these packages and signs its indexes
// of suite, suite-updates and suite-security for arch.
func (a *Archive) Publish(t testing.TB, suite, arch string, packages ...Package) {
	t.Helper()
	a.publish(t, suite, arch, time.Now().Add(time.Hour), packages, false)
}

// PublishToo is Publish of another suite beside what the archive holds.
func (a *Archive) PublishToo(t testing.TB, suite, arch string, packages ...Package) {
	t.Helper()
	a.publish(t, suite, arch, time.Now().Add(time.Hour), packages, true)
}

// PublishStale is Publish with an index that was valid until an hour ago.
func (a *Archive) PublishStale(t testing.TB, suite, arch string, packages ...Package) {
	t.Helper()
	a.publish(t, suite, arch, time.Now().Add(-time.Hour), packages, false)
}

func (a *Archive) publish(t testing.TB, suite, arch string, valid time.Time, packages []Package, keep bool) {
	t.Helper()
	files := map[string][]byte{}
	components := []string{"main"}
	for _, p := range packages {
		if p.Component != "" && !slices.Contains(components, p.Component) {
			components = append(components, p.Component)
		}
	}
	for _, s := range []struct{ root, suite string }{
		{"/debian", suite}, {"/debian", suite + "-updates"}, {"/debian-security", suite + "-security"},
	} {
		dists := s.root + "/dists/" + s.suite + "/"
		var sums strings.Builder
		for _, component := range components {
			var index strings.Builder
			for _, p := range packages {
				if cmp.Or(p.Component, "main") != component || !slices.Contains(strings.Fields(cmp.Or(p.Suites, suite)), s.suite) {
					continue
				}
				pool := fmt.Sprintf("pool/%s/%s_%s_%s.deb", component, p.Name, p.Version, p.Arch)
				text := Build(t, p)
				files[s.root+"/"+pool] = text
				fmt.Fprintf(&index, "Package: %s\nVersion: %s\nArchitecture: %s\nDepends: %s\nProvides: %s\nDescription: x\n y\nFilename: %s\nSize: %d\nSHA256: %x\n\n",
					p.Name, p.Version, p.Arch, p.Depends, p.Provides, pool, len(text), sha256.Sum256(text))
			}
			packed := compress(t, "xz", []byte(index.String()))
			name := component + "/binary-" + arch + "/Packages.xz"
			files[dists+name] = packed
			files[dists+filepath.Dir(name)+fmt.Sprintf("/by-hash/SHA256/%x", sha256.Sum256(packed))] = packed
			fmt.Fprintf(&sums, " %x %d %s\n", sha256.Sum256(packed), len(packed), name)
		}
		files[dists+"InRelease"] = a.sign(t, fmt.Sprintf("Codename: %s\nValid-Until: %s\nAcquire-By-Hash: yes\nSHA256:\n%s",
			s.suite, valid.UTC().Format(time.RFC1123), &sums))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !keep {
		clear(a.files)
	}
	maps.Copy(a.files, files)
}

func (a *Archive) sign(t testing.TB, text string) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := clearsign.Encode(&out, a.key.PrivateKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Build returns the package as a .deb file.
func Build(t testing.TB, p Package) []byte {
	t.Helper()
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: %s\nMaintainer: x <x@example.com>\nDescription: x\n", p.Name, p.Version, p.Arch)
	method := p.Compress
	if method == "" {
		method = "xz"
	}
	var out bytes.Buffer
	out.WriteString("!<arch>\n")
	for _, member := range []struct {
		name string
		data []byte
	}{
		{"debian-binary", []byte("2.0\n")},
		{"control.tar.gz", compress(t, "gz", tarOf(t, []tar.Header{{Name: "./control", Mode: 0o644}}, map[string]string{"./control": control}))},
		{"data.tar." + method, compress(t, method, tarOf(t, p.Files, p.Content))},
	} {
		fmt.Fprintf(&out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", member.name, 0, 0, 0, "100644", len(member.data))
		out.Write(member.data)
		if len(member.data)%2 == 1 {
			out.WriteByte('\n')
		}
	}
	return out.Bytes()
}

func tarOf(t testing.TB, files []tar.Header, content map[string]string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range files {
		h.Size = int64(len(content[h.Name]))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content[h.Name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func compress(t testing.TB, method string, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch method {
	case "xz":
		w, err = xz.NewWriter(&out)
	case "zst":
		w, err = zstd.NewWriter(&out)
	case "gz":
		w = gzip.NewWriter(&out)
	default:
		t.Fatalf("no compression method %q", method)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
