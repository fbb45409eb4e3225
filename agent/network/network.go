// Package network brings up the wired interfaces of a node, those that are
// there at boot and those that are plugged in later: with DHCP, or with the
// address that skerry.yaml gives. What it learned lies in network.json and
// resolv.conf for the other programs.
//
// A node that is cut off must keep running, also across a reboot. So an
// address is kept when the cable is pulled and when its lease ends unrenewed
// (it goes when a server gives another), and the last lease is saved: it is
// used again when no server answers after boot. A fixed address needs no link.
//
// VLANs that skerry.yaml names are made on their interface and then treated
// like one. IPv6 addresses come from router advertisements, which the kernel
// handles, and from skerry.yaml.
//
// Left out: Wi-Fi, DHCPv6, name servers from router advertisements.
package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/atomicfile"
	"skerry.internal/skerry/agent/config"
)

// Config says where things go.
type Config struct {
	JSON       string // the lease in use, for other programs, as a Lease
	ResolvConf string
	SavedLease string // on the disk that survives a reboot
	Hostname   string // sent to the server
	// Interfaces that skerry.yaml names; all others use DHCP.
	Interfaces []config.Interface
	// Patience is the time without an answer after which the saved lease is
	// used; 0 means ten seconds.
	Patience       time.Duration
	Printf, Errorf func(format string, args ...any)
}

// Manager owns the wired interfaces.
type Manager struct {
	cfg  Config
	up   chan struct{} // closed when the first address is there
	wake chan struct{} // capacity 1: a lease has come or changed

	retry     time.Duration                                            // pause after a panic
	configure func(link netlink.Link, old netip.Prefix, l Lease) error // errRoutes: only routes are missing
	setMTU    func(link netlink.Link, mtu int) error
	wired     func(name string) bool

	applying sync.Mutex // held for a whole apply, taken before mu

	mu     sync.Mutex // guards all that follows
	ports  map[int]*port
	leases map[int]Lease          // by interface index
	ipv6   map[int][]netip.Prefix // addresses that are not link-local, by interface index
	partly map[int]bool           // leases in use that lack a route, by interface index
	silent map[string]string      // gateways of fixed addresses that don't answer, by interface
	mtu    map[int]string         // MTUs that were refused, with the reason, by interface index
}

// port is one wired interface, or a VLAN on one.
type port struct {
	name    string
	mac     net.HardwareAddr
	carrier bool // written by link, with mu
	vlan    int
	entry   config.Interface   // of skerry.yaml; empty: DHCP
	fixed   *Lease             // nil: DHCP, or no IPv4
	cancel  context.CancelFunc // of its DHCP client, or of what watches a fixed address's gateway
	done    chan struct{}
}

// New returns a manager; Run makes it work.
func New(cfg Config) *Manager {
	if cfg.Patience == 0 {
		cfg.Patience = 10 * time.Second
	}
	return &Manager{cfg: cfg, retry: 10 * time.Second, configure: configure, setMTU: netlink.LinkSetMTU, wired: func(name string) bool { return Wired("/sys", name) }, up: make(chan struct{}), wake: make(chan struct{}, 1),
		ports: map[int]*port{}, leases: map[int]Lease{}, ipv6: map[int][]netip.Prefix{}, partly: map[int]bool{}, silent: map[string]string{}, mtu: map[int]string{}}
}

// Up is closed when the first interface has an address.
func (m *Manager) Up() <-chan struct{} { return m.up }

// Changed receives after a lease has come or changed.
func (m *Manager) Changed() <-chan struct{} { return m.wake }

// NTP lists the time servers that DHCP has named.
func (m *Manager) NTP() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	l, _ := m.primaryLocked()
	return l.NTP
}

// Run manages until ctx ends. Addresses stay.
func (m *Manager) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := safely(func() error { return m.follow(ctx) }); err != nil {
			m.cfg.Errorf("network: %v; trying again", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
	return ctx.Err()
}

// safely turns a panic into an error: in init it would be the end of the node.
func safely(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return f()
}

// keep runs f, and again after a pause when it panics.
func (m *Manager) keep(ctx context.Context, name string, f func()) {
	for ctx.Err() == nil {
		err := safely(func() error { f(); return nil })
		if err == nil {
			return
		}
		m.cfg.Errorf("network: %s: %v; trying again", name, err)
		select {
		case <-time.After(m.retry):
		case <-ctx.Done():
		}
	}
}

// follow handles link events until the subscription breaks.
func (m *Manager) follow(ctx context.Context) error {
	ch, addresses, done := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64), make(chan struct{})
	defer close(done)
	var broken, brokenAddr error
	err := netlink.LinkSubscribeWithOptions(ch, done, netlink.LinkSubscribeOptions{ListExisting: true, ErrorCallback: func(err error) { broken = err }})
	if err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	defer drain(ch)
	err = netlink.AddrSubscribeWithOptions(addresses, done, netlink.AddrSubscribeOptions{ListExisting: true, ErrorCallback: func(err error) { brokenAddr = err }})
	if err != nil {
		return fmt.Errorf("watch addresses: %w", err)
	}
	defer drain(addresses)
	m.mu.Lock()
	clear(m.ipv6) // what is there is told anew
	m.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			return nil
		case u, ok := <-ch:
			if !ok {
				return fmt.Errorf("watch links: %w", errors.Join(broken, errors.New("the subscription ended")))
			}
			m.link(ctx, u)
		case u, ok := <-addresses:
			if !ok {
				return fmt.Errorf("watch addresses: %w", errors.Join(brokenAddr, errors.New("the subscription ended")))
			}
			m.address(u)
		}
	}
}

