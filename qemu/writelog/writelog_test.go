package writelog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const diskSize = 4 << 20

// record has QEMU write to a disk and log it.
func record(t *testing.T, commands ...string) (log, disk string) {
	t.Helper()
	dir := t.TempDir()
	log, disk = filepath.Join(dir, "writes.log"), filepath.Join(dir, "disk.raw")
	for file, size := range map[string]int64{log: 0, disk: diskSize} {
		if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, size)); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"-t", "writeback", "--image-opts", fmt.Sprintf("driver=blklogwrites,discard=unmap,file.driver=raw,file.discard=unmap,file.file.filename=%s,log.filename=%s", disk, log)}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	if out, err := exec.Command("qemu-io", args...).CombinedOutput(); err != nil {
		if errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") == "" {
			t.Skip("qemu-io is not installed: apt install qemu-utils")
		}
		t.Fatalf("qemu-io: %v\n%s", err, out)
	}
	return log, disk
}

func open(t *testing.T, file string) *Log {
	t.Helper()
	l, err := Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// blank is the disk as it was before the log began.
func blank(t *testing.T, l *Log) *Disk {
	t.Helper()
	file := filepath.Join(t.TempDir(), "base.raw")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, diskSize)); err != nil {
		t.Fatal(err)
	}
	d, err := l.Follow(file, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func crash(t *testing.T, d *Disk, parts []Part, start, end int64) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "state.raw")
	if err := d.Write(file, parts, start, end); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestReplay: all that QEMU logged, taken together, is the disk that it wrote.
func TestReplay(t *testing.T) {
	log, disk := record(t,
		"write -P 1 0 1M", "write -P 2 512 512", "flush",
		"write -z 64k 64k", "write -P 3 3M 1536", "write -f -P 4 2M 8k", "discard 256k 64k", "flush")
	l := open(t, log)
	if n, err := Count(log); err != nil || n != len(l.Entries) || n < 8 {
		t.Errorf("Count() = %d, %v; want the %d entries, and at least 8", n, err, len(l.Entries))
	}
	d := blank(t, l)
	if err := d.Advance(len(l.Entries)); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	if got := crash(t, d, nil, 0, diskSize); !bytes.Equal(got, want) {
		t.Error("the replayed disk is not the one that was written")
	}
	if got := crash(t, d, nil, 2<<20, 3<<20); !bytes.Equal(got, want[2<<20:3<<20]) {
		t.Error("a piece of the replayed disk is not that of the one that was written")
	}
	if err := d.Advance(1); err == nil {
		t.Error("Advance() back = nil; want an error")
	}
}

// TestChoose: over many seeds, what was flushed is always there, what was not is
// sometimes there, sometimes not, sometimes in part, and a sector is never torn.
func TestChoose(t *testing.T) {
	log, _ := record(t, "write -P 1 0 4k", "flush", "write -P 2 0 4k", "write -P 3 64k 512", "write -P 4 128k 1M", "flush")
	l := open(t, log)
	cut := l.NextFlush(l.NextFlush(0) + 1) // the moment before the second flush
	if got, want := len(l.Writing(l.Flushed(cut), cut, 0, diskSize)), 3; got != want {
		t.Fatalf("%d writes between the flushes; want %d", got, want)
	}
	d := blank(t, l)
	if err := d.Advance(cut); err != nil {
		t.Fatal(err)
	}
	type seen struct{ old, new, both int }
	count := map[string]*seen{"over": {}, "sector": {}, "large": {}}
	for seed := range uint64(200) {
		parts := l.Choose(cut, seed)
		b := crash(t, d, parts, 0, diskSize)
		for _, w := range []struct {
			name     string
			at, size int
			old, new byte
		}{{"over", 0, 4096, 1, 2}, {"sector", 64 << 10, 512, 0, 3}, {"large", 128 << 10, 1 << 20, 0, 4}} {
			var old, fresh int
			for s := w.at; s < w.at+w.size; s += SectorSize {
				switch sector := b[s : s+SectorSize]; {
				case bytes.Equal(sector, bytes.Repeat([]byte{w.old}, SectorSize)):
					old++
				case bytes.Equal(sector, bytes.Repeat([]byte{w.new}, SectorSize)):
					fresh++
				default:
					t.Fatalf("seed %d: %s: the sector at %d is neither the old nor the new one", seed, w.name, s)
				}
			}
			switch {
			case fresh == 0:
				count[w.name].old++
			case old == 0:
				count[w.name].new++
			default:
				count[w.name].both++
			}
		}
		if again := l.Choose(cut, seed); fmt.Sprint(again) != fmt.Sprint(parts) {
			t.Fatalf("Choose(%d, %d) differs from call to call", cut, seed)
		}
	}
	for name, s := range count {
		if s.old == 0 || s.new == 0 || (s.both == 0) != (name == "sector") {
			t.Errorf("%s: %d times old, %d new, %d in part; want each, but never a sector in part", name, s.old, s.new, s.both)
		}
	}
	// The twin: a disk that forgets flushes loses what was flushed.
	twin, lost := l.WithoutFlushes(0), 0
	d = blank(t, twin)
	for seed := range uint64(50) {
		if b := crash(t, d, twin.Choose(cut, seed), 0, diskSize); b[0] == 0 {
			lost++
		}
	}
	if lost == 0 {
		t.Error("a disk that forgets its flushes lost nothing in 50 cuts")
	}
}

func TestOpenRefuses(t *testing.T) {
	log, _ := record(t, "write 0 4k", "flush")
	whole, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty": nil, "noise": bytes.Repeat([]byte{0xa5}, 4096), "cut short": whole[:SectorSize],
	} {
		file := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := Open(file); err == nil {
			t.Errorf("Open(%s) = %d entries; want an error", name, len(l.Entries))
		}
	}
}
