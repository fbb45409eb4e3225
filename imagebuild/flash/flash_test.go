package flash

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/fat"
)

// image makes a small stand-in: a partition table's mark, a FIRMWARE, and noise
// where slot A starts; the rest is a hole.
func image(t *testing.T) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "i.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := io.NewOffsetWriter(f, boards.FirmwareStart)
	if err := f.Truncate(boards.ImageSize); err != nil {
		t.Fatal(err)
	}
	if err := fat.Write(w, fat.Spec{Size: boards.FirmwareSize, Bits: 32, Label: "FIRMWARE", Time: time.Unix(1e9, 0)},
		[]fat.File{{Name: "boot.scr", Data: []byte("script")}, {Name: "skerry.yaml", Data: []byte("# old\n")}}); err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 1<<20)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(noise)
	for _, at := range []int64{600, boards.SlotAStart} {
		if _, err := f.WriteAt(noise, at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt([]byte{0x55, 0xaa}, 510); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func compress(t *testing.T, path string) string {
	t.Helper()
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(path + ".zst")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	z, err := zstd.NewWriter(out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(z, in); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Name()
}

func device(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "card")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A card may return something else than was written, as one does that is smaller than it claims.
func TestReadBack(t *testing.T) {
	written := bytes.Repeat([]byte("block "), 1<<16)
	sum := sha256.Sum256(written)
	if err := readBack(bytes.NewReader(written), sum[:]); err != nil {
		t.Errorf("readBack() of what was written: %v", err)
	}
	for name, bad := range map[string][]byte{
		"one bit": append([]byte{written[0] ^ 1}, written[1:]...), "zeros at the end": append(bytes.Clone(written[:len(written)/2]), make([]byte, len(written)/2)...),
		"short": written[:len(written)-1],
	} {
		if err := readBack(bytes.NewReader(bad), sum[:]); err == nil || !strings.Contains(err.Error(), "the card is bad") {
			t.Errorf("readBack() with %s = %v; want it refused", name, err)
		}
	}
}

func TestFlash(t *testing.T) {
	raw := image(t)
	for _, img := range []string{raw, compress(t, raw)} {
		card := device(t)
		files := map[string][]byte{"provision.json": []byte("{}"), "skerry.yaml": []byte("hostname: a\n")}
		if err := Flash(t.Context(), Options{Image: img, Device: card, Files: files, Out: io.Discard}); err != nil {
			t.Fatal(err)
		}
		got, err := os.Open(card)
		if err != nil {
			t.Fatal(err)
		}
		defer got.Close()
		want, err := os.Open(raw)
		if err != nil {
			t.Fatal(err)
		}
		defer want.Close()
		for _, part := range []struct{ at, n int64 }{{0, boards.FirmwareStart}, {boards.SlotAStart, boards.ImageSize - boards.SlotAStart}} {
			a, b := io.NewSectionReader(got, part.at, part.n), io.NewSectionReader(want, part.at, part.n)
			if !same(t, a, b) {
				t.Errorf("%s: bytes from %d differ from the image's", filepath.Base(img), part.at)
			}
		}
		list, err := fat.Read(io.NewSectionReader(got, boards.FirmwareStart, boards.FirmwareSize), boards.FirmwareSize)
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]string{}
		for _, f := range list {
			b, err := f.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			have[f.Name] = string(b)
		}
		if have["boot.scr"] != "script" || have["skerry.yaml"] != "hostname: a\n" || have["provision.json"] != "{}" {
			t.Errorf("FIRMWARE holds %q", have)
		}
	}
}

func same(t *testing.T, a, b io.Reader) bool {
	t.Helper()
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(a, x)
		m, _ := io.ReadFull(b, y)
		if n != m || !bytes.Equal(x[:n], y[:m]) {
			return false
		}
		if err != nil {
			return true
		}
	}
}

// A bad image leaves a card without a partition table, not half a system.
func TestFlashRefusesDamage(t *testing.T) {
	raw := image(t)
	z, err := os.ReadFile(compress(t, raw))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, data := range map[string][]byte{
		"cut.img.zst":   z[:len(z)/2],
		"flip.img.zst":  append(append(bytes.Clone(z[:len(z)/2]), z[len(z)/2]^1), z[len(z)/2+1:]...),
		"other.img":     bytes.Repeat([]byte("x"), 1<<20),
		"empty.img":     nil,
		"empty.img.zst": nil,
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		card := device(t)
		err := Flash(t.Context(), Options{Image: path, Device: card, Out: io.Discard})
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("Flash(%s) = %v; want an error of one line", name, err)
		}
		t.Log(err)
		head, err := os.ReadFile(card)
		if err != nil {
			t.Fatal(err)
		}
		if len(head) >= 512 && head[510] == 0x55 {
			t.Errorf("Flash(%s) left a partition table", name)
		}
	}
}

func TestInUse(t *testing.T) {
	sysfs := filepath.Join(t.TempDir(), "sdz")
	for path, data := range map[string]string{"dev": "8:400\n", "sdz1/dev": "8:401\n", "sdz1/partition": "1\n"} {
		p := filepath.Join(sysfs, path)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const other = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
	for _, tt := range []struct{ name, mounts, swaps, want string }{
		{name: "free", mounts: other},
		{name: "partition mounted", mounts: other + "23 1 8:401 / /media/x rw - vfat /dev/by-other-name rw\n", want: "mounted at /media/x"},
		{name: "btrfs, whose numbers are its own", mounts: "23 1 0:55 / /media/y rw - btrfs /dev/sdz1 rw\n", want: "mounted at /media/y"},
		{name: "swap", mounts: other, swaps: "Filename Type\n/dev/sdz1 partition 1 0 -2\n", want: "swap"},
	} {
		err := inUse("/dev/sdz", sysfs, tt.mounts, tt.swaps)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: inUse() = %v; want %q", tt.name, err, tt.want)
		}
	}
	if err := os.MkdirAll(filepath.Join(sysfs, "sdz1", "holders", "dm-0"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := inUse("/dev/sdz", sysfs, other, ""); err == nil {
		t.Error("inUse(a disk under LVM) = nil; want an error")
	}
	// The disk that this machine runs from, whatever it is called.
	root, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(root), "\n") {
		if f := strings.Fields(line); len(f) > 9 && f[4] == "/" && strings.HasPrefix(f[len(f)-2], "/dev/") {
			if err := refuse(f[len(f)-2]); err == nil {
				t.Errorf("refuse(%s), the root disk, = nil", f[len(f)-2])
			}
		}
	}
	if err := refuse("/dev/null"); err == nil {
		t.Error("refuse(/dev/null) = nil; want an error")
	}
}