// drain lets whoever sends end: it must not wait for a reader for ever.
func drain[T any](ch chan T) {
	go func() {
		for range ch {
		}
	}()
}

// link handles one event: an interface that is new, gone, plugged or unplugged.
func (m *Manager) link(ctx context.Context, u netlink.LinkUpdate) {
	a := u.Link.Attrs()
	m.mu.Lock()
	p := m.ports[a.Index]
	m.mu.Unlock()
	if u.Header.Type == unix.RTM_DELLINK {
		if p != nil {
			m.stop(p)
			m.mu.Lock()
			delete(m.ports, a.Index)
			delete(m.leases, a.Index)
			delete(m.ipv6, a.Index)
			delete(m.partly, a.Index)
			delete(m.mtu, a.Index)
			m.mu.Unlock()
			m.publish()
			m.cfg.Printf("network: %s is gone", p.name)
		}
		return
	}
	if p == nil {
		if p = m.newPort(u.Link); p == nil {
			return
		}
		m.mu.Lock()
		m.ports[a.Index] = p
		m.mu.Unlock()
		if err := setIPv6("/proc/sys/net/ipv6/conf/"+a.Name, p.entry.IPv6); err != nil {
			m.cfg.Errorf("network: %s: %v", a.Name, err)
		}
		if err := netlink.LinkSetUp(u.Link); err != nil {
			m.cfg.Errorf("network: set %s up: %v", a.Name, err)
		}
		m.resize(u.Link, p.entry.MTU)
		if p.vlan == 0 {
			m.addVLANs(u.Link)
		}
		if err := addIPv6(u.Link, p.entry); err != nil {
			m.cfg.Errorf("network: %s: %v", a.Name, err)
		}
		if p.fixed == nil && p.entry.DHCP == config.Off {
			m.cfg.Printf("network: %s has no IPv4 address, as skerry.yaml says", a.Name)
		} else if p.fixed == nil {
			time.AfterFunc(m.cfg.Patience, func() {
				m.keep(ctx, a.Name, func() { m.useSaved(ctx, u.Link) })
			})
		} else if err := m.apply(u.Link, *p.fixed); err != nil {
			m.cfg.Errorf("network: %v", err)
		}
	}
	p.name = a.Name // renamed, maybe
	carrier := u.IfInfomsg.Flags&unix.IFF_LOWER_UP != 0 && u.IfInfomsg.Flags&unix.IFF_UP != 0
	switch {
	case carrier && !p.carrier:
		m.setCarrier(p, true)
		m.cfg.Printf("network: %s (%s) has a link", p.name, p.mac)
		if p.fixed != nil {
			m.publish() // time servers can be asked again
		}
		if p.fixed == nil && p.entry.DHCP == config.Off {
			return
		}
		pctx, cancel := context.WithCancel(ctx)
		p.cancel, p.done = cancel, make(chan struct{})
		go func(done chan struct{}) {
			defer close(done)
			m.keep(pctx, a.Name, func() {
				if p.fixed != nil {
					m.watchGateway(pctx, u.Link, *p.fixed)
				} else {
					m.dhcp(pctx, u.Link, p)
				}
			})
		}(p.done)
	case !carrier && p.carrier:
		m.setCarrier(p, false)
		m.cfg.Printf("network: %s has no link; its address is kept", p.name)
		m.stop(p)
	}
}

func (m *Manager) setCarrier(p *port, carrier bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p.carrier = carrier
}

// stop ends a port's DHCP client.
func (m *Manager) stop(p *port) {
	if p.cancel != nil {
		p.cancel()
		<-p.done
		p.cancel = nil
	}
}

