// Package lantest makes a local network on this machine, for tests: hosts that
// are network namespaces, on a bridge in one of its own. Nothing of it is seen
// outside, and all of it goes with the test.
//
// Left out: routers, DHCP.
package lantest

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// LAN is one network.
type LAN struct {
	t      testing.TB
	hub    *Host
	bridge netlink.Link
}

// Host is one namespace.
type Host struct {
	*netlink.Handle // what changes its interfaces
	t               testing.TB
	ns              int
	port            netlink.Link // its plug at the bridge
}

// New makes a network without hosts. It needs root: without, the test is
// skipped, and fails in CI.
func New(t testing.TB) *LAN {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("network namespaces need root")
		}
		t.Skip("network namespaces need root")
	}
	l := &LAN{t: t, hub: newHost(t)}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "lan"}}
	check(t, l.hub.LinkAdd(bridge))
	check(t, l.hub.LinkSetUp(bridge))
	l.bridge = bridge
	return l
}

// Host adds a host whose interface eth0 has the addresses, like 10.9.0.1/24,
// and one of IPv6's own link.
func (l *LAN) Host(name string, addresses ...string) *Host {
	l.t.Helper()
	h := newHost(l.t)
	lo, err := h.LinkByName("lo")
	check(l.t, err)
	check(l.t, h.LinkSetUp(lo))
	h.port = l.Cable(h, name, "eth0", addresses...)
	return h
}

// Cable leads from a port of that name to a new interface of a host.
func (l *LAN) Cable(h *Host, port, name string, addresses ...string) netlink.Link {
	l.t.Helper()
	check(l.t, l.hub.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port}, PeerName: name, PeerNamespace: netlink.NsFd(h.ns)}))
	p, err := l.hub.LinkByName(port)
	check(l.t, err)
	check(l.t, l.hub.LinkSetMaster(p, l.bridge))
	check(l.t, l.hub.LinkSetUp(p))
	i, err := h.LinkByName(name)
	check(l.t, err)
	check(l.t, h.LinkSetUp(i))
	for _, a := range addresses {
		h.address(name, a, (*netlink.Handle).AddrAdd)
	}
	return p
}

// Plug puts the cable in.
func (h *Host) Plug(l *LAN) { h.t.Helper(); check(h.t, l.hub.LinkSetUp(h.port)) }

// Unplug pulls it.
func (h *Host) Unplug(l *LAN) { h.t.Helper(); check(h.t, l.hub.LinkSetDown(h.port)) }

// Add gives eth0 an address.
func (h *Host) Add(address string) {
	h.t.Helper()
	h.address("eth0", address, (*netlink.Handle).AddrAdd)
}

// Remove takes an address from eth0.
func (h *Host) Remove(address string) {
	h.t.Helper()
	h.address("eth0", address, (*netlink.Handle).AddrDel)
}

func (h *Host) address(name, address string, do func(*netlink.Handle, netlink.Link, *netlink.Addr) error) {
	h.t.Helper()
	i, err := h.LinkByName(name)
	check(h.t, err)
	a, err := netlink.ParseAddr(address)
	check(h.t, err)
	check(h.t, do(h.Handle, i, a))
}

// Run runs f on this host and waits for it: the sockets that f itself opens are
// the host's, not those of goroutines that it starts.
func (h *Host) Run(f func()) { <-h.Go(f) }

// Go is Run without waiting; it returns what is closed at the end of f.
func (h *Host) Go(f func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Setns(h.ns, unix.CLONE_NEWNET); err != nil {
			h.t.Errorf("enter namespace: %v", err)
			return
		}
		f()
	}()
	return done
}

func newHost(t testing.TB) *Host {
	t.Helper()
	ns, err := -1, error(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			ns, err = unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
	}()
	<-done
	check(t, err)
	t.Cleanup(func() { unix.Close(ns) })
	h, err := netlink.NewHandleAt(netns.NsHandle(ns), unix.NETLINK_ROUTE)
	check(t, err)
	t.Cleanup(h.Close)
	return &Host{Handle: h, t: t, ns: ns}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
