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
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"skerry.internal/skerry/agent/controlplane"
	"skerry.internal/skerry/agent/datastore"
	"skerry.internal/skerry/agent/notify"
	"skerry.internal/skerry/agent/unit"
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
	n, err := newNode(ctx, o)
	if err != nil {
		return err
	}
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
	return []unit.Unit{
		{Name: "datastore", Run: func(ctx context.Context, ready func()) (err error) {
			if store, err = datastore.Start(ctx, datastore.Options{Dir: n.path("db"), RunDir: n.RunDir}); err != nil {
				return err
			}
			defer store.Stop()
			ready()
			<-ctx.Done()
			return nil
		}},
		{Name: "kube-apiserver", Run: func(ctx context.Context, ready func()) (err error) {
			if cp, err = n.controlPlane(store); err != nil {
				return err
			}
			return cp.RunAPIServer(ctx, ready)
		}},
		{Name: "kube-controller-manager", Run: func(ctx context.Context, ready func()) error { return cp.RunControllerManager(ctx, ready) }},
		{Name: "kube-scheduler", Run: func(ctx context.Context, ready func()) error { return cp.RunScheduler(ctx, ready) }},
	}
}
