package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/atomicfile"
	"skerry.internal/skerry/agent/clock"
	"skerry.internal/skerry/agent/config"
	"skerry.internal/skerry/agent/controlplane"
	"skerry.internal/skerry/agent/datastore"
	"skerry.internal/skerry/agent/kubeconfig"
	"skerry.internal/skerry/agent/notify"
	"skerry.internal/skerry/agent/pki"
	"skerry.internal/skerry/agent/provision"
	"skerry.internal/skerry/agent/snapshots"
)

// The cluster's networks, as K3s has them, so that what people know applies.
const (
	podCIDR     = "10.42.0.0/16"
	serviceCIDR = "10.43.0.0/16"
)

var (
	serviceIP = net.IPv4(10, 43, 0, 1)
	dnsIP     = net.IPv4(10, 43, 0, 10)
	localDNS  = net.IPv4(169, 254, 20, 10) // what pods are told to ask
)

// Where the root file system and init put things.
const (
	containerdSocket = "/run/containerd/containerd.sock"
	imagesDir        = "/usr/share/skerry/images"
	resolvConf       = "/run/resolv.conf"
	networkFile      = "network.json" // in RunDir, from init
)

// options are the command line.
type options struct {
	Config           string
	DataDir          string
	RunDir           string
	NodeIP           net.IP
	Port             int
	ControlPlaneOnly bool
}

func parseOptions(args []string) (options, error) {
	var o options
	f := pflag.NewFlagSet("skerryd", pflag.ContinueOnError)
	f.StringVar(&o.Config, "config", "/run/skerry/"+config.FileName, "the node's configuration; a missing file means defaults")
	f.StringVar(&o.DataDir, "data-dir", "/var/lib/skerry", "where state is kept, with provision.json from skerry cluster create")
	f.StringVar(&o.RunDir, "run-dir", "/run/skerry", "where sockets are made")
	f.IPVar(&o.NodeIP, "node-ip", nil, "this node's address (default: what init or the default route says)")
	f.IntVar(&o.Port, "port", 6443, "TCP port of the Kubernetes API")
	f.BoolVar(&o.ControlPlaneOnly, "control-plane-only", false, "run no kubelet and no networking for pods")
	f.Usage = func() {
		fmt.Fprintf(os.Stderr, "skerryd runs a Kubernetes node in one process.\n\nExample:\n  skerryd --data-dir /var/lib/skerry --node-ip 192.168.1.10\n\nFlags:\n%s", f.FlagUsages())
	}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return o, err
		}
		return o, usageError{err}
	}
	if f.NArg() > 0 {
		return o, usageError{fmt.Errorf("unexpected argument %q", f.Arg(0))}
	}
	if o.NodeIP != nil && o.NodeIP.IsLoopback() {
		return o, usageError{fmt.Errorf("--node-ip %s: want an address that pods can reach, not a loopback one", o.NodeIP)}
	}
	return o, nil
}

// node is what the units share: who this node is, and its certificates.
type node struct {
	options
	name      string
	config    *config.Config
	bundle    *provision.Bundle
	authority *pki.Authority
	caFile    string
	files     controlplane.Files
	others    []string // names beside name that the node has had in .local

	supervisor notify.Sender
	snapshots  *snapshots.Keeper // its Now is for whoever is about to do something risky
}

func (n *node) path(elem ...string) string {
	return filepath.Join(append([]string{n.DataDir}, elem...)...)
}

// server is the API server's URL for programs of this node.
func (n *node) server() string { return fmt.Sprintf("https://127.0.0.1:%d", n.Port) }

