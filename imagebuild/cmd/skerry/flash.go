package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"skerry.internal/skerry/agent/provision"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/flash"
)

// flashOptions are the flags of flash.
type flashOptions struct {
	cluster, config string
	overlays        []string
	list, asJSON    bool
}

func flashCommand() *cobra.Command {
	var o flashOptions
	cmd := &cobra.Command{
		Use:   "flash IMAGE DEVICE",
		Short: "Write an image to a card, and read it back",
		Long: `Write an image (.img or .img.zst) to a whole disk, and compare what reads back. A disk that is
mounted, that this machine runs from or that something else uses is refused; without a DEVICE the
disks there are get listed. With --cluster the card gets the secrets of a node of that cluster: whoever
holds the card holds them. skerry.yaml (--config) may hold passwords: the same goes for them.`,
		Example: "  skerry flash --list\n  skerry flash build/rpi4/skerry-rpi4.img /dev/sdX --cluster home --config barn-1.yaml",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case o.list && len(args) > 0 || len(args) > 2:
				return usageError{fmt.Errorf("got %d arguments, want: %s, or --list alone", len(args), cmd.UseLine())}
			case o.list || len(args) == 0:
				return listDisks(os.Stdout, flash.ThisHost, o.asJSON)
			case len(args) == 1:
				if err := listDisks(os.Stderr, flash.ThisHost, false); err != nil {
					return err
				}
				return usageError{errors.New("DEVICE is missing: name one of the disks above")}
			}
			return o.flash(cmd, args[0], args[1])
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.cluster, "cluster", "", "the cluster that the node belongs to, as skerry cluster create made it")
	f.StringVar(&o.config, "config", "", "skerry.yaml to put on FIRMWARE; checked before anything is written")
	f.StringArrayVar(&o.overlays, "overlay", nil, "a device-tree overlay (NAME.dtbo) to put on FIRMWARE, for skerry.yaml to name; may be given again")
	f.BoolVar(&o.list, "list", false, "list the disks of this machine")
	f.BoolVar(&o.asJSON, "json", false, "print JSON")
	return cmd
}

func (o flashOptions) flash(cmd *cobra.Command, image, device string) error {
	begin, files := time.Now(), map[string][]byte{}
	if err := addConfig(files, o.config, o.overlays, os.Stderr); err != nil {
		return err
	}
	if o.cluster != "" {
		c, err := openCluster(o.cluster)
		if err != nil {
			return err
		}
		if files[provision.FileName], err = c.Bundle(time.Now()); err != nil {
			return err
		}
	}
	if err := flash.Flash(cmd.Context(), flash.Options{Image: image, Device: device, Files: files, Out: os.Stderr}); err != nil {
		return err
	}
	if o.asJSON {
		return printJSON(struct {
			Device  string  `json:"device"`
			Bytes   int64   `json:"bytes"` // written, and read back
			Seconds float64 `json:"seconds"`
		}{device, boards.ImageSize, time.Since(begin).Seconds()})
	}
	fmt.Printf("%s is written and verified; put it into the board and power it on\n", device)
	return nil
}

// listDisks prints what could be flashed, and what not and why.
func listDisks(out io.Writer, host flash.Host, asJSON bool) error {
	disks, err := host.Disks()
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(disks)
	}
	if len(disks) == 0 {
		fmt.Fprintln(out, "there are no disks")
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "DEVICE\tSIZE\tBUS\tREMOVABLE\tMODEL, LABELS\tMOUNTED AT\tCAN BE FLASHED")
	for _, d := range disks {
		name := strings.Join(append([]string{d.Model}, d.Labels...), ", ")
		can := "yes"
		if d.Refused != "" {
			can = "no: " + d.Refused
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.Device, gigabytes(d.Size), or(d.Transport, "-"), map[bool]string{true: "yes", false: "no"}[d.Removable],
			or(strings.TrimPrefix(name, ", "), "-"), or(strings.Join(d.Mounted, " "), "-"), can)
	}
	return w.Flush()
}

// gigabytes is a size as it is printed on cards.
func gigabytes(bytes int64) string {
	if bytes == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f GB", float64(bytes)/1e9)
}

// or is s, or what stands for nothing.
func or(s, instead string) string {
	if s == "" {
		return instead
	}
	return s
}
