package network

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/config"
)

// Address is the node's own address; invalid without one.
func (m *Manager) Address() netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	l, _ := m.primaryLocked()
	return l.Address.Addr()
}

// Problems says what is wrong with addresses that are in use.
func (m *Manager) Problems() (list []api.Problem) {
	m.mu.Lock()
	defer m.mu.Unlock()
	add := func(what, doing string) {
		list = append(list, api.Problem{Where: "network", What: what, Doing: doing})
	}
	for _, i := range slices.Sorted(maps.Keys(m.leases)) {
		l := m.leases[i]
		switch p := m.ports[i]; {
		case p != nil && !p.carrier:
			add(fmt.Sprintf("%s: no cable is plugged in; its address %s is kept", l.Interface, l.Address.Addr()), "pods run on; plug the cable in again")
		case l.Saved:
			add(fmt.Sprintf("%s: no DHCP server has answered; the last address, %s, is used", l.Interface, l.Address.Addr()), "it is asked again and again")
		}
		if m.partly[i] {
			add(fmt.Sprintf("%s: its routes are incomplete", l.Interface), "skerry node logs NODE kernel shows why; look at network.interfaces in "+config.FileName)
		}
	}
	for _, port := range slices.Sorted(maps.Keys(m.silent)) {
		add(fmt.Sprintf("%s: gateway %s does not answer: no other network is reached", port, m.silent[port]),
			"it is asked again and again; look at network.interfaces in "+config.FileName)
	}
	for _, i := range slices.Sorted(maps.Keys(m.mtu)) {
		add(m.mtu[i], "correct mtu in "+config.FileName+", or what the DHCP server says of it")
	}
	return list
}

// Interfaces lists the wired interfaces as the kernel sees them now, whether
// a manager is at work or not. sys is normally /sys.
func Interfaces(sys string) []api.Interface {
	var list []api.Interface
	entries, _ := os.ReadDir(filepath.Join(sys, "class/net")) // sorted
	for _, e := range entries {
		if !Wired(sys, e.Name()) {
			continue
		}
		i := api.Interface{Name: e.Name(), MAC: attribute(sys, e.Name(), "address"),
			Plugged: attribute(sys, e.Name(), "carrier") == "1"} // unreadable while it is down
		if link, err := net.InterfaceByName(e.Name()); err == nil {
			addrs, _ := link.Addrs()
			for _, a := range addrs {
				if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
					i.Addresses = append(i.Addresses, p)
				}
			}
		}
		list = append(list, i)
	}
	return list
}

func attribute(sys, name, attr string) string {
	data, _ := os.ReadFile(filepath.Join(sys, "class/net", name, attr))
	return strings.TrimSpace(string(data))
}
