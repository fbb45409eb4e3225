// Package discover finds the nodes on the networks of this machine, by asking
// all of them at once (multicast DNS, RFC 6762, 5.1: one-shot queries).
//
// The questions come from a port of their own, so it works beside a resolver
// that has the port of mDNS, and needs no rights. The answers come to that port.
//
// Left out: announcing (agent/discovery); other services; a cache. What nodes
// say is not proven: any machine on the network may answer.
package discover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"skerry.internal/skerry/agent/api"
)

// Node is one answer.
type Node struct {
	Name string `json:"name"` // without .local
	// Addresses, the best to reach it by first. Those of IPv6's own link have
	// the interface of this machine with them.
	Addresses []netip.Addr `json:"addresses"`
	Port      int          `json:"port"`
	Cluster   string       `json:"cluster,omitempty"`
	Role      string       `json:"role,omitempty"`
	Version   string       `json:"version,omitempty"`
	Board     string       `json:"board,omitempty"`
	Claimed   bool         `json:"claimed"`
	ID        string       `json:"id,omitempty"`
}

const (
	mdnsPort = 5353
	service  = api.ServiceType + ".local."
	maxSize  = 9000
	repeat   = time.Second // a packet may be lost
)

// Find asks on all interfaces and collects answers until ctx ends; enough, if
// given, may end it sooner. The order is by name.
func Find(ctx context.Context, enough func(Node) bool) ([]Node, error) {
	q, err := question()
	if err != nil {
		return nil, fmt.Errorf("encode question: %w", err)
	}
	ifs, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found := make(chan Node)
	var asked atomic.Bool
	var broken error
	for _, i := range ifs {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagMulticast == 0 {
			continue
		}
		for _, open := range []func(net.Interface) (*net.UDPConn, *net.UDPAddr, error){open4, open6} {
			c, group, err := open(i)
			if err != nil {
				broken = errors.Join(broken, fmt.Errorf("ask on %s: %w", i.Name, err))
				continue
			}
			context.AfterFunc(ctx, func() { c.Close() })
			go ask(ctx, c, group, q, &asked)
			go listen(ctx, c, i.Name, found)
		}
	}
	nodes := map[string]Node{}
	for {
		select {
		case <-ctx.Done():
			// An answer may come before ask gets to say that it has asked.
			if !asked.Load() && len(nodes) == 0 {
				return nil, errors.Join(errors.New("find nodes: no network interface to ask on"), broken)
			}
			return slices.SortedFunc(values(nodes), func(a, b Node) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) }), nil
		case n := <-found:
			key := n.Name + "\x00" + n.ID
			if old, ok := nodes[key]; ok {
				n.Addresses = order(append(old.Addresses, n.Addresses...))
			}
			if len(nodes) < maxNodes {
				nodes[key] = n
			}
			if enough != nil && enough(n) {
				cancel()
			}
		}
	}
}

// maxNodes bounds what a hostile network can have us remember.
const maxNodes = 10000

func values(m map[string]Node) func(func(Node) bool) {
	return func(yield func(Node) bool) {
		for _, n := range m {
			if !yield(n) {
				return
			}
		}
	}
}

// question is who has a Skerry service; the answer may come to us alone.
func question() ([]byte, error) {
	return (&dnsmessage.Message{Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName(service), Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET | 1<<15,
	}}}).Pack()
}

func open4(i net.Interface) (*net.UDPConn, *net.UDPAddr, error) {
	c, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return nil, nil, err
	}
	p := ipv4.NewPacketConn(c)
	if err := errors.Join(p.SetMulticastInterface(&i), p.SetMulticastTTL(255)); err != nil {
		c.Close()
		return nil, nil, err
	}
	return c, &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: mdnsPort}, nil
}

