package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"skerry.internal/skerry/agent/atomicfile"
)

// Lease is what a DHCP server has given to one interface. It is also the
// content of network.json, which other programs read.
type Lease struct {
	Interface string       `json:"interface"`
	MAC       string       `json:"mac"`
	Address   netip.Prefix `json:"address"` // with the length of the subnet's prefix
	Gateway   string       `json:"gateway,omitempty"`
	DNS       []string     `json:"dns"`
	Domain    string       `json:"domain,omitempty"`
	NTP       []string     `json:"ntp,omitempty"`
	Routes    []Route      `json:"routes,omitempty"` // those of option 121: they replace Gateway
	MTU       int          `json:"mtu,omitempty"`
	// IPv6 addresses of the interface, advertised and from skerry.yaml. Only
	// network.json has them: they belong to no lease.
	IPv6 []netip.Prefix `json:"ipv6,omitempty"`
	// Saved is true for the lease of an earlier boot, in use since no server
	// has answered in this one.
	Saved bool `json:"saved,omitempty"`
	// Fixed is true for an address from skerry.yaml.
	Fixed bool `json:"fixed,omitempty"`

	renew, rebind, expire time.Duration // from when it was given
}

// Route is one classless static route. An empty Via means directly connected.
type Route struct {
	To  netip.Prefix `json:"to"`
	Via string       `json:"via,omitempty"`
}

// minLease keeps a server with a silly lease time from being asked all day.
const minLease = time.Minute

// fromACK reads a server's answer.
func fromACK(name string, mac net.HardwareAddr, ack *dhcpv4.DHCPv4) (Lease, error) {
	addr, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	if !ok || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() {
		return Lease{}, fmt.Errorf("lease address %v: want an IPv4 address", ack.YourIPAddr)
	}
	bits, size := ack.SubnetMask().Size()
	if size != 32 {
		bits, size = net.IP(addr.AsSlice()).DefaultMask().Size() // a server that sends none
	}
	if size != 32 || bits < 1 {
		return Lease{}, fmt.Errorf("lease subnet mask %v: want an IPv4 mask", ack.SubnetMask())
	}
	l := Lease{Interface: name, MAC: mac.String(), Address: netip.PrefixFrom(addr, bits), DNS: texts(ack.DNS()), NTP: texts(ack.NTPServers())}
	l.Domain = domain(ack.DomainName())
	if r := texts(ack.Router()); len(r) > 0 {
		l.Gateway = r[0]
	}
	for _, r := range ack.ClasslessStaticRoute() {
		to, ok := netip.AddrFromSlice(r.Dest.IP.To4())
		if bits, size := r.Dest.Mask.Size(); ok && size == 32 {
			route := Route{To: netip.PrefixFrom(to, bits).Masked()}
			if !r.Router.IsUnspecified() {
				route.Via = r.Router.String()
			}
			l.Routes = append(l.Routes, route)
			if bits == 0 {
				l.Gateway = route.Via
			}
		}
	}
	if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options); err == nil && mtu >= 576 {
		l.MTU = int(mtu)
	}
	l.expire = max(ack.IPAddressLeaseTime(time.Hour), minLease)
	l.renew = min(ack.IPAddressRenewalTime(l.expire/2), l.expire/2)
	l.renew = max(l.renew, minLease/2)
	l.rebind = ack.IPAddressRebindingTime(l.expire / 8 * 7)
	if l.rebind <= l.renew || l.rebind > l.expire {
		l.rebind = l.renew + (l.expire-l.renew)/4*3
	}
	return l, nil
}

func texts(ips []net.IP) []string {
	out := []string{}
	for _, ip := range ips {
		if !ip.IsUnspecified() {
			out = append(out, ip.String())
		}
	}
	return out
}

// domain lets only names through: it is written into resolv.conf.
func domain(s string) string {
	s = strings.TrimRight(s, "\x00.")
	for _, r := range s {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._", r) {
			return ""
		}
	}
	return s
}

// wait says when to ask again, given the lease's age: at the renewal time, and
// from then on after half of what is left to the next border, as RFC 2131
// wants it, but never in less than a quarter of a minute.
func (l Lease) wait(age time.Duration) time.Duration {
	border := l.rebind
	switch {
	case age < l.renew:
		return l.renew - age
	case age >= l.expire:
		return minLease
	case age >= l.rebind:
		border = l.expire
	}
	return max((border-age)/2, minLease/4)
}

// same reports whether applying o after l would change nothing.
func (l Lease) same(o Lease) bool {
	l.Saved, o.Saved = false, false
	return l.Interface == o.Interface && l.MAC == o.MAC && l.Address == o.Address && l.Gateway == o.Gateway && l.Domain == o.Domain &&
		l.MTU == o.MTU && slices.Equal(l.DNS, o.DNS) && slices.Equal(l.NTP, o.NTP) && slices.Equal(l.Routes, o.Routes)
}

// resolvConf is the text of resolv.conf; the C library reads three servers.
func (l Lease) resolvConf() string {
	var b strings.Builder
	b.WriteString("# written by init\n")
	if l.Domain != "" {
		fmt.Fprintf(&b, "search %s\n", l.Domain)
	}
	for _, s := range l.DNS[:min(len(l.DNS), 3)] {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	return b.String()
}

func (l Lease) save(path string) error {
	data, err := json.MarshalIndent(l, "", " ")
	if err != nil {
		return fmt.Errorf("write lease: %w", err)
	}
	return atomicfile.WriteFile(path, append(data, '\n'), 0o644)
}

// load reads what save wrote; nil when there is none or it is for another
// interface.
func load(path, mac string) (*Lease, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read saved lease: %w", err)
	}
	var l Lease
	if err := json.Unmarshal(data, &l); err != nil {
		return nil, fmt.Errorf("read saved lease %q: %w", path, err)
	}
	if l.MAC != mac || !l.Address.IsValid() {
		return nil, nil
	}
	l.Saved = true
	return &l, nil
}
