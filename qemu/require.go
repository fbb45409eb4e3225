package qemu

import (
	"os"
	"os/exec"
	"testing"

	"skerry.internal/skerry/boards"
)

// Require skips a test where a machine can't be run; in CI that is a failure.
func Require(t testing.TB, m *boards.QEMUMachine) {
	t.Helper()
	_, err := Binary(m.Arch)
	for _, name := range []string{"qemu-img", "qemu-io"} {
		if _, look := exec.LookPath(name); look != nil && err == nil {
			err = missing(name)
		}
	}
	if err == nil && m.UBoot.Name != "" {
		_, err = FindUBoot(m)
	}
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}
