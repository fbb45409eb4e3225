package kmod

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ulikunitz/xz"

	"skerry.internal/skerry/imagebuild/tree"
)

// module is the smallest ELF file with a .modinfo section.
func module(t *testing.T, modinfo ...string) []byte {
	t.Helper()
	data := []byte(strings.Join(modinfo, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	const head, entry = 64, 64
	var b bytes.Buffer
	b.Write([]byte("\x7fELF\x02\x01\x01"))
	b.Write(make([]byte, 9))
	dataAt, namesAt := head, head+len(data)
	shoff := namesAt + len(names)
	w := func(v any) { binary.Write(&b, binary.LittleEndian, v) }
	w([]uint16{1, 183})
	w(uint32(1))
	w([]uint64{0, 0, uint64(shoff)})
	w(uint32(0))
	w([]uint16{head, 0, 0, entry, 3, 2})
	b.Write(data)
	b.Write(names)
	section := func(name, typ uint32, off, size int) {
		w([]uint32{name, typ})
		w([]uint64{0, 0, uint64(off), uint64(size)})
		w([]uint32{0, 0})
		w([]uint64{1, 0})
	}
	section(0, 0, 0, 0)
	section(1, 1, dataAt, len(data))
	section(10, 3, namesAt, len(names))
	return b.Bytes()
}

func pack(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := xz.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func kernel(t *testing.T) *Dir {
	t.Helper()
	root := filepath.Join(t.TempDir(), "6.12-test")
	for name, content := range map[string][]byte{
		"kernel/fs/ext4/ext4.ko.xz":           pack(t, module(t, "alias=fs-ext4", "depends=jbd2,mbcache", "softdep=pre: crc32c missing")),
		"kernel/fs/jbd2/jbd2.ko.xz":           pack(t, module(t, "depends=mbcache")),
		"kernel/fs/mbcache.ko":                module(t, "depends="),
		"kernel/crypto/crc32c.ko":             module(t, "alias=crypto-crc32c", "depends="),
		"kernel/net/netfilter/nf-a.ko":        module(t, "depends="),
		"kernel/net/netfilter/nf_b.ko":        module(t, "depends=nf-a"),
		"kernel/net/netfilter/xt_c.ko":        module(t, "depends=builtin_one"),
		"kernel/net/netfilter/deep/nf_d.ko":   module(t, "depends="),
		"kernel/drivers/net/usb/broken.ko.xz": []byte("no xz"),
		"kernel/drivers/net/usb/lost.ko":      module(t, "depends=gone"),
		"modules.builtin":                     []byte("kernel/lib/builtin_one.ko\nkernel/drivers/mmc/mmc-block.ko\n"),
	} {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestSelect(t *testing.T) {
	d := kernel(t)
	for _, tt := range []struct {
		in   string
		want []string // nil: an error
	}{
		{"ext4", []string{"crc32c", "ext4", "jbd2", "mbcache"}},
		{"mmc_block", []string{}}, // built in
		{"nf-b", []string{"nf_a", "nf_b"}},
		{"net/netfilter/nf?b nf_b", []string{"nf_a", "nf_b"}},
		{"net/netfilter/nf_*", []string{"nf_a", "nf_b"}},
		{"net/netfilter/", []string{"nf_a", "nf_b", "nf_d", "xt_c"}},
		{"net/netfilter/ -xt_c -nf_a", []string{"nf_a", "nf_b", "nf_d"}}, // nf_b needs nf_a
		{"net/netfilter/ -net/netfilter/nf_*", []string{"nf_d", "xt_c"}},
		{"gone", nil},
		{"-gone", nil},
		{"net/gone/", nil},
		{"broken", nil},
		{"lost", nil},
	} {
		got, err := d.Select(strings.Fields(tt.in))
		if (err != nil) != (tt.want == nil) || err == nil && !slices.Equal(got, tt.want) {
			t.Errorf("Select(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
}

func TestAddTo(t *testing.T) {
	d := kernel(t)
	names, err := d.Select([]string{"ext4"})
	if err != nil {
		t.Fatal(err)
	}
	var tr tree.Tree
	if err := d.AddTo(&tr, "usr/lib/modules", names); err != nil {
		t.Fatal(err)
	}
	base := "usr/lib/modules/6.12-test/"
	for file, want := range map[string]string{
		"modules.dep": "kernel/crypto/crc32c.ko:\nkernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/fs/mbcache.ko\n" +
			"kernel/fs/jbd2/jbd2.ko.xz: kernel/fs/mbcache.ko\nkernel/fs/mbcache.ko:\n",
		"modules.alias":   "alias crypto-crc32c crc32c\nalias fs-ext4 ext4\n",
		"modules.softdep": "softdep ext4 pre: crc32c missing\n",
	} {
		if e, _ := tr.Get(base + file); string(e.Data) != want {
			t.Errorf("%s = %q; want %q", file, e.Data, want)
		}
	}
	if _, ok := tr.Get(base + "kernel/fs/ext4/ext4.ko.xz"); !ok {
		t.Error("the module itself is missing")
	}
	if _, ok := tr.Get(base + "kernel/net/netfilter/nf_b.ko"); ok {
		t.Error("a module that was not chosen is there")
	}
}

func TestOpenWithoutKernel(t *testing.T) {
	if _, err := Open(t.TempDir()); err == nil {
		t.Error("Open() of an empty folder = nil; want an error")
	}
}
