// Package controlplane runs kube-apiserver, kube-controller-manager and
// kube-scheduler in this process, unchanged, each configured by the flags that
// its own documentation describes.
//
// It also owns what these components keep in package variables (feature
// gates, logging), so that nobody else has to. Left out: their cobra commands,
// which install a signal handler each (the second one panics), and leader
// election, because there is one of each.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	utilcompatibility "k8s.io/apiserver/pkg/util/compatibility"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/kubernetes"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	controllersmetrics "k8s.io/component-base/metrics/prometheus/controllers"
	apiserverapp "k8s.io/kubernetes/cmd/kube-apiserver/app"
	apiserveroptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	cmapp "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	cmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	schedulerapp "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	"skerry.internal/skerry/agent/atomicfile"
)

// Config says what the components share.
type Config struct {
	Dir           string // for files that are made at each start
	Advertise     string // the address that pods reach the API server at; not a loopback one
	Port          int    // of the API server, on all addresses
	PodCIDR       string
	ServiceCIDR   string
	Datastore     string // etcd endpoint
	Volatile      string // etcd endpoint for VolatileResources
	VolatileNames []string
	Files         Files
}

// Files are paths of PEM files, and kubeconfigs of the components.
type Files struct {
	CACert                                string // trusted for clients, kubelets and in pods
	SigningCert, SigningKey               string // signs certificate requests
	ServingCert, ServingKey               string
	KubeletClientCert, KubeletClientKey   string
	FrontProxyCA                          string
	FrontProxyCert, FrontProxyKey         string
	ServiceAccountKey                     string
	ControllerKubeconfig, SchedulerConfig string
}

// authentication lets anonymous requests reach the health endpoints and
// nothing else (https://kubernetes.io/docs/reference/access-authn-authz/authentication/#anonymous-authenticator-configuration).
const authentication = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
  - path: /livez
  - path: /readyz
  - path: /healthz
