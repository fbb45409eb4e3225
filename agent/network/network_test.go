package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/config"
)

var mac = net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}

func ack(t *testing.T, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(mods...)
	if err != nil {
		t.Fatal(err)
	}
	back, err := dhcpv4.FromBytes(m.ToBytes()) // as it comes from the wire
	if err != nil {
		t.Fatal(err)
	}
	return back
}

func TestFromACK(t *testing.T) {
	_, ten, _ := net.ParseCIDR("10.0.0.0/8")
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	for _, tt := range []struct {
		name string
		mods []dhcpv4.Modifier
		want Lease
	}{
		{"full", []dhcpv4.Modifier{dhcpv4.WithYourIP(net.IP{10, 0, 2, 15}), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithRouter(net.IP{10, 0, 2, 2}),
			dhcpv4.WithDNS(net.IP{10, 0, 2, 3}), dhcpv4.WithOption(dhcpv4.OptDomainName("lan.example")), dhcpv4.WithOption(dhcpv4.OptNTPServers(net.IP{10, 0, 2, 4})),
			dhcpv4.WithLeaseTime(3600), dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{0x05, 0x78}))},
			Lease{Address: netip.MustParsePrefix("10.0.2.15/24"), Gateway: "10.0.2.2", DNS: []string{"10.0.2.3"}, Domain: "lan.example", NTP: []string{"10.0.2.4"},
				MTU: 1400, renew: 30 * time.Minute, rebind: 52*time.Minute + 30*time.Second, expire: time.Hour}},
		{"bare", []dhcpv4.Modifier{dhcpv4.WithYourIP(net.IP{192, 168, 1, 7})},
			Lease{Address: netip.MustParsePrefix("192.168.1.7/24"), DNS: []string{}, NTP: []string{}, renew: 30 * time.Minute, rebind: 52*time.Minute + 30*time.Second, expire: time.Hour}},
		{"silly times and a name that is none", []dhcpv4.Modifier{dhcpv4.WithYourIP(net.IP{192, 168, 1, 7}), dhcpv4.WithLeaseTime(1), dhcpv4.WithOption(dhcpv4.OptDomainName("x\nnameserver 6.6.6.6"))},
			Lease{Address: netip.MustParsePrefix("192.168.1.7/24"), DNS: []string{}, NTP: []string{}, renew: 30 * time.Second, rebind: 52500 * time.Millisecond, expire: time.Minute}},
		{"classless routes", []dhcpv4.Modifier{dhcpv4.WithYourIP(net.IP{192, 168, 1, 7}), dhcpv4.WithRouter(net.IP{9, 9, 9, 9}),
			dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(&dhcpv4.Route{Dest: ten, Router: net.IP{0, 0, 0, 0}}, &dhcpv4.Route{Dest: all, Router: net.IP{192, 168, 1, 1}}))},
			Lease{Address: netip.MustParsePrefix("192.168.1.7/24"), Gateway: "192.168.1.1", DNS: []string{}, NTP: []string{},
				Routes: []Route{{netip.MustParsePrefix("10.0.0.0/8"), ""}, {netip.MustParsePrefix("0.0.0.0/0"), "192.168.1.1"}},
				renew:  30 * time.Minute, rebind: 52*time.Minute + 30*time.Second, expire: time.Hour}},
	} {
		tt.want.Interface, tt.want.MAC = "eth0", mac.String()
		if got, err := fromACK("eth0", mac, ack(t, tt.mods...)); err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: fromACK() = %+v, %v; want %+v", tt.name, got, err, tt.want)
		}
	}
	for _, bad := range []net.IP{{0, 0, 0, 0}, {127, 0, 0, 1}, {224, 0, 0, 1}} {
		if got, err := fromACK("eth0", mac, ack(t, dhcpv4.WithYourIP(bad))); err == nil {
			t.Errorf("fromACK(%v) = %+v; want an error", bad, got)
		}
	}
}

func TestWait(t *testing.T) {
	l := Lease{renew: 30 * time.Minute, rebind: 50 * time.Minute, expire: time.Hour}
	for age, want := range map[time.Duration]time.Duration{
		0: 30 * time.Minute, 29 * time.Minute: time.Minute, 30 * time.Minute: 10 * time.Minute, 49 * time.Minute: 30 * time.Second,
		50 * time.Minute: 5 * time.Minute, 60*time.Minute - time.Second: 15 * time.Second, 2 * time.Hour: time.Minute,
	} {
		if got := l.wait(age); got != want {
			t.Errorf("wait(%v) = %v; want %v", age, got, want)
		}
	}
}

func TestSaveLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lease.json")
	if l, err := load(path, mac.String()); l != nil || err != nil {
		t.Errorf("load() of nothing = %v, %v; want nil", l, err)
	}
	want := Lease{Interface: "eth0", MAC: mac.String(), Address: netip.MustParsePrefix("10.0.2.15/24"), Gateway: "10.0.2.2", DNS: []string{"10.0.2.3"}}
	if err := want.save(path); err != nil {
		t.Fatal(err)
	}
	got, err := load(path, mac.String())
	if err != nil || !got.same(want) || !got.Saved {
		t.Errorf("load() = %+v, %v; want %+v, saved", got, err, want)
	}
	if got, err := load(path, "00:00:00:00:00:01"); got != nil || err != nil {
		t.Errorf("load() for other hardware = %+v, %v; want nil", got, err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := load(path, mac.String()); err == nil {
		t.Error("load() of garbage = nil; want an error")
	}
}

func TestResolvConf(t *testing.T) {
	got := Lease{Domain: "lan", DNS: []string{"1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"}}.resolvConf()
	if want := "# written by init\nsearch lan\nnameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\n"; got != want {
		t.Errorf("resolvConf() = %q; want %q", got, want)
	}
}

func TestWired(t *testing.T) {
	sys := t.TempDir()
	for name, files := range map[string]map[string]string{
		"a-veth": {"type": "1\n", "address": "aa:aa:aa:aa:aa:aa\n"},
		"b-wlan": {"type": "1\n", "address": "bb:bb:bb:bb:bb:bb\n", "device/x": "", "wireless/x": ""},
		"eth0":   {"type": "1\n", "address": mac.String() + "\n", "device/x": ""},
		"lo":     {"type": "772\n", "device/x": ""},
	} {
		for f, text := range files {
			p := filepath.Join(sys, "class/net", name, f)
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := Wired(sys, name), name == "eth0"; got != want {
			t.Errorf("Wired(%s) = %v; want %v", name, got, want)
		}
	}
	if got := FirstMAC(sys); got.String() != mac.String() {
		t.Errorf("FirstMAC() = %v; want %v", got, mac)
	}
	if got := FirstMAC(t.TempDir()); got != nil {
		t.Errorf("FirstMAC() of no interfaces = %v; want nil", got)
	}
}

// manager returns one with a saved lease for eth0, whose configuration is done
// by configure, and a channel of what it says.
func manager(t *testing.T, configure func(Lease) error) (*Manager, netlink.Link, chan string) {
	t.Helper()
	dir, said := t.TempDir(), make(chan string, 100)
	say := func(f string, a ...any) { said <- fmt.Sprintf(f, a...) }
	m := New(Config{JSON: filepath.Join(dir, "network.json"), ResolvConf: filepath.Join(dir, "resolv.conf"), SavedLease: filepath.Join(dir, "lease.json"), Printf: say, Errorf: say})
	m.retry = time.Millisecond
	m.configure = func(_ netlink.Link, _ netip.Prefix, l Lease) error { return configure(l) }
	if err := savedLease.save(m.cfg.SavedLease); err != nil {
		t.Fatal(err)
	}
	return m, &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: 7, Name: "eth0", HardwareAddr: mac}}, said
}

var (
	savedLease = Lease{Interface: "eth0", MAC: mac.String(), Address: netip.MustParsePrefix("10.0.2.15/24")}
	freshLease = Lease{Interface: "eth0", MAC: mac.String(), Address: netip.MustParsePrefix("10.0.2.16/24")}
)

func TestSavedNeverReplacesFresh(t *testing.T) {
	var order []netip.Prefix
	m, link, _ := manager(t, func(l Lease) error { order = append(order, l.Address); return nil })
	if err := m.apply(link, freshLease); err != nil {
		t.Fatal(err)
	}
	late := savedLease // useSaved has looked before the fresh one came
	late.Saved = true
	if err := m.apply(link, late); err != nil || len(order) != 1 || m.leases[7].Address != freshLease.Address {
		t.Errorf("apply() of a saved lease = %v, configured %v, in use %v; want the fresh one kept", err, order, m.leases[7].Address)
	}
}

// A fresh lease that comes while the saved one is being configured waits, and
// is the last.
func TestApplyIsOneAtATime(t *testing.T) {
	entered, leave := make(chan netip.Prefix, 2), make(chan struct{})
	m, link, _ := manager(t, func(l Lease) error { entered <- l.Address; <-leave; return nil })
	var wg sync.WaitGroup
	wg.Go(func() { m.useSaved(context.Background(), link) })
	if got := <-entered; got != savedLease.Address {
		t.Errorf("configured %v first; want the saved %v", got, savedLease.Address)
	}
	wg.Go(func() { m.apply(link, freshLease) })
	select {
	case got := <-entered:
		t.Errorf("configured %v before the saved lease was done", got)
	case <-time.After(50 * time.Millisecond): // that nothing happens is what is tested
	}
	close(leave)
	wg.Wait()
	if got := m.leases[7]; got.Address != freshLease.Address || got.Saved {
		t.Errorf("lease in use = %+v; want the fresh one", got)
	}
}

