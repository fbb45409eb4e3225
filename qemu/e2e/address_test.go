//go:build full

package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/discovery"
	"skerry.internal/skerry/imagebuild/cluster"
	"skerry.internal/skerry/imagebuild/discover"
	"skerry.internal/skerry/qemu"
)

// inNamespace tells the test that it runs in a network of its own.
const inNamespace = "SKERRY_TEST_IN_NAMESPACE"

// TestAddress is a person on the node's network, which is a namespace that the test
// makes, with a DHCP server: skerry discover finds the node, and skerry node and kubectl
// reach it. The server is slow: it hears nothing for a minute, which the console says. Another node there has the
// node's name, so it is barn-1-2.local, and says so. Then the other goes
// and the server hands out another address: all of it works again with that and with the
// node's own name, and no container was restarted. That the new address does not answer
// before, and the old one does not any more, is the twin.
func TestAddress(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		board, _ := arm64.find(t)
		busybox(t, board.Arch) // there is nothing to fetch it from in the namespace
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), inNamespace+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
		out, err := cmd.CombinedOutput()
		if errors.Is(err, syscall.EPERM) && os.Getenv("CI") == "" {
			t.Skipf("this machine gives its users no network namespaces: %v", err)
		}
		t.Logf("in the namespace: %v\n%s", err, out)
		if err != nil {
			t.Fail()
		}
		return
	}
	server := serveDHCP(t, plugIn(t))
	first, second := netip.MustParseAddr("10.0.2.15"), netip.MustParseAddr("10.0.2.50")
	server.give(first)
	server.deaf = time.Minute
	leave := namesake(t)
	n := startNode(t, func(c *qemu.Config) { c.Tap, c.Forwards = laptop, nil })
	relay(t, "10.0.2.2:"+n.registry, "127.0.0.1:"+n.registry)
	for _, want := range []string{"network: eth0: no lease yet: ", "another node here has the name barn-1; this one answers to barn-1-2.local"} {
		if !strings.Contains(n.vm.Console(), want) {
			t.Errorf("the console does not say %q:\n%s", want, n.vm.Console())
		}
	}
	if err := n.use(first); err != nil {
		t.Fatal(err)
	}
	n.testWorkloads()
	n.k("wait", "--for=delete", "pod/sickly", "--timeout=120s")
	n.k("expose", "deployment", "web", "--name=outside", "--type=NodePort", "--port=8080")
	before := n.containers()
	n.reachable(first, "barn-1-2")
	if got := n.named(first); !strings.Contains(got, "another node here has the name barn-1") {
		t.Errorf("the status says of the network %q; want that another node has this one's name", got)
	}
	if err := n.dialed(second, "barn-1"); err == nil {
		t.Errorf("the node answers at %v before it has that address", second)
	}

	begin := time.Now()
	leave()
	server.give(second)
	n.expect(`skerry: network: eth0 has address 10\.0\.2\.50/24, gateway 10\.0\.2\.2`, 3*time.Minute)
	n.reachable(second, "barn-1")
	if got := n.named(second); got != "" { // the twin
		t.Errorf("alone with its name: the status says of the network %q", got)
	}
	t.Logf("all reachable at the new address after %.0f s", time.Since(begin).Seconds())
	if err := n.dialed(first, "barn-1"); err == nil {
		t.Errorf("the node still answers at %v", first)
	}
	if after := n.containers(); after != before {
		t.Errorf("containers:\n%swant\n%s", after, before)
	}
	n.everythingRuns()
}

// laptop is the test's end of the cable, and serverAddress its address.
const laptop = "laptop0"

var serverAddress = net.IP{10, 0, 2, 2}

// plugIn makes the namespace's end of a cable that QEMU takes by its name.
func plugIn(t *testing.T) string {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = laptop
	tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP}
	for _, step := range []func() error{
		func() error { return netlink.LinkAdd(tap) },
		func() error { return netlink.LinkSetUp(tap) },
		func() error {
			return netlink.AddrAdd(tap, &netlink.Addr{IPNet: &net.IPNet{IP: serverAddress, Mask: net.CIDRMask(24, 32)}})
		},
	} {
		if err == nil {
			err = step()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return laptop
}

// dhcpServer has one address to give, and refuses every other (RFC 2131, section 4.3.2).
type dhcpServer struct {
	address atomic.Pointer[netip.Addr]
	deaf    time.Duration // from the first that it hears on, before it answers
}

func (s *dhcpServer) give(a netip.Addr) { s.address.Store(&a) }

func serveDHCP(t *testing.T, link string) *dhcpServer {
	t.Helper()
	s := &dhcpServer{}
	first := sync.OnceValue(time.Now)
	server, err := server4.NewServer(link, &net.UDPAddr{Port: dhcpv4.ServerPort}, func(conn net.PacketConn, _ net.Addr, m *dhcpv4.DHCPv4) {
		if time.Since(first()) < s.deaf {
			return
		}
		address := net.IP(s.address.Load().AsSlice())
		wish := m.RequestedIPAddress()
		if wish == nil {
			wish = m.ClientIPAddr
		}
		kind := dhcpv4.MessageTypeNak
		switch {
		case m.MessageType() == dhcpv4.MessageTypeDiscover:
			kind = dhcpv4.MessageTypeOffer
		case wish.Equal(address):
			kind = dhcpv4.MessageTypeAck
		}
		mods := []dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithServerIP(serverAddress), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(serverAddress))}
		if kind != dhcpv4.MessageTypeNak {
			mods = append(mods, dhcpv4.WithYourIP(address), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithRouter(serverAddress), dhcpv4.WithLeaseTime(60))
		}
		reply, err := dhcpv4.NewReplyFromRequest(m, mods...)
		if err != nil {
			t.Errorf("answer %v: %v", m.MessageType(), err)
			return
		}
		conn.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort})
	})
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve()
	t.Cleanup(func() { server.Close() })
	return s
}

