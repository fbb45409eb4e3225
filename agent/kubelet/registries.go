package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"skerry.internal/skerry/agent/atomicfile"
	"skerry.internal/skerry/agent/config"
)

// WriteRegistries tells containerd where images of each registry are pulled
// from: a directory per registry with a hosts.toml
// (https://github.com/containerd/containerd/blob/main/docs/hosts.md). What an
// earlier configuration left in dir is removed.
func WriteRegistries(dir string, registries []config.Registry) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make registry directory: %w", err)
	}
	old, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read registry directory: %w", err)
	}
	want := map[string]bool{}
	for _, r := range registries {
		host := string(r.Host)
		want[host] = true
		var b strings.Builder
		for _, m := range r.Mirrors {
			fmt.Fprintf(&b, "[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", m)
		}
		if err := os.MkdirAll(filepath.Join(dir, host), 0o755); err != nil {
			return fmt.Errorf("make registry directory: %w", err)
		}
		if err := atomicfile.WriteFile(filepath.Join(dir, host, "hosts.toml"), []byte(b.String()), 0o600); err != nil {
			return fmt.Errorf("write registry %q: %w", host, err)
		}
	}
	for _, e := range old {
		if !want[e.Name()] {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("remove registry %q: %w", e.Name(), err)
			}
		}
	}
	return nil
}
