package pki

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func authorities(t *testing.T, now time.Time) (root, inter *Authority) {
	t.Helper()
	root, err := NewRoot("test", now)
	if err != nil {
		t.Fatal(err)
	}
	inter, err = root.NewIntermediate("test node", now)
	if err != nil {
		t.Fatal(err)
	}
	return root, inter
}

// The chain in a leaf's file must verify against the root alone.
func TestChain(t *testing.T) {
	now := time.Unix(1.8e9, 0)
	root, inter := authorities(t, now)
	certPEM, _, err := inter.Issue(Leaf{CommonName: "x", DNSNames: []string{"a.local"}, IPs: []net.IP{net.IPv4(10, 0, 0, 1)}, Server: true}, now)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ParseCert(certPEM)
	if err != nil {
		t.Fatal(err)
	}
	roots, chain := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root.Cert)
	verify := func(name string, at time.Time) error {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: chain, DNSName: name, CurrentTime: at})
		return err
	}
	if verify("a.local", now) == nil {
		t.Error("the leaf verifies without its intermediate; want an error")
	}
	chain.AppendCertsFromPEM(certPEM)
	for _, tt := range []struct {
		name string
		at   time.Time
		ok   bool
	}{
		{"a.local", now, true},
		{"10.0.0.1", now, true},
		{"b.local", now, false},
		{"a.local", now.Add(LeafLife + time.Hour), false},
		{"a.local", now.Add(-2 * time.Hour), false},
	} {
		if err := verify(tt.name, tt.at); (err == nil) != tt.ok {
			t.Errorf("verify %s at %v = %v; want ok %v", tt.name, tt.at, err, tt.ok)
		}
	}
	if _, _, err := leafAsCA(inter, leaf, now); err == nil {
		t.Error("a leaf can be parsed as an authority; want an error")
	}
}

func leafAsCA(a *Authority, leaf *x509.Certificate, now time.Time) (*Authority, []byte, error) {
	keyPEM, err := KeyPEM(a.Key)
	if err != nil {
		return nil, nil, err
	}
	got, err := ParseAuthority(CertPEM(leaf), keyPEM)
	return got, nil, err
}

func TestEnsure(t *testing.T) {
	now := time.Unix(1.8e9, 0)
	_, inter := authorities(t, now)
	_, other := authorities(t, now)
	l := Leaf{CommonName: "node", DNSNames: []string{"node"}, Server: true}
	moved := l
	moved.IPs = []net.IP{net.IPv4(10, 0, 0, 2)}
	for _, tt := range []struct {
		name   string
		a      *Authority
		l      Leaf
		now    time.Time
		damage func(dir string) error
		want   bool
	}{
		{name: "same", a: inter, l: l, now: now},
		{name: "half its life", a: inter, l: l, now: now.Add(LeafLife / 2)},
		{name: "last third", a: inter, l: l, now: now.Add(LeafLife * 3 / 4), want: true},
		{name: "as long as the authority", a: inter, l: l, now: now.Add(IntermediateLife - LeafLife/3), want: true},
		{name: "clock went back", a: inter, l: l, now: now.Add(-48 * time.Hour), want: true},
		{name: "new address", a: inter, l: moved, now: now, want: true},
		{name: "other authority", a: other, l: l, now: now, want: true},
		{name: "torn", a: inter, l: l, now: now, want: true, damage: func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "n.crt"), []byte("-----BEGIN CERT"), 0o644)
		}},
		{name: "key gone", a: inter, l: l, now: now, want: true, damage: func(dir string) error {
			return os.Remove(filepath.Join(dir, "n.key"))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if changed, err := inter.Ensure(dir, "n", l, now); err != nil || !changed {
				t.Fatalf("first Ensure() = %v, %v; want true", changed, err)
			}
			if tt.damage != nil {
				if err := tt.damage(dir); err != nil {
					t.Fatal(err)
				}
			}
			if changed, err := tt.a.Ensure(dir, "n", tt.l, tt.now); err != nil || changed != tt.want {
				t.Errorf("Ensure() = %v, %v; want %v", changed, err, tt.want)
			}
			if changed, err := tt.a.Ensure(dir, "n", tt.l, tt.now); err != nil || changed {
				t.Errorf("Ensure() again = %v, %v; want false", changed, err)
			}
		})
	}
}

// A certificate that ends with its authority is not made anew over and over: none would last longer.
func TestEnsureAtTheEnd(t *testing.T) {
	now := time.Unix(1.8e9, 0)
	_, inter := authorities(t, now)
	l := Leaf{CommonName: "node"}
	dir := t.TempDir()
	made := 0
	for day := range 6 * 365 {
		changed, err := inter.Ensure(dir, "n", l, now.AddDate(0, 0, day))
		if err != nil {
			t.Fatal(err)
		}
		if changed {
			made++
		}
	}
	if made < 7 || made > 8 {
		t.Errorf("%d certificates in six years, with an authority of five; want one for each 243 days of five years, and none after", made)
	}
}

func TestSaveLoad(t *testing.T) {
	dir := t.TempDir()
	root, inter := authorities(t, time.Now())
	for name, a := range map[string]*Authority{"root": root, "inter": inter} {
		if err := a.Save(dir, name); err != nil {
			t.Fatal(err)
		}
		got, err := LoadAuthority(dir, name)
		if err != nil || !got.Cert.Equal(a.Cert) || (len(got.Chain) > 0) != (name == "inter") {
			t.Errorf("LoadAuthority(%s) = %v, %v; want what was saved", name, got, err)
		}
	}
	keyPEM, _ := KeyPEM(inter.Key)
	if _, err := ParseAuthority(CertPEM(root.Cert), keyPEM); err == nil {
		t.Error("ParseAuthority(root, intermediate's key) = nil error; want one")
	}
}
