package network

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/config"
)

// entry is what skerry.yaml says of an interface or of a VLAN on it.
func (m *Manager) entry(name string, mac net.HardwareAddr, vlan int) config.Interface {
	for _, i := range m.cfg.Interfaces {
		if int(i.VLAN) == vlan && (i.Name == name || strings.EqualFold(string(i.MAC), mac.String())) {
			return i
		}
	}
	return config.Interface{}
}

// fixed is the lease that skerry.yaml makes for an interface, nil if none.
func fixed(name string, mac net.HardwareAddr, i config.Interface) *Lease {
	if !i.Address.IsValid() {
		return nil
	}
	l := &Lease{Interface: name, MAC: mac.String(), Address: i.Address, Fixed: true, DNS: []string{}}
	if i.Gateway.IsValid() {
		l.Gateway = i.Gateway.String()
	}
	l.override(i)
	return l
}

// override puts what skerry.yaml says in place of what a server says.
func (l *Lease) override(i config.Interface) {
	if i.Domain != "" {
		l.Domain = i.Domain
	}
	if i.MTU != 0 {
		l.MTU = i.MTU
	}
	if len(i.DNS) > 0 {
		l.DNS = nil
	}
	for _, d := range i.DNS {
		l.DNS = append(l.DNS, d.String())
	}
}

// gatewayPatience is how long a gateway may take to tell its hardware address:
// a switch can need half a minute until it passes anything on.
const gatewayPatience = 40 * time.Second

// watchGateway says when the gateway of a fixed address does not answer, and
// when it does after all: with DHCP a mistyped one can't be.
func (m *Manager) watchGateway(ctx context.Context, link netlink.Link, l Lease) {
	gateway := net.ParseIP(l.Gateway)
	if gateway == nil {
		return
	}
	begin, said := time.Now(), false
	defer m.setSilent(l.Interface, "")
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		answers, err := asked(link, gateway)
		switch {
		case answers:
			m.cfg.Printf("network: %s: gateway %v answers", l.Interface, gateway)
			return
		case !said && time.Since(begin) > gatewayPatience:
			m.cfg.Errorf("network: %s: gateway %v does not answer: nothing outside of %v is reached; look at network.interfaces in skerry.yaml", l.Interface, gateway, l.Address.Masked())
			if err != nil {
				m.cfg.Errorf("network: %s: ask for gateway %v: %v", l.Interface, gateway, err)
			}
			said = true
			m.setSilent(l.Interface, l.Gateway)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

func (m *Manager) setSilent(port, gateway string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if gateway == "" {
		delete(m.silent, port)
		return
	}
	m.silent[port] = gateway
}

// asked makes the kernel ask for the hardware address of a neighbour, and says
// whether it has it.
func asked(link netlink.Link, ip net.IP) (bool, error) {
	c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: ip, Port: 9}) // discard, RFC 863
	if err != nil {
		return false, err
	}
	_, err = c.Write([]byte{0})
	c.Close()
	if err != nil {
		return false, err
	}
	list, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		return false, fmt.Errorf("list neighbours: %w", err)
	}
	const known = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT
	for _, n := range list {
		if n.IP.Equal(ip) {
			return n.State&known != 0, nil
		}
	}
	return false, nil
}
