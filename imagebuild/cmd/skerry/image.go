package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/deb"
	"skerry.internal/skerry/imagebuild/fetch"
	"skerry.internal/skerry/imagebuild/image"
	"skerry.internal/skerry/imagebuild/plan"
)

func imageCommand() *cobra.Command {
	return group("image", "Build image files and look into them", imageBuildCommand(), imageInspectCommand())
}

func imageBuildCommand() *cobra.Command {
	var o image.Options
	var showPlan bool
	cmd := &cobra.Command{
		Use:   "build --board NAME",
		Short: "Build the image of a board",
		Long: `Build the image of a board: skerry-NAME.img to boot in QEMU, skerry-NAME.img.zst to flash,
skerry-NAME.json that says what is in them. It needs no root, no loop devices and no
container engine. The same commit and lock give the same bytes.`,
		Example: "  skerry image build --board rpi4 -o build/rpi4\n  skerry image build --board rpi4 --plan",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Board == "" {
				return usageError{fmt.Errorf("--board is missing: want one of: %s", strings.Join(boards.Names(), ", "))}
			}
			for _, w := range o.Without {
				if !slices.ContainsFunc(plan.Programs, func(p plan.Program) bool { return p.Name == w }) {
					return usageError{fmt.Errorf("--without %s: there is no such program", w)}
				}
			}
			if o.Out == "" {
				o.Out = filepath.Join("build", o.Board)
			}
			return buildImage(cmd.Context(), o, showPlan)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Board, "board", "", "the board: "+strings.Join(boards.Names(), ", "))
	f.StringVarP(&o.Out, "output", "o", "", "folder for the results (default build/BOARD)")
	f.StringVar(&o.Project, "project", ".", "the project's folder")
	f.StringSliceVar(&o.Without, "without", nil, "programs to leave out, for work on the others")
	f.BoolVar(&showPlan, "plan", false, "only say what would be done")
	return cmd
}

func buildImage(ctx context.Context, o image.Options, showPlan bool) error {
	bar := fetch.NewBar(os.Stderr)
	defer bar.Close()
	var err error
	if o.Cache, err = fetch.Open(); err != nil {
		return err
	}
	o.Cache.Notice, o.Cache.Progress, o.Notice = bar.Notice, bar.Progress, bar.Notice
	if o.Archive, err = deb.NewArchive(o.Cache); err != nil {
		return err
	}
	b, err := image.New(o)
	if err != nil {
		return err
	}
	if showPlan {
		fmt.Print(b.Plan())
		return nil
	}
	err = b.Run(ctx, func(ctx context.Context, steps []plan.Step) error { return plan.Run(ctx, steps, os.Stderr) })
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("%w: make room in %s and %s, then run this again", err, o.Out, o.Cache.Dir)
	}
	return err
}

func imageInspectCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Say what is in an image file, and whether it is whole",
		Long: `Say what is in an image file: partitions, boot state, and for each slot its version, the checksums of its
boot files and the verity tree of its root file system, all of which is read and verified.
Ends with status 1 if anything is damaged.`,
		Example: "  skerry image inspect build/rpi4/skerry-rpi4.img.zst\n  skerry image inspect --json skerry-rpi4.img",
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := image.Inspect(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(os.Stdout)
				e.SetIndent("", "  ")
				if err := e.Encode(r); err != nil {
					return err
				}
			} else {
				fmt.Print(r)
			}
			if n := len(r.Damage()); n > 0 {
				return fmt.Errorf("%s is damaged: %s", args[0], strings.Join(r.Damage(), "; "))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
