package image

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/disk"
	"skerry.internal/skerry/imagebuild/fat"
)

func TestInspect(t *testing.T) {
	s := built(t)
	for _, name := range []string{s.a, s.a + ".zst"} {
		r, err := Inspect(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if d := r.Damage(); len(d) > 0 {
			t.Errorf("Inspect(%s) of a new image finds damage: %q", name, d)
		}
		if len(r.Partitions) != 4 || len(r.Slots) != 2 || !r.Slots[0].Written || r.Slots[1].Written || r.Slots[0].Version != small.build.source.Version {
			t.Errorf("Inspect(%s) = %+v", name, r)
		}
	}
	f, err := os.Open(s.a)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := zeros(io.NewSectionReader(f, boards.SlotBStart, boards.SlotSize)); err != nil || n != boards.SlotSize {
		t.Errorf("slot B of a new image: %d zeros, %v; want it never written", n, err)
	}
	if n, err := zeros(io.NewSectionReader(f, boards.SlotAStart, boards.SlotSize)); err != nil || n == boards.SlotSize {
		t.Errorf("slot A of a new image: %d zeros, %v; want something else among them", n, err)
	}
	hashes := int64(boards.SlotAStart+boards.SlotBootSize) + s.build.rootFS.size
	for _, tt := range []struct {
		name   string
		offset int64
		want   string // in the damage; empty: it is still whole
	}{
		{"kernel", place(t, s.a, "Image.gz"), "slot a: check " + "Image.gz"},
		{"initramfs", place(t, s.a, initrdFile), "slot a: check " + initrdFile},
		{"slot.txt", place(t, s.a, "slot.txt"), "slot a: "},
		{"first root block", boards.SlotAStart + boards.SlotBootSize + 100, "wrong blocks of 4 KiB: 0"},
		{"a later root block", boards.SlotAStart + boards.SlotBootSize + 1000*disk.VerityBlock, "wrong blocks of 4 KiB: 1000"},
		{"verity superblock", hashes, "verity superblock"},
		{"top of the verity tree", hashes + disk.VerityBlock, "verity tree is damaged"},
		{"one copy of the boot state", boards.BootState0 + 20, ""},
		{"FIRMWARE's header", boards.FirmwareStart + 511, "FIRMWARE: "},
		{"slot's FAT header", boards.SlotAStart + 511, "slot a: boot files"},
		{"slot B", boards.SlotBStart, ""},
	} {
		r, err := Inspect(t.Context(), flip(t, s.a, tt.offset))
		if err != nil {
			t.Errorf("Inspect() with a flipped byte in %s: %v", tt.name, err)
			continue
		}
		damage := strings.Join(r.Damage(), "\n")
		if (tt.want == "") != (damage == "") || !strings.Contains(damage, tt.want) {
			t.Errorf("Inspect() with a flipped byte in %s finds %q; want %q", tt.name, damage, tt.want)
		}
	}
	both := flip(t, flip(t, s.a, boards.BootState0+20), boards.BootState1+20)
	if r, err := Inspect(t.Context(), both); err != nil || !strings.Contains(strings.Join(r.Damage(), ""), "boot state") {
		t.Errorf("Inspect() with both boot states broken = %v, %v; want it named", r, err)
	}
}

// zeros counts the zeros with which r begins.
func zeros(r io.Reader) (n int64, err error) {
	b := make([]byte, 1<<20)
	for {
		c, err := io.ReadFull(r, b)
		rest := len(bytes.TrimLeft(b[:c], "\x00"))
		n += int64(c - rest)
		if rest > 0 {
			return n, nil
		}
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = nil
			}
			return n, err
		}
	}
}

// place finds where a file of slot A lies in an image.
func place(t *testing.T, image, name string) int64 {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	part := make([]byte, boards.SlotBootSize)
	if _, err := f.ReadAt(part, boards.SlotAStart); err != nil {
		t.Fatal(err)
	}
	files, err := fat.Read(bytes.NewReader(part), boards.SlotBootSize)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name == name {
			return boards.SlotAStart + int64(bytes.Index(part, f.Data[:64])) + 40
		}
	}
	t.Fatalf("no %s in slot A", name)
	return 0
}

// flip copies an image and changes one byte of it.
func flip(t *testing.T, image string, offset int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("cp", "--sparse=always", image, name).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, offset); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestLoaders: a loader with zeros in it is one area, two loaders far from each other are two;
// what else lies in the gap is none.
func TestLoaders(t *testing.T) {
	gap := make([]byte, boards.FirmwareStart)
	for _, at := range []int{0x1b8, 0x2000, 0x9000, 0x40000, boards.BootState0, boards.ResetMark, boards.StateMark, boards.BootState1 - 0x1000, boards.BootState1, boards.BootState1 + 0x1000} {
		gap[at] = 1
	}
	got, err := loaders(bytes.NewReader(gap))
	if want := []Area{{0x2000, 0x8000}, {0x40000, 0x1000}, {boards.BootState1 - 0x1000, 0x1000}, {boards.BootState1 + 0x1000, 0x1000}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("loaders() = %+v, %v; want %+v", got, err, want)
	}
}

func TestInspectOfWhatIsNoImage(t *testing.T) {
	s := built(t)
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, content, 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	packed, err := os.ReadFile(s.a + ".zst")
	if err != nil {
		t.Fatal(err)
	}
	start, err := os.Open(s.a)
	if err != nil {
		t.Fatal(err)
	}
	defer start.Close()
	raw := make([]byte, 20<<20)
	if _, err := io.ReadFull(start, raw); err != nil {
		t.Fatal(err)
	}
	broken := bytes.Clone(packed)
	broken[len(broken)/2] ^= 1
	for name, tt := range map[string]struct {
		file, want string
	}{
		"nothing there":   {filepath.Join(dir, "none"), "no such file"},
		"empty":           {write("empty", nil), "not a Skerry image"},
		"garbage":         {write("garbage", bytes.Repeat([]byte("garbage "), 1000)), "not a Skerry image"},
		"truncated":       {write("truncated", raw), "truncated"},
		"truncated .zst":  {write("truncated.zst", packed[:len(packed)/2]), "truncated"},
		"broken .zst":     {write("broken.zst", broken), "damaged"},
		"garbage in .zst": {write("garbage.zst", append(packed[:4:4], raw[:5000]...)), "damaged"},
	} {
		_, err := Inspect(t.Context(), tt.file)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("Inspect(%s) = %v; want one line with %q", name, err, tt.want)
		}
	}
}
