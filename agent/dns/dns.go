// Package dns serves the cluster's names on every node, with CoreDNS as a
// library, so that pods resolve names while their node is cut off.
//
// It listens on addresses that every node has for itself on its loopback
// interface (docs/decisions/0004-cluster-dns.md). Left out: autoscaling, and
// CoreDNS's own health and metrics ports.
package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	golog "log"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind" // the plugins that corefile names
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	"github.com/fsnotify/fsnotify"
	"github.com/vishvananda/netlink"
	"k8s.io/klog/v2"
)

// Config says what is served where.
type Config struct {
	Addresses  []net.IP // given to the loopback interface
	Port       int      // 53 but in tests
	Kubeconfig string
	// Forward is where other names are asked: an address, or the path of a
	// resolv.conf, which may be missing or empty and may change at any time.
	Forward string
}

// corefile is CoreDNS's configuration (https://coredns.io/manual/configuration/).
// Start-up does not wait for the API server: names of the outside world must
// resolve without it.
func (c Config) corefile() string {
	forward := ""
	if c.Forward != "" && (!filepath.IsAbs(c.Forward) || bytes.Contains(c.resolvConf(), []byte("nameserver"))) {
		forward = fmt.Sprintf(" forward . %s\n", c.Forward)
	}
	var bind strings.Builder
	for _, ip := range c.Addresses {
		fmt.Fprintf(&bind, " %s", ip)
	}
	return fmt.Sprintf(`.:%d {
 bind%s
 errors {
  consolidate 5m ".*"
 }
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
`, c.Port, bind.String(), c.Kubeconfig, forward)
}

// Run serves until ctx ends. It must start before other components log: the
// kubernetes plugin sets klog's logger for the whole process, which is undone
// here.
func Run(ctx context.Context, c Config, ready func()) error {
	for _, ip := range c.Addresses {
		if err := addAddress(ip); err != nil {
			return err
		}
	}
	current := c.resolvConf()
	caddy.Quiet, dnsserver.Quiet = true, true
	golog.SetOutput(io.Discard) // caddy's start-up lines
	instance, err := caddy.Start(c.input())
	klog.ClearLogger()
	golog.SetOutput(os.Stderr)
	if err != nil {
		return fmt.Errorf("start CoreDNS: %w", err)
	}
	ready()
	return c.follow(ctx, instance, current)
}

func (c Config) resolvConf() []byte {
	data, err := os.ReadFile(c.Forward)
	if err != nil {
		return nil
	}
	return data
}

// follow ends with an error when the servers in resolv.conf are others than in
// current: CoreDNS reads them at its start only, and starting it once more in
// this process would set klog's logger under the feet of everybody who logs.
func (c Config) follow(ctx context.Context, instance *caddy.Instance, current []byte) error {
	defer instance.Stop()
	if !filepath.IsAbs(c.Forward) {
		<-ctx.Done()
		return nil
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", c.Forward, err)
	}
	defer w.Close()
	if err := w.Add(filepath.Dir(c.Forward)); err != nil {
		return fmt.Errorf("watch %s: %w", c.Forward, err)
	}
	for {
		if !bytes.Equal(c.resolvConf(), current) {
			return fmt.Errorf("the servers in %s changed", c.Forward)
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-w.Errors:
			return fmt.Errorf("watch %s: %w", c.Forward, err)
		case <-w.Events:
		}
	}
}

func (c Config) input() caddy.Input {
	return caddy.CaddyfileInput{Contents: []byte(c.corefile()), Filepath: "Corefile", ServerTypeName: "dns"}
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
