// Package node talks to a node's status API for an administrator. It makes a
// short-lived certificate from the cluster's root key for each run, and lets no
// node speak for another cluster. Its errors say what to do next.
//
// Left out: showing what they say.
package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/imagebuild/cluster"
	"skerry.internal/skerry/imagebuild/discover"
)

// Client speaks to one node.
type Client struct {
	cluster string
	address string // as the caller has named it
	host    string // of address
	hosts   []string
	name    string // of a node that may be on this machine's network; empty for an address
	port    string
	http    *http.Client
	tls     *tls.Config
	now     func() time.Time
}

const (
	dialTime   = 10 * time.Second
	searchTime = 3 * time.Second
)

// Dial prepares a client for the node at address: an IP address, a host name or
// a node's name, with a port where it is not api.Port. It connects with the
// first request. A name that the resolver doesn't know is looked for by mDNS.
func Dial(home, clusterName, address string) (*Client, error) {
	return dial(home, clusterName, address, time.Now)
}

func dial(home, clusterName, address string, now func() time.Time) (*Client, error) {
	cl, err := cluster.Open(home, clusterName)
	if err != nil {
		return nil, err
	}
	c := &Client{cluster: clusterName, address: address, now: now}
	if c.host, c.port, err = split(address); err != nil {
		return nil, err
	}
	c.hosts = []string{c.host}
	if label := strings.TrimSuffix(strings.ToLower(c.host), ".local"); !strings.ContainsAny(label, ".:") && label != "localhost" {
		c.name = label
		if label == strings.ToLower(c.host) {
			c.hosts = append(c.hosts, c.host+".local") // as nodes announce themselves
		}
	}
	cert, err := cl.AdminCertificate(now())
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(cl.Root())
	c.tls = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: c.host, Time: now,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }}
	c.http = c.over(c.tls)
	return c, nil
}

func split(address string) (host, port string, err error) {
	host, port = address, strconv.Itoa(api.Port)
	if _, err := netip.ParseAddr(address); err != nil { // not a bare IPv6 address
		if h, p, err := net.SplitHostPort(address); err == nil {
			host, port = h, p
		}
	}
	host = strings.Trim(host, "[]")
	if _, err := strconv.ParseUint(port, 10, 16); err != nil || host == "" || strings.ContainsAny(host, "/@ ") {
		return "", "", fmt.Errorf("address %q: want an address or a name, like 192.0.2.10 or barn-1", address)
	}
	return host, port, nil
}

func (c *Client) over(config *tls.Config) *http.Client {
	dialer := net.Dialer{Timeout: dialTime}
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: config, TLSHandshakeTimeout: dialTime, ResponseHeaderTimeout: 2 * time.Minute,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var errs []error
			try := func(hosts []string) net.Conn {
				for _, host := range hosts {
					conn, err := dialer.DialContext(ctx, network, net.JoinHostPort(host, c.port))
					if err == nil {
						return conn
					}
					errs = append(errs, err)
				}
				return nil
			}
			if conn := try(c.hosts); conn != nil {
				return conn, nil
			}
			// Many a resolver knows no names in .local (RFC 6762).
			if conn := try(c.search(ctx)); conn != nil {
				return conn, nil
			}
			return nil, errors.Join(errs...)
		},
	}}
}

// search asks on this machine's networks for the node of that name. Who answers is not
// proven; the certificate is what proves it.
func (c *Client) search(ctx context.Context) (addresses []string) {
	if c.name == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, searchTime)
	defer cancel()
	is := func(n discover.Node) bool { return strings.EqualFold(n.Name, c.name) }
	found, _ := discover.Find(ctx, is) // what the resolver said is reported then
	for _, n := range slices.DeleteFunc(found, func(n discover.Node) bool { return !is(n) }) {
		for _, a := range n.Addresses {
			addresses = append(addresses, a.String())
		}
	}
	return addresses
}

// Do sends a request. The answer's status is below 300; anything else is an
// error with what the node says.
func (c *Client) Do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	resp, err := c.send(ctx, c.http, method, path, body)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var said api.Error
	if json.Unmarshal(text, &said) != nil || said.Error == "" {
		said.Error = strings.TrimSpace(string(text))
	}
	if resp.StatusCode == http.StatusNotFound && said.Error == "404 page not found" {
		said.Error = "its version does not know this request; update the node"
	}
	return nil, fmt.Errorf("node %s: %s", c.address, said.Error)
}

func (c *Client) send(ctx context.Context, over *http.Client, method, path string, body io.Reader) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, "https://"+net.JoinHostPort(c.host, c.port)+path, body)
	if err != nil {
		return nil, err
	}
	return over.Do(r)
}

