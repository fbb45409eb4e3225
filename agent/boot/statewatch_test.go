package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fill writes until the disk is full.
func fill(t *testing.T, path string) (written int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for {
		n, err := f.Write(block)
		written += int64(n)
		if errors.Is(err, unix.ENOSPC) {
			return written
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A full STATE gets its reserve back, and makes it anew when there is room.
func TestBallast(t *testing.T) {
	// Without the option that keeps root out of the last blocks: what fills the
	// disk here stands for the system itself.
	dir := mounted(t, 1024, "errors=remount-ro")
	var said []string
	w := &stateWatch{dir: dir, ballast: filepath.Join(dir, "ballast"), spares: filepath.Join(dir, "spares"), since: time.Now(), now: time.Now, statfs: unix.Statfs,
		probe: func() error { return nil }, settled: func() error { return nil }, say: func(f string, a ...any) { said = append(said, fmt.Sprintf(f, a...)) }}
	there := func() bool { _, err := os.Stat(w.ballast); return err == nil }
	w.turn()
	if !there() || len(w.problems) > 0 {
		t.Fatalf("at first: ballast %v, problems %v", there(), w.problems)
	}
	var st unix.Stat_t
	if err := unix.Stat(w.ballast, &st); err != nil || st.Size < 9<<20 || st.Blocks*512 < st.Size {
		t.Errorf("ballast: %d bytes in %d blocks, %v; want 1 %% of the disk, allocated", st.Size, st.Blocks, err)
	}
	fill(t, filepath.Join(dir, "big"))
	if err := os.WriteFile(filepath.Join(dir, "log"), make([]byte, 1<<20), 0o600); err == nil {
		t.Error("a full disk takes a megabyte")
	}
	w.turn()
	if there() || len(w.problems) != 1 || len(said) != 1 {
		t.Fatalf("when full: ballast %v, problems %v, said %q", there(), w.problems, said)
	}
	if err := os.WriteFile(filepath.Join(dir, "log"), make([]byte, 1<<20), 0o600); err != nil {
		t.Errorf("with the ballast gone there is no room: %v", err)
	}
	w.turn()
	if there() || len(said) != 1 {
		t.Errorf("while it is full: ballast %v, said %q", there(), said)
	}
	if err := os.Remove(filepath.Join(dir, "big")); err != nil {
		t.Fatal(err)
	}
	unix.Sync()
	w.turn()
	if !there() || len(w.problems) > 0 {
		t.Errorf("with room again: ballast %v, problems %v", there(), w.problems)
	}
}

// Inodes are given up at a start, when there are no others; later the node reboots for it.
func TestSpares(t *testing.T) {
	dir := mounted(t, 256, "errors=remount-ro")
	now, ready, reboots := time.Now(), false, 0
	var said []string
	boot := func() *stateWatch {
		said = nil
		return &stateWatch{dir: dir, ballast: filepath.Join(dir, "ballast"), spares: filepath.Join(dir, "spares"), since: now, now: func() time.Time { return now }, statfs: unix.Statfs,
			probe: func() error { return nil }, settled: func() error { return nil }, ready: func() bool { return ready }, reboot: func() { reboots++ },
			say: func(f string, a ...any) { said = append(said, fmt.Sprintf(f, a...)) }}
	}
	w := boot()
	there := func() bool {
		list, err := os.ReadDir(w.spares)
		return err == nil && len(list) == spareFiles
	}
	w.turn()
	if !there() || len(said) > 0 {
		t.Fatalf("at first: spares %v, said %q", there(), said)
	}
	var mine []string
	create := func() error {
		name := filepath.Join(dir, fmt.Sprintf("f%d", len(mine)))
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			return err
		}
		mine = append(mine, name)
		return nil
	}
	for create() == nil {
	}
	ready = true
	w.turn()
	now = now.Add(time.Hour)
	w.turn()
	if !there() || reboots > 0 {
		t.Errorf("skerryd runs: spares %v, reboots %d; want them kept for its next start", there(), reboots)
	}
	ready = false
	w.turn()
	if !there() || reboots > 0 || len(w.problems) != 1 || !strings.Contains(w.problems[0].Doing, "reboots in 10m") {
		t.Errorf("skerryd is down: spares %v, reboots %d, problems %+v; want the reboot announced", there(), reboots, w.problems)
	}
	for range 3 {
		now = now.Add(stuckFor)
		w.turn()
	}
	if !there() || reboots != 1 {
		t.Errorf("skerryd stays down: spares %v, reboots %d; want one, and them kept for the start after it", there(), reboots)
	}
	w = boot()
	w.turn()
	if there() || len(said) != 1 {
		t.Fatalf("at the next start: spares %v, said %q; want them given up", there(), said)
	}
	for range spareFiles {
		if err := create(); err != nil {
			t.Fatalf("after the spares were given up: %v", err)
		}
	}
	for range 2 {
		now = now.Add(stuckFor)
		w.turn()
	}
	if len(said) != 1 || reboots != 1 {
		t.Errorf("without a reserve: said %q, reboots %d; want no more of either, as neither would help", said, reboots)
	}
	for _, name := range mine {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	// What a power cut has left of making or removing them is no whole reserve.
	if err := os.Mkdir(w.spares+".part", 0o700); err != nil {
		t.Fatal(err)
	}
	w.turn()
	if _, err := os.Lstat(w.spares + ".part"); !there() || err == nil {
		t.Errorf("with room again: spares %v, half of them %v", there(), err)
	}
}

// Root in a pod can't use the last blocks, by the option alone.
func TestReservedBlocks(t *testing.T) {
	for _, tt := range []struct {
		options string
		least   int64 // what must be left over, besides the 16 MiB that ext4 keeps to itself
		most    int64
	}{{stateOptions, 9 << 20, 11 << 20}, {"errors=remount-ro", 0, 1 << 20}} {
		dir := mounted(t, 1024, tt.options)
		done := make(chan int64)
		go func() {
			defer close(done)
			// The thread, which is given up, becomes root as a container has it.
			runtime.LockOSThread()
			head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var caps [2]unix.CapUserData
			err := unix.Capget(&head, &caps[0])
			caps[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
			if err := errors.Join(err, unix.Capset(&head, &caps[0])); err != nil {
				t.Error(err)
				return
			}
			done <- fill(t, filepath.Join(dir, "pod"))
		}()
		if pod := <-done; pod == 0 {
			t.Fatal("the pod wrote nothing")
		}
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		if left := int64(st.Bfree)*int64(st.Bsize) - 16<<20; left < tt.least || left > tt.most {
			t.Errorf("mounted with %q: %d bytes are left when a pod has filled the disk; want %d to %d", tt.options, left, tt.least, tt.most)
		}
	}
}

// Time passes, STATE breaks, and what comes of it.
func TestStateBroken(t *testing.T) {
	dir := t.TempDir()
	count := filepath.Join(dir, "errors_count")
	set := func(n int) {
		t.Helper()
		if err := os.WriteFile(count, fmt.Appendf(nil, "%d\n", n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set(2) // from long ago
	now := time.Unix(0, 0)
	var readOnly bool
	probes, reboots, settled := 0, 0, 0
	var fault error
	var said []string
	w := &stateWatch{dir: dir, ballast: filepath.Join(dir, "ballast"), errors: count, known: 2, since: now, now: func() time.Time { return now },
		statfs: func(_ string, st *unix.Statfs_t) error {
			*st = unix.Statfs_t{Bsize: 4096, Blocks: 1000, Bfree: 1000, Bavail: 1}
			if readOnly {
				st.Flags = unix.ST_RDONLY // of another type on 32 bits
			}
			return nil
		},
		probe: func() error { probes++; return fault }, reboot: func() { reboots++ }, settled: func() error { settled++; return nil },
		say: func(f string, a ...any) { said = append(said, fmt.Sprintf(f, a...)) }}
	turn := func(after time.Duration, wantProbes, wantReboots int, wantBroken bool) {
		t.Helper()
		now = now.Add(after)
		w.turn()
		broken := len(w.problems) > 0 && strings.Contains(w.problems[0].What, "nothing can be written")
		if probes != wantProbes || reboots != wantReboots || broken != wantBroken {
			t.Errorf("after %v: %d probes, %d reboots, broken %v; want %d, %d, %v", now.Sub(w.since), probes, reboots, broken, wantProbes, wantReboots, wantBroken)
		}
	}
	turn(0, 0, 0, false)
	turn(time.Minute, 0, 0, false) // well: not a write
	set(3)
	turn(time.Minute, 1, 0, false) // an error, but writing works
	turn(time.Minute, 1, 0, false)
	set(4)
	fault = unix.ENOSPC
	turn(time.Minute, 2, 0, false) // full is no fault
	set(5)
	fault = unix.EROFS
	turn(time.Minute, 3, 0, true)
	turn(10*time.Minute, 4, 0, true)
	fault = nil
	turn(time.Minute, 5, 0, false) // it was a bad contact
	readOnly, fault = true, unix.EROFS
	turn(time.Minute, 6, 0, true)
	turn(firstFault-time.Second, 7, 0, true)
	turn(time.Second, 8, 1, true)
	turn(time.Hour, 9, 1, true) // once is enough
	if want := 4; len(said) != want {
		t.Errorf("said %d things, want %d: %q", len(said), want, said)
	}
	if settled != 0 {
		t.Errorf("settled %d times; want none in an hour", settled)
	}
	readOnly, fault = false, nil
	turn(settleAfter, 10, 1, false)
	turn(settleAfter, 10, 1, false)
	if settled != 1 {
		t.Errorf("settled %d times after days; want once", settled)
	}
	for faults, want := range []time.Duration{30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour, 16 * time.Hour, lastFault, lastFault} {
		w.faults = faults
		if got := w.patience(); got != want {
			t.Errorf("patience after %d repairs = %v; want %v", faults, got, want)
		}
	}
}

func TestProbeWrite(t *testing.T) {
	dir := t.TempDir()
	if err := probeWrite(dir); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("the probe leaves %v behind", left)
	}
	if err := probeWrite(filepath.Join(dir, "gone")); err == nil {
		t.Error("probeWrite(no folder) = nil; want an error")
	}
}
