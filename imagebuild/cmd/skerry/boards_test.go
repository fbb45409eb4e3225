package main

import (
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of docs/boards.md anew")

var boardsTable = regexp.MustCompile(`(?m)^\| board \|.*\n(\|.*\n)+`)

// docs/boards.md has the table that "skerry boards" prints.
func TestBoardsPage(t *testing.T) {
	var table strings.Builder
	if err := listBoards(&table); err != nil {
		t.Fatal(err)
	}
	const file = "../../../docs/boards.md"
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		page = boardsTable.ReplaceAllLiteral(page, []byte(table.String()))
		if err := os.WriteFile(file, page, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(string(page), table.String()) {
		t.Errorf("docs/boards.md has another table than this one (go test ./imagebuild/cmd/skerry -run TestBoardsPage -update):\n%s", &table)
	}
}
