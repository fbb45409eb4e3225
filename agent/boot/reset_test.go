package boot

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/boards"
)

// resetDisk is a disk without partitions, large enough for the mark.
func resetDisk(t *testing.T) string {
	t.Helper()
	dev := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(dev, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(dev, boards.FirmwareStart); err != nil {
		t.Fatal(err)
	}
	return dev
}

func TestResetMark(t *testing.T) {
	if boards.ResetMark/boards.SectorSize == boards.BootState0/boards.SectorSize || boards.ResetMark >= boards.FirmwareStart {
		t.Fatalf("the mark is at %d, where something else is", boards.ResetMark)
	}
	dev := resetDisk(t)
	if r, err := readReset(dev); r.due || r.file != "" || err != nil {
		t.Errorf("readReset() of a new disk = %v, %v; want nothing", r, err)
	}
	for _, want := range []reset{{true, ""}, {true, "abc"}, {false, "abc"}, {false, ""}} {
		if err := writeReset(dev, want); err != nil {
			t.Fatal(err)
		}
		if r, err := readReset(dev); err != nil || r != want {
			t.Errorf("readReset() = %v, %v; want %v", r, err, want)
		}
	}
}

// A cut at any step leaves the mark, so that the next boot begins again; when
// all is done, the mark keeps the file.
func TestCarryOut(t *testing.T) {
	cut := errors.New("cut")
	for failing := range 3 { // 2: nothing fails
		dev := resetDisk(t)
		if err := writeReset(dev, reset{true, "abc"}); err != nil {
			t.Fatal(err)
		}
		formatted := 0
		run := func(failing int) error {
			r, err := readReset(dev)
			if err != nil || !r.due {
				t.Fatalf("cut at %d: readReset() = %v, %v; want the mark", failing, r, err)
			}
			step := func(n int) func() error {
				return func() error {
					if n == failing {
						return cut
					}
					if n == 0 {
						formatted++
					}
					return nil
				}
			}
			return carryOut(dev, r, step(0), step(1))
		}
		err := run(failing)
		if (err == nil) != (failing == 2) {
			t.Errorf("cut at %d: carryOut() = %v", failing, err)
		}
		if err != nil {
			if err := run(-1); err != nil {
				t.Errorf("cut at %d: carryOut() at the next boot = %v", failing, err)
			}
		}
		if r, err := readReset(dev); r != (reset{false, "abc"}) || err != nil || formatted == 0 {
			t.Errorf("cut at %d: the mark is %v, %v in the end, formatted %d times; want abc as done, and at least once", failing, r, err, formatted)
		}
	}
}

// The file works once, though it can't be removed; one made later works again.
func TestAskedByFile(t *testing.T) {
	path, dev := filepath.Join(t.TempDir(), ResetFile), resetDisk(t)
	check := func(what string, there, done bool) string {
		t.Helper()
		id, got, err := askedByFile(path, dev)
		if err != nil || got != done || (id != "") != there {
			t.Errorf("%s: askedByFile() = %q, %v, %v; want there %v, done %v", what, id, got, err, there, done)
		}
		return id
	}
	mark := func(r reset) {
		t.Helper()
		if err := writeReset(dev, r); err != nil {
			t.Fatal(err)
		}
	}
	check("no file", false, false)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	id := check("a file", true, false)
	mark(reset{true, id})
	check("not carried out yet", true, false)
	mark(reset{false, id})
	check("carried out", true, true)
	check("carried out, next boot", true, true)
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(path, later, later); err != nil {
		t.Fatal(err)
	}
	check("made again", true, false)
	if err := os.WriteFile(path, []byte("please"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("other content", true, false)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, done, err := askedByFile(path, dev); err == nil || done {
		t.Errorf("askedByFile() of a folder = %v, %v; want an error", done, err)
	}
}

// The status API's reset keeps the note of a file that can't be removed.
func TestAskReset(t *testing.T) {
	s, _ := system(t)
	if err := s.askReset(); err == nil {
		t.Error("askReset() without a disk = nil; want an error")
	}
	dev := resetDisk(t)
	s.learn(func(k *known) { k.disk = disk{dev: dev} })
	if err := writeReset(dev, reset{false, "abc"}); err != nil {
		t.Fatal(err)
	}
	if err := s.askReset(); err != nil {
		t.Fatal(err)
	}
	if r, err := readReset(dev); r != (reset{true, "abc"}) || err != nil {
		t.Errorf("readReset() = %v, %v; want the mark, and abc", r, err)
	}
	select {
	case r := <-s.Requests:
		if r.Command != unix.LINUX_REBOOT_CMD_RESTART {
			t.Errorf("asked for %+v; want a reboot", r)
		}
	default:
		t.Error("nothing was asked of main")
	}
	s.request(Request{Why: "one"})
	s.request(Request{Why: "two"}) // must not wait
}
