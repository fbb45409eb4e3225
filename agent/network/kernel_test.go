package network

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/config"
)

// inNamespace is set in a process that runInNamespace starts.
const inNamespace = "SKERRY_TEST_NETWORK_NAMESPACE"

// TestKernel has the kernel of this machine do what skerry.yaml says, in a
// process with a network of its own, whose cables are pairs of virtual interfaces.
func TestKernel(t *testing.T) {
	if os.Getenv(inNamespace) != "" {
		testKernel(t)
		return
	}
	runInNamespace(t)
}

// runInNamespace runs this test in a process with a network of its own.
func runInNamespace(t *testing.T) {
	t.Helper()
	parts := strings.Split(t.Name(), "/")
	cmd := exec.Command(os.Args[0], "-test.run=^"+strings.Join(parts, "$/^")+"$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) && os.Getenv("CI") == "" {
		t.Skipf("this machine gives its users no network namespaces: %v", err)
	}
	if err != nil {
		t.Errorf("in the namespace: %v\n%s", err, out)
	}
}

func testKernel(t *testing.T) {
	dir := t.TempDir()
	m := New(Config{JSON: filepath.Join(dir, "network.json"), ResolvConf: filepath.Join(dir, "resolv.conf"), Printf: t.Logf, Errorf: t.Errorf,
		Interfaces: []config.Interface{
			{Name: "eth0", Address: netip.MustParsePrefix("10.9.0.5/24"), Gateway: netip.MustParseAddr("10.9.0.1"), MTU: 1400,
				Address6: config.Prefix6{Prefix: netip.MustParsePrefix("fd00:9::5/64")}, Gateway6: config.Addr6{Addr: netip.MustParseAddr("fe80::2")},
				DNS: []config.IP{{Addr: netip.MustParseAddr("fd00:9::53")}}},
			{Name: "eth1", DHCP: config.Off, IPv6: config.IPv6Off},
		}})
	m.wired = func(name string) bool { return strings.HasPrefix(name, "eth") }
	for _, name := range []string{"0", "1"} {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth" + name
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far" + name}); err != nil {
			t.Fatal(err)
		}
		far, err := netlink.LinkByName("far" + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(far); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan struct{})
	go func() { defer close(ended); m.Run(ctx) }()
	defer func() { cancel(); <-ended }()

	// The address is found free after a second or two; that is what is waited for.
	var have Lease
	for !slices.Contains(have.IPv6, netip.MustParsePrefix("fd00:9::5/64")) {
		select {
		case <-m.Changed():
		case <-ctx.Done():
			t.Fatalf("network.json has %+v; want fd00:9::5/64 in it", have)
		}
		data, err := os.ReadFile(m.cfg.JSON)
		if err != nil {
			t.Fatal(err)
		}
		have = Lease{}
		if err := json.Unmarshal(data, &have); err != nil {
			t.Fatal(err)
		}
	}
	if have.Address != netip.MustParsePrefix("10.9.0.5/24") {
		t.Errorf("network.json has address %v; want 10.9.0.5/24", have.Address)
	}
	if text, err := os.ReadFile(m.cfg.ResolvConf); err != nil || !strings.Contains(string(text), "nameserver fd00:9::53\n") {
		t.Errorf("resolv.conf = %q, %v; want fd00:9::53", text, err)
	}
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if got := eth0.Attrs().MTU; got != 1400 {
		t.Errorf("eth0 has MTU %d; want 1400", got)
	}
	routes, err := netlink.RouteListFiltered(unix.AF_INET6, &netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: net.ParseIP("fe80::2")}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_GW)
	if err != nil || len(routes) != 1 {
		t.Errorf("routes by fe80::2 = %v, %v; want one", routes, err)
	}
	for file, want := range map[string]string{"eth0/accept_ra": "2", "eth0/disable_ipv6": "0", "eth1/disable_ipv6": "1"} {
		if got, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + file); err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s = %q, %v; want %s", file, got, err, want)
		}
	}
	eth1, err := netlink.LinkByName("eth1")
	if err != nil {
		t.Fatal(err)
	}
	if list, err := netlink.AddrList(eth1, netlink.FAMILY_ALL); err != nil || len(list) != 0 {
		t.Errorf("eth1 has addresses %v, %v; want none", list, err)
	}
}
