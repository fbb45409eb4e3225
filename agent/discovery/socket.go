package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

const (
	port    = 5353
	maxSize = 9000 // RFC 6762, 17
)

var (
	group4 = net.IPv4(224, 0, 0, 251)
	group6 = net.ParseIP("ff02::fb")
)

// packet is what has come in, and where.
type packet struct {
	data []byte
	from netip.AddrPort
	link int
}

// conn is one socket for each of IPv4 and IPv6; nil where there is none.
type conn struct {
	v4 *ipv4.PacketConn
	v6 *ipv6.PacketConn
}

// listen opens the sockets. Others may use the port too: pods on the host's
// network do.
func listen() (*conn, error) {
	share := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		return errors.Join(cerr, err)
	}}
	c := &conn{}
	p4, err4 := share.ListenPacket(context.Background(), "udp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err4 == nil {
		c.v4 = ipv4.NewPacketConn(p4)
		err4 = errors.Join(c.v4.SetControlMessage(ipv4.FlagInterface, true), c.v4.SetMulticastTTL(255), c.v4.SetTTL(255), c.v4.SetMulticastLoopback(true))
	}
	p6, err6 := share.ListenPacket(context.Background(), "udp6", fmt.Sprintf("[::]:%d", port))
	if err6 == nil {
		c.v6 = ipv6.NewPacketConn(p6)
		err6 = errors.Join(c.v6.SetControlMessage(ipv6.FlagInterface, true), c.v6.SetMulticastHopLimit(255), c.v6.SetHopLimit(255), c.v6.SetMulticastLoopback(true))
	}
	if err4 != nil && err6 != nil {
		c.close()
		return nil, fmt.Errorf("open mDNS socket: %w", errors.Join(err4, err6))
	}
	return c, nil
}

func (c *conn) close() {
	if c.v4 != nil {
		c.v4.Close()
	}
	if c.v6 != nil {
		c.v6.Close()
	}
}

// join follows a change of interfaces. An interface without one of the two
// protocols cannot join its group; it may get it later, so this is tried each time.
func (c *conn) join(old, now map[int]link, errorf func(string, ...any)) {
	for i, l := range old {
		if _, still := now[i]; !still { // maybe it exists no more
			ifi := &net.Interface{Index: i, Name: l.name}
			if c.v4 != nil {
				c.v4.LeaveGroup(ifi, &net.UDPAddr{IP: group4})
			}
			if c.v6 != nil {
				c.v6.LeaveGroup(ifi, &net.UDPAddr{IP: group6})
			}
		}
	}
	for i, l := range now {
		ifi := &net.Interface{Index: i, Name: l.name}
		var err4, err6 error = errors.ErrUnsupported, errors.ErrUnsupported
		if c.v4 != nil {
			err4 = c.v4.JoinGroup(ifi, &net.UDPAddr{IP: group4})
		}
		if c.v6 != nil {
			err6 = c.v6.JoinGroup(ifi, &net.UDPAddr{IP: group6})
		}
		in := errors.Is(err4, unix.EADDRINUSE) || errors.Is(err6, unix.EADDRINUSE)
		if err4 != nil && err6 != nil && !in {
			errorf("discovery: listen on %s: %v", l.name, errors.Join(err4, err6))
		}
	}
}

// read starts what hands over packets until ctx ends. Whoever cancels ctx must
// also close the sockets.
func (c *conn) read(ctx context.Context, running *sync.WaitGroup, out chan<- packet, broken chan<- error) {
	loop := func(read func([]byte) (int, int, net.Addr, error)) {
		running.Go(func() {
			err := safely(func() error {
				buf := make([]byte, maxSize)
				for {
					n, index, from, err := read(buf)
					if err != nil {
						return err
					}
					u, ok := from.(*net.UDPAddr)
					if !ok {
						continue
					}
					ap := u.AddrPort()
					p := packet{append([]byte(nil), buf[:n]...), netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), index}
					select {
					case out <- p:
					case <-ctx.Done():
						return ctx.Err()
					}
				}
			})
			broken <- fmt.Errorf("receive: %w", err)
		})
	}
	if c.v4 != nil {
		loop(func(b []byte) (int, int, net.Addr, error) {
			n, cm, from, err := c.v4.ReadFrom(b)
			if cm == nil {
				return n, 0, from, err
			}
			return n, cm.IfIndex, from, err
		})
	}
	if c.v6 != nil {
		loop(func(b []byte) (int, int, net.Addr, error) {
			n, cm, from, err := c.v6.ReadFrom(b)
			if cm == nil {
				return n, 0, from, err
			}
			return n, cm.IfIndex, from, err
		})
	}
}

// multicast sends to the group on one interface, over each protocol that it has
// an address of. An interface that has just gone is no error: its event is on
// the way.
func (c *conn) multicast(index int, l link, data []byte) {
	var has4, has6 bool
	for _, a := range l.addrs {
		has4 = has4 || a.Addr().Is4()
		has6 = has6 || a.Addr().Is6()
	}
	if has4 && c.v4 != nil {
		c.v4.WriteTo(data, &ipv4.ControlMessage{IfIndex: index}, &net.UDPAddr{IP: group4, Port: port})
	}
	if has6 && c.v6 != nil {
		c.v6.WriteTo(data, &ipv6.ControlMessage{IfIndex: index}, &net.UDPAddr{IP: group6, Port: port, Zone: l.name})
	}
}

// unicast sends to one.
func (c *conn) unicast(index int, to netip.AddrPort, data []byte) {
	switch {
	case to.Addr().Is4() && c.v4 != nil:
		c.v4.WriteTo(data, &ipv4.ControlMessage{IfIndex: index}, net.UDPAddrFromAddrPort(to))
	case to.Addr().Is6() && c.v6 != nil:
		c.v6.WriteTo(data, &ipv6.ControlMessage{IfIndex: index}, net.UDPAddrFromAddrPort(to))
	}
}
