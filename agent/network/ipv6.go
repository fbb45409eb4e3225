package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/config"
)

// setIPv6 tells the kernel how an interface speaks IPv6; dir is its folder in
// /proc/sys. A kernel without IPv6 has none.
func setIPv6(dir string, mode config.IPv6) error {
	// A node forwards packets, and a forwarding kernel listens to router
	// advertisements only when told so.
	settings := [][2]string{{"disable_ipv6", "0"}, {"accept_ra", "2"}, {"autoconf", "1"}}
	if mode == config.IPv6Off {
		settings = [][2]string{{"disable_ipv6", "1"}}
	}
	for _, s := range settings {
		err := os.WriteFile(filepath.Join(dir, s[0]), []byte(s[1]), 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", s[0], err)
		}
	}
	return nil
}

// addIPv6 gives an interface the address and the router of skerry.yaml. It
// needs no link, and both stay without one.
func addIPv6(link netlink.Link, i config.Interface) error {
	if !i.Address6.IsValid() {
		return nil
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipnet(i.Address6.Prefix)}); err != nil {
		return fmt.Errorf("add address %v: %w", i.Address6, err)
	}
	if !i.Gateway6.IsValid() {
		return nil
	}
	route := netlink.Route{LinkIndex: link.Attrs().Index, Dst: &net.IPNet{IP: net.IPv6unspecified, Mask: net.CIDRMask(0, 128)},
		Gw: i.Gateway6.AsSlice(), Protocol: unix.RTPROT_STATIC, Priority: 100 + link.Attrs().Index}
	route.SetFlag(netlink.FLAG_ONLINK) // the interface may have no link yet
	if err := netlink.RouteReplace(&route); err != nil {
		return fmt.Errorf("add route to ::/0 by %v: %w", i.Gateway6, err)
	}
	return nil
}

// address notes the IPv6 addresses of our interfaces, for network.json.
func (m *Manager) address(u netlink.AddrUpdate) {
	ip, ok := netip.AddrFromSlice(u.LinkAddress.IP)
	bits, _ := u.LinkAddress.Mask.Size()
	if !ok || !ip.Is6() || ip.Is4In6() || !ip.IsGlobalUnicast() || u.NewAddr && u.Flags&unix.IFA_F_TENTATIVE != 0 {
		return // one that is being tried out comes again when it is found free
	}
	if m.note(u.LinkIndex, netip.PrefixFrom(ip, bits), u.NewAddr) {
		m.publish()
	}
}

// note reports whether something has changed.
func (m *Manager) note(index int, p netip.Prefix, is bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ports[index] == nil {
		return false
	}
	at := slices.Index(m.ipv6[index], p)
	switch {
	case is && at < 0:
		m.ipv6[index] = append(slices.Clone(m.ipv6[index]), p)
		m.cfg.Printf("network: %s has address %v", m.ports[index].name, p)
	case !is && at >= 0:
		m.ipv6[index] = slices.Delete(slices.Clone(m.ipv6[index]), at, at+1)
	default:
		return false
	}
	return true
}
