package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"skerry.internal/skerry/imagebuild/discover"
)

func discoverCommand() *cobra.Command {
	var timeout time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "discover",
		Short: "List the nodes on this network",
		Long: `List the nodes that answer on the networks of this machine (multicast DNS, UDP port 5353).
What they say of themselves is not proven; a node's certificate is what proves who it is.`,
		Example: "  skerry discover\n  skerry discover --json --timeout 10s",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout <= 0 {
				return usageError{fmt.Errorf("--timeout %v: want more than nothing, like 3s", timeout)}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			nodes, err := discover.Find(ctx, nil)
			if err != nil {
				return err
			}
			if cmd.Context().Err() != nil {
				return context.Cause(cmd.Context())
			}
			return printNodes(cmd.OutOrStdout(), nodes, asJSON)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "how long to wait for answers")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON list")
	return cmd
}

func printNodes(w io.Writer, nodes []discover.Node, asJSON bool) error {
	if asJSON {
		if nodes == nil {
			nodes = []discover.Node{}
		}
		e := json.NewEncoder(w)
		e.SetIndent("", " ")
		return e.Encode(nodes)
	}
	if len(nodes) == 0 {
		_, err := fmt.Fprintln(w, "none found: nodes answer only on the network that they are on themselves, and a firewall here may drop what they say")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tADDRESS\tCLUSTER\tROLE\tVERSION\tCLAIMED")
	for _, n := range nodes {
		claimed := "no"
		if n.Claimed {
			claimed = "yes"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, n.Addresses[0], dash(n.Cluster), dash(n.Role), dash(n.Version), claimed)
	}
	return t.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
