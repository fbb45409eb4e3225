package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"skerry.internal/skerry/boards"
)

// The test binary is the command itself when this is set.
const beSkerry = "SKERRY_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(beSkerry) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func skerry(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), beSkerry+"=1")
	cmd.Dir = "../../.."
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func TestExitStatus(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage.img")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("garbage", 1000)), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args   string
		status int
		want   string // in what it says
	}{
		{"--help", 0, "image"},
		{"image build --help", 0, "skerry image build --board rpi4"},
		{"image build --board rpi4 --plan", 0, "SLOT-A"},
		{"image build --board toaster", 1, strings.Join(boards.Names(), ", ")},
		{"image inspect " + garbage, 1, "not a Skerry image"},
		{"image inspect " + filepath.Join(dir, "none"), 1, "no such file"},
		{"image build", 2, "--board is missing"},
		{"image build --board rpi4 --wrong", 2, "--wrong"},
		{"image build --board rpi4 --without nothing", 2, "no such program"},
		{"image build rpi4", 2, "arguments"},
		{"image inspect", 2, "FILE"},
		{"flash x y z", 2, "--list alone"},
		{"flash --list x", 2, "--list alone"},
		{"flash --overlay x.dts a b", 2, "NAME.dtbo"},
		{"image bake", 2, "build, inspect"},
		{"bake", 2, "unknown command"},
	} {
		status, stdout, stderr := skerry(t, strings.Fields(tt.args)...)
		if status != tt.status || !strings.Contains(stdout+stderr, tt.want) {
			t.Errorf("skerry %s: status %d, says %q; want status %d and %q", tt.args, status, stdout+stderr, tt.status, tt.want)
		}
		if status != 0 && strings.Count(stderr, "\n") != 1 {
			t.Errorf("skerry %s says %q; want one line", tt.args, stderr)
		}
	}
}

func TestEveryVerbHasAnExample(t *testing.T) {
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		for _, child := range c.Commands() {
			visit(child)
		}
		if !c.HasSubCommands() && (c.Example == "" || c.Short == "") {
			t.Errorf("%s has no example or no description", c.CommandPath())
		}
	}
	root := newRoot()
	visit(root)
}
