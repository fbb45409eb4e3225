package network

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestDHCP has a server, on the other end of a cable, be slow, dead, or of
// another mind. Each case is a process with a network of its own.
func TestDHCP(t *testing.T) {
	for name, test := range map[string]func(*testing.T){"slow": testSlowDHCP, "dead": testDeadDHCP, "another": testAnotherAddress, "unplugged": testUnplugged} {
		t.Run(name, func(t *testing.T) {
			if os.Getenv(inNamespace) != "" {
				test(t)
				return
			}
			t.Parallel()
			runInNamespace(t)
		})
	}
}

// dhcpServer serves one address on the other end of eth0's cable.
type dhcpServer struct {
	mu      sync.Mutex // guards what follows, but for the channel
	address net.IP     // to be given; nil: it says nothing
	heard   map[question]bool
	asked   chan dhcpv4.MessageType // each question once, however often it came
	seconds uint32                  // of a lease
	far     *netlink.Handle         // of the namespace at the cable's other end
}

type question struct {
	id   dhcpv4.TransactionID
	kind dhcpv4.MessageType
	has  string // the address that it has, when it renews it: the client keeps the id of the first request then
}

func (s *dhcpServer) give(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.address = net.ParseIP(address).To4()
}

// serveDHCP makes eth0 and a server in a namespace at its other end.
func serveDHCP(t *testing.T) *dhcpServer {
	t.Helper()
	// As init sets it: else an address goes with the one that was there before it.
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/all/promote_secondaries", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	s := &dhcpServer{heard: map[question]bool{}, asked: make(chan dhcpv4.MessageType, 100), seconds: 60}
	server, failed := make(chan *server4.Server, 1), make(chan error, 1)
	namespace, plugged := make(chan int), make(chan struct{})
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			failed <- err
			return
		}
		fd, err := unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			failed <- err
			return
		}
		defer unix.Close(fd)
		if s.far, err = netlink.NewHandle(); err != nil {
			failed <- err
			return
		}
		namespace <- fd
		<-plugged
		far, err := netlink.LinkByName("far0")
		if err == nil {
			err = netlink.LinkSetUp(far)
		}
		if err == nil {
			err = netlink.AddrAdd(far, &netlink.Addr{IPNet: &net.IPNet{IP: net.IP{10, 9, 0, 1}, Mask: net.CIDRMask(24, 32)}})
		}
		if err != nil {
			failed <- err
			return
		}
		srv, err := server4.NewServer("far0", &net.UDPAddr{Port: dhcpv4.ServerPort}, s.answer)
		if err != nil {
			failed <- err
			return
		}
		server <- srv
	}()
	select {
	case fd := <-namespace:
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth0"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far0", PeerNamespace: netlink.NsFd(fd)}); err != nil {
			t.Fatal(err)
		}
		close(plugged)
	case err := <-failed:
		t.Fatal(err)
	}
	select {
	case srv := <-server:
		go srv.Serve()
		t.Cleanup(func() { srv.Close() })
	case err := <-failed:
		t.Fatal(err)
	}
	return s
}

// answer offers and grants the address, and refuses every other (RFC 2131, section 4.3.2).
func (s *dhcpServer) answer(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
	s.mu.Lock()
	address, q := s.address, question{m.TransactionID, m.MessageType(), m.ClientIPAddr.String()}
	again := s.heard[q]
	s.heard[q] = true
	s.mu.Unlock()
	if !again {
		select {
		case s.asked <- q.kind:
		default:
		}
	}
	if address == nil {
		return
	}
	mods := []dhcpv4.Modifier{dhcpv4.WithServerIP(net.IP{10, 9, 0, 1}), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IP{10, 9, 0, 1}))}
	grant := []dhcpv4.Modifier{dhcpv4.WithYourIP(address), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithRouter(net.IP{10, 9, 0, 1}),
		dhcpv4.WithDNS(net.IP{10, 9, 0, 53}), dhcpv4.WithLeaseTime(s.seconds)}
	wish := m.RequestedIPAddress()
	if wish == nil {
		wish = m.ClientIPAddr
	}
	switch {
	case m.MessageType() == dhcpv4.MessageTypeDiscover:
		mods = append(append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer)), grant...)
	case wish.Equal(address):
		mods = append(append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeAck)), grant...)
	default:
		mods = append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeNak))
	}
	reply, err := dhcpv4.NewReplyFromRequest(m, mods...)
	if err != nil {
		panic(err)
	}
	conn.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort})
}

