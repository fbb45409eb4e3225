package boot

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/pki"
	"skerry.internal/skerry/agent/provision"
	"skerry.internal/skerry/agent/supervise"
)

// The status API waits for a cluster, starts once, and ends with the system.
func TestStartStatus(t *testing.T) {
	s, console := system(t)
	s.units = supervise.New(supervise.Config{LogDir: t.TempDir()})
	s.learn(func(k *known) { k.hostname = "barn-1" })
	dir := t.TempDir()
	start := func() {
		t.Helper()
		if err := s.startStatusOn("127.0.0.1:0", dir); err != nil {
			t.Fatal(err)
		}
	}
	start()
	if s.serving || !strings.Contains(console(), "belongs to no cluster") {
		t.Fatalf("startStatus() without a bundle: serving %v; console %q", s.serving, console())
	}

	now := time.Now()
	root, err := pki.NewRoot("home", now)
	if err != nil {
		t.Fatal(err)
	}
	inter, err := root.NewIntermediate("node", now)
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.KeyPEM(inter.Key)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := (&provision.Bundle{Cluster: "home", Role: provision.RoleServer, Created: now, CACert: pki.CertPEM(root.Cert),
		IntermediateCert: pki.CertPEM(inter.Cert), IntermediateKey: key}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, provision.FileName), bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	start()
	start()
	found := regexp.MustCompile(`status API on (\S+)`).FindAllStringSubmatch(console(), -1)
	if len(found) != 1 {
		t.Fatalf("console = %q; want one start", console())
	}

	certPEM, keyPEM, err := root.Issue(pki.Leaf{CommonName: "admin"}, now)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(root.Cert)
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}, ServerName: "barn-1.local"}}}
	resp, err := client.Get("https://" + found[0][1] + "/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var st api.Status
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil || st.Node.Name != "barn-1" || st.Node.Cluster != "home" || st.Node.Role != "server" {
		t.Errorf("GET /v1/status = %+v, %v; want barn-1 of home", st.Node, err)
	}

	s.cancel()
	for deadline := time.Now().Add(20 * time.Second); ; {
		resp, err := client.Get("https://" + found[0][1] + "/v1/status")
		if err != nil {
			break
		}
		resp.Body.Close()
		if time.Now().After(deadline) {
			t.Fatal("the status API answers after the system's end")
		}
	}
}
