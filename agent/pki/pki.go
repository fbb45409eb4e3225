// Package pki makes the keys and certificates of a cluster (X.509, RFC 5280).
//
// Three levels: the root, whose key stays on the operator's machine; an
// intermediate for each server node, with an expiry of its own; the leaves that
// programs use. A leaf's file holds its chain up to the intermediate, so that a
// peer needs to trust the root only.
//
// Left out: revocation, which Kubernetes can't do by itself.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// Lifetimes. Certificates start an hour early: a peer's clock may be behind.
const (
	RootLife         = 20 * 365 * 24 * time.Hour
	IntermediateLife = 5 * 365 * 24 * time.Hour
	LeafLife         = 365 * 24 * time.Hour
	backdate         = time.Hour
)

// Authority is a CA certificate with its key.
type Authority struct {
	Cert  *x509.Certificate
	Key   crypto.Signer
	Chain []byte // PEM: this certificate, when it is an intermediate; leaves append it
}

// Leaf says what a certificate is for.
type Leaf struct {
	CommonName   string
	Organization []string // Kubernetes reads these as groups
	DNSNames     []string
	IPs          []net.IP
	Server       bool // may serve TLS; else it identifies a client
}

// NewRoot makes a cluster's root.
func NewRoot(cluster string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make root key: %w", err)
	}
	t := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "skerry root of " + cluster},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(RootLife),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	cert, err := sign(t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make root certificate: %w", err)
	}
	return &Authority{Cert: cert, Key: key}, nil
}

// NewIntermediate makes an authority below a that can sign leaves only.
func (a *Authority) NewIntermediate(name string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make intermediate key: %w", err)
	}
	t := &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: now.Add(-backdate), NotAfter: earlier(now.Add(IntermediateLife), a.Cert.NotAfter),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	cert, err := sign(t, a.Cert, key.Public(), a.Key)
	if err != nil {
		return nil, fmt.Errorf("make intermediate certificate: %w", err)
	}
	return &Authority{Cert: cert, Key: key, Chain: CertPEM(cert)}, nil
}

// Issue makes a key and a certificate for l; certPEM holds the whole chain
// below the root.
func (a *Authority) Issue(l Leaf, now time.Time) (certPEM, keyPEM []byte, err error) {
	return a.IssueFor(LeafLife, l, now)
}

// IssueFor is Issue with another lifetime.
func (a *Authority) IssueFor(life time.Duration, l Leaf, now time.Time) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key for %q: %w", l.CommonName, err)
	}
	usage := x509.ExtKeyUsageClientAuth
	if l.Server {
		usage = x509.ExtKeyUsageServerAuth
	}
	t := &x509.Certificate{
		Subject:   pkix.Name{CommonName: l.CommonName, Organization: l.Organization},
		NotBefore: now.Add(-backdate), NotAfter: earlier(now.Add(life), a.Cert.NotAfter),
		DNSNames: l.DNSNames, IPAddresses: l.IPs,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	cert, err := sign(t, a.Cert, key.Public(), a.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate for %q: %w", l.CommonName, err)
	}
	keyPEM, err = KeyPEM(key)
	return append(CertPEM(cert), a.Chain...), keyPEM, err
}

func sign(t, parent *x509.Certificate, pub any, key crypto.Signer) (*x509.Certificate, error) {
	// 20 bytes at most, positive, unpredictable: RFC 5280, 4.1.2.2.
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	t.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// CertPEM encodes a certificate.
func CertPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// KeyPEM encodes an EC key in the form that Kubernetes reads (SEC 1).
func KeyPEM(key crypto.Signer) ([]byte, error) {
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("encode key: got %T, want an EC key", key)
	}
	der, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// ParseCert reads the first certificate of a PEM text.
func ParseCert(text []byte) (*x509.Certificate, error) {
	b, _ := pem.Decode(text)
	if b == nil || b.Type != "CERTIFICATE" {
		return nil, errors.New("parse certificate: no PEM certificate")
	}
	return x509.ParseCertificate(b.Bytes)
}

// ParseAuthority reads a CA's certificate and key, and checks that they belong
// together. The certificate counts as an intermediate if it isn't self-signed.
func ParseAuthority(certPEM, keyPEM []byte) (*Authority, error) {
	cert, err := ParseCert(certPEM)
	if err != nil {
		return nil, err
	}
	b, _ := pem.Decode(keyPEM)
	if b == nil {
		return nil, errors.New("parse CA key: no PEM key")
	}
	key, err := x509.ParseECPrivateKey(b.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse CA key: %w", err)
	}
	if !cert.IsCA || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("parse CA %q: the key doesn't belong to the certificate", cert.Subject.CommonName)
	}
	a := &Authority{Cert: cert, Key: key}
	if cert.CheckSignatureFrom(cert) != nil {
		a.Chain = CertPEM(cert)
	}
	return a, nil
}
