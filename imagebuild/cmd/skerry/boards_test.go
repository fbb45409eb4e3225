package main

import (
	"encoding/json"
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"

	"skerry.internal/skerry/boards"
)

var update = flag.Bool("update", false, "write the table of docs/boards.md anew")

var boardsTable = regexp.MustCompile(`(?m)^\| board \|.*\n(\|.*\n)+`)

// docs/boards.md has the table that "skerry boards" prints.
func TestBoardsPage(t *testing.T) {
	var table strings.Builder
	if err := listBoards(&table, false); err != nil {
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

func TestBoardsJSON(t *testing.T) {
	status, stdout, stderr := skerry(t, "boards", "--json")
	var list []boardFacts
	if err := json.Unmarshal([]byte(stdout), &list); status != 0 || err != nil || len(list) != len(boards.Names()) || list[0].Arch == "" || list[0].Tested == "" {
		t.Errorf("skerry boards --json: status %d, %v, %q, %q; want all of boards/", status, err, stdout, stderr)
	}
}