// apply makes a lease the interface's configuration. A saved one never
// replaces another.
func (m *Manager) apply(link netlink.Link, l Lease) error {
	index := link.Attrs().Index
	m.applying.Lock()
	defer m.applying.Unlock()
	m.mu.Lock()
	old, had := m.leases[index]
	if had && l.Saved {
		m.mu.Unlock()
		return nil
	}
	m.leases[index] = l
	whole := !m.partly[index]
	m.mu.Unlock()
	if had && old.same(l) && old.Saved == l.Saved && whole {
		return nil // renewed
	}
	if l.Saved {
		m.cfg.Printf("network: no DHCP server has answered on %s in %v; using the last lease", l.Interface, m.cfg.Patience)
	}
	configured := false
	defer func() { // also after a panic: or the next try would find it done
		if !configured {
			m.mu.Lock()
			if delete(m.leases, index); had {
				m.leases[index] = old // it is on the interface still
			}
			m.mu.Unlock()
		}
	}()
	m.resize(link, l.MTU)
	failed := m.configure(link, old.Address, l)
	if failed != nil {
		failed = fmt.Errorf("configure %s: %w", l.Interface, failed)
	}
	if failed != nil && !errors.Is(failed, errRoutes) {
		return failed
	}
	configured = true
	m.mu.Lock()
	if delete(m.partly, index); failed != nil {
		m.partly[index] = true // an address without its routes is better than none
	}
	m.mu.Unlock()
	gw := l.Gateway
	if gw == "" {
		gw = "none"
	}
	m.cfg.Printf("network: %s has address %s, gateway %s", l.Interface, l.Address, gw)
	if !l.Saved && !l.Fixed && m.cfg.SavedLease != "" {
		if err := l.save(m.saved(link)); err != nil {
			m.cfg.Errorf("network: %v", err)
		}
	}
	m.publish()
	return failed
}

// resize sets an interface's MTU; 0 leaves it. Not every adaptor takes every one: then
// its own stays.
func (m *Manager) resize(link netlink.Link, mtu int) {
	a := link.Attrs()
	refused := ""
	if mtu != 0 {
		if err := m.setMTU(link, mtu); err != nil {
			refused = fmt.Sprintf("%s: an MTU of %d is refused (%v): it keeps its own", a.Name, mtu, err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if refused != "" && refused != m.mtu[a.Index] {
		m.cfg.Errorf("network: %s", refused)
	}
	if delete(m.mtu, a.Index); refused != "" {
		m.mtu[a.Index] = refused
	}
}

var errRoutes = errors.New("its routes are incomplete")

func configure(link netlink.Link, old netip.Prefix, l Lease) error {
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipnet(l.Address)}); err != nil {
		return fmt.Errorf("add address %v: %w", l.Address, err)
	}
	if old.IsValid() && old != l.Address {
		if err := netlink.AddrDel(link, &netlink.Addr{IPNet: ipnet(old)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %v: %w", old, err)
		}
	}
	routes := l.Routes
	if len(routes) == 0 && l.Gateway != "" {
		routes = []Route{{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: l.Gateway}}
	}
	var errs []error
	for _, r := range routes {
		nr := netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipnet(r.To), Protocol: unix.RTPROT_DHCP,
			Src: l.Address.Addr().AsSlice(), Priority: 100 + link.Attrs().Index}
		if r.Via != "" {
			nr.Gw = net.ParseIP(r.Via)
			nr.SetFlag(netlink.FLAG_ONLINK) // also when it lies outside the subnet
		} else {
			nr.Scope = netlink.SCOPE_LINK
		}
		if err := netlink.RouteReplace(&nr); err != nil {
			errs = append(errs, fmt.Errorf("%w: add route to %v: %w", errRoutes, r.To, err))
		}
	}
	return errors.Join(errs...)
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// primaryLocked is the lease that names are resolved with: a fresh one before
// a saved one, then the interface that was found first.
func (m *Manager) primaryLocked() (Lease, bool) {
	var indexes []int
	for i := range m.leases {
		indexes = append(indexes, i)
	}
	slices.Sort(indexes)
	for _, saved := range []bool{false, true} {
		for _, i := range indexes {
			if m.leases[i].Saved == saved {
				l := m.leases[i]
				l.IPv6 = m.ipv6[i]
				return l, true
			}
		}
	}
	return Lease{}, false
}

// publish tells the other programs. When the last interface has gone, they
// keep what they know.
func (m *Manager) publish() {
	m.mu.Lock()
	defer m.mu.Unlock()
	l, ok := m.primaryLocked()
	if !ok {
		return
	}
	err := errors.Join(atomicfile.WriteFile(m.cfg.ResolvConf, []byte(l.resolvConf()), 0o644), l.save(m.cfg.JSON))
	if err != nil {
		m.cfg.Errorf("network: %v", err)
	}
	select {
	case <-m.up:
	default:
		close(m.up)
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Loopback brings up lo.
func Loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// Wired reports whether an interface is a piece of Ethernet hardware: not a
// bridge or a pod's veth, and not Wi-Fi. sys is normally /sys.
func Wired(sys, name string) bool {
	dir := filepath.Join(sys, "class/net", name)
	kind, err := os.ReadFile(filepath.Join(dir, "type"))
	return err == nil && strings.TrimSpace(string(kind)) == "1" && exists(filepath.Join(dir, "device")) &&
		!exists(filepath.Join(dir, "wireless")) && !exists(filepath.Join(dir, "phy80211"))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// FirstMAC returns the hardware address of the first wired interface by name,
// nil if there is none yet.
func FirstMAC(sys string) net.HardwareAddr {
	entries, _ := os.ReadDir(filepath.Join(sys, "class/net")) // sorted
	for _, e := range entries {
		if !Wired(sys, e.Name()) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(sys, "class/net", e.Name(), "address"))
		if mac, perr := net.ParseMAC(strings.TrimSpace(string(data))); err == nil && perr == nil {
			return mac
		}
	}
	return nil
}
