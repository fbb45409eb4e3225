package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"skerry.internal/skerry/boards"
)

// record is the boot record of an image.
func record() []byte {
	b := make([]byte, boards.SectorSize)
	le := binary.LittleEndian
	le.PutUint32(b[440:], boards.DiskSignature)
	b[510], b[511] = 0x55, 0xaa
	for i, p := range []struct {
		kind        byte
		start, size uint64
	}{{boards.TypeFirmware, boards.FirmwareStart, boards.FirmwareSize}, {boards.TypeSlot, boards.SlotAStart, boards.SlotSize},
		{boards.TypeSlot, boards.SlotBStart, boards.SlotSize}, {boards.TypeState, boards.StateStart, boards.StateSize}} {
		e := b[446+16*i:]
		e[4] = p.kind
		le.PutUint32(e[8:], uint32(p.start/512))
		le.PutUint32(e[12:], uint32(p.size/512))
	}
	return b
}

func TestGrowState(t *testing.T) {
	const start = boards.StateStart / 512
	for _, tt := range []struct {
		name    string
		sectors uint64
		length  uint64
		changed bool
	}{
		{"as flashed", boards.ImageSize / 512, boards.StateSize / 512, false},
		{"8 GB", 8e9 / 512, 7629*2048 - start, true},
		{"a few sectors more than the image", boards.ImageSize/512 + 2047, boards.StateSize / 512, false},
		{"4 TiB, more than a boot record can tell", 8 << 30, (1<<32-1)/2048*2048 - start, true},
		{"smaller than the image", boards.StateStart/512 + 10, boards.StateSize / 512, false},
	} {
		in := record()
		out, gotStart, length, changed, err := growState(in, tt.sectors)
		if err != nil || gotStart != start || length != tt.length || changed != tt.changed {
			t.Errorf("%s: growState() = %d, %d, %v, %v; want %d, %d, %v", tt.name, gotStart, length, changed, err, start, tt.length, tt.changed)
			continue
		}
		if !bytes.Equal(in, record()) {
			t.Errorf("%s: growState() changed its input", tt.name)
		}
		// Nothing but the last entry may differ, and doing it again changes nothing.
		if !bytes.Equal(out[:446+48], in[:446+48]) || !bytes.Equal(out[510:], in[510:]) {
			t.Errorf("%s: growState() changed more than STATE", tt.name)
		}
		if again, _, _, changed, err := growState(out, tt.sectors); changed || err != nil || !bytes.Equal(again, out) {
			t.Errorf("%s: growState() of its own result changes it", tt.name)
		}
	}
	for name, spoil := range map[string]func([]byte){
		"signature": func(b []byte) { b[440]++ }, "magic": func(b []byte) { b[510] = 0 }, "type": func(b []byte) { b[446+48+4] = 0x0c },
		"start": func(b []byte) { b[446+48+8]++ },
	} {
		b := record()
		spoil(b)
		if _, _, _, changed, err := growState(b, 8e9/512); err == nil || changed {
			t.Errorf("growState() with a wrong %s = %v, %v; want an error", name, changed, err)
		}
	}
}

func TestFindDisk(t *testing.T) {
	sys, dev := t.TempDir(), t.TempDir()
	add := func(disk, part, number string, mbr []byte) {
		t.Helper()
		dir := filepath.Join(sys, "class/block", disk)
		if part != "" {
			if err := os.MkdirAll(filepath.Join(dir, part), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, part, "partition"), []byte(number+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		} else if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dev, disk), mbr, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	add("loop0", "", "", nil) // empty
	foreign := record()
	foreign[440]++
	add("mmcblk0", "mmcblk0p2", "2", foreign)
	if _, err := findDisk(sys, dev); !errors.Is(err, errNotFound) {
		t.Errorf("findDisk() without our disk = %v; want %v", err, errNotFound)
	}
	add("mmcblk1", "mmcblk1p2", "2", record())
	add("mmcblk1", "mmcblk1p4", "4", record())
	d, err := findDisk(sys, dev)
	if err != nil || d.dev != filepath.Join(dev, "mmcblk1") {
		t.Fatalf("findDisk() = %+v, %v; want mmcblk1", d, err)
	}
	if got, err := d.partition(dev, 4); got != filepath.Join(dev, "mmcblk1p4") || err != nil {
		t.Errorf("partition(4) = %q, %v", got, err)
	}
	if got, err := d.partition(dev, 3); !errors.Is(err, errNotFound) {
		t.Errorf("partition(3) = %q, %v; want %v", got, err, errNotFound)
	}
}

func TestParsePartUUID(t *testing.T) {
	for in, want := range map[string]int{"PARTUUID=534b5259-02": 2, "PARTUUID=534B5259-03": 3} {
		if got, err := parsePartUUID(in); got != want || err != nil {
			t.Errorf("parsePartUUID(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, bad := range []string{"", "PARTUUID=", "534b5259-02", "PARTUUID=534b5259-00", "PARTUUID=534b5259-05", "PARTUUID=534b5259", "PARTUUID=00000000-02", "/dev/vda2"} {
		if got, err := parsePartUUID(bad); err == nil {
			t.Errorf("parsePartUUID(%q) = %d; want an error", bad, got)
		}
	}
}

// What examine says of real file systems, at each point where making one can
// be cut short.
func TestExamine(t *testing.T) {
	mkfs, err := exec.LookPath("/usr/sbin/mkfs.ext4")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("no mkfs.ext4 here")
		}
		t.Skip("no mkfs.ext4 here")
	}
	file := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 32<<20); err != nil {
		t.Fatal(err)
	}
	check := func(what string, want stateKind) {
		t.Helper()
		if got, err := examineDevice(file); got != want || err != nil {
			t.Errorf("%s: examine() = %v, %v; want %v", what, got, err, want)
		}
	}
	write := func(at int64, b ...byte) {
		t.Helper()
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	check("as flashed", stateBlank)
	if out, err := exec.Command(mkfs, "-F", "-q", file).CombinedOutput(); err != nil {
		t.Fatalf("%s: %s", err, out)
	}
	check("made, without the mark", stateBlank)
	write(ext4MountTime, 1)
	check("mounted once, without the mark", stateInUse)
	write(0, []byte(formatted)...)
	check("with the mark", stateReady)
	write(ext4State, 1|ext4HasErrors)
	check("with errors", stateErrors)
	write(ext4MagicAt, 0, 0)
	check("with the mark and a lost superblock", stateReady) // to be repaired, never to be made anew
	// mkfs over it takes the mark away first, so that a cut in it is seen.
	if out, err := exec.Command(mkfs, "-F", "-q", file).CombinedOutput(); err != nil {
		t.Fatalf("%s: %s", err, out)
	}
	check("made again", stateBlank)
	// And e2fsck has nothing to say about the mark.
	write(0, []byte(formatted)...)
	if out, err := exec.Command("/usr/sbin/e2fsck", "-fn", file).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
	check("checked", stateReady)
}