// explain makes of an error what it means and what to do.
func (c *Client) explain(ctx context.Context, err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // without method and URL
	}
	var dates x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var alert tls.AlertError
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &dates) && dates.Reason == x509.Expired:
		return c.explainDates(ctx, dates.Cert)
	case errors.As(err, &unknown):
		return fmt.Errorf("node %s does not belong to cluster %s: somebody else vouches for it; name its own with --cluster", c.address, c.cluster)
	case errors.As(err, &name) && len(name.Certificate.DNSNames)+len(name.Certificate.IPAddresses) == 0: // such as of an unclaimed one
		return fmt.Errorf("node %s does not belong to cluster %s: it has no cluster yet (skerry cluster claim), or is no Skerry node", c.address, c.cluster)
	case errors.As(err, &name):
		return fmt.Errorf("node %s: it does not know itself by that name, but by %s; use one of those", c.address, names(name.Certificate))
	case errors.As(err, &alert), errors.As(err, &op) && op.Op == "remote error":
		return fmt.Errorf("node %s refuses the administrators of cluster %s (%w): its cluster is another one (name it with --cluster), "+
			"or the clocks differ by hours (this machine says %s)", c.address, c.cluster, err, c.now().UTC().Format(time.RFC3339))
	case errors.As(err, &dns):
		return fmt.Errorf("node %s: nobody knows that name, and no node on this network has it (skerry discover lists who answers); use its address, which the node's console shows", c.address)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("node %s: the machine is there, but nothing answers on port %s: it is starting, belongs to no cluster yet, or is no Skerry node; its console says which", c.address, c.port)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &op) && op.Op == "dial":
		return fmt.Errorf("node %s does not answer (%w); check its power, its cable and the address", c.address, err)
	}
	return fmt.Errorf("node %s: %w", c.address, err)
}

func names(c *x509.Certificate) string {
	list := append([]string{}, c.DNSNames...)
	for _, ip := range c.IPAddresses {
		list = append(list, ip.String())
	}
	return strings.Join(list, ", ")
}

// explainDates asks the node for its time: its certificate has the wrong dates,
// so one of the two clocks is wrong. Only this one question is put to a node
// whose certificate is out of date; that the cluster vouches for it is checked
// as ever.
func (c *Client) explainDates(ctx context.Context, leaf *x509.Certificate) error {
	lenient := c.tls.Clone()
	lenient.Time = func() time.Time { return leaf.NotBefore.Add(time.Minute) }
	here, there := c.now().UTC(), "unknown"
	if resp, err := c.send(ctx, c.over(lenient), http.MethodGet, "/v1/status", nil); err == nil {
		defer resp.Body.Close()
		var st api.Status
		if json.NewDecoder(resp.Body).Decode(&st) == nil {
			there = st.Time.UTC().Format(time.RFC3339)
		}
	}
	return fmt.Errorf("node %s: its certificate is valid from %s to %s, since the clocks differ: the node says it is %s, this machine %s; "+
		"correct this machine's clock, or give the node a time server (ntp in skerry.yaml)",
		c.address, leaf.NotBefore.UTC().Format(time.DateOnly), leaf.NotAfter.UTC().Format(time.DateOnly), there, here.Format(time.RFC3339))
}

// Status asks how the node is.
func (c *Client) Status(ctx context.Context) (st api.Status, raw []byte, err error) {
	resp, err := c.Do(ctx, http.MethodGet, "/v1/status", nil)
	if err != nil {
		return st, nil, err
	}
	defer resp.Body.Close()
	if raw, err = io.ReadAll(io.LimitReader(resp.Body, 4<<20)); err == nil {
		err = json.Unmarshal(raw, &st)
	}
	if err != nil {
		return st, nil, fmt.Errorf("read the status of node %s: %w", c.address, err)
	}
	return st, raw, nil
}

// Logs copies the last lines of a log to w, and with follow what comes.
func (c *Client) Logs(ctx context.Context, w io.Writer, log string, lines int, follow bool) error {
	return c.copy(ctx, w, fmt.Sprintf("/v1/logs/%s?lines=%d&follow=%v", url.PathEscape(log), lines, follow))
}

// Support copies a support bundle to w.
func (c *Client) Support(ctx context.Context, w io.Writer) error {
	return c.copy(ctx, w, "/v1/support")
}

func (c *Client) copy(ctx context.Context, w io.Writer, path string) error {
	resp, err := c.Do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("read from node %s: %w", c.address, err)
	}
	return nil
}

// Reboot restarts the node, or powers it off.
func (c *Client) Reboot(ctx context.Context, off bool) error {
	mode := "reboot"
	if off {
		mode = "poweroff"
	}
	return c.post(ctx, "/v1/reboot", map[string]string{"mode": mode})
}

// Reset empties the node, whose name must be repeated.
func (c *Client) Reset(ctx context.Context, confirm string) error {
	return c.post(ctx, "/v1/reset", map[string]string{"confirm": confirm})
}

func (c *Client) post(ctx context.Context, path string, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	resp, err := c.Do(ctx, http.MethodPost, path, strings.NewReader(string(data)))
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
