// Command skerryd is all of Kubernetes that a Skerry node runs, in one process:
// it reads the node's configuration, keeps its certificates valid, and starts
// the units below in order. It speaks sd_notify, so init and systemd
// supervise it alike. A unit that ends, ends the process; whoever started it
// starts it again.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.internal/skerry/agent/addons"
	"skerry.internal/skerry/agent/controlplane"
	"skerry.internal/skerry/agent/datastore"
	"skerry.internal/skerry/agent/dns"
	"skerry.internal/skerry/agent/kubelet"
	"skerry.internal/skerry/agent/notify"
	"skerry.internal/skerry/agent/podnet"
	"skerry.internal/skerry/agent/proxy"
	"skerry.internal/skerry/agent/unit"
	"skerry.internal/skerry/manifests"
)

// Exit statuses: it failed, it was called wrongly.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var usage usageError
	switch err := run(ctx, os.Args[1:]); {
	case err == nil || errors.Is(err, pflag.ErrHelp):
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "skerryd: %v; see skerryd --help\n", err)
		os.Exit(exitUsage)
	default:
		fmt.Fprintf(os.Stderr, "skerryd: %v\n", err)
		os.Exit(exitFailed)
	}
}

type usageError struct{ error }

func run(ctx context.Context, args []string) error {
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	supervisor := notify.Take()
	n, err := newNode(o)
	if err != nil {
		return err
	}
	n.supervisor = supervisor
	go feedWatchdog(ctx, supervisor)
	return unit.Run(ctx, n.units(),
		func(name string, after time.Duration) {
			fmt.Fprintf(os.Stderr, "skerryd: %s ready after %dms\n", name, after.Milliseconds())
			supervisor.Send("STATUS=" + name + " ready")
		},
		func() {
			fmt.Fprintln(os.Stderr, "skerryd: all units ready")
			supervisor.Send("READY=1", "STATUS=node ready")
		})
}

// feedWatchdog tells the supervisor that this process still schedules
// goroutines; not more, because a restart mends nothing else.
func feedWatchdog(ctx context.Context, supervisor notify.Sender) {
	if supervisor.Watchdog() == 0 {
		return
	}
	t := time.NewTicker(supervisor.Watchdog() / 3)
	defer t.Stop()
	for {
		supervisor.Send("WATCHDOG=1")
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// units lists what runs, in order of start.
func (n *node) units() []unit.Unit {
	var store *datastore.Datastore
	var cp *controlplane.ControlPlane
	var heartbeat metav1.Time // the last one before this start
	units := []unit.Unit{
		{Name: "address", Run: outside(n.supervisor, n.followAddress)},
		{Name: "certificates", Run: n.keepCertificates},
		{Name: "datastore", Run: n.runDatastore(lookAgain, func(d *datastore.Datastore) { store = d })},
		n.snapshotUnit(),
	}
	controlPlane := []unit.Unit{
		{Name: "kube-apiserver", Run: func(ctx context.Context, ready func()) (err error) {
			if cp, err = n.controlPlane(store); err != nil {
				return err
			}
			return cp.RunAPIServer(ctx, ready)
		}},
		{Name: "kube-controller-manager", Run: func(ctx context.Context, ready func()) error { return cp.RunControllerManager(ctx, ready) }},
		{Name: "kube-scheduler", Run: func(ctx context.Context, ready func()) error { return cp.RunScheduler(ctx, ready) }},
		once("manifests", func(ctx context.Context) error { return addons.Apply(ctx, n.kubeconfig("skerryd"), manifests.FS) }),
	}
	if n.ControlPlaneOnly {
		return append(units, controlPlane...)
	}
	// CoreDNS sets klog's logger for a moment, so it comes before those who log.
	units = append(units, unit.Unit{Name: "dns", Run: func(ctx context.Context, ready func()) error {
		return dns.Run(ctx, dns.Config{Addresses: []net.IP{localDNS, dnsIP}, Port: 53, Kubeconfig: n.kubeconfig("dns"), Forward: resolvConf}, ready)
	}})
	units = append(units, controlPlane...)
	return append(units,
		once("registries", func(context.Context) error {
			return errors.Join(kubelet.WriteRegistries(n.path("registries"), n.config.Registries), kubelet.WriteCredentials("/var/lib/kubelet", n.config.Registries))
		}),
		unit.Unit{Name: "images", Run: outside(n.supervisor, once("images", retry(n.supervisor, "import images", func(ctx context.Context) error {
			return addons.ImportImages(ctx, containerdSocket, imagesDir)
		})).Run)},
		unit.Unit{Name: "kubelet", Run: func(ctx context.Context, ready func()) (err error) {
			if heartbeat, err = kubelet.Heartbeat(ctx, n.kubeconfig("kubelet"), n.name); err != nil {
				return err
			}
			if err := kubelet.AfterBoot(ctx, n.kubeconfig("kubelet"), n.name); err != nil {
				fmt.Fprintln(os.Stderr, "skerryd:", err) // it only takes longer then
			}
			return kubelet.Run(ctx, kubelet.Config{
				NodeName: n.name, NodeIP: n.NodeIP.String(), RootDir: "/var/lib/kubelet",
				Kubeconfig: n.kubeconfig("kubelet"), CAFile: n.caFile,
				CertFile: n.path("pki", "kubelet-server.crt"), KeyFile: n.path("pki", "kubelet-server.key"),
				ClusterDNS: localDNS.String(), ResolvConf: resolvConf, Containerd: containerdSocket,
				Reserved:    n.config.ReservedMemory(totalMemory()),
				MaxPods:     n.config.Pods(totalMemory()),
				ReservedCPU: int(n.config.Reserved.CPU), ReservedStorage: int64(n.config.Reserved.Storage),
			}, ready)
		}},
		once("pod network", func(ctx context.Context) error {
			// With an address of before a change, kube-proxy would end the process as soon as it reads the new one.
			n.supervisor.Send("STATUS=waiting for the Node object to have the address " + n.NodeIP.String())
			node, err := kubelet.WaitNode(ctx, n.kubeconfig("kubelet"), n.name, func(node *corev1.Node) bool {
				return node.Spec.PodCIDR != "" && slices.Contains(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: n.NodeIP.String()})
			})
			if err != nil {
				return err
			}
			return podnet.Write(podnet.Config{Dir: n.path("cni", "net.d"), IPAMDir: filepath.Join(n.RunDir, "cni"), PodCIDR: node.Spec.PodCIDR})
		}),
		unit.Unit{Name: "kube-proxy", Run: func(ctx context.Context, ready func()) error {
			return proxy.Run(ctx, proxy.Config{NodeName: n.name, Kubeconfig: n.kubeconfig("kube-proxy"), PodCIDR: podCIDR}, ready)
		}},
		once("node description", retry(n.supervisor, "describe node", func(ctx context.Context) error {
			return kubelet.Describe(ctx, n.kubeconfig("skerryd"), n.name, n.labels(), n.config.Taints)
		})),
		unit.Unit{Name: "node", Run: outside(n.supervisor, once("node", func(ctx context.Context) error {
			_, err := kubelet.WaitNode(ctx, n.kubeconfig("kubelet"), n.name, kubelet.ReadySince(heartbeat))
			return err
		}).Run)})
}
