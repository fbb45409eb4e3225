package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"skerry.internal/skerry/agent/atomicfile"
	"skerry.internal/skerry/imagebuild/cluster"
)

func clusterCommand() *cobra.Command {
	dial := func(clusterName, node string) (doer, error) { return dialNode(clusterName, node) }
	return group("cluster", "Make clusters, and the files that lead to them; keep their databases",
		clusterCreateCommand(), clusterBundleCommand(), clusterClaimCommand(), clusterKubeconfigCommand(),
		clusterSnapshotsCommand(dial), clusterBackupCommand(dial), clusterRestoreCommand(dial))
}

func clusterCreateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "create NAME",
		Short: "Make a cluster's root key on this machine",
		Long: `Make a cluster's root certificate and key. The key stays on this machine: whoever has it can
make administrators and nodes, and without it no further node can join. Keep a copy.`,
		Example: "  skerry cluster create home",
		Args:    exactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			home, err := cluster.Home()
			if err != nil {
				return err
			}
			c, err := cluster.Create(home, args[0], time.Now())
			if err != nil {
				return err
			}
			fmt.Printf("cluster %s is made; its root key is %s/ca.key, keep a copy\nnow type: skerry flash IMAGE DEVICE --cluster %s\n", c.Name, c.Dir, c.Name)
			return nil
		},
	}
}

func clusterBundleCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "bundle NAME",
		Short: "Make the provisioning bundle of a new server node",
		Long: `Make the provisioning bundle of one new server node, for a card that was written by other means,
or for skerryd as a service. The bundle holds a key: copy it once, then delete it.`,
		Example: "  skerry cluster bundle home -o /media/FIRMWARE/provision.json",
		Args:    exactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := openCluster(args[0])
			if err != nil {
				return err
			}
			data, err := c.Bundle(time.Now())
			if err != nil {
				return err
			}
			return writeSecret(out, data)
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "the file to write, mode 0600 (default: standard output)")
	return cmd
}

func clusterKubeconfigCommand() *cobra.Command {
	var out, server string
	cmd := &cobra.Command{
		Use:   "kubeconfig NAME --server URL",
		Short: "Make an administrator's kubeconfig",
		Long: "Make an administrator's kubeconfig. A node's address may change; its name in .local stays, and its certificate\n" +
			"is valid for both. Whether kubectl finds the name is up to this machine's resolver.",
		Example: "  skerry cluster kubeconfig home --server https://192.0.2.10:6443 -o home.kubeconfig\n" +
			"  skerry cluster kubeconfig home --server https://barn-1.local:6443 -o home.kubeconfig",
		Args: exactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if server == "" {
				return usageError{fmt.Errorf("--server is missing: want the API's URL, like https://192.0.2.10:6443")}
			}
			c, err := openCluster(args[0])
			if err != nil {
				return err
			}
			data, err := c.Kubeconfig(server, time.Now())
			if err != nil {
				return err
			}
			return writeSecret(out, data)
		},
	}
	cmd.Flags().StringVar(&server, "server", "", "URL of the Kubernetes API")
	cmd.Flags().StringVarP(&out, "output", "o", "", "the file to write, mode 0600 (default: standard output)")
	return cmd
}

// writeSecret never replaces a file: it may hold credentials that are nowhere else.
func writeSecret(path string, data []byte) error {
	if path == "" {
		_, err := os.Stdout.Write(data)
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("write %q: it exists: name another file, or remove it", path)
	}
	if err := atomicfile.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write %q: %w", path, err)
	}
	return nil
}
