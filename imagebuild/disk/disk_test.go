package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"skerry.internal/skerry/boards"
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

func TestMBR(t *testing.T) {
	parts := Partitions()
	for i := 1; i < len(parts); i++ {
		if got, want := parts[i].Start, parts[i-1].Start+parts[i-1].Size; got != want {
			t.Errorf("partition %d starts at %d; want %d", i+1, got, want)
		}
	}
	img := filepath.Join(t.TempDir(), "img")
	if err := WriteImage(img, boards.ImageSize, []Part{{Name: "MBR", Room: 512, Data: MBR(parts)}}, nil); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tool(t, "sfdisk"), "--dump", img).CombinedOutput()
	if err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	for _, want := range []string{"label-id: 0x534b5259", "start=       32768, size=      131072, type=c, bootable",
		"start=      163840, size=      786432, type=da", "start=     1736704, size=       32768, type=83"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("sfdisk does not say %q:\n%s", want, out)
		}
	}
	got, err := ReadMBR(bytes.NewReader(MBR(parts)))
	if err != nil || !slices.Equal(got, parts) {
		t.Errorf("ReadMBR() = %v, %v; want what was written", got, err)
	}
	for name, bad := range map[string][]byte{"short": make([]byte, 100), "zeros": make([]byte, 512), "other disk": func() []byte {
		b := MBR(parts)
		b[mbrSignature]++
		return b
	}(), "no fourth": MBR(parts[:3])} {
		if _, err := ReadMBR(bytes.NewReader(bad)); !errors.Is(err, ErrNotSkerry) {
			t.Errorf("ReadMBR(%s) = %v; want %v", name, err, ErrNotSkerry)
		}
	}
}

func TestWriteImage(t *testing.T) {
	dir := t.TempDir()
	img := filepath.Join(dir, "img")
	src := filepath.Join(dir, "src")
	data := append(append(noise(5000, 1), make([]byte, 2<<20)...), noise(100, 2)...)
	if err := os.WriteFile(src, data, 0o644); err != nil {
		t.Fatal(err)
	}
	var wrote int64
	parts := []Part{{Name: "a", Offset: 512, Room: 3 << 20, File: src}, {Name: "b", Offset: 4 << 20, Room: 5, Data: []byte("hello")}}
	if err := WriteImage(img, 8<<20, parts, func(n int64) { wrote += n }); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 8<<20)
	copy(want[512:], data)
	copy(want[4<<20:], "hello")
	got, err := os.ReadFile(img)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("WriteImage() wrote something else than its parts (%v)", err)
	}
	if wrote != int64(len(data)+5) {
		t.Errorf("WriteImage() reported %d bytes; want %d", wrote, len(data)+5)
	}
	parts[0].Room = 2 << 20
	if err := WriteImage(img, 8<<20, parts, nil); err == nil {
		t.Error("WriteImage() of a part larger than its room = nil; want an error")
	}
}

func TestVerity(t *testing.T) {
	dir := t.TempDir()
	for _, blocks := range []int{1, 2, 128, 129, 16385} {
		file, hashes := filepath.Join(dir, "data"), filepath.Join(dir, "tree")
		if err := os.WriteFile(file, noise(blocks*VerityBlock-5, byte(blocks)), 0o644); err != nil {
			t.Fatal(err)
		}
		size, err := PadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		root, err := MakeVerity(file, hashes)
		if err != nil {
			t.Fatal(err)
		}
		data, _ := os.ReadFile(file)
		tree, _ := os.ReadFile(hashes)
		all := append(data, tree...)
		check := func() ([]int64, error) { return CheckVerity(bytes.NewReader(all), 0, size, root, 3) }
		if bad, err := check(); err != nil || len(bad) > 0 {
			t.Fatalf("CheckVerity(%d blocks) = %v, %v; want all well", blocks, bad, err)
		}
		at := (blocks - 1) * VerityBlock
		all[at] ^= 1
		if bad, err := check(); err != nil || !slices.Equal(bad, []int64{int64(blocks - 1)}) {
			t.Errorf("CheckVerity(%d blocks, last one changed) = %v, %v; want it named", blocks, bad, err)
		}
		all[at] ^= 1
		if blocks > 1 {
			all[len(all)-1] ^= 1 // a part of the tree that no data block's hash uses, but the level above it does
			if _, err := check(); err == nil {
				t.Errorf("CheckVerity(%d blocks, tree changed) = nil; want an error", blocks)
			}
			all[len(all)-1] ^= 1
		}
		other := strings.Repeat("00", 32)
		if bad, err := CheckVerity(bytes.NewReader(all), 0, size, other, 3); err == nil && len(bad) == 0 {
			t.Errorf("CheckVerity(%d blocks) with another root hash = nil; want an error", blocks)
		}
		judgeVerity(t, file, hashes, root)
	}
}

// judgeVerity lets cryptsetup's own tool check the tree, where it is installed.
func judgeVerity(t *testing.T, file, hashes, root string) {
	t.Helper()
	p, err := exec.LookPath("veritysetup")
	if err != nil {
		return
	}
	if out, err := exec.Command(p, "verify", file, hashes, root).CombinedOutput(); err != nil {
		t.Errorf("veritysetup verify: %v\n%s", err, out)
	}
}

func TestVerityKnown(t *testing.T) {
	// One block of zeros has this root hash under our salt; a change of salt
	// or format would break the devices in the field.
	dir := t.TempDir()
	file := filepath.Join(dir, "data")
	if err := os.WriteFile(file, make([]byte, VerityBlock), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := MakeVerity(file, filepath.Join(dir, "tree"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "227bf38f2c17589674078f513dd43461952153559efc900bc018da6340c7f4a9"; got != want {
		t.Errorf("MakeVerity(one block of zeros) = %s; want %s", got, want)
	}
	sb, _ := os.ReadFile(filepath.Join(dir, "tree"))
	if got := binary.LittleEndian.Uint16(sb[80:]); got != 32 {
		t.Errorf("the superblock's salt has %d bytes; want 32", got)
	}
}
