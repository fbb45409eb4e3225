package main

import (
	"os"
	"strings"
	"testing"
)

// docs/boards.md has the table that "skerry boards" prints.
func TestBoardsPage(t *testing.T) {
	var table strings.Builder
	if err := listBoards(&table); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../../docs/boards.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), table.String()) {
		t.Errorf("docs/boards.md has another table than this one:\n%s", &table)
	}
}