// namesake has the test's end of the cable be a node named barn-1, until it leaves.
func namesake(t *testing.T) (leave func()) {
	ctx, cancel := context.WithCancel(t.Context())
	r := discovery.New(discovery.Config{Host: "barn-1", Port: api.Port, Use: func(name string) bool { return name == laptop }, Printf: t.Logf, Errorf: t.Errorf},
		api.Announcement{ID: "namesake"})
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	leave = func() { cancel(); <-done }
	t.Cleanup(leave)
	return leave
}

// relay passes connections from one address on to another.
func relay(t *testing.T, from, to string) {
	t.Helper()
	l, err := net.Listen("tcp", from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				go func() { io.Copy(out, in); out.(*net.TCPConn).CloseWrite() }()
				io.Copy(in, out)
			}()
		}
	}()
}

// use has kubectl ask the node at an address, by a kubeconfig as an operator gets it.
func (n *node) use(addr netip.Addr) error {
	cmd := exec.Command(n.operator().program, "cluster", "kubeconfig", "e2e", "--server", fmt.Sprintf("https://%v:6443", addr))
	cmd.Env = append(os.Environ(), "SKERRY_HOME="+n.home)
	data, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("skerry cluster kubeconfig: %w", err)
	}
	return os.WriteFile(n.kubeconfig, data, 0o600)
}

// named is what the status at an address says is wrong with the network.
func (n *node) named(addr netip.Addr) string {
	n.t.Helper()
	o := n.operator()
	o.address = addr.String()
	return o.wrongWith("network")
}

func (n *node) reachable(addr netip.Addr, local string) {
	n.t.Helper()
	n.eventually(fmt.Sprintf("everything reaches the node at %v and as %s.local", addr, local), func() error { return n.reached(addr, local) })
}

// reached asks for the node at an address and by its name, by all the ways there are.
func (n *node) reached(addr netip.Addr, local string) error {
	o := n.operator()
	// skerry discover, and skerry node at the address that it finds, and by name.
	cmd := exec.Command(o.program, "discover", "--json")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("skerry discover: %w: %s", err, out)
	}
	var found []discover.Node
	if err := json.Unmarshal(out, &found); err != nil {
		return fmt.Errorf("skerry discover: %w: %s", err, out)
	}
	if !slices.ContainsFunc(found, func(f discover.Node) bool { return f.Name == local && f.Claimed && f.Addresses[0] == addr }) {
		return fmt.Errorf("skerry discover found %+v; want %s at %v", found, local, addr)
	}
	if local == "barn-1" && len(found) != 1 { // the namesake has said goodbye
		return fmt.Errorf("skerry discover found %+v; want one node", found)
	}
	for _, name := range []string{addr.String(), local} {
		text, errs, err := o.skerry("status", name, "--json")
		var st api.Status
		if err == nil {
			err = json.Unmarshal([]byte(text), &st)
		}
		if err != nil || st.Network.Address != addr {
			return fmt.Errorf("skerry node status %s: %v, %w: %s", name, st.Network.Address, err, errs)
		}
	}
	// kubectl, with a kubeconfig for that address; certificates for address and name.
	if err := n.use(addr); err != nil {
		return err
	}
	if err := n.dialed(addr, local); err != nil {
		return err
	}
	// Kubelet says it, and the API itself; a pod reaches the API by its service.
	for _, ask := range [][]string{
		{"get", "node", "barn-1", "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`},
		{"get", "endpointslice", "kubernetes", "-o", `jsonpath={.endpoints[0].addresses[0]}`},
		{"get", "pod", "ops", "-o", `jsonpath={.status.hostIP}`},
	} {
		if out, err := n.try("", append(ask, "--request-timeout=20s")...); err != nil || strings.TrimSpace(out) != addr.String() {
			return fmt.Errorf("kubectl %s = %q, %w; want %v", strings.Join(ask, " "), out, err, addr)
		}
	}
	// kube-proxy serves at it.
	port, err := n.try("", "get", "service", "outside", "-o", "jsonpath={.spec.ports[0].nodePort}", "--request-timeout=20s")
	if err != nil {
		return fmt.Errorf("%w: %s", err, port)
	}
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + net.JoinHostPort(addr.String(), port) + "/both")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "greengranite" {
		return fmt.Errorf("a service on the node's port %s says %q, %w", port, body, err)
	}
	return n.works()
}

// dialed wants the certificates of API and kubelet to be valid for the address and the
// name in .local.
func (n *node) dialed(addr netip.Addr, local string) error {
	c, err := cluster.Open(n.home, "e2e")
	if err != nil {
		return err
	}
	for port, name := range map[string]string{"6443": local + ".local", "10250": addr.String()} {
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", net.JoinHostPort(addr.String(), port),
			&tls.Config{RootCAs: rootsOf(n.t, c.Dir), ServerName: name})
		if err != nil {
			return fmt.Errorf("port %s: %w", port, err)
		}
		conn.Close()
	}
	return nil
}
