// Package dns serves the cluster's names on every node, with CoreDNS as a
// library, so that pods resolve names while their node is cut off.
//
// It listens on the cluster's DNS address, which every node has for itself on
// its loopback interface; a Service of the same address (manifests/dns.yaml)
// keeps the address reserved and is labelled so that kube-proxy leaves it
// alone. Left out: autoscaling, and CoreDNS's own health and metrics ports.
package dns

import (
	"context"
	"errors"
	"fmt"
	"io"
	golog "log"
	"net"
	"os"
	"syscall"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind" // the plugins that corefile names
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	"github.com/vishvananda/netlink"
	"k8s.io/klog/v2"
)

// Config says what is served where.
type Config struct {
	Address    net.IP // the cluster's DNS address; given to the loopback interface
	Port       int    // 53 but in tests
	Kubeconfig string
	ResolvConf string // where other names are asked; may be missing or empty
}

// corefile is CoreDNS's configuration (https://coredns.io/manual/configuration/).
// Start-up does not wait for the API server: names of the outside world must
// resolve without it.
func (c Config) corefile() string {
	forward := ""
	if data, err := os.ReadFile(c.ResolvConf); err == nil && len(data) > 0 {
		forward = fmt.Sprintf(" forward . %s\n", c.ResolvConf)
	}
	return fmt.Sprintf(`.:%d {
 bind %s
 errors
 kubernetes cluster.local in-addr.arpa ip6.arpa {
  kubeconfig %s
  pods insecure
  fallthrough in-addr.arpa ip6.arpa
  ttl 30
  startup_timeout 1ms
 }
%s cache 30
 loadbalance
}
`, c.Port, c.Address, c.Kubeconfig, forward)
}

// Run serves until ctx ends. It must start before other components log: the
// kubernetes plugin sets klog's logger for the whole process, which is undone
// here.
func Run(ctx context.Context, c Config, ready func()) error {
	if err := addAddress(c.Address); err != nil {
		return err
	}
	caddy.Quiet, dnsserver.Quiet = true, true
	golog.SetOutput(io.Discard) // caddy's start-up lines
	defer golog.SetOutput(os.Stderr)
	instance, err := caddy.Start(caddy.CaddyfileInput{Contents: []byte(c.corefile()), Filepath: "Corefile", ServerTypeName: "dns"})
	klog.ClearLogger()
	golog.SetOutput(os.Stderr)
	if err != nil {
		return fmt.Errorf("start CoreDNS: %w", err)
	}
	ready()
	<-ctx.Done()
	return instance.Stop()
}

// addAddress gives ip to the loopback interface, unless it is there already.
func addAddress(ip net.IP) error {
	if ip.IsLoopback() {
		return nil
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback interface: %w", err)
	}
	err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(32, 32)}})
	if err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("give %s to the loopback interface: %w", ip, err)
	}
	return nil
}
