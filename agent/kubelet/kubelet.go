// Package kubelet runs the kubelet in this process, unchanged, against
// containerd.
//
// Left out: rotation of its certificates through the API server; skerryd keeps
// them valid itself, so that a node which was off for a year still comes up.
package kubelet

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	watchtools "k8s.io/client-go/tools/watch"
	"k8s.io/client-go/util/retry"
	"k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	"k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
)

// Config says who this node is and where things are.
type Config struct {
	NodeName   string
	NodeIP     string
	RootDir    string // /var/lib/kubelet
	Kubeconfig string
	CAFile     string // trusted for clients
	CertFile   string // serving
	KeyFile    string
	ClusterDNS string
	ResolvConf string // what pods with dnsPolicy Default get
	Containerd string // socket
	Reserved   int64  // bytes of memory that pods can't have
	MaxPods    int    // at a time
	// What else skerry.yaml keeps from pods: thousandths of a processor, bytes of STATE. 0 keeps the default.
	ReservedCPU     int
	ReservedStorage int64
}

// Run runs the kubelet until ctx ends; registered is called once the Node
// object exists.
func Run(ctx context.Context, c Config, registered func()) error {
	flags := options.NewKubeletFlags()
	flags.KubeConfig = c.Kubeconfig
	flags.HostnameOverride = c.NodeName
	flags.NodeIP = c.NodeIP
	flags.RootDirectory = c.RootDir
	flags.CertDirectory = filepath.Join(c.RootDir, "pki")

	kc, err := options.NewKubeletConfiguration()
	if err != nil {
		return fmt.Errorf("make configuration: %w", err)
	}
	kc.ContainerRuntimeEndpoint = "unix://" + c.Containerd
	kc.CgroupDriver = "cgroupfs"
	kc.Authentication.Anonymous.Enabled = false
	kc.Authentication.Webhook.Enabled = true
	kc.Authentication.X509.ClientCAFile = c.CAFile
	kc.Authorization.Mode = config.KubeletAuthorizationModeWebhook
	kc.TLSCertFile, kc.TLSPrivateKeyFile = c.CertFile, c.KeyFile
	kc.TLSMinVersion = "VersionTLS12"
	kc.ReadOnlyPort = 0
	kc.RotateCertificates = false
	kc.ClusterDomain = "cluster.local"
	kc.ClusterDNS = []string{c.ClusterDNS}
	kc.ResolverConfig = c.ResolvConf
	kc.VolumePluginDir = filepath.Join(c.RootDir, "volume-plugins") // the default lies on the read-only root
	kc.FailSwapOn = false
	kc.MakeIPTablesUtilChains = false // kube-proxy runs in nftables mode
	kc.EnableProfilingHandler = false
	// A status that says nothing new is written every five minutes; the Lease
	// that proves life in between is volatile.
	kc.NodeStatusReportFrequency = metav1.Duration{Duration: 5 * time.Minute}
	// The cgroup of all pods ends there, so that a pod dies before skerryd does.
	kc.SystemReserved = map[string]string{"memory": strconv.FormatInt(c.Reserved, 10)}
	// Upstream sets its defaults for eviction when it reads a configuration file,
	// which there is none of: without them nothing is evicted before the disk is full.
	kc.EvictionHard = maps.Clone(eviction.DefaultEvictionHard)
	// Upstream removes images from 85 per cent on, which is where it evicts pods too, and
	// takes no new ones for five minutes.
	kc.ImageGCHighThresholdPercent, kc.ImageGCLowThresholdPercent = 75, 70
	// Each has a shim, whose memory is the system's.
	kc.MaxPods = int32(c.MaxPods)
	// A pod that forks without end stops there, and not when the machine is out
	// of memory for the kernel's own tables.
	kc.PodPidsLimit = 4096
	reserveMore(kc, c)
	// Pods write their logs to flash as well.
	kc.ContainerLogMaxSize, kc.ContainerLogMaxFiles = "5Mi", 3

	s := &options.KubeletServer{KubeletFlags: *flags, KubeletConfiguration: *kc}
	if err := options.ValidateKubeletServer(s); err != nil {
		return fmt.Errorf("validate configuration: %w", err)
	}
	deps, err := app.UnsecuredDependencies(ctx, s, utilfeature.DefaultFeatureGate)
	if err != nil {
		return fmt.Errorf("make dependencies: %w", err)
	}
	go func() {
		if _, err := WaitNode(ctx, c.Kubeconfig, c.NodeName, func(*corev1.Node) bool { return true }); err == nil {
			registered()
		}
	}()
	return app.Run(ctx, s, deps, utilfeature.DefaultFeatureGate)
}