// client is a Manager at the cable, and what it says.
type client struct {
	*Manager
	t    *testing.T
	stop func()
	news chan struct{} // capacity 1: it has said something
	mu   sync.Mutex
	said strings.Builder
}

func newClient(t *testing.T, dir string) *client {
	t.Helper()
	c := &client{t: t, news: make(chan struct{}, 1)}
	say := func(format string, args ...any) {
		c.mu.Lock()
		defer c.mu.Unlock()
		fmt.Fprintf(&c.said, format+"\n", args...)
		select {
		case c.news <- struct{}{}:
		default:
		}
	}
	c.Manager = New(Config{JSON: filepath.Join(dir, "network.json"), ResolvConf: filepath.Join(dir, "resolv.conf"), SavedLease: filepath.Join(dir, "lease.json"),
		Patience: time.Second, Printf: say, Errorf: t.Errorf})
	c.wired = func(name string) bool { return name == "eth0" }
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); c.Run(ctx) }()
	c.stop = func() { cancel(); <-ended }
	t.Cleanup(c.stop)
	return c
}

func (c *client) console() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.said.String()
}

// gets waits until the lease in use is of that address, and wants no other on eth0.
func (c *client) gets(address string, saved bool) {
	c.t.Helper()
	limit := time.After(2 * time.Minute)
	want := netip.MustParsePrefix(address)
	for {
		var have Lease
		if data, err := os.ReadFile(c.cfg.JSON); err == nil {
			if err := json.Unmarshal(data, &have); err != nil {
				c.t.Fatal(err)
			}
		}
		if have.Address == want && have.Saved == saved {
			break
		}
		select {
		case <-c.Changed():
		case <-limit:
			c.t.Fatalf("the lease in use is %+v; want %s, saved %v\n%s", have, address, saved, c.console())
		}
	}
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		c.t.Fatal(err)
	}
	list, err := netlink.AddrList(eth0, netlink.FAMILY_V4)
	if err != nil || len(list) != 1 || list[0].IPNet.String() != address {
		c.t.Errorf("eth0 has %v, %v; want %s alone", list, err, address)
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: net.IP{10, 9, 0, 1}}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_GW)
	if err != nil || len(routes) != 1 {
		c.t.Errorf("routes by 10.9.0.1 = %v, %v; want one", routes, err)
	}
	if text, err := os.ReadFile(c.cfg.ResolvConf); err != nil || !strings.Contains(string(text), "nameserver 10.9.0.53\n") {
		c.t.Errorf("resolv.conf = %q, %v; want 10.9.0.53", text, err)
	}
}

func (s *dhcpServer) awaitAsked(t *testing.T, want dhcpv4.MessageType, times int) {
	t.Helper()
	limit := time.After(2 * time.Minute)
	for times > 0 {
		select {
		case got := <-s.asked:
			if got == want {
				times--
			}
		case <-limit:
			t.Fatalf("the client asks no more: want another %d %v", times, want)
		}
	}
}

// A server that lets four questions pass.
func testSlowDHCP(t *testing.T) {
	s := serveDHCP(t)
	c := newClient(t, t.TempDir())
	s.awaitAsked(t, dhcpv4.MessageTypeDiscover, 4)
	select {
	case <-c.Up():
		t.Error("the network is up without a lease")
	default:
	}
	if said := c.console(); !strings.Contains(said, "network: eth0: no lease yet: ") {
		t.Errorf("the console says %q; want that there is no lease", said)
	}
	s.give("10.9.0.50")
	c.gets("10.9.0.50/24", false)
	<-c.Up()
}