func open6(i net.Interface) (*net.UDPConn, *net.UDPAddr, error) {
	c, err := net.ListenUDP("udp6", nil)
	if err != nil {
		return nil, nil, err
	}
	p := ipv6.NewPacketConn(c)
	if err := errors.Join(p.SetMulticastInterface(&i), p.SetMulticastHopLimit(255)); err != nil {
		c.Close()
		return nil, nil, err
	}
	return c, &net.UDPAddr{IP: net.ParseIP("ff02::fb"), Port: mdnsPort, Zone: i.Name}, nil
}

// ask sends the question now and then. It may not work at first, when the
// interface has just got its address.
func ask(ctx context.Context, c *net.UDPConn, group *net.UDPAddr, q []byte, asked *atomic.Bool) {
	again := time.NewTicker(repeat)
	defer again.Stop()
	for {
		if _, err := c.WriteTo(q, group); err == nil {
			asked.Store(true)
		}
		select {
		case <-ctx.Done():
			return
		case <-again.C:
		}
	}
}

// listen hands over what comes back.
func listen(ctx context.Context, c *net.UDPConn, zone string, found chan<- Node) {
	buf := make([]byte, maxSize)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // nobody listens there, as ICMP says
		}
		for _, node := range Parse(buf[:n], zone, from.Addr().Unmap()) {
			select {
			case found <- node:
			case <-ctx.Done():
				return
			}
		}
	}
}

// Parse reads the nodes from one answer, which came from an address over the
// interface zone. A node that names no address is where its answer came from.
func Parse(data []byte, zone string, from netip.Addr) []Node {
	var m dnsmessage.Message
	if m.Unpack(data) != nil || !m.Response {
		return nil
	}
	all := slices.Concat(m.Answers, m.Additionals)
	var nodes []Node
	for _, r := range m.Answers {
		p, ok := r.Body.(*dnsmessage.PTRResource)
		if !ok || r.Header.TTL == 0 || !strings.EqualFold(r.Header.Name.String(), service) {
			continue
		}
		instance := p.PTR.String()
		n, host := Node{Name: clean(strings.TrimSuffix(instance, "."+service))}, ""
		for _, r := range all {
			if !strings.EqualFold(r.Header.Name.String(), instance) {
				continue
			}
			switch b := r.Body.(type) {
			case *dnsmessage.SRVResource:
				n.Port, host = int(b.Port), b.Target.String()
			case *dnsmessage.TXTResource:
				a := api.ParseTXT(b.TXT)
				n.Cluster, n.Role, n.Version, n.Board, n.Claimed, n.ID = clean(a.Cluster), clean(a.Role), clean(a.Version), clean(a.Board), a.Claimed, clean(a.ID)
			}
		}
		for _, r := range all {
			if !strings.EqualFold(r.Header.Name.String(), host) {
				continue
			}
			switch b := r.Body.(type) {
			case *dnsmessage.AResource:
				n.Addresses = append(n.Addresses, netip.AddrFrom4(b.A))
			case *dnsmessage.AAAAResource:
				a := netip.AddrFrom16(b.AAAA)
				if a.IsLinkLocalUnicast() {
					a = a.WithZone(zone)
				}
				n.Addresses = append(n.Addresses, a)
			}
		}
		if n.Port == 0 {
			n.Port = api.Port
		}
		if len(n.Addresses) == 0 {
			n.Addresses = []netip.Addr{from}
		}
		n.Addresses = order(n.Addresses)
		nodes = append(nodes, n)
	}
	return nodes
}

// order puts IPv4 first, since people can type it, and what only works on this
// link last; each once.
func order(list []netip.Addr) []netip.Addr {
	rank := func(a netip.Addr) int {
		switch {
		case a.IsLinkLocalUnicast():
			return 2
		case a.Is6():
			return 1
		}
		return 0
	}
	slices.SortFunc(list, func(a, b netip.Addr) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), a.Compare(b)) })
	return slices.Compact(list)
}

// clean keeps what a stranger says from moving the cursor of a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s)
}
