package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/imagebuild/cluster"
	"skerry.internal/skerry/imagebuild/node"
)

func nodeCommand() *cobra.Command {
	return group("node", "Look at a node, also while its Kubernetes is dead; restart or empty it",
		nodeStatusCommand(), nodeLogsCommand(), nodeSupportCommand(), nodeRebootCommand(), nodeResetCommand())
}

// clusterFlag is what every command that talks to a node has.
func clusterFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("cluster", "", "the cluster that the node belongs to (default: the only one there is)")
}

func dialNode(clusterName, address string) (*node.Client, error) {
	home, err := cluster.Home()
	if err != nil {
		return nil, err
	}
	if clusterName == "" {
		all, err := cluster.Names(home)
		switch {
		case err != nil:
			return nil, err
		case len(all) == 0:
			return nil, fmt.Errorf("there is no cluster on this machine; make one with: skerry cluster create NAME")
		case len(all) > 1:
			return nil, usageError{fmt.Errorf("--cluster is missing: want one of %s", strings.Join(all, ", "))}
		}
		clusterName = all[0]
	}
	return node.Dial(home, clusterName, address)
}

func nodeStatusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status ADDRESS|NAME",
		Short: "Show how a node is, what is wrong first",
		Long: `Show how a node is. What is wrong comes first, with what the node or you can do about it. The exit
status is 0 as long as the node answers; with --json, look at "problems".`,
		Example: "  skerry node status barn-1\n  skerry node status 192.0.2.10 --json",
		Args:    exactArgs(1),
	}
	name := clusterFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print all the node says, as JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		n, err := dialNode(*name, args[0])
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
		defer cancel()
		st, raw, err := n.Status(ctx)
		if err != nil {
			return err
		}
		if asJSON {
			_, err = os.Stdout.Write(raw)
			return err
		}
		return printStatus(os.Stdout, st)
	}
	return cmd
}

func printStatus(w io.Writer, st api.Status) error {
	if len(st.Problems) == 0 {
		fmt.Fprintf(w, "%s is well\n\n", st.Node.Name)
	} else {
		fmt.Fprintf(w, "%s: problems\n", st.Node.Name)
		for _, p := range st.Problems {
			fmt.Fprintf(w, "  %s: %s\n", p.Where, p.What)
			if p.Doing != "" {
				fmt.Fprintf(w, "    %s\n", p.Doing)
			}
		}
		fmt.Fprintln(w)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	if st.Node.Cluster != "" {
		row("cluster", "%s, as %s", st.Node.Cluster, st.Node.Role)
	}
	row("version", "%s, Linux %s, %s", st.Version.Skerry, st.Version.Kernel, st.Version.Arch)
	row("up", "%v", st.Uptime.Round(time.Second))
	for _, s := range st.Slots {
		row("slot "+s.Name, "%s", strings.Join(words(s.Status, when(s.Name == st.Slot, "running"), when(s.Good, "good"), when(s.Trial, "on trial"), s.Version), ", "))
	}
	for _, u := range st.Units {
		row("unit "+u.Name, "%s", strings.Join(words(u.State, u.Status, when(u.Restarts > 0, fmt.Sprintf("restarts: %d", u.Restarts))), ", "))
	}
	row("memory", "%d of %d MiB available", st.Memory.Available>>20, st.Memory.Total>>20)
	if st.State.Size > 0 {
		row("STATE", "%d of %d MiB free", st.State.Free>>20, st.State.Size>>20)
	}
	row("clock", "%s", strings.Join(words(st.Time.UTC().Format(time.RFC3339), "from "+st.Clock.Source, st.Clock.Server), ", "))
	for _, i := range st.Network.Interfaces {
		list := words(when(!i.Plugged, "no cable"))
		for _, a := range i.Addresses {
			list = append(list, a.String())
		}
		row(i.Name, "%s", strings.Join(append(list, i.MAC), ", "))
	}
	if len(st.Steps) > 0 {
		last := st.Steps[len(st.Steps)-1]
		row("boot", "%d steps; the last, %q, %s", len(st.Steps), last.Name, stepEnd(last))
	}
	return t.Flush()
}

func stepEnd(s api.Step) string {
	if s.Running {
		return fmt.Sprintf("runs since %v after power-on", s.Start.Round(time.Second))
	}
	return fmt.Sprintf("was over %v after power-on", (s.Start + s.Took).Round(100*time.Millisecond))
}

func when(is bool, text string) string {
	if is {
		return text
	}
	return ""
}

// words leaves empty ones out.
func words(list ...string) (full []string) {
	for _, s := range list {
		if s != "" {
			full = append(full, s)
		}
	}
	return full
}

func nodeLogsCommand() *cobra.Command {
	var lines int
	var follow bool
	cmd := &cobra.Command{
		Use:     "logs ADDRESS|NAME kernel|containerd|skerryd",
		Short:   "Show a log of a node",
		Example: "  skerry node logs barn-1 skerryd --lines 1000\n  skerry node logs barn-1 kernel --follow",
		Args:    exactArgs(2),
	}
	name := clusterFlag(cmd)
	cmd.Flags().IntVarP(&lines, "lines", "n", 100, "how many of the last lines")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		n, err := dialNode(*name, args[0])
		if err != nil {
			return err
		}
		return n.Logs(cmd.Context(), os.Stdout, args[1], lines, follow)
	}
	return cmd
}

func nodeSupportCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "support ADDRESS|NAME",
		Short: "Save all that helps to find out what is wrong with a node",
		Long: `Save status, logs and the kernel's counters of a node in one archive (.tar.gz). No key and no password
is in it; names of pods and addresses are.`,
		Example: "  skerry node support barn-1 -o barn-1.tar.gz",
		Args:    exactArgs(1),
	}
	name := clusterFlag(cmd)
	cmd.Flags().StringVarP(&out, "output", "o", "", "the file to write (default: NAME-support.tar.gz)")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		n, err := dialNode(*name, args[0])
		if err != nil {
			return err
		}
		if out == "" {
			out = strings.NewReplacer(":", "-", "[", "", "]", "").Replace(args[0]) + "-support.tar.gz"
		}
		f, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if os.IsExist(err) {
			return fmt.Errorf("write %q: it exists; name another file with -o, or remove it", out)
		}
		if err != nil {
			return err
		}
		if err = n.Support(cmd.Context(), f); err == nil {
			err = f.Close()
		}
		if err != nil {
			os.Remove(out) // half an archive helps nobody
			return err
		}
		fmt.Println(out)
		return nil
	}
	return cmd
}

func nodeRebootCommand() *cobra.Command {
	var off bool
	cmd := &cobra.Command{
		Use:     "reboot ADDRESS|NAME",
		Short:   "Restart a node in order, or power it off",
		Example: "  skerry node reboot barn-1",
		Args:    exactArgs(1),
	}
	name := clusterFlag(cmd)
	cmd.Flags().BoolVar(&off, "poweroff", false, "power off instead; somebody has to switch it on again")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		n, err := dialNode(*name, args[0])
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
		defer cancel()
		if err := n.Reboot(ctx, off); err != nil {
			return err
		}
		fmt.Printf("%s is going down\n", args[0])
		return nil
	}
	return cmd
}

func nodeResetCommand() *cobra.Command {
	var yes string
	cmd := &cobra.Command{
		Use:   "reset ADDRESS|NAME --yes NAME",
		Short: "Empty a node: everything but its system and skerry.yaml is gone",
		Long: `Empty a node: pods, volumes, the database, certificates and the membership in its cluster are gone, for good.
The system and what lies on the partition FIRMWARE, like skerry.yaml, stay. The node restarts and belongs to no cluster. A worn
card may keep old blocks where nobody but a laboratory reads them: destroy it if that matters.`,
		Example: "  skerry node reset 192.0.2.10 --yes barn-1",
		Args:    exactArgs(1),
	}
	name := clusterFlag(cmd)
	cmd.Flags().StringVar(&yes, "yes", "", "the node's name, to say that you mean this one")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if yes == "" {
			return usageError{fmt.Errorf("--yes is missing: want the node's name; all its data will be gone")}
		}
		n, err := dialNode(*name, args[0])
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
		defer cancel()
		if err := n.Reset(ctx, yes); err != nil {
			return err
		}
		fmt.Printf("%s restarts and makes itself anew; it belongs to no cluster then\n", args[0])
		return nil
	}
	return cmd
}
