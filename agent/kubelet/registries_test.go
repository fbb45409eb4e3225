package kubelet

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"

	"skerry.internal/skerry/agent/config"
)

// containerd's own reader must find the mirrors, in order, before the host.
func TestWriteRegistries(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "gone.example"), 0o755); err != nil {
		t.Fatal(err)
	}
	err := WriteRegistries(dir, []config.Registry{{Host: "10.0.2.2:5000", Mirrors: []config.URL{"http://10.0.2.2:5000", "https://b.example"}}})
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := dockerconfig.ConfigureHosts(t.Context(), dockerconfig.HostOptions{HostDir: dockerconfig.HostDirFromRoot(dir)})("10.0.2.2:5000")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range hosts {
		got = append(got, h.Scheme+"://"+h.Host)
		if !h.Capabilities.Has(docker.HostCapabilityPull) {
			t.Errorf("%s can't be pulled from", h.Host)
		}
	}
	if len(got) < 3 || got[0] != "http://10.0.2.2:5000" || got[1] != "https://b.example" {
		t.Errorf("hosts = %v; want the mirrors, then the registry itself", got)
	}
	if len(hosts) > 2 && hosts[2].Host != "10.0.2.2:5000" {
		t.Errorf("the last host is %s; want the registry itself", hosts[2].Host)
	}
	if _, err := os.Stat(filepath.Join(dir, "gone.example")); err == nil {
		t.Error("a registry that left the configuration is still there")
	}
}