func newNode(o options) (*node, error) {
	n := &node{options: o}
	data, err := config.ReadFile(o.Config)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	var mistakes []config.Mistake
	n.config, mistakes = config.Parse(data)
	for _, m := range mistakes {
		fmt.Fprintf(os.Stderr, "skerryd: %s\n", m)
	}
	if n.bundle, err = provision.Load(o.DataDir); err != nil {
		return nil, err
	}
	if n.bundle == nil {
		return nil, fmt.Errorf("no %s in %s: this node belongs to no cluster; run skerry cluster create NAME and put it on the card with skerry flash --cluster NAME", provision.FileName, o.DataDir)
	}
	if n.name = string(n.config.Hostname); n.name == "" {
		if n.name, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("read host name: %w", err)
		}
	}
	if n.authority, err = pki.ParseAuthority(n.bundle.IntermediateCert, n.bundle.IntermediateKey); err != nil {
		return nil, fmt.Errorf("use provisioning bundle: %w", err)
	}
	n.caFile = n.path("pki", "ca.crt")
	if err := os.MkdirAll(filepath.Dir(n.caFile), 0o700); err != nil {
		return nil, fmt.Errorf("make certificate directory: %w", err)
	}
	if err := atomicfile.WriteFile(n.caFile, n.bundle.CACert, 0o644); err != nil {
		return nil, fmt.Errorf("write CA certificate: %w", err)
	}
	return n, nil
}

// followAddress waits until this node has an address: from the command line, or
// from init, which writes it as soon as there is one. When init writes another
// one later it ends with an error: kubelet, kube-proxy and certificates take an
// address at their start only, and a restart costs no container.
func (n *node) followAddress(ctx context.Context, ready func()) error {
	if n.NodeIP != nil {
		ready()
		<-ctx.Done()
		return nil
	}
	if err := os.MkdirAll(n.RunDir, 0o755); err != nil {
		return fmt.Errorf("wait for an address: %w", err)
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("wait for an address: %w", err)
	}
	defer w.Close()
	if err := w.Add(n.RunDir); err != nil {
		return fmt.Errorf("wait for an address: %w", err)
	}
	path := filepath.Join(n.RunDir, networkFile)
	for said := false; ; {
		switch ip := readAddress(path); {
		case ip != nil && n.NodeIP == nil:
			n.NodeIP = ip
			ready()
		case ip != nil && !ip.Equal(n.NodeIP):
			return fmt.Errorf("this node's address changed from %s to %s", n.NodeIP, ip)
		case n.NodeIP == nil && !said:
			said = true
			fmt.Fprintf(os.Stderr, "skerryd: no network address yet: waiting for init to write %s; plug in a cable, or use --node-ip\n", path)
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-w.Errors:
			return fmt.Errorf("wait for an address: %w", err)
		case <-w.Events:
		}
	}
}

// readAddress reads what init wrote; nil means that there is no address now.
func readAddress(path string) net.IP {
	var network struct {
		Address netip.Prefix `json:"address"`
	}
	data, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(data, &network) != nil || !network.Address.IsValid() {
		return nil
	}
	return net.IP(network.Address.Addr().AsSlice())
}

// maxOthers bounds the names that a certificate is made anew for while skerryd runs:
// somebody on the network who claims one name after the other must not wear out the
// flash memory.
const maxOthers = 4

// readLocalName reads the name that init found for this node in .local; empty
// while there is none.
func readLocalName(path string) string {
	data, _ := os.ReadFile(path)
	name := strings.TrimSpace(string(data))
	if config.CheckHostname(name) != nil {
		return ""
	}
	return name
}

// renewEvery is how often certificates are looked at, apart from when the clock
// is set: a jump may make them invalid.
const renewEvery = time.Minute

// tolerated is how far the clock may go back with skerryd running on. The API
// server lets a token be issued that far in its future (go-jose, jwt.DefaultLeeway).
const tolerated = time.Minute

