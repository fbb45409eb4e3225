package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"skerry.internal/skerry/imagebuild/deb"
	"skerry.internal/skerry/imagebuild/fetch"
	"skerry.internal/skerry/imagebuild/image"
)

func lockCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "lock",
		Short: "Pin today's newest Debian packages",
		Long: `Find today's newest version of every package in packages-*.yaml, through the
archive's signed index, and rewrite the lock files beside them. Prints what
changed. The archive is the one of this machine's apt sources, or
` + deb.MirrorEnv + `.`,
		Example: "  skerry lock\n  " + deb.MirrorEnv + "=http://mirror.example/debian skerry lock",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cache, err := fetch.Open()
			if err != nil {
				return err
			}
			bar := fetch.NewBar(cmd.ErrOrStderr())
			defer bar.Close()
			cache.Progress, cache.Notice = bar.Progress, bar.Notice
			archive, err := deb.NewArchive(cache)
			if err != nil {
				return err
			}
			return deb.LockAll(cmd.Context(), archive, dir, image.CompleteList, func(line string) {
				bar.Close()
				fmt.Fprintln(cmd.OutOrStdout(), line)
			})
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "rootfs", "folder of the package lists and locks")
	return cmd
}
