package network

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// newPort is the port of an interface that is ours to manage: wired hardware,
// or a VLAN that skerry.yaml wants on one. Else nil.
func (m *Manager) newPort(link netlink.Link) *port {
	a := link.Attrs()
	p := &port{name: a.Name, mac: a.HardwareAddr}
	if v, ok := link.(*netlink.Vlan); ok {
		m.mu.Lock()
		parent := m.ports[a.ParentIndex]
		m.mu.Unlock()
		if parent == nil || parent.vlan != 0 {
			return nil
		}
		p.vlan = v.VlanId
		if p.entry = m.entry(parent.name, parent.mac, p.vlan); p.entry.VLAN == 0 {
			return nil // somebody else's
		}
	} else {
		if !m.wired(a.Name) {
			return nil
		}
		p.entry = m.entry(a.Name, a.HardwareAddr, 0)
	}
	p.fixed = fixed(a.Name, a.HardwareAddr, p.entry)
	return p
}

// addVLANs makes those that skerry.yaml wants on an interface. The kernel
// loads the module for them; their appearance is an event like any other's.
func (m *Manager) addVLANs(parent netlink.Link) {
	a := parent.Attrs()
	for _, i := range m.cfg.Interfaces {
		if i.VLAN == 0 || i.Name != a.Name && !strings.EqualFold(string(i.MAC), a.HardwareAddr.String()) {
			continue
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.ParentIndex = fmt.Sprintf("%s.%d", a.Name, i.VLAN), a.Index
		if err := netlink.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: int(i.VLAN), VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}); err != nil && !errors.Is(err, unix.EEXIST) {
			m.cfg.Errorf("network: make VLAN %s: %v", attrs.Name, err)
		}
	}
}

// saved is the file of an interface's last lease. A VLAN has the hardware
// address of its interface, so it needs a file of its own.
func (m *Manager) saved(link netlink.Link) string {
	v, ok := link.(*netlink.Vlan)
	if !ok || m.cfg.SavedLease == "" {
		return m.cfg.SavedLease
	}
	ext := filepath.Ext(m.cfg.SavedLease)
	return fmt.Sprintf("%s-%d%s", strings.TrimSuffix(m.cfg.SavedLease, ext), v.VlanId, ext)
}
