package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"skerry.internal/skerry/agent/atomicfile"
	"skerry.internal/skerry/agent/config"
)

// caFile lies beside a registry's hosts.toml.
const caFile = "ca.pem"

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
		// What stands before the first table is for the registry itself.
		trust := ""
		if r.CA != "" {
			trust += fmt.Sprintf("ca = %q\n", caFile)
		}
		if r.Insecure == config.On {
			trust += "skip_verify = true\n"
		}
		var b strings.Builder
		b.WriteString("# written by skerryd\n" + trust)
		for _, m := range r.Mirrors {
			fmt.Fprintf(&b, "[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n%s", m, trust)
		}
		if err := os.MkdirAll(filepath.Join(dir, host), 0o755); err != nil {
			return fmt.Errorf("make registry directory: %w", err)
		}
		ca := filepath.Join(dir, host, caFile)
		if r.CA == "" {
			err = os.RemoveAll(ca)
		} else {
			err = atomicfile.WriteFile(ca, []byte(r.CA), 0o644)
		}
		if err != nil {
			return fmt.Errorf("write authority of registry %q: %w", host, err)
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

// WriteCredentials puts user names and passwords where the kubelet looks for
// them when a pod brings none of its own: config.json below its root directory
// (https://kubernetes.io/docs/concepts/containers/images/#config-json). It hands them to
// containerd with each pull, which shows them to whom asks for them: the registry,
// a mirror, or where the registry sends for a token.
func WriteCredentials(rootDir string, registries []config.Registry) error {
	type entry struct {
		Auth []byte `json:"auth"` // base64 by itself
	}
	auths := map[string]entry{}
	for _, r := range registries {
		if r.Username != "" {
			auths[string(r.Host)] = entry{[]byte(r.Username + ":" + string(r.Password))}
		}
	}
	path := filepath.Join(rootDir, "config.json")
	if len(auths) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove credentials: %w", err)
		}
		return nil
	}
	data, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	if err := os.MkdirAll(rootDir, 0o750); err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	if err := atomicfile.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	return nil
}