// keepCertificates makes the certificates, and ends with an error when it had to
// make one anew later: most programs read theirs at the start only. The same when
// the clock was set back: kubelet keeps the pods' tokens, which the API server
// refuses while they are from its future, and asks for others only after a start.
func (n *node) keepCertificates(ctx context.Context, ready func()) error {
	begin, furthest := time.Now(), time.Duration(0)
	if _, err := n.ensureFiles(begin); err != nil {
		return err
	}
	jumps, err := clock.Jumps(ctx)
	if err != nil {
		return err
	}
	ready()
	t := time.NewTicker(renewEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case _, open := <-jumps:
			if !open {
				jumps = nil // the minutes are left
			}
		}
		now := time.Now()
		shift := clock.Shift(begin, now)
		furthest = max(furthest, shift)
		if shift < furthest-tolerated {
			return fmt.Errorf("the clock was set back by %v", (furthest - shift).Round(time.Second))
		}
		if changed, err := n.ensureFiles(now); err != nil {
			fmt.Fprintf(os.Stderr, "skerryd: renew certificates: %v\n", err) // those in use may last
		} else if changed {
			return errors.New("certificates were renewed")
		}
	}
}

// labels are those of skerry.yaml and the role that kubectl get nodes shows.
func (n *node) labels() map[string]string {
	labels := map[string]string{"node-role.kubernetes.io/control-plane": "true"}
	maps.Copy(labels, n.config.Labels)
	return labels
}

// totalMemory is this machine's, in bytes.
func totalMemory() int64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0 // it can't fail with a valid pointer (sysinfo(2))
	}
	return int64(info.Totalram) * int64(info.Unit)
}

// kubeconfig is the path of the one that ensureFiles makes for a program.
func (n *node) kubeconfig(name string) string { return n.path("pki", name+".kubeconfig") }

// ensureFiles keeps the certificates and kubeconfigs of this node valid, and
// says whether a certificate was made anew.
func (n *node) ensureFiles(now time.Time) (changed bool, err error) {
	if local := readLocalName(filepath.Join(n.RunDir, api.LocalNameFile)); local != "" && local != n.name && len(n.others) < maxOthers && !slices.Contains(n.others, local) {
		n.others = append(n.others, local)
	}
	if n.files, changed, err = controlplane.EnsureFiles(n.path("pki"), n.caFile, n.authority,
		controlplane.Node{Name: n.name, Others: n.others, Addresses: []net.IP{n.NodeIP}, ServiceIP: serviceIP}, n.server(), now); err != nil {
		return false, err
	}
	made, err := n.authority.Ensure(n.path("pki"), "kubelet-server",
		pki.Leaf{CommonName: "system:node:" + n.name, Organization: []string{"system:nodes"}, DNSNames: []string{n.name}, IPs: []net.IP{n.NodeIP}, Server: true}, now)
	changed = changed || made
	if err != nil {
		return false, fmt.Errorf("certificate kubelet-server: %w", err)
	}
	for name, leaf := range map[string]pki.Leaf{
		"kubelet":    {CommonName: "system:node:" + n.name, Organization: []string{"system:nodes"}},
		"kube-proxy": {CommonName: "system:kube-proxy"},
		"dns":        {CommonName: "skerry:dns"},
		"skerryd":    {CommonName: "skerryd", Organization: []string{"system:masters"}},
	} {
		made, err := n.authority.Ensure(n.path("pki"), name, leaf, now)
		changed = changed || made
		if err != nil {
			return false, fmt.Errorf("certificate %s: %w", name, err)
		}
		if err := kubeconfig.Write(n.kubeconfig(name), n.server(), n.caFile, n.path("pki", name+".crt"), n.path("pki", name+".key")); err != nil {
			return false, err
		}
	}
	return changed, nil
}

func (n *node) controlPlane(store *datastore.Datastore) (*controlplane.ControlPlane, error) {
	return controlplane.Prepare(controlplane.Config{
		Dir:       n.path("control-plane"),
		Advertise: n.NodeIP.String(),
		Port:      n.Port,
		PodCIDR:   podCIDR, ServiceCIDR: serviceCIDR,
		Datastore: store.Endpoint, Volatile: store.VolatileEndpoint, VolatileNames: datastore.Volatile,
		Files: n.files,
	})
}
