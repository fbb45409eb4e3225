package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/qemu"
)

// target is a board and the machine that plays it. Tests that differ between
// architectures in nothing else take one.
type target struct {
	board, machine string
	patience       time.Duration // how many times the limits of the fastest: emulation of some is slow
}

var (
	arm64 = target{board: "rpi4", machine: "virt", patience: 1}
	armv7 = target{board: "rpi2", machine: "virt", patience: 4}
	pi3   = target{board: "rpi3", machine: "raspi3b"} // with limits of its own, piTime
)

// TestTamperARMv7 is what fits into make test's hour of what arm64 is put through: armv7's control
// plane alone takes as long to start as all of a node on arm64.
func TestTamperARMv7(t *testing.T) { testTamper(t, armv7) }

// image is what make image has made for the board.
func (x target) image(t testing.TB) string {
	t.Helper()
	build, err := qemu.BuildDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(build, x.board, "skerry-"+x.board+".img")
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v; build it with: make image BOARD=%s", err, x.board)
		}
		t.Skipf("%v; build it with: make image BOARD=%s", err, x.board)
	}
	return path
}

// find returns the board and its machine, which this computer must be able to run.
func (x target) find(t testing.TB) (*boards.Board, *boards.QEMUMachine) {
	t.Helper()
	board, err := boards.ByName(x.board)
	if err != nil {
		t.Fatal(err)
	}
	machine, err := board.Machine(x.machine)
	if err != nil {
		t.Fatal(err)
	}
	qemu.Require(t, machine)
	return board, machine
}

// limit is how long something may take that takes the fastest at most d.
func (x target) limit(d time.Duration) time.Duration { return d * max(x.patience, 1) }

var timeout = regexp.MustCompile(`^--timeout=(\d+[smh])$`)

// patient multiplies the limits among a kubectl's arguments.
func (x target) patient(args []string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = a
		if m := timeout.FindStringSubmatch(a); m != nil {
			if d, err := time.ParseDuration(m[1]); err == nil {
				out[i] = "--timeout=" + x.limit(d).String()
			}
		}
	}
	return out
}