// What the interface can't do costs what can't be done, not the address.
func TestPartlyConfigured(t *testing.T) {
	var refuse error
	var order []netip.Prefix
	m, link, _ := manager(t, func(l Lease) error { order = append(order, l.Address); return refuse })
	m.setMTU = func(netlink.Link, int) error { return unix.EINVAL }
	has := func(want ...string) {
		t.Helper()
		got := m.Problems()
		ok := len(got) == len(want)
		for i := range got {
			ok = ok && strings.Contains(got[i].What, want[i]) && got[i].Doing != ""
		}
		if !ok {
			t.Errorf("Problems() = %+v; want %q, and what is done", got, want)
		}
	}
	l := freshLease
	l.MTU = 9000
	if err := m.apply(link, l); err != nil || m.Address() != l.Address.Addr() {
		t.Errorf("apply() with an MTU that is refused = %v, address %v; want the address", err, m.Address())
	}
	has("eth0: an MTU of 9000 is refused")
	l.MTU = 0 // the server says nothing of it any more
	if err := m.apply(link, l); err != nil {
		t.Fatal(err)
	}
	has()
	m.setMTU = func(netlink.Link, int) error { return nil }
	l.MTU = 1400
	refuse = fmt.Errorf("%w: no", errRoutes)
	if err := m.apply(link, l); !errors.Is(err, errRoutes) || m.Address() != l.Address.Addr() {
		t.Errorf("apply() without its routes = %v, address %v; want the address, and that they are missing", err, m.Address())
	}
	has("eth0: its routes are incomplete")
	refuse = nil
	if err := m.apply(link, l); err != nil || len(order) != 4 {
		t.Errorf("apply() again = %v, configured %v; want it tried again", err, order)
	}
	has()
	refuse = errors.New("no address")
	if err := m.apply(link, savedLease); err == nil || m.Address() != l.Address.Addr() {
		t.Errorf("apply() of what fails = %v, address %v; want the one from before, which is there still", err, m.Address())
	}
	m.setSilent("eth1", "10.0.0.1")
	saved := savedLease
	saved.Saved = true
	m.leases[7] = saved
	has("eth0: no DHCP server has answered; the last address, 10.0.2.15, is used", "eth1: gateway 10.0.0.1 does not answer")
}

func TestPanicIsRetried(t *testing.T) {
	calls := 0
	m, link, said := manager(t, func(Lease) error {
		if calls++; calls == 1 {
			panic("ouch")
		}
		return nil
	})
	m.keep(context.Background(), "eth0", func() { m.useSaved(context.Background(), link) })
	close(said)
	var lines []string
	for l := range said {
		lines = append(lines, l)
	}
	if !slices.Contains(lines, "network: eth0: panic: ouch; trying again") || m.leases[7].Address != savedLease.Address {
		t.Errorf("after a panic: said %q, in use %v; want it reported and the saved lease", lines, m.leases[7].Address)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.cfg.Errorf = func(string, ...any) { cancel() }
	m.keep(ctx, "eth0", func() { panic("always") }) // ends with ctx
}

func TestPrimary(t *testing.T) {
	m := New(Config{})
	if l, ok := m.primaryLocked(); ok {
		t.Errorf("primary of none = %v", l)
	}
	m.leases = map[int]Lease{2: {Interface: "a", Saved: true}, 3: {Interface: "b"}, 4: {Interface: "c"}}
	if l, _ := m.primaryLocked(); l.Interface != "b" {
		t.Errorf("primary = %v; want b, the first fresh one", l.Interface)
	}
}

func TestFixed(t *testing.T) {
	m := New(Config{Interfaces: []config.Interface{
		{Name: "eth9", Address: netip.MustParsePrefix("10.1.0.5/24")},
		{MAC: config.MAC(mac.String()), Address: netip.MustParsePrefix("10.2.0.5/16"), Gateway: netip.MustParseAddr("10.2.0.1"),
			DNS: []config.IP{{Addr: netip.MustParseAddr("10.2.0.2")}}, Domain: "farm", MTU: 9000},
	}})
	want := Lease{Interface: "eth0", MAC: mac.String(), Address: netip.MustParsePrefix("10.2.0.5/16"), Gateway: "10.2.0.1", DNS: []string{"10.2.0.2"}, Domain: "farm", MTU: 9000, Fixed: true}
	if got := fixed("eth0", mac, m.entry("eth0", mac, 0)); got == nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("fixed() by hardware address = %+v; want %+v", got, want)
	}
	other := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	if got := fixed("eth9", other, m.entry("eth9", other, 0)); got == nil || got.Address.String() != "10.1.0.5/24" || got.Gateway != "" {
		t.Errorf("fixed() by name = %+v; want 10.1.0.5/24 without gateway", got)
	}
	if got := fixed("eth1", other, m.entry("eth1", other, 0)); got != nil {
		t.Errorf("fixed() of another interface = %+v; want none", got)
	}
}