// Heartbeat returns when this node last reported its readiness, zero if never.
func Heartbeat(ctx context.Context, kubeconfig, name string) (metav1.Time, error) {
	client, err := connect(kubeconfig)
	if err != nil {
		return metav1.Time{}, err
	}
	n, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return metav1.Time{}, nil
	}
	if err != nil {
		return metav1.Time{}, fmt.Errorf("read node %q: %w", name, err)
	}
	_, at := readiness(n)
	return at, nil
}

// ReadySince makes a test for WaitNode: the node is Ready, and said so after
// the report of the given time. What an earlier kubelet said before a crash or
// a power cut still stands in the Node object; a clock is not asked, because it
// may have jumped.
func ReadySince(before metav1.Time) func(*corev1.Node) bool {
	return func(n *corev1.Node) bool {
		ready, at := readiness(n)
		return ready && !at.Equal(&before)
	}
}

// AfterBoot says in the Node object that the node is not Ready, if the kubelet that
// said so ran before this boot. Nothing runs on it yet; and the kubelet, which looks
// ten times a second whether it can report a node Ready, does so only where it is not,
// and else at one of its turns, ten seconds apart (kubelet_node_status.go,
// fastNodeStatusUpdate). After a restart of skerryd alone the containers run, and it stays.
func AfterBoot(ctx context.Context, kubeconfig, name string) error {
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("tell this boot from others: %w", err)
	}
	client, err := connect(kubeconfig)
	if err != nil {
		return err
	}
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		n, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && !unready(n, strings.TrimSpace(string(bootID)), metav1.Now()) {
			return nil
		}
		if err == nil {
			_, err = client.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("say that node %q has booted: %w", name, err)
	}
	return nil
}

// unready changes a Node that is Ready as of another boot, and reports whether it did.
func unready(n *corev1.Node, bootID string, now metav1.Time) bool {
	if n.Status.NodeInfo.BootID == bootID {
		return false
	}
	for i := range n.Status.Conditions {
		c := &n.Status.Conditions[i]
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			c.Status, c.Reason, c.Message, c.LastTransitionTime = corev1.ConditionFalse, "NodeBooted", "the node has booted, and its kubelet has not reported yet", now
			return true
		}
	}
	return false
}

func readiness(n *corev1.Node) (bool, metav1.Time) {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue, c.LastHeartbeatTime
		}
	}
	return false, metav1.Time{}
}

func connect(kubeconfig string) (kubernetes.Interface, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("use kubeconfig %q: %w", kubeconfig, err)
	}
	return client, nil
}

// WaitNode watches this node's object until ok says yes, and returns it.
func WaitNode(ctx context.Context, kubeconfig, name string, ok func(*corev1.Node) bool) (*corev1.Node, error) {
	client, err := connect(kubeconfig)
	if err != nil {
		return nil, err
	}
	// A node may read the object of its own name only.
	only := fields.OneTermEqualSelector("metadata.name", name).String()
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = only
			return client.CoreV1().Nodes().List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = only
			return client.CoreV1().Nodes().Watch(ctx, o)
		},
	}
	e, err := watchtools.UntilWithSync(ctx, lw, &corev1.Node{}, nil, func(e watch.Event) (bool, error) {
		n, is := e.Object.(*corev1.Node)
		return is && e.Type != watch.Deleted && ok(n), nil
	})
	if err != nil {
		return nil, fmt.Errorf("watch node %q: %w", name, err)
	}
	return e.Object.(*corev1.Node), nil
}
