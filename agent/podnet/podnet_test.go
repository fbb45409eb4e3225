package podnet

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

// The library with which containerd reads it must take it.
func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net.d")
	c := Config{Dir: dir, IPAMDir: "/run/skerry/cni", PodCIDR: "10.42.0.0/24"}
	if err := Write(c); err != nil {
		t.Fatal(err)
	}
	list, err := libcni.ConfListFromFile(filepath.Join(dir, FileName))
	if err != nil || list.Name != "skerry" || len(list.Plugins) != 2 {
		t.Fatalf("ConfListFromFile() = %+v, %v", list, err)
	}
	before, _ := os.Stat(filepath.Join(dir, FileName))
	if err := Write(c); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(filepath.Join(dir, FileName)); !os.SameFile(before, after) {
		t.Error("an equal configuration was written again: wear for nothing")
	}
	if err := Write(Config{Dir: dir, PodCIDR: "10.42.0.0"}); err == nil {
		t.Error("Write(no range) = nil; want an error")
	}
}
