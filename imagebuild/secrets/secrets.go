// Package secrets looks for private keys and tokens in bytes: in a whole image,
// and inside what is packed in it. Images are the same for everybody, so nothing
// secret may ever be in one.
//
// It knows PEM private keys (whole ones: programs contain the header line alone
// as a string), also in base64, as kubeconfigs and provisioning bundles hold
// them, and JSON web tokens, as Kubernetes' service account tokens are.
// Left out: keys in DER, which look like any other bytes, and passwords.
package secrets

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"regexp"

	"github.com/klauspost/compress/zstd"
)

// Finding is one secret.
type Finding struct {
	Where  string // file, and for packed ones what is in it: "initrd.img: zstd"
	Offset int64  // in the unpacked bytes
	What   string
}

func (f Finding) String() string {
	return fmt.Sprintf("%s at byte %d of %s", f.What, f.Offset, f.Where)
}

var pemKey = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]{0,20}PRIVATE KEY-----\r?\n(?:[A-Za-z-]+: [^\n]*\n)*\r?\n?[A-Za-z0-9+/]{32}`)

var patterns = []struct {
	what    string
	literal []byte // is in every match: looking for it is a hundred times faster
	re      *regexp.Regexp
	is      func(match []byte) bool // where re alone can't tell; nil: it can
}{
	{"a private key", []byte("PRIVATE KEY-----"), pemKey, nil},
	// It begins like any PEM block, so most of these are certificates.
	{"a private key in base64", []byte("LS0tLS1CRUdJTi"), regexp.MustCompile(`LS0tLS1CRUdJTi[A-Za-z0-9+/]{64,512}`), func(match []byte) bool {
		text, err := base64.StdEncoding.DecodeString(string(match[:len(match)&^3]))
		return err == nil && pemKey.Match(text)
	}},
	{"a token", []byte(".eyJ"), regexp.MustCompile(`eyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{20,}`), nil},
}

const (
	chunk   = 8 << 20
	overlap = 16 << 10 // longer than any of our patterns needs to match
	depth   = 4
)

// Scan reads r to its end, and looks into it where it is gzip, zstd or tar.
func Scan(r io.Reader, name string) ([]Finding, error) { return scan(r, name, depth) }

func scan(r io.Reader, name string, depth int) ([]Finding, error) {
	head := make([]byte, 512)
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return nil, fmt.Errorf("scan %s: %w", name, err)
	}
	head = head[:n]
	whole := io.MultiReader(bytes.NewReader(head), r)
	if depth == 0 {
		return scanBytes(whole, name)
	}
	// What is packed is looked at packed as well: a secret may hide behind a header.
	pr, pw := io.Pipe()
	type result struct {
		found []Finding
		err   error
	}
	inner := make(chan result, 1)
	go func() {
		found, err := unpack(pr, head, name, depth)
		io.Copy(io.Discard, pr)
		inner <- result{found, err}
	}()
	found, err := scanBytes(io.TeeReader(whole, pw), name)
	pw.CloseWithError(err)
	in := <-inner
	if err == nil {
		err = in.err
	}
	return append(found, in.found...), err
}

func unpack(r io.Reader, head []byte, name string, depth int) ([]Finding, error) {
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, nil // it only looked like gzip
		}
		return scan(z, name+": gzip", depth-1)
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(r)
		if err != nil {
			return nil, nil
		}
		defer z.Close()
		return scan(z, name+": zstd", depth-1)
	case len(head) > 262 && string(head[257:262]) == "ustar":
		var all []Finding
		for t := tar.NewReader(r); ; {
			h, err := t.Next()
			if err == io.EOF {
				return all, nil
			}
			if err != nil {
				return all, fmt.Errorf("scan %s: %w", name, err)
			}
			found, err := scan(t, name+": "+h.Name, depth-1)
			all = append(all, found...)
			if err != nil {
				return all, err
			}
		}
	}
	return nil, nil
}

// scanBytes goes through the bytes in chunks that overlap.
func scanBytes(r io.Reader, name string) ([]Finding, error) {
	var found []Finding
	seen := map[string]bool{}
	buf := make([]byte, 0, chunk+overlap)
	for off := int64(0); ; {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		for _, p := range patterns {
			if !bytes.Contains(buf, p.literal) {
				continue
			}
			for _, m := range p.re.FindAllIndex(buf, -1) {
				if p.is != nil && !p.is(buf[m[0]:m[1]]) {
					continue
				}
				f := Finding{name, off + int64(m[0]), p.what}
				if k := f.String(); !seen[k] {
					seen[k] = true
					found = append(found, f)
				}
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return found, nil
		}
		if err != nil {
			return found, fmt.Errorf("scan %s: %w", name, err)
		}
		keep := copy(buf, buf[len(buf)-overlap:])
		off += int64(len(buf) - keep)
		buf = buf[:keep]
	}
}