`

// ControlPlane holds the components' options between Prepare and the Run
// functions.
type ControlPlane struct {
	c         Config
	apiserver *apiserveroptions.ServerRunOptions
	cm        *cmoptions.KubeControllerManagerOptions
	scheduler *scheduleroptions.Options
}

// Prepare reads the components' flags and settles what they share in package
// variables. It can be called once in a process.
func Prepare(c Config) (*ControlPlane, error) {
	// One logging configuration for all; the others' attempts to set the same
	// again are not errors.
	logsapi.ReapplyHandling = logsapi.ReapplyHandlingIgnoreUnchanged
	// The components watch deprecated APIs on purpose.
	restclient.SetDefaultWarningHandler(restclient.NoWarnings{})

	authn := filepath.Join(c.Dir, "authentication.yaml")
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make control plane directory: %w", err)
	}
	if err := atomicfile.WriteFile(authn, []byte(authentication), 0o600); err != nil {
		return nil, fmt.Errorf("write authentication configuration: %w", err)
	}
	var overrides []string
	for _, name := range c.VolatileNames {
		overrides = append(overrides, name+"#"+c.Volatile)
	}

	p := &ControlPlane{c: c, apiserver: apiserveroptions.NewServerRunOptions(), scheduler: scheduleroptions.NewOptions()}
	var err error
	if p.cm, err = cmoptions.NewKubeControllerManagerOptions(); err != nil {
		return nil, fmt.Errorf("make controller-manager options: %w", err)
	}
	f := c.Files
	apiserverFlags := p.apiserver.Flags()
	cmFlags := p.cm.Flags(cmapp.KnownControllers(), cmapp.ControllersDisabledByDefault(), cmapp.ControllerAliases())
	for _, component := range []struct {
		name  string
		flags *cliflag.NamedFlagSets
		args  []string
	}{
		{"kube-apiserver", &apiserverFlags, []string{
			"--advertise-address=" + c.Advertise,
			"--secure-port=" + strconv.Itoa(c.Port),
			"--etcd-servers=" + c.Datastore,
			"--etcd-servers-overrides=" + strings.Join(overrides, ","),
			// "lease" would write to the disk every ten seconds; this one
			// writes only when the address changes.
			"--endpoint-reconciler-type=master-count",
			"--service-cluster-ip-range=" + c.ServiceCIDR,
			"--authorization-mode=Node,RBAC",
			"--enable-admission-plugins=NodeRestriction",
			"--allow-privileged=true",
			"--authentication-config=" + authn,
			"--client-ca-file=" + f.CACert,
			"--tls-cert-file=" + f.ServingCert,
			"--tls-private-key-file=" + f.ServingKey,
			"--tls-min-version=VersionTLS12",
			"--kubelet-certificate-authority=" + f.CACert,
			"--kubelet-client-certificate=" + f.KubeletClientCert,
			"--kubelet-client-key=" + f.KubeletClientKey,
			"--kubelet-preferred-address-types=InternalIP,Hostname",
			"--requestheader-client-ca-file=" + f.FrontProxyCA,
			"--requestheader-allowed-names=front-proxy-client",
			"--requestheader-username-headers=X-Remote-User",
			"--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file=" + f.FrontProxyCert,
			"--proxy-client-key-file=" + f.FrontProxyKey,
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + f.ServiceAccountKey,
			"--service-account-signing-key-file=" + f.ServiceAccountKey,
			"--profiling=false",
		}},
		{"kube-controller-manager", &cmFlags, []string{
			"--kubeconfig=" + f.ControllerKubeconfig,
			"--secure-port=0",
			"--leader-elect=false",
			"--use-service-account-credentials=true",
			// Each controller asks for its account and token at the start, a hundred
			// requests in all: with the default of 20 a second they wait for each other.
			"--kube-api-qps=100",
			"--kube-api-burst=200",
			"--service-account-private-key-file=" + f.ServiceAccountKey,
			"--root-ca-file=" + f.CACert,
			"--cluster-signing-cert-file=" + f.SigningCert,
			"--cluster-signing-key-file=" + f.SigningKey,
			"--allocate-node-cidrs=true",
			"--cluster-cidr=" + c.PodCIDR,
			"--service-cluster-ip-range=" + c.ServiceCIDR,
			"--profiling=false",
		}},
		{"kube-scheduler", p.scheduler.Flags, []string{
			"--kubeconfig=" + f.SchedulerConfig,
			"--secure-port=0",
			"--leader-elect=false",
			"--profiling=false",
		}},
	} {
		if err := parse(component.name, component.flags, component.args); err != nil {
			return nil, err
		}
	}
	// All three have registered their feature gates by now; they are shared.
	if err := utilcompatibility.DefaultComponentGlobalsRegistry.Set(); err != nil {
		return nil, fmt.Errorf("set feature gates: %w", err)
	}
	if err := logsapi.ValidateAndApply(p.apiserver.Logs, utilfeature.DefaultFeatureGate); err != nil {
		return nil, fmt.Errorf("set up logging: %w", err)
	}
	return p, nil
}

func parse(name string, named *cliflag.NamedFlagSets, args []string) error {
	all := pflag.NewFlagSet(name, pflag.ContinueOnError)
	for _, fs := range named.FlagSets {
		all.AddFlagSet(fs)
	}
	if err := all.Parse(args); err != nil {
		return fmt.Errorf("configure %s: %w", name, err)
	}
	return nil
}

// RunAPIServer serves until ctx ends; ready is called once /readyz says ok.
func (p *ControlPlane) RunAPIServer(ctx context.Context, ready func()) error {
	completed, err := p.apiserver.Complete(ctx)
	if err != nil {
		return fmt.Errorf("complete options: %w", err)
	}
	if errs := completed.Validate(); len(errs) != 0 {
		return fmt.Errorf("validate options: %w", utilerrors.NewAggregate(errs))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		if p.waitReady(ctx) == nil {
			ready()
		}
	}()
	return apiserverapp.Run(ctx, completed)
}

// waitReady asks /readyz, the API server's own word, until it is ok, and then
// for the namespace that everybody's first object goes to, which is made a
// moment later. There is no event to wait for: the server's hooks are not
// exported.
func (p *ControlPlane) waitReady(ctx context.Context) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", p.c.Files.ControllerKubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	return wait.PollUntilContextCancel(ctx, 200*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		if err := client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error(); err != nil {
			return false, nil
		}
		_, err := client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceDefault, metav1.GetOptions{})
		return err == nil, nil
	})
}

// RunControllerManager runs until ctx ends; ready is called once all
// controllers are made. Making them must be over before a kubelet starts in the
// same process: the CSI volume plugin keeps what it was last initialized with in
// package variables (pkg/volume/csi, nim and PluginHandler), and a kubelet
// whose entry there is replaced by the controller-manager's never gets Ready.
func (p *ControlPlane) RunControllerManager(ctx context.Context, ready func()) error {
	c, err := p.cm.Config(ctx, cmapp.KnownControllers(), cmapp.ControllersDisabledByDefault(), cmapp.ControllerAliases())
	if err != nil {
		return fmt.Errorf("make configuration: %w", err)
	}
	gauge, err := controllersGauge()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		// Controllers are run after the last of them was made, and that one of
		// them runs is seen in its metric: there is no event to wait for.
		if wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(context.Context) (bool, error) { return anyIsOne(gauge), nil }) == nil {
			ready()
		}
	}()
	return cmapp.Run(ctx, c.Complete())
}

// controllersGauge is what the controller-manager sets to 1 when it runs its node
// IPAM controller. Kubernetes exports neither the gauge nor a way to read one metric;
// reading all of them, ten times a second, took an eighth of the start's processor time.
// So the same gauge is registered once more, and the refusal holds the first.
func controllersGauge() (prometheus.Collector, error) {
	controllersmetrics.Register()
	err := legacyregistry.Register(metrics.NewGaugeVec(&metrics.GaugeOpts{
		Name: "running_managed_controllers", Help: "Indicates where instances of a controller are currently running", StabilityLevel: metrics.BETA,
	}, []string{"name", "manager"}))
	if already := (prometheus.AlreadyRegisteredError{}); errors.As(err, &already) {
		return already.ExistingCollector, nil
	}
	return nil, fmt.Errorf("find the gauge of running controllers: %v; want it to be there, as k8s.io/component-base/metrics/prometheus/controllers makes it", err)
}

// anyIsOne reports whether a gauge of a collector is 1.
func anyIsOne(c prometheus.Collector) bool {
	found := make(chan prometheus.Metric)
	go func() {
		defer close(found)
		c.Collect(found)
	}()
	one := false
	for m := range found {
		var v dto.Metric
		one = one || m.Write(&v) == nil && v.GetGauge().GetValue() == 1
	}
	return one
}

// RunScheduler runs until ctx ends.
func (p *ControlPlane) RunScheduler(ctx context.Context, ready func()) error {
	name, err := cache.NewInformerName("kube-scheduler")
	if err != nil {
		return err
	}
	p.scheduler.InformerName = name
	c, s, err := schedulerapp.Setup(ctx, p.scheduler)
	if err != nil {
		return fmt.Errorf("make configuration: %w", err)
	}
	ready()
	if err := schedulerapp.Run(ctx, c, s); ctx.Err() == nil {
		return errors.Join(err, errors.New("ended by itself"))
	}
	return nil
}
