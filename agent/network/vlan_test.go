package network

import (
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/config"
)

// An entry of skerry.yaml is for an interface or for a VLAN on it, never both,
// and a VLAN that it does not name is somebody else's.
func TestNewPort(t *testing.T) {
	m := New(Config{Interfaces: []config.Interface{
		{Name: "eth0", DHCP: config.Off},
		{MAC: config.MAC(mac.String()), VLAN: 20, Address: netip.MustParsePrefix("10.20.0.5/24")},
		{Name: "eth0", VLAN: 30, DHCP: config.On, MTU: 1400},
	}})
	m.ports = map[int]*port{2: {name: "eth0", mac: mac}, 5: {name: "eth0.20", mac: mac, vlan: 20}}
	if p := m.entry("eth0", mac, 0); p.DHCP != config.Off {
		t.Errorf("entry of eth0 = %+v; want the one without IPv4", p)
	}
	for _, tt := range []struct {
		name       string
		parent, id int
		want       *port
	}{
		{"by hardware address", 2, 20, &port{vlan: 20, entry: m.cfg.Interfaces[1], fixed: &Lease{Interface: "v", MAC: mac.String(), Address: netip.MustParsePrefix("10.20.0.5/24"), DNS: []string{}, Fixed: true}}},
		{"by name", 2, 30, &port{vlan: 30, entry: m.cfg.Interfaces[2]}},
		{"not named", 2, 40, nil},
		{"on an interface that is not ours", 3, 20, nil},
		{"on a VLAN", 5, 20, nil},
	} {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr, attrs.ParentIndex = "v", mac, tt.parent
		if tt.want != nil {
			tt.want.name, tt.want.mac = "v", mac
		}
		if got := m.newPort(&netlink.Vlan{LinkAttrs: attrs, VlanId: tt.id}); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: newPort() = %+v; want %+v", tt.name, got, tt.want)
		}
	}
}

// The last leases of an interface and of its VLANs, which share a hardware
// address, don't replace each other.
func TestSaved(t *testing.T) {
	m := New(Config{SavedLease: "/s/lease.json"})
	for link, want := range map[netlink.Link]string{&netlink.Device{}: "/s/lease.json", &netlink.Vlan{VlanId: 20}: "/s/lease-20.json"} {
		if got := m.saved(link); got != want {
			t.Errorf("saved(%s) = %q; want %q", link.Type(), got, want)
		}
	}
}

func TestOverride(t *testing.T) {
	given := Lease{Address: netip.MustParsePrefix("10.0.2.15/24"), DNS: []string{"10.0.2.3"}, Domain: "lan", MTU: 1500, Gateway: "10.0.2.2"}
	for _, tt := range []struct {
		name  string
		entry config.Interface
		want  func(*Lease)
	}{
		{"nothing", config.Interface{DHCP: config.On}, func(*Lease) {}},
		{"MTU", config.Interface{MTU: 1400}, func(l *Lease) { l.MTU = 1400 }},
		{"names", config.Interface{Domain: "farm", DNS: []config.IP{{Addr: netip.MustParseAddr("fd00::1")}, {Addr: netip.MustParseAddr("10.0.0.1")}}},
			func(l *Lease) { l.Domain, l.DNS = "farm", []string{"fd00::1", "10.0.0.1"} }},
	} {
		got, want := given, given
		got.override(tt.entry)
		tt.want(&want)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: override() = %+v; want %+v", tt.name, got, want)
		}
	}
}

func TestSetIPv6(t *testing.T) {
	for mode, want := range map[config.IPv6]map[string]string{
		"":              {"disable_ipv6": "0", "accept_ra": "2", "autoconf": "1"},
		config.IPv6Auto: {"disable_ipv6": "0", "accept_ra": "2", "autoconf": "1"},
		config.IPv6Off:  {"disable_ipv6": "1", "accept_ra": "x", "autoconf": "x"},
	} {
		dir := t.TempDir()
		for name := range want {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := setIPv6(dir, mode); err != nil {
			t.Errorf("setIPv6(%q) = %v", mode, err)
		}
		for name, value := range want {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != value {
				t.Errorf("setIPv6(%q): %s = %q, %v; want %q", mode, name, got, err, value)
			}
		}
	}
}

// network.json has the IPv6 addresses of the interface that the node is known
// by, once they are certain to be free, and loses them again.
func TestIPv6Addresses(t *testing.T) {
	dir := t.TempDir()
	m := New(Config{JSON: filepath.Join(dir, "network.json"), ResolvConf: filepath.Join(dir, "resolv.conf"),
		Printf: func(string, ...any) {}, Errorf: t.Errorf})
	m.ports = map[int]*port{2: {name: "eth0"}, 3: {name: "eth1"}}
	m.leases = map[int]Lease{2: {Interface: "eth0", Address: netip.MustParsePrefix("10.0.2.15/24"), DNS: []string{"fd00::53"}}}
	event := func(index int, prefix string, is bool, flags int) {
		ip, network, err := net.ParseCIDR(prefix)
		if err != nil {
			t.Fatal(err)
		}
		m.address(netlink.AddrUpdate{LinkIndex: index, LinkAddress: net.IPNet{IP: ip, Mask: network.Mask}, NewAddr: is, Flags: flags})
	}
	have := func() (text string) {
		data, err := os.ReadFile(m.cfg.JSON)
		if err != nil {
			t.Fatal(err)
		}
		var l Lease
		if err := json.Unmarshal(data, &l); err != nil {
			t.Fatal(err)
		}
		for _, p := range l.IPv6 {
			text += p.String() + " "
		}
		return strings.TrimSpace(text)
	}
	event(2, "fd00::5/64", true, 0)
	event(2, "fd00::6/64", true, unix.IFA_F_TENTATIVE)
	event(2, "fe80::1/64", true, 0)
	event(2, "10.0.2.15/24", true, 0)
	event(3, "fd00::7/64", true, 0)
	event(9, "fd00::8/64", true, 0)
	if got := have(); got != "fd00::5/64" {
		t.Errorf("network.json has %q; want fd00::5/64 only", got)
	}
	event(2, "fd00::6/64", true, 0)
	event(2, "fd00::5/64", false, 0)
	if got := have(); got != "fd00::6/64" {
		t.Errorf("network.json has %q; want fd00::6/64, which was found free, only", got)
	}
	if text, err := os.ReadFile(m.cfg.ResolvConf); err != nil || !strings.Contains(string(text), "nameserver fd00::53\n") {
		t.Errorf("resolv.conf = %q, %v; want the IPv6 name server", text, err)
	}
}