// A server that is dead after a reboot: the node keeps the address it had until
// the server is back, with another.
func testDeadDHCP(t *testing.T) {
	s, dir := serveDHCP(t), t.TempDir()
	s.give("10.9.0.50")
	c := newClient(t, dir)
	c.gets("10.9.0.50/24", false)
	c.stop()
	s.give("")

	// As after a reboot: nothing is left but what is on the disk.
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	old, err := netlink.AddrList(eth0, netlink.FAMILY_V4)
	if err != nil || len(old) != 1 {
		t.Fatalf("eth0 has %v, %v; want one address", old, err)
	}
	if err := netlink.AddrDel(eth0, &old[0]); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(c.cfg.JSON); err != nil {
		t.Fatal(err)
	}
	c = newClient(t, dir)
	c.gets("10.9.0.50/24", true)
	if said := c.console(); !strings.Contains(said, "using the last lease") {
		t.Errorf("the console says %q; want that the last lease is used", said)
	}
	s.give("10.9.0.60")
	c.gets("10.9.0.60/24", false)
}

// A server that refuses to renew and has another address to give.
func testAnotherAddress(t *testing.T) {
	s := serveDHCP(t)
	s.give("10.9.0.50")
	c := newClient(t, t.TempDir())
	c.gets("10.9.0.50/24", false)
	s.give("10.9.0.60")
	c.gets("10.9.0.60/24", false) // after the half minute at which a lease is renewed at the earliest
	var asked []dhcpv4.MessageType
	for len(s.asked) > 0 {
		asked = append(asked, <-s.asked)
	}
	want := []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, // the first address
		dhcpv4.MessageTypeRequest,                             // is not renewed
		dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest} // the other one
	if !slices.Equal(asked, want) {
		t.Errorf("the client asked %v; want %v\n%s", asked, want, c.console())
	}
}

// A cable that is pulled and plugged in again: it is said, the address is kept, and
// whoever waits for the network is told though the lease is the same as before.
func testUnplugged(t *testing.T) {
	s := serveDHCP(t)
	s.give("10.9.0.50")
	c := newClient(t, t.TempDir())
	c.gets("10.9.0.50/24", false)
	far, err := s.far.LinkByName("far0")
	if err != nil {
		t.Fatal(err)
	}
	c.says("gateway 10.9.0.1") // the last of what comes with an address, but for being told
	if got := c.Problems(); len(got) != 0 {
		t.Errorf("Problems() = %+v; want none", got)
	}
	if err := s.far.LinkSetDown(far); err != nil {
		t.Fatal(err)
	}
	c.says("eth0 has no link; its address is kept")
	if got := c.Problems(); len(got) != 1 || !strings.Contains(got[0].What, "eth0: no cable is plugged in; its address 10.9.0.50 is kept") {
		t.Errorf("Problems() without a cable = %+v; want that it is out", got)
	}
	for len(c.Changed()) > 0 {
		<-c.Changed()
	}
	if err := s.far.LinkSetUp(far); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.Changed():
	case <-time.After(2 * time.Minute):
		t.Fatalf("nobody is told that the network is back\n%s", c.console())
	}
	if got := c.Problems(); len(got) != 0 || c.Address() != netip.MustParseAddr("10.9.0.50") {
		t.Errorf("with the cable in again: %v, problems %+v; want the same address and none", c.Address(), got)
	}
}

// says waits until the client has said that.
func (c *client) says(text string) {
	c.t.Helper()
	limit := time.After(2 * time.Minute)
	for !strings.Contains(c.console(), text) {
		select {
		case <-c.news:
		case <-limit:
			c.t.Fatalf("it has not said %q:\n%s", text, c.console())
		}
	}
}
