package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"skerry.internal/skerry/agent/atomicfile"
)

// Ensure keeps the leaf in dir/name.crt and dir/name.key valid: it is made
// anew when it is missing or damaged, names something else, was signed by
// another authority, is not valid yet (a clock that jumped), or has less than a
// third of its life left. It reports whether it wrote.
func (a *Authority) Ensure(dir, name string, l Leaf, now time.Time) (changed bool, err error) {
	crt, key := filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	if a.usable(crt, key, l, now) {
		return false, nil
	}
	certPEM, keyPEM, err := a.Issue(l, now)
	if err != nil {
		return false, err
	}
	// The key first: after a cut between the two they don't match, which
	// usable sees.
	if err := write(key, keyPEM, 0o600); err != nil {
		return false, err
	}
	return true, write(crt, certPEM, 0o644)
}

func (a *Authority) usable(crt, key string, l Leaf, now time.Time) bool {
	pair, err := tls.LoadX509KeyPair(crt, key)
	if err != nil {
		return false
	}
	c, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil || c.CheckSignatureFrom(a.Cert) != nil {
		return false
	}
	life := c.NotAfter.Sub(c.NotBefore)
	// What ends with the authority can't be had any longer.
	late := now.After(c.NotAfter.Add(-life/3)) && c.NotAfter.Before(a.Cert.NotAfter)
	if now.Before(c.NotBefore) || late {
		return false
	}
	return c.Subject.CommonName == l.CommonName &&
		slices.Equal(c.Subject.Organization, l.Organization) &&
		slices.Equal(c.DNSNames, l.DNSNames) &&
		slices.EqualFunc(c.IPAddresses, l.IPs, net.IP.Equal)
}

// EnsureKey keeps an EC key in path, for signing tokens.
func EnsureKey(path string) error {
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key %q: %w", path, err)
	}
	keyPEM, err := KeyPEM(key)
	if err != nil {
		return err
	}
	return write(path, keyPEM, 0o600)
}

// Save writes the authority to dir/name.crt and dir/name.key.
func (a *Authority) Save(dir, name string) error {
	keyPEM, err := KeyPEM(a.Key)
	if err != nil {
		return err
	}
	if err := write(filepath.Join(dir, name+".key"), keyPEM, 0o600); err != nil {
		return err
	}
	return write(filepath.Join(dir, name+".crt"), CertPEM(a.Cert), 0o644)
}

// LoadAuthority is the inverse of Save.
func LoadAuthority(dir, name string) (*Authority, error) {
	crt, err := os.ReadFile(filepath.Join(dir, name+".crt"))
	if err != nil {
		return nil, fmt.Errorf("read CA certificate: %w", err)
	}
	key, err := os.ReadFile(filepath.Join(dir, name+".key"))
	if err != nil {
		return nil, fmt.Errorf("read CA key: %w", err)
	}
	return ParseAuthority(crt, key)
}

func write(path string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make directory of %q: %w", path, err)
	}
	if err := atomicfile.WriteFile(path, data, mode); err != nil {
		return fmt.Errorf("write %q: %w", path, err)
	}
	return nil
}
