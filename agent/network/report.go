package network

import (
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"skerry.internal/skerry/agent/api"
)

// Address is the node's own address; invalid without one.
func (m *Manager) Address() netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	l, _ := m.primaryLocked()
	return l.Address.Addr()
}

// SilentGateways are the gateways of fixed addresses that do not answer, by
// interface.
func (m *Manager) SilentGateways() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.silent)
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
