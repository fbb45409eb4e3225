// Package cluster keeps a cluster's root key on the operator's machine, and
// makes from it what leaves that machine: provisioning bundles for nodes and
// kubeconfigs for people.
//
// Left out: talking to a cluster; everything here works with no network.
package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"skerry.internal/skerry/agent/pki"
	"skerry.internal/skerry/agent/provision"
)

// Cluster is one cluster's folder.
type Cluster struct {
	Name string
	Dir  string
	root *pki.Authority
}

var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// Home is where clusters are kept: $SKERRY_HOME, or skerry/ in the user's
// configuration directory.
func Home() (string, error) {
	if dir := os.Getenv("SKERRY_HOME"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("find configuration directory: %w; set SKERRY_HOME", err)
	}
	return filepath.Join(dir, "skerry"), nil
}

func locate(home, name string) (*Cluster, error) {
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("cluster name %q: want at most 63 lower-case letters, digits and hyphens, like home", name)
	}
	return &Cluster{Name: name, Dir: filepath.Join(home, "clusters", name)}, nil
}

// Create makes a new cluster's root. It refuses a name that exists: its key
// could not be made again.
func Create(home, name string, now time.Time) (*Cluster, error) {
	c, err := locate(home, name)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(c.Dir), 0o700); err != nil {
		return nil, fmt.Errorf("make clusters directory: %w", err)
	}
	if _, err := os.Lstat(c.Dir); err == nil {
		return nil, fmt.Errorf("cluster %q exists in %s; choose another name", name, c.Dir)
	}
	if c.root, err = pki.NewRoot(name, now); err != nil {
		return nil, err
	}
	// Made aside and renamed, so that a half-made cluster is never found.
	tmp, err := os.MkdirTemp(filepath.Dir(c.Dir), "."+name+".*")
	if err != nil {
		return nil, fmt.Errorf("make cluster directory: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := c.root.Save(tmp, "ca"); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, c.Dir); err != nil {
		return nil, fmt.Errorf("make cluster %q: %w", name, err)
	}
	return c, nil
}

// Open loads a cluster that Create made.
func Open(home, name string) (*Cluster, error) {
	c, err := locate(home, name)
	if err != nil {
		return nil, err
	}
	if c.root, err = pki.LoadAuthority(c.Dir, "ca"); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("no cluster %q in %s; make it with: skerry cluster create %s", name, filepath.Dir(c.Dir), name)
		}
		return nil, err
	}
	return c, nil
}

// Bundle makes the provisioning bundle of a new server node: an intermediate
// CA of its own, so that the root's key stays here.
func (c *Cluster) Bundle(now time.Time) ([]byte, error) {
	inter, err := c.root.NewIntermediate("skerry node of "+c.Name, now)
	if err != nil {
		return nil, err
	}
	key, err := pki.KeyPEM(inter.Key)
	if err != nil {
		return nil, err
	}
	return (&provision.Bundle{
		Cluster: c.Name, Role: provision.RoleServer, Created: now.UTC().Truncate(time.Second),
		CACert:           pki.CertPEM(c.root.Cert),
		IntermediateCert: pki.CertPEM(inter.Cert), IntermediateKey: key,
	}).Marshal()
}

// AdminCertificate makes an administrator's client certificate for TLS, valid
// for hours rather than a year: it is made anew whenever one is needed.
func (c *Cluster) AdminCertificate(now time.Time) (tls.Certificate, error) {
	certPEM, keyPEM, err := c.root.IssueFor(adminLife, pki.Leaf{CommonName: "admin", Organization: []string{"system:masters"}}, now)
	if err != nil {
		return tls.Certificate{}, err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("use administrator's certificate: %w", err)
	}
	return cert, nil
}

const adminLife = 12 * time.Hour

// Root is the cluster's root certificate.
func (c *Cluster) Root() *x509.Certificate { return c.root.Cert }

// Names lists the clusters that home holds.
func Names(home string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(home, "clusters"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list clusters: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && validName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Kubeconfig makes an administrator's kubeconfig for the API server at server,
// a URL, valid for pki.LeafLife.
func (c *Cluster) Kubeconfig(server string, now time.Time) ([]byte, error) {
	cert, key, err := c.root.Issue(pki.Leaf{CommonName: "admin", Organization: []string{"system:masters"}}, now)
	if err != nil {
		return nil, err
	}
	k := api.NewConfig()
	k.Clusters[c.Name] = &api.Cluster{Server: server, CertificateAuthorityData: pki.CertPEM(c.root.Cert)}
	k.AuthInfos["admin@"+c.Name] = &api.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	k.Contexts[c.Name] = &api.Context{Cluster: c.Name, AuthInfo: "admin@" + c.Name}
	k.CurrentContext = c.Name
	data, err := clientcmd.Write(*k)
	if err != nil {
		return nil, fmt.Errorf("encode kubeconfig: %w", err)
	}
	return data, nil
}
