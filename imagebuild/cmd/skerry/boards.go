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
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "boards",
		Short:   "List the boards there are images for",
		Long:    "List the boards there are images for, in Markdown: their architecture, the machine\nof QEMU that plays them, how far they are tested, and who ran them on hardware.",
		Example: "  skerry boards",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return listBoards(cmd.OutOrStdout(), asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON list")
	return cmd
}

// boardFacts is a board as skerry boards shows it.
type boardFacts struct {
	Board    string   `json:"board"`
	Title    string   `json:"title"`
	Arch     string   `json:"arch"`
	Machines []string `json:"machines"` // of QEMU, that play this board and no other
	Tested   string   `json:"tested"`
	Hardware string   `json:"hardware"` // who ran it; empty: nobody
}

func listBoards(w io.Writer, asJSON bool) error {
	var list []boardFacts
	for _, name := range boards.Names() {
		b, err := boards.ByName(name)
		if err != nil {
			return err
		}
		own := []string{}
		for _, m := range b.QEMU {
			if m.Name != "virt" {
				own = append(own, m.Name)
			}
		}
		list = append(list, boardFacts{b.Name, b.Title, b.Arch.Name, own, b.Tested, b.Hardware})
	}
	if asJSON {
		return printJSON(list)
	}
	fmt.Fprintln(w, "| board | | architecture | QEMU machine of its own | tested | run on hardware |\n|---|---|---|---|---|---|")
	for _, b := range list {
		own := ""
		if len(b.Machines) > 0 {
			own = "`" + strings.Join(b.Machines, "`, `") + "`"
		}
		if _, err := fmt.Fprintf(w, "| `%s` | %s | %s | %s | %s | %s |\n", b.Board, b.Title, b.Arch, cmp.Or(own, "none"), b.Tested, b.Hardware); err != nil {
			return err
		}
	}
	return nil
}
