package deb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/xi2/xz"
	"pault.ag/go/debian/control"

	"skerry.internal/skerry/imagebuild/fetch"
)

// maxInRelease is several times what Debian's have.
const maxInRelease = 4 << 20

// errNoIndex says that an archive has no usable index of a suite, which is
// what List.Fallback is for.
var errNoIndex = errors.New("the archive has no usable index (a mirror that is being updated looks like this: try again later, or set " + MirrorEnv + " to another one)")

// release is a verified InRelease file.
type release struct {
	url    string // of the suite's folder
	byHash bool
	files  map[string]indexFile
}

type indexFile struct {
	sum  fetch.SHA256
	size int64
}

// index is a Packages file: the paragraphs of each package's name.
type index map[string][]string

// release returns the verified InRelease file of a suite.
func (a *Archive) release(ctx context.Context, kind Kind, suite string) (*release, error) {
	url := a.Mirrors[kind] + "/dists/" + suite
	if r := a.releases[url]; r != nil {
		return r, nil
	}
	text, err := a.Cache.Text(ctx, suite+"'s InRelease", url+"/InRelease", maxInRelease)
	if errors.Is(err, fetch.ErrGone) {
		return nil, fmt.Errorf("%w: %w", errNoIndex, err)
	}
	if err != nil {
		return nil, a.hint(err)
	}
	r, err := a.verify(text, suite)
	if err != nil {
		return nil, fmt.Errorf("verify %s/InRelease: %w", url, err)
	}
	r.url = url
	if a.releases == nil {
		a.releases = map[string]*release{}
	}
	a.releases[url] = r
	return r, nil
}

// verify returns what an InRelease file says, if one of Debian's keys signed
// it, it is about suite and it is not an old one. Only what lies inside the
// signature is ever looked at.
func (a *Archive) verify(text []byte, suite string) (*release, error) {
	keyFile, err := os.Open(a.Keyring)
	if err != nil {
		return nil, fmt.Errorf("open Debian's keys (install the package debian-archive-keyring): %w", err)
	}
	defer keyFile.Close()
	keys, err := openpgp.ReadKeyRing(keyFile)
	if err != nil {
		return nil, fmt.Errorf("read Debian's keys in %q: %w", a.Keyring, err)
	}
	block, _ := clearsign.Decode(text)
	if block == nil {
		return nil, errors.New("it is not signed; is this a Debian archive?")
	}
	if _, err := block.VerifySignature(keys, &packet.Config{Time: a.Now}); err != nil {
		return nil, fmt.Errorf("the signature is not good (%w); don't use this mirror if it stays like that, or renew the package debian-archive-keyring if it is old", err)
	}
	var says struct {
		Codename, Suite string
		ValidUntil      string `control:"Valid-Until"`
		AcquireByHash   string `control:"Acquire-By-Hash"`
		SHA256          string
	}
	if err := control.Unmarshal(&says, bytes.NewReader(block.Plaintext)); err != nil {
		return nil, err
	}
	if says.Codename != suite && says.Suite != suite {
		return nil, fmt.Errorf("it is about %q, not about %q: is this another archive?", says.Codename, suite)
	}
	if says.ValidUntil != "" {
		until, err := time.Parse(time.RFC1123, says.ValidUntil)
		if err != nil {
			return nil, fmt.Errorf("read Valid-Until: %w", err)
		}
		if now := a.Now(); now.After(until) {
			return nil, fmt.Errorf("it was valid until %s and it is %s: the mirror is stale or this machine's clock is wrong", until.Format(time.DateTime), now.Format(time.DateTime))
		}
	}
	r := &release{byHash: says.AcquireByHash == "yes", files: map[string]indexFile{}}
	for line := range strings.Lines(says.SHA256) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) != 3 {
			return nil, fmt.Errorf("line %q: want sha256, size and path", strings.TrimSpace(line))
		}
		sum, err := fetch.ParseSHA256(f[0])
		if err != nil {
			return nil, err
		}
		size, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("line %q: %w", strings.TrimSpace(line), err)
		}
		r.files[f[2]] = indexFile{sum, size}
	}
	return r, nil
}

// index returns the Packages file of one component and architecture.
func (a *Archive) index(ctx context.Context, r *release, component, arch string) (index, error) {
	name := component + "/binary-" + arch + "/Packages.xz"
	file, ok := r.files[name]
	if !ok {
		return nil, fmt.Errorf("%s/InRelease names no %s: check components and architectures in the package list", r.url, name)
	}
	key := r.url + "/" + name
	if i := a.indexes[key]; i != nil {
		return i, nil
	}
	// The address by hash stays right while the mirror is being updated.
	item := fetch.Item{Name: path.Base(r.url) + " " + name, URLs: []string{key}, SHA256: file.sum, Size: file.size}
	if r.byHash {
		byHash := r.url + "/" + path.Dir(name) + "/by-hash/SHA256/" + file.sum.String()
		item.URLs = []string{byHash, key}
	}
	packed, err := a.Cache.Get(ctx, item)
	var bad *fetch.MismatchError
	if errors.As(err, &bad) || errors.Is(err, fetch.ErrGone) {
		return nil, fmt.Errorf("%w: %w", errNoIndex, err)
	}
	if err != nil {
		return nil, a.hint(err)
	}
	i, err := readIndex(packed)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	if a.indexes == nil {
		a.indexes = map[string]index{}
	}
	a.indexes[key] = i
	return i, nil
}

// readIndex splits a Packages.xz into paragraphs without decoding them: an
// index has some 70,000 and a list asks for a few dozen.
func readIndex(name string) (index, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	plain, err := xz.NewReader(f, 0)
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	if _, err := io.Copy(&text, plain); err != nil {
		return nil, err
	}
	i := index{}
	for p := range strings.SplitSeq(text.String(), "\n\n") {
		_, rest, ok := strings.Cut("\n"+p, "\nPackage: ")
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(rest, "\n")
		i[name] = append(i[name], p)
	}
	return i, nil
}
