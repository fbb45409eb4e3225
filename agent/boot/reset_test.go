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
	if r, err := readReset(dev); r != nil || err != nil {
		t.Errorf("readReset() of a new disk = %v, %v; want none", r, err)
	}
	for _, want := range []reset{{}, {"abc"}} {
		if err := writeReset(dev, want); err != nil {
			t.Fatal(err)
		}
		if r, err := readReset(dev); err != nil || r == nil || *r != want {
			t.Errorf("readReset() = %v, %v; want %v", r, err, want)
		}
	}
	if err := clearReset(dev); err != nil {
		t.Fatal(err)
	}
	if r, err := readReset(dev); r != nil || err != nil {
		t.Errorf("readReset() of a cleared mark = %v, %v; want none", r, err)
	}
}

// A cut at any step leaves the mark, so that the next boot begins again; when
// all is done, the mark is gone and the file noted.
func TestCarryOut(t *testing.T) {
	cut := errors.New("cut")
	for failing := range 5 { // 3: the note can't be written; 4: nothing fails
		dev := resetDisk(t)
		done := filepath.Join(t.TempDir(), "new", "reset-done")
		if err := writeReset(dev, reset{"abc"}); err != nil {
			t.Fatal(err)
		}
		formatted := 0
		run := func(failing int) error {
			r, err := readReset(dev)
			if err != nil || r == nil {
				t.Fatalf("cut at %d: readReset() = %v, %v; want the mark", failing, r, err)
			}
			step := func(n int, f func() error) func() error {
				return func() error {
					if n == failing {
						return cut
					}
					return f()
				}
			}
			return carryOut(dev, *r,
				step(0, func() error { formatted++; return os.RemoveAll(filepath.Dir(done)) }),
				step(1, func() error { return nil }),
				step(2, func() error {
					if failing == 3 {
						return nil
					}
					return os.MkdirAll(filepath.Dir(done), 0o700)
				}), done)
		}
		err := run(failing)
		if (err == nil) != (failing == 4) {
			t.Errorf("cut at %d: carryOut() = %v", failing, err)
		}
		if err != nil {
			if err := run(-1); err != nil {
				t.Errorf("cut at %d: carryOut() at the next boot = %v", failing, err)
			}
		}
		if r, err := readReset(dev); r != nil || err != nil {
			t.Errorf("cut at %d: the mark is %v, %v in the end; want none", failing, r, err)
		}
		if got := readDone(done); got != "abc" || formatted == 0 {
			t.Errorf("cut at %d: noted %q, formatted %d times; want abc and at least once", failing, got, formatted)
		}
	}
}

// The file works once, though it can't be removed; one made later works again.
func TestResetDue(t *testing.T) {
	dir := t.TempDir()
	path, done := filepath.Join(dir, ResetFile), filepath.Join(dir, "done")
	check := func(what string, want bool) string {
		t.Helper()
		id, due, err := resetDue(path, done)
		if err != nil || due != want {
			t.Errorf("%s: resetDue() = %q, %v, %v; want %v", what, id, due, err, want)
		}
		return id
	}
	check("no file", false)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	id := check("a file", true)
	check("not carried out yet", true)
	if err := os.WriteFile(done, []byte(id+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("carried out", false)
	check("carried out, next boot", false)
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(path, later, later); err != nil {
		t.Fatal(err)
	}
	check("made again", true)
	if err := os.WriteFile(path, []byte("please"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("other content", true)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, due, err := resetDue(path, done); err == nil || due {
		t.Errorf("resetDue() of a folder = %v, %v; want an error", due, err)
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
	if err := s.askReset(); err != nil {
		t.Fatal(err)
	}
	if r, err := readReset(dev); r == nil || err != nil {
		t.Errorf("readReset() = %v, %v; want the mark", r, err)
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
