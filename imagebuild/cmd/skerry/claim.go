package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/imagebuild/claim"
	"skerry.internal/skerry/imagebuild/discover"
)

func clusterClaimCommand() *cobra.Command {
	var fingerprint, code string
	cmd := &cobra.Command{
		Use:   "claim CLUSTER ADDRESS|NAME",
		Short: "Take a node that belongs to no cluster into one, over the network",
		Long: `Take a node that was flashed without a cluster into one, over the network. The node's console
shows a fingerprint and a one-time code: the fingerprint proves that it is that node which
answers, the code proves to the node that you stand before it. Without the flags, both are asked for.`,
		Example: "  skerry cluster claim home barn-1\n  skerry cluster claim home 192.0.2.10 --fingerprint K7QD-2MXN-93TE-B4VW --code 6JRP-0C8Z",
		Args:    exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, f := range []struct {
				text  *string
				parse func(string) (string, error)
			}{{&fingerprint, api.ParseFingerprint}, {&code, api.ParseCode}} {
				if *f.text == "" {
					continue
				}
				if _, err := f.parse(*f.text); err != nil {
					return usageError{err}
				}
			}
			c, err := openCluster(args[0])
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			address, err := locate(ctx, args[1])
			if err != nil {
				return err
			}
			node, err := claim.Look(ctx, address)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "at %s answers %s, a node without a cluster (board %s, version %s)\n", address, node.Name, dash(node.Board), dash(node.Version))
			in, terminal := bufio.NewReader(os.Stdin), term.IsTerminal(int(os.Stdin.Fd()))
			if fingerprint, err = askFor(in, out, terminal, "fingerprint", fingerprint); err != nil {
				return err
			}
			if code, err = askFor(in, out, terminal, "code", code); err != nil {
				return err
			}
			bundle, err := c.Bundle(time.Now())
			if err != nil {
				return err
			}
			if err := claim.Send(ctx, address, fingerprint, code, bundle); err != nil {
				if errors.Is(err, context.Canceled) && ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return err
			}
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				return err
			}
			if a, err := netip.ParseAddr(host); err == nil && a.Zone() != "" {
				host = node.Name + ".local" // kubectl takes no zone
			}
			fmt.Fprintf(out, "%s belongs to cluster %s now and starts\nnow type: skerry cluster kubeconfig %s --server https://%s -o %s.kubeconfig\n",
				node.Name, c.Name, c.Name, net.JoinHostPort(host, strconv.Itoa(apiPort)), c.Name)
			return nil
		},
	}
	cmd.Flags().StringVar(&fingerprint, "fingerprint", "", "the node's fingerprint, from its console")
	cmd.Flags().StringVar(&code, "code", "", "the one-time code, from the same place")
	return cmd
}

// askFor returns what a flag says, or else what a person types.
func askFor(in *bufio.Reader, out io.Writer, terminal bool, what, given string) (string, error) {
	if given != "" {
		return given, nil
	}
	if !terminal {
		return "", usageError{fmt.Errorf("--%s is missing, and there is no terminal to ask at: want what the node's console shows", what)}
	}
	fmt.Fprintf(out, "the %s on the node's console: ", what)
	text, err := in.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("read %s: %w", what, err)
	}
	return strings.TrimSpace(text), nil
}

// locate makes HOST:PORT of what a person calls a node: an address, maybe with
// a port; the name of a node on this network; or a name that DNS knows.
func locate(ctx context.Context, s string) (string, error) {
	if _, err := netip.ParseAddrPort(s); err == nil {
		return s, nil
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return net.JoinHostPort(s, strconv.Itoa(api.Port)), nil
	}
	if strings.Contains(s, ":") {
		if _, _, err := net.SplitHostPort(s); err != nil {
			return "", usageError{fmt.Errorf("node %q: want an address or a name, maybe with a port", s)}
		}
		return s, nil
	}
	name := strings.TrimSuffix(strings.ToLower(s), ".local")
	searching, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	found, err := discover.Find(searching, func(n discover.Node) bool { return n.Name == name })
	for _, n := range found {
		if n.Name == name && n.Claimed {
			return "", fmt.Errorf("node %q says that it belongs to cluster %q already", s, n.Cluster)
		}
		if n.Name == name {
			return net.JoinHostPort(n.Addresses[0].String(), strconv.Itoa(n.Port)), nil
		}
	}
	if _, lookup := net.DefaultResolver.LookupHost(ctx, s); lookup == nil {
		return net.JoinHostPort(s, strconv.Itoa(api.Port)), nil
	}
	return "", errors.Join(fmt.Errorf("node %q: nobody of that name answers on this network (skerry discover lists who does); give its address", s), err)
}
