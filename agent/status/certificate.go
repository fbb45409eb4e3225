package status

import (
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"skerry.internal/skerry/agent/pki"
)

// certificate is the node's own certificate. It is looked at with every
// connection, so nobody has to be told of a new address or a clock that jumped,
// and it is never written to flash memory.
type certificate struct {
	mu   sync.Mutex // guards all that follows
	cert *tls.Certificate
	leaf pki.Leaf
}

func (c *certificate) get(cfg Config) (*tls.Certificate, error) {
	names, addresses := cfg.Names()
	leaf := pki.Leaf{CommonName: "skerry status API of " + names[0], Server: true, IPs: addresses}
	for _, name := range names {
		leaf.DNSNames = append(leaf.DNSNames, name, name+".local")
	}
	leaf.DNSNames = slices.Compact(append(leaf.DNSNames, "localhost"))
	now := cfg.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cert != nil && same(c.leaf, leaf) && fresh(c.cert, now) {
		return c.cert, nil
	}
	certPEM, keyPEM, err := cfg.Authority.Issue(leaf, now)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("use certificate of the status API: %w", err)
	}
	c.cert, c.leaf = &cert, leaf
	return c.cert, nil
}

func same(a, b pki.Leaf) bool {
	return a.CommonName == b.CommonName && slices.Equal(a.DNSNames, b.DNSNames) && slices.EqualFunc(a.IPs, b.IPs, net.IP.Equal)
}

// fresh reports whether the certificate is valid with a third of its life left.
func fresh(cert *tls.Certificate, now time.Time) bool {
	c := cert.Leaf
	life := c.NotAfter.Sub(c.NotBefore)
	return !now.Before(c.NotBefore) && now.Before(c.NotAfter.Add(-life/3))
}
