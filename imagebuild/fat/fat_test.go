package fat

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// tool finds a program that judges what we wrote. Without it the test is
// skipped, but not in CI.
func tool(t *testing.T, name string) string {
	t.Helper()
	for _, p := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if p, err := exec.LookPath(p); err == nil {
			return p
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

func noise(n int, seed byte) []byte {
	b := make([]byte, n)
	x := uint32(seed) + 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

var when = time.Date(2026, 11, 23, 20, 41, 7, 0, time.UTC)

func files() []File {
	fs := []File{
		{Name: "slot.txt", Data: []byte("version=1\n")},
		{Name: "Image.gz", Data: noise(3<<20+17, 1)},
		{Name: "BOOTCODE.BIN", Data: noise(4096, 4)},
		{Name: "initrd.img", Data: noise(1<<20, 5)},
		{Name: "dtbs/broadcom/bcm2711-rpi-4-b.dtb", Data: noise(40_000, 2)},
		{Name: "dtbs/broadcom/bcm2837-rpi-3-b-plus.dtb", Data: noise(30_000, 3)},
		{Name: "empty", Data: nil},
	}
	for i := range 100 { // a folder of more than one cluster
		fs = append(fs, File{Name: "overlays/a-rather-long-name-" + strings.Repeat("x", i%20) + string(rune('a'+i%26)) + string(rune('0'+i/26)) + ".dtbo", Data: noise(100+i, byte(i))})
	}
	return fs
}

func write(t *testing.T, s Spec, fs []File) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "fat")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(s.Size); err != nil {
		t.Fatal(err)
	}
	if err := Write(f, s, fs); err != nil {
		t.Fatal(err)
	}
	return name
}

var specs = []Spec{
	{64 << 20, 16, "SKERRY-SLOT", when},
	{16 << 20, 16, "S", when},
	{64 << 20, 32, "FIRMWARE", when},
	{300 << 20, 32, "FIRMWARE", when},
}

func TestRealToolsAgree(t *testing.T) {
	fsck, mcopy := tool(t, "fsck.fat"), tool(t, "mcopy")
	for _, s := range specs {
		img := write(t, s, files())
		out, err := exec.Command(fsck, "-n", "-v", img).CombinedOutput()
		if err != nil {
			t.Errorf("fsck.fat of FAT%d, %d bytes: %v\n%s", s.Bits, s.Size, err, out)
		}
		if want := map[int]string{16: "16 bit entries", 32: "32 bit entries"}[s.Bits]; !strings.Contains(string(out), want) {
			t.Errorf("fsck.fat does not say %q:\n%s", want, out)
		}
		dir := t.TempDir()
		if out, err := exec.Command(mcopy, "-s", "-m", "-i", img, "::", dir).CombinedOutput(); err != nil {
			t.Fatalf("mcopy: %v\n%s", err, out)
		}
		for _, f := range files() {
			if got, err := os.ReadFile(filepath.Join(dir, f.Name)); err != nil || !bytes.Equal(got, f.Data) {
				t.Errorf("mcopy of %q from FAT%d gives something else back (%v)", f.Name, s.Bits, err)
			}
		}
	}
}

func TestReadBack(t *testing.T) {
	for _, s := range specs {
		img, err := os.ReadFile(write(t, s, files()))
		if err != nil {
			t.Fatal(err)
		}
		got, err := Read(bytes.NewReader(img), s.Size)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(files()) {
			t.Errorf("Read() = %d files; want %d", len(got), len(files()))
		}
		for _, want := range files() {
			i := slices.IndexFunc(got, func(f File) bool { return f.Name == want.Name })
			if i < 0 || !bytes.Equal(got[i].Data, want.Data) {
				t.Errorf("Read() of FAT%d does not give %q back", s.Bits, want.Name)
			}
		}
	}
}

func TestSameBytes(t *testing.T) {
	for _, s := range specs[:3] {
		a, _ := os.ReadFile(write(t, s, files()))
		other := files()
		slices.Reverse(other)
		if b, _ := os.ReadFile(write(t, s, other)); !bytes.Equal(a, b) {
			t.Errorf("FAT%d of the same files in another order differs", s.Bits)
		}
		s.Time = s.Time.Add(time.Hour)
		if b, _ := os.ReadFile(write(t, s, other)); bytes.Equal(a, b) {
			t.Errorf("FAT%d does not carry the time it was given", s.Bits)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		s  Spec
		fs []File
	}{
		"too much":          {Spec{16 << 20, 16, "S", when}, []File{{Name: "a", Data: make([]byte, 17<<20)}}},
		"no FAT32 so small": {Spec{16 << 20, 32, "S", when}, nil},
		"no FAT16 so large": {Spec{8 << 30, 16, "S", when}, nil},
		"twice":             {specs[0], []File{{Name: "a"}, {Name: "A"}}},
		"file as folder":    {specs[0], []File{{Name: "a"}, {Name: "a/b"}}},
		"bad name":          {specs[0], []File{{Name: "a:b"}}},
		"absolute":          {specs[0], []File{{Name: "/a"}}},
		"gone":              {specs[0], []File{{Name: "a", Source: "/nonexistent"}}},
	} {
		f, err := os.Create(filepath.Join(t.TempDir(), "fat"))
		if err != nil {
			t.Fatal(err)
		}
		if err := Write(f, tt.s, tt.fs); err == nil {
			t.Errorf("Write(%s) = nil; want an error", name)
		}
		f.Close()
	}
}

func TestReadOfDamage(t *testing.T) {
	s := specs[1]
	few := []File{{Name: "a/b/long-name.dtb", Data: noise(5000, 1)}, {Name: "B", Data: noise(700, 1)}}
	good, err := os.ReadFile(write(t, s, few))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Read(bytes.NewReader(make([]byte, 100)), 100); err == nil {
		t.Error("Read() of 100 bytes = nil; want an error")
	}
	// Whatever is broken, Read comes back.
	g, _ := plan(s)
	for i := range (g.data + 3*g.perCluster) * sector {
		if i > 64 && good[i] == 0 {
			continue
		}
		for _, flip := range []byte{0xff, 0x01} {
			good[i] ^= flip
			Read(bytes.NewReader(good), s.Size)
			good[i] ^= flip
		}
	}
	loop := bytes.Clone(good)
	for c := range g.clusters {
		g.set(loop[g.reserved*sector:], c+2, 3)
	}
	if _, err := Read(bytes.NewReader(loop), s.Size); err == nil {
		t.Error("Read() of clusters in a circle = nil; want an error")
	}
}

func TestShortNames(t *testing.T) {
	taken := map[[11]byte]bool{}
	for _, tt := range []struct{ in, want string }{
		{"BOOT.SCR", "BOOT    SCR"}, {"boot.scr", "BOOT~2  SCR"}, {"uboot.env", "UBOOT   ENV"}, {"config.txt", "CONFIG  TXT"},
		{"bcm2711-rpi-4-b.dtb", "BCM271~1DTB"}, {"bcm2711-rpi-400.dtb", "BCM271~2DTB"}, {"skerry.yaml", "SKERRY~1YAM"}, {"noext", "NOEXT      "},
	} {
		got, err := shortName(tt.in, taken)
		if err != nil || string(got[:]) != tt.want {
			t.Errorf("shortName(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
		}
		taken[got] = true
	}
}
