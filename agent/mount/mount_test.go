package mount

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestEntries(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "setting")
	if err := os.WriteFile(file, []byte("0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	list := []Entry{
		Dir{filepath.Join(dir, "a/b"), 0o700},
		Dir{filepath.Join(dir, "tmp"), 0o1777 &^ 0o1000},
		Symlink{"one", filepath.Join(dir, "link")},
		Symlink{"two", filepath.Join(dir, "link")},
		Setting{Path: file, Value: "1"},
		Setting{Path: filepath.Join(dir, "none"), Value: "1", Optional: true},
	}
	for range 2 { // applying twice is applying once
		if err := Apply(list); err != nil {
			t.Fatalf("Apply() = %v", err)
		}
	}
	if fi, err := os.Stat(filepath.Join(dir, "a/b")); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("Dir.Apply() left %v, %v; want 0700", fi, err)
	}
	if got, _ := os.Readlink(filepath.Join(dir, "link")); got != "two" {
		t.Errorf("Symlink.Apply() left %q; want two", got)
	}
	if got, _ := os.ReadFile(file); !strings.HasPrefix(string(got), "1") {
		t.Errorf("Setting.Apply() left %q; want 1", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "none")); err == nil {
		t.Error("Setting.Apply() made a file")
	}
	// An error is named, and the rest is applied all the same.
	err := Apply([]Entry{Setting{Path: filepath.Join(dir, "none"), Value: "1"}, Symlink{"three", filepath.Join(dir, "link")}})
	if err == nil || !strings.Contains(err.Error(), "none to 1") {
		t.Errorf("Apply() = %v; want the setting named", err)
	}
	if got, _ := os.Readlink(filepath.Join(dir, "link")); got != "three" {
		t.Errorf("Apply() stopped at the error")
	}
}

func TestSysctl(t *testing.T) {
	if got := Sysctl("net.ipv4.ip_forward", "1").Path; got != "/proc/sys/net/ipv4/ip_forward" {
		t.Errorf("Sysctl() = %q", got)
	}
}

func TestBelow(t *testing.T) {
	points := parsePoints(`22 1 254:0 / / ro,relatime shared:1 - squashfs /dev/dm-1 ro
23 22 0:5 / /dev rw,relatime shared:2 - devtmpfs dev rw
30 22 254:4 / /var rw,noatime shared:3 master:1 - ext4 /dev/vda4 rw
31 30 0:40 / /var/lib/kubelet/pods/a\040b/x rw - tmpfs tmpfs rw
32 30 0:41 / /var/lib/x rw - overlay overlay rw
33 22 0:42 / /variable rw - tmpfs tmpfs rw
bad line
`)
	if len(points) != 6 || points[3] != (Point{"/var/lib/kubelet/pods/a b/x", "tmpfs"}) {
		t.Fatalf("parsePoints() = %v", points)
	}
	want := []string{"/var/lib/kubelet/pods/a b/x", "/var/lib/x", "/var"}
	if got := below(points, "/var"); !reflect.DeepEqual(got, want) {
		t.Errorf("below() = %q; want %q", got, want)
	}
}
