package boot

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/boards"
)

// host is s.tool without a supervisor: the same programs, on this machine.
func host(path string, good int, args ...string) error {
	out, err := exec.Command(path, args...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() >= 0 && exit.ExitCode() <= good {
		return nil
	}
	if err != nil {
		return fmt.Errorf("run %q %q: %w: %s", path, args, err, last(out, 200))
	}
	return nil
}

// ext4 makes an image of a used STATE: our file system, with the mark, and files.
func ext4(t *testing.T, mib int) string {
	t.Helper()
	if _, err := os.Stat("/usr/sbin/mkfs.ext4"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("no mkfs.ext4 here")
	}
	src := t.TempDir()
	for i := range 40 {
		data := bytes.Repeat([]byte{byte(i)}, 50_000)
		if err := os.WriteFile(filepath.Join(src, fmt.Sprintf("file%d", i)), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, int64(mib)<<20); err != nil {
		t.Fatal(err)
	}
	if err := host("/usr/sbin/mkfs.ext4", 0, "-F", "-q", "-L", "STATE", "-m", "1", "-i", "32768", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-d", src, file); err != nil {
		t.Fatal(err)
	}
	if err := writeSector(file, 0, append([]byte(formatted), make([]byte, boards.SectorSize-len(formatted))...)); err != nil {
		t.Fatal(err)
	}
	return file
}

func noise(t *testing.T, file string, at, n int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	noise := make([]byte, n)
	r := rand.NewChaCha8([32]byte{7})
	r.Read(noise)
	if _, err := f.WriteAt(noise, at); err != nil {
		t.Fatal(err)
	}
}

// debugfs asks for a number.
func debugfs(t *testing.T, file, request string) int64 {
	t.Helper()
	out, err := exec.Command("/usr/sbin/debugfs", "-R", request, file).Output()
	n, perr := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil || perr != nil {
		t.Fatalf("debugfs %s: %v, %q", request, err, out)
	}
	return n
}

// What repair can do for a used STATE, small and large, and that it never formats.
func TestRepair(t *testing.T) {
	for _, size := range []struct {
		mib   int
		block int64
	}{{64, 1024}, {640, 4096}} {
		whole := ext4(t, size.mib)
		journal := debugfs(t, whole, "bmap <8> 0") * size.block
		for _, tt := range []struct {
			name   string
			damage func(t *testing.T, file string)
			kind   stateKind // with the mark outside
			files  int       // of 40 that must be there afterwards, under any name
			fails  bool
		}{
			{"none", func(*testing.T, string) {}, stateReady, 40, false},
			{"errors noted by the kernel", func(t *testing.T, f string) {
				if err := writeBytes(f, ext4State, 1|ext4HasErrors); err != nil {
					t.Fatal(err)
				}
			}, stateErrors, 40, false},
			{"first page lost", func(t *testing.T, f string) { noise(t, f, 0, 4096) }, stateDamaged, 40, false},
			{"first page erased", func(t *testing.T, f string) {
				if err := writeBytes(f, 0, make([]byte, 4096)...); err != nil {
					t.Fatal(err)
				}
			}, stateDamaged, 40, false},
			{"superblock lost", func(t *testing.T, f string) { noise(t, f, ext4Super, 1024) }, stateReady, 40, false},
			{"first 64 KiB lost: group descriptors too", func(t *testing.T, f string) { noise(t, f, 0, 64<<10) }, stateDamaged, 0, false},
			{"journal's superblock lost", func(t *testing.T, f string) { noise(t, f, journal, 1024) }, stateReady, 40, false},
			{"everything lost", func(t *testing.T, f string) { noise(t, f, 0, int64(size.mib)<<20) }, stateDamaged, 0, true},
		} {
			t.Run(fmt.Sprintf("%dMiB/%s", size.mib, tt.name), func(t *testing.T) {
				dir := t.TempDir()
				gap, dev := filepath.Join(dir, "disk"), filepath.Join(dir, "dev")
				if err := host("/bin/cp", 0, "--sparse=always", whole, dev); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(gap, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Truncate(gap, boards.FirmwareStart); err != nil {
					t.Fatal(err)
				}
				if err := markState(gap); err != nil {
					t.Fatal(err)
				}
				tt.damage(t, dev)
				s := &System{Console: &Console{}, disk: disk{dev: gap}}
				kind, err := s.examineState(dev)
				if err != nil || kind != tt.kind {
					t.Errorf("examineState() = %v, %v; want %v", kind, err, tt.kind)
				}
				var said []string
				err = repair(host, func(f string, a ...any) { said = append(said, fmt.Sprintf(f, a...)) }, dev)
				if (err != nil) != tt.fails {
					t.Fatalf("repair() = %v; want an error: %v; said %q", err, tt.fails, said)
				}
				if tt.fails {
					if out, err := exec.Command("/usr/sbin/dumpe2fs", "-h", dev).Output(); err == nil {
						t.Errorf("what can't be repaired has become a file system: %s", out)
					}
					return
				}
				if err := host("/usr/sbin/e2fsck", 0, "-fn", dev); err != nil {
					t.Errorf("after repair(): %v", err)
				}
				out := filepath.Join(dir, "out")
				if err := errors.Join(os.Mkdir(out, 0o700), host("/usr/sbin/debugfs", 0, "-R", "rdump / "+out, dev)); err != nil {
					t.Fatal(err)
				}
				if got := wholeFiles(t, out); got < tt.files {
					t.Errorf("%d of 40 files after repair(); want %d", got, tt.files)
				}
			})
		}
	}
}

func writeBytes(file string, at int64, b ...byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, at)
	return errors.Join(err, f.Close())
}

func wholeFiles(t *testing.T, dir string) (n int) {
	t.Helper()
	seen := map[byte]bool{}
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil && len(data) == 50_000 && bytes.Equal(data, bytes.Repeat(data[:1], 50_000)) {
			seen[data[0]] = true
		}
		return err
	})
	return len(seen)
}

