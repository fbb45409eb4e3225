package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSourcesOfOneTest changes a small project piece by piece and looks at which
// cases that concerns.
func TestSourcesOfOneTest(t *testing.T) {
	files := map[string]string{
		"agent/agent.go":      "package agent\n",
		"agent/agent_test.go": "package agent\n",
		"other/other_test.go": "package other\n",
		"tree_test.go":        "package tree\n",
		"docs/page.md":        "A page.\n",
		"e2e/help_test.go": "package e2e\n\ntype node struct{}\n\nfunc (n *node) boot() { n.wait(limit) }\n\nfunc (n *node) wait(int) {}\n\n" +
			"const (\n\tlimit = 3\n\tother = 4\n)\n\nfunc (node) String() string { return \"node\" }\n",
		"e2e/a_test.go": "package e2e\n\nimport \"testing\"\n\nfunc TestA(t *testing.T) { new(node).boot() }\n",
		"e2e/b_test.go": "//go:build full\n\npackage e2e\n\nimport \"testing\"\n\n// TestB says.\nfunc TestB(t *testing.T) { new(node).wait(1) }\n",
	}
	cases := []string{".", "./agent", "./e2e:TestA", "./e2e:TestB"}
	t.Chdir(t.TempDir())
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-c", "user.name=t", "-c", "user.email=t@example.test"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %s: %v\n%s", args, err, out)
		}
	}
	commit := func() map[string]string {
		t.Helper()
		for path, text := range files {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		git("add", "-A")
		git("commit", "-qm", "change", "--allow-empty")
		s, err := findSources("./e2e")
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, p := range cases {
			if got[p], err = s.of(p); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.of("./e2e:TestC"); err == nil {
			t.Error("a test that does not exist has sources")
		}
		return got
	}
	git("init", "-q")
	t.Setenv("SKERRY_TEST_ALL", "")
	before := commit()
	t.Setenv("SKERRY_TEST_ALL", "1")
	after := commit()
	for p := range before {
		if before[p] == after[p] {
			t.Errorf("%s with the full counts has the sources of %s without", p, p)
		}
	}
	before = after
	for _, tt := range []struct{ file, old, new, want string }{
		{"docs/page.md", "A page", "Another page", ""},
		{"e2e/b_test.go", "TestB says", "TestB says more", "."},
		{"e2e/b_test.go", "wait(1)", "wait(2)", ". ./e2e:TestB"},
		{"e2e/a_test.go", "TestA(t *testing.T) {", "TestA(t *testing.T) { t.Log()\n", ". ./e2e:TestA"},
		{"e2e/help_test.go", "n.wait(limit)", "n.wait(limit - 1)", ". ./e2e:TestA"},
		{"e2e/help_test.go", "limit = 3", "limit = 5", ". ./e2e:TestA"},
		{"e2e/help_test.go", "wait(int) {}", "wait(int) { println() }", ". ./e2e:TestA ./e2e:TestB"},
		{"e2e/help_test.go", `return "node"`, `return "a node"`, ". ./e2e:TestA ./e2e:TestB"}, // fmt calls it
		{"agent/agent_test.go", "package agent", "package agent // new", ". ./agent"},
		{"other/other_test.go", "package other", "package other // new", "."},
		{"agent/agent.go", "package agent", "package agent // new", ". ./agent ./e2e:TestA ./e2e:TestB"},
	} {
		if !strings.Contains(files[tt.file], tt.old) {
			t.Fatalf("%s has no %q", tt.file, tt.old)
		}
		files[tt.file] = strings.Replace(files[tt.file], tt.old, tt.new, 1)
		after := commit()
		var changed []string
		for _, p := range cases {
			if after[p] != before[p] {
				changed = append(changed, p)
			}
		}
		if got := strings.Join(changed, " "); got != tt.want {
			t.Errorf("%s: %q for %q concerns %q; want %q", tt.file, tt.new, tt.old, got, tt.want)
		}
		before = after
	}
}
