package modules

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// tree returns a tree and the list of what it gave to the kernel.
func tree(t *testing.T) (*Tree, *[]string) {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"modules.dep": "kernel/a/virtio_blk.ko.xz: kernel/a/virtio.ko.xz kernel/a/virtio_ring.ko.xz\n" +
			"kernel/a/virtio_ring.ko.xz: kernel/a/virtio.ko.xz\nkernel/a/virtio.ko.xz:\n" +
			"kernel/b/sha2-ce.ko:\nkernel/b/sha256-arm64.ko:\nkernel/b/ext4.ko:\nkernel/b/crc.ko:\n" +
			"kernel/c/x.ko: kernel/c/y.ko\nkernel/c/y.ko: kernel/c/x.ko\nkernel/c/none.ko: kernel/c/gone.ko\n",
		"modules.builtin": "kernel/b/mmc_block.ko\n",
		"modules.softdep": "# comment\nsoftdep ext4 pre: checksum missing ext4 post: x\n",
		"modules.alias": "# Aliases\nalias virtio:d00000002v* virtio_blk\nalias crypto-sha256 sha2_ce\nalias crypto-sha256 sha256_arm64\n" +
			"alias of:N*T*Cbrcm,bcm2835-wdtC* crc\nalias of:N*T*Cbrcm,bcm2835-wdt crc\nalias usb:v0424pEC00d*dc*dsc*dp*ic*isc*ip*in* virtio\n" +
			"alias input:b*v*p*e*-e*1,*k*[ab]* ext4\nalias slash:a/b* crc\nalias checksum crc\n",
	})
	tr, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	tr.insert = func(file string) error {
		got = append(got, Name(file))
		if Name(file) == "sha2_ce" {
			return unix.ENODEV // a CPU without the extension
		}
		return nil
	}
	return tr, &got
}

func TestMatch(t *testing.T) {
	tr, _ := tree(t)
	for _, tt := range []struct {
		in   string
		want []string
	}{
		{"virtio:d00000002v00001AF4", []string{"virtio_blk"}},
		{"virtio:d00000001v00001AF4", nil},
		{"of:NwatchdogT(null)Cbrcm,bcm2835-wdt", []string{"crc"}},
		{"of:NwatchdogT(null)Cbrcm,bcm2711-wdtCbrcm,bcm2835-wdtCx", []string{"crc"}},
		{"of:NwatchdogT(null)Cbrcm,bcm2835-wdt2", nil},
		{"of:NwatchdogT(null)Cbrcm,bcm2835-wdtCother", []string{"crc"}},
		{"usb:v0424pEC00d0200dcFFdsc00dp01icFFisc00ipFFin00", []string{"virtio"}},
		{"input:b0019v0001p0001e0100-e0,1,kb4,ramlsfw", []string{"ext4"}},
		{"slash:a/b/c", []string{"crc"}},
		{"crypto-sha256", []string{"sha2_ce", "sha256_arm64"}},
		{"", nil},
	} {
		if got := tr.Match(tt.in); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("Match(%q) = %q; want %q", tt.in, got, tt.want)
		}
	}
}

func TestLoad(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want []string // in order of loading
		err  error
	}{
		{in: "virtio-blk", want: []string{"virtio", "virtio_ring", "virtio_blk"}},
		{in: "mmc_block"}, // built in
		{in: "ext4", want: []string{"crc", "ext4"}},
		{in: "crypto-sha256", want: []string{"sha2_ce", "sha256_arm64"}}, // one of the two is enough
		{in: "sha2-ce", want: []string{"sha2_ce"}, err: unix.ENODEV},
		{in: "nothing", err: ErrUnknown},
		{in: "none", err: ErrUnknown},
	} {
		tr, got := tree(t)
		if err := tr.Load(tt.in); !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
			t.Errorf("Load(%q) = %v; want %v", tt.in, err, tt.err)
		}
		if !slices.Equal(*got, tt.want) {
			t.Errorf("Load(%q) loaded %q; want %q", tt.in, *got, tt.want)
		}
	}
	tr, _ := tree(t)
	if err := tr.Load("x"); err == nil {
		t.Error("Load() of a circle = nil; want an error")
	}
}

func TestLoadAllAndColdplug(t *testing.T) {
	tr, got := tree(t)
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"list":                          "crc # first\n\nsha2-ce\nmissing\next4\n",
		"sys/devices/a/modalias":        "virtio:d00000002v00001AF4\n",
		"sys/devices/a/b/modalias":      "of:unknown\n",
		"sys/devices/a/b/modalias_text": "crypto-sha256\n",
		"sys/class/modalias":            "slash:a/b\n",
	})
	list, err := ReadList(filepath.Join(dir, "list"))
	if want := []string{"crc", "sha2-ce", "missing", "ext4"}; !slices.Equal(list, want) || err != nil {
		t.Errorf("ReadList() = %q, %v; want %q", list, err, want)
	}
	if err := tr.LoadAll(list); !errors.Is(err, ErrUnknown) {
		t.Errorf("LoadAll() = %v; want %v for the missing one", err, ErrUnknown)
	}
	if want := []string{"crc", "sha2_ce", "ext4"}; !slices.Equal(*got, want) {
		t.Errorf("LoadAll() loaded %q; want %q", *got, want)
	}
	*got = nil
	// Loading the block driver makes a new device appear.
	inner := tr.insert
	tr.insert = func(file string) error {
		if Name(file) == "virtio_blk" {
			write(t, dir, map[string]string{"sys/devices/0/modalias": "usb:v0424pEC00d0dcdscdpicisc00ip0in0", "sys/devices/1/modalias": "crypto-sha256"})
		}
		return inner(file)
	}
	if err := tr.Coldplug(filepath.Join(dir, "sys")); err != nil {
		t.Errorf("Coldplug() = %v", err)
	}
	if want := []string{"virtio", "virtio_ring", "virtio_blk", "sha256_arm64"}; !slices.Equal(*got, want) {
		t.Errorf("Coldplug() loaded %q; want %q", *got, want)
	}
}

func TestParseEvent(t *testing.T) {
	got := parseEvent([]byte("add@/devices/x\x00ACTION=add\x00MODALIAS=of:a=b\x00"))
	if want := (Event{"ACTION": "add", "MODALIAS": "of:a=b"}); !reflect.DeepEqual(got, want) {
		t.Errorf("parseEvent() = %v; want %v", got, want)
	}
	for _, bad := range []string{"", "libudev\x00abc", "no end"} {
		if got := parseEvent([]byte(bad)); got != nil {
			t.Errorf("parseEvent(%q) = %v; want nil", bad, got)
		}
	}
}