// The mark outside of STATE decides what a first page means that says nothing.
func TestExamineStateMark(t *testing.T) {
	used := ext4(t, 64)
	for _, tt := range []struct {
		name          string
		marked, blank bool
		want          stateKind
		markedAfter   bool
	}{
		{"as flashed", false, true, stateBlank, false},
		{"made by a release without the mark", false, false, stateReady, true},
		{"in use", true, false, stateReady, true},
		{"lost", true, true, stateDamaged, true},
	} {
		dir := t.TempDir()
		gap, dev := filepath.Join(dir, "disk"), used
		if tt.blank {
			dev = filepath.Join(dir, "dev")
		}
		for _, f := range []string{gap, filepath.Join(dir, "dev")} {
			if err := errors.Join(os.WriteFile(f, nil, 0o600), os.Truncate(f, boards.FirmwareStart)); err != nil {
				t.Fatal(err)
			}
		}
		if tt.marked {
			if err := markState(gap); err != nil {
				t.Fatal(err)
			}
		}
		s := &System{Console: &Console{}, disk: disk{dev: gap}}
		if got, err := s.examineState(dev); got != tt.want || err != nil {
			t.Errorf("%s: examineState() = %v, %v; want %v", tt.name, got, err, tt.want)
		}
		if got, err := hasStateMark(gap); got != tt.markedAfter || err != nil {
			t.Errorf("%s: marked afterwards: %v, %v; want %v", tt.name, got, err, tt.markedAfter)
		}
	}
	// A page that can't be read at all.
	dir := t.TempDir()
	gap := filepath.Join(dir, "disk")
	if err := errors.Join(os.WriteFile(gap, nil, 0o600), os.Truncate(gap, boards.FirmwareStart)); err != nil {
		t.Fatal(err)
	}
	s := &System{Console: &Console{}, disk: disk{dev: gap}}
	if got, err := s.examineState(dir); err == nil { // reading a folder fails with EISDIR
		t.Errorf("examineState(unreadable, not marked) = %v; want an error", got)
	}
	if err := markState(gap); err != nil {
		t.Fatal(err)
	}
	if got, err := s.examineState(dir); got != stateDamaged || err != nil {
		t.Errorf("examineState(unreadable, marked) = %v, %v; want %v", got, err, stateDamaged)
	}
}

func TestCountFaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "faults")
	write := func(f string, data []byte) error { return os.WriteFile(f, data, 0o600) }
	for i, tt := range []struct {
		repaired bool
		want     int
	}{{false, 0}, {true, 1}, {true, 2}, {false, 2}, {true, 3}} {
		if got, err := countFaults(file, tt.repaired, write); got != tt.want || err != nil {
			t.Errorf("%d: countFaults(%v) = %d, %v; want %d", i, tt.repaired, got, err, tt.want)
		}
	}
	if err := write(file, []byte("many")); err != nil {
		t.Fatal(err)
	}
	if got, err := countFaults(file, true, write); got != 1 || err == nil {
		t.Errorf("countFaults(nonsense) = %d, %v; want 1 and an error", got, err)
	}
}

func TestPause(t *testing.T) {
	s := &System{}
	for _, tt := range []struct {
		err  error
		want time.Duration
	}{
		{errors.New("any"), FirstPause},
		{&StepError{"make state folders", errors.New("x")}, FirstPause},
		{fmt.Errorf("boot: %w", &StepError{stepMountState, errors.New("x")}), lastPause},
	} {
		if got := s.Pause(tt.err); got != tt.want {
			t.Errorf("Pause(%v) = %v; want %v", tt.err, got, tt.want)
		}
	}
}

// mounted mounts a small real STATE.
func mounted(t *testing.T, mib int, options string) string {
	t.Helper()
	image, dir := ext4(t, mib), t.TempDir()
	out, err := exec.Command("/bin/mount", "-o", "loop,noatime,"+options, image, dir).CombinedOutput()
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("mount: %v: %s", err, out)
		}
		t.Skipf("a loop device can't be mounted here: %s", out)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}
