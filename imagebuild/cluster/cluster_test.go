package cluster

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"skerry.internal/skerry/agent/pki"
	"skerry.internal/skerry/agent/provision"
)

func TestCluster(t *testing.T) {
	home, now := t.TempDir(), time.Now()
	if _, err := Open(home, "barn"); err == nil {
		t.Error("Open(of a cluster never made) = nil; want an error")
	}
	for _, bad := range []string{"", "../x", "Barn", "a/b", "-a"} {
		if _, err := Create(home, bad, now); err == nil {
			t.Errorf("Create(%q) = nil; want an error", bad)
		}
	}
	if _, err := Create(home, "barn", now); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(home, "barn", now); err == nil {
		t.Error("Create(twice) = nil; want an error: the first key would be lost")
	}
	c, err := Open(home, "barn")
	if err != nil {
		t.Fatal(err)
	}
	rootKey, err := os.ReadFile(filepath.Join(c.Dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(c.Dir, "ca.key")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode of the root's key = %v, %v; want 0600", st.Mode(), err)
	}

	data, err := c.Bundle(now)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, rootKey[40:80]) {
		t.Error("the bundle holds the root's key")
	}
	b, err := provision.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	inter, err := pki.ParseAuthority(b.IntermediateCert, b.IntermediateKey)
	if err != nil {
		t.Fatal(err)
	}
	root, err := pki.ParseCert(b.CACert)
	if err != nil || inter.Cert.CheckSignatureFrom(root) != nil {
		t.Errorf("the intermediate is not signed by the bundle's CA: %v", err)
	}

	data, err = c.Kubeconfig("https://192.0.2.1:6443", now)
	if err != nil {
		t.Fatal(err)
	}
	k, err := clientcmd.RESTConfigFromKubeConfig(data)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := pki.ParseCert(k.CertData)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	if _, err := admin.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("the admin's certificate: %v", err)
	}
}
