package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"skerry.internal/skerry/agent/config"
	"skerry.internal/skerry/agent/provision"
	"skerry.internal/skerry/imagebuild/flash"
)

func flashCommand() *cobra.Command {
	var clusterName, configFile string
	cmd := &cobra.Command{
		Use:   "flash IMAGE DEVICE",
		Short: "Write an image to a card, and read it back",
		Long: `Write an image (.img or .img.zst) to a whole disk, and compare what reads back. A disk that is
mounted, that this machine runs from or that something else uses is refused. With --cluster the
card gets the secrets of a node of that cluster: whoever holds the card holds them.`,
		Example: "  skerry flash build/rpi4/skerry-rpi4.img /dev/sdX --cluster home --config barn-1.yaml",
		Args:    exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			files := map[string][]byte{}
			if configFile != "" {
				data, err := os.ReadFile(configFile)
				if err != nil {
					return fmt.Errorf("read configuration: %w", err)
				}
				if _, mistakes := config.Parse(data); len(mistakes) > 0 {
					return fmt.Errorf("%s: %v; nothing was written", configFile, mistakes[0])
				}
				files[config.FileName] = data
			}
			if clusterName != "" {
				c, err := openCluster(clusterName)
				if err != nil {
					return err
				}
				if files[provision.FileName], err = c.Bundle(time.Now()); err != nil {
					return err
				}
			}
			if err := flash.Flash(cmd.Context(), flash.Options{Image: args[0], Device: args[1], Files: files, Out: os.Stderr}); err != nil {
				return err
			}
			fmt.Printf("%s is written and verified; put it into the board and power it on\n", args[1])
			return nil
		},
	}
	cmd.Flags().StringVar(&clusterName, "cluster", "", "the cluster that the node belongs to, as skerry cluster create made it")
	cmd.Flags().StringVar(&configFile, "config", "", "skerry.yaml to put on FIRMWARE; checked before anything is written")
	return cmd
}
