package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"skerry.internal/skerry/boards"
)

func boardsCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "boards",
		Short:   "List the boards there are images for",
		Long:    "List the boards there are images for, in Markdown: their architecture, the machine\nof QEMU that plays them, how far they are tested, and who ran them on hardware.",
		Example: "  skerry boards",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return listBoards(cmd.OutOrStdout()) },
	}
}

func listBoards(w io.Writer) error {
	fmt.Fprintln(w, "| board | | architecture | QEMU machine of its own | tested | run on hardware |\n|---|---|---|---|---|---|")
	for _, name := range boards.Names() {
		b, err := boards.ByName(name)
		if err != nil {
			return err
		}
		var own []string
		for _, m := range b.QEMU {
			if m.Name != "virt" {
				own = append(own, "`"+m.Name+"`")
			}
		}
		if _, err := fmt.Fprintf(w, "| `%s` | %s | %s | %s | %s | %s |\n", b.Name, b.Title, b.Arch.Name, cmp.Or(strings.Join(own, ", "), "none"), b.Tested, b.Hardware); err != nil {
			return err
		}
	}
	return nil
}
