// Package proxy runs kube-proxy in this process, in nftables mode.
//
// Left out: its clean-up of other modes, which a node of ours never ran.
package proxy

import (
	"context"
	"fmt"

	"github.com/spf13/pflag"
	"k8s.io/kubernetes/cmd/kube-proxy/app"
)

// Config says where kube-proxy runs.
type Config struct {
	NodeName   string
	Kubeconfig string
	PodCIDR    string // of the cluster
}

// Run runs kube-proxy until ctx ends or it fails. Upstream's own Run does not
// return when ctx ends; it is left behind, in a process that is about to end.
// ready is called when it has been started: it reports nothing of its own that
// could be awaited.
func Run(ctx context.Context, c Config, ready func()) error {
	o := app.NewOptions()
	fs := pflag.NewFlagSet("kube-proxy", pflag.ContinueOnError)
	o.AddFlags(fs)
	if err := fs.Parse([]string{
		"--kubeconfig=" + c.Kubeconfig,
		"--hostname-override=" + c.NodeName,
		"--proxy-mode=nftables",
		"--cluster-cidr=" + c.PodCIDR,
		"--healthz-bind-address=127.0.0.1:10256",
		"--metrics-bind-address=127.0.0.1:10249",
	}); err != nil {
		return fmt.Errorf("configure kube-proxy: %w", err)
	}
	if err := o.Complete(fs); err != nil {
		return fmt.Errorf("complete options: %w", err)
	}
	if err := o.Validate(); err != nil {
		return fmt.Errorf("validate options: %w", err)
	}
	failed := make(chan error, 1)
	go func() { failed <- o.Run(ctx) }()
	ready()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}
