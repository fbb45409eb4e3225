// Package podnet gives the pods of this node their network: a bridge, addresses
// out of the node's own range, and port mapping, all by the CNI reference
// plugins (https://www.cni.dev/plugins/current/).
//
// Left out: the way to pods of other nodes.
package podnet

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"skerry.internal/skerry/agent/atomicfile"
)

// FileName is the configuration's name in containerd's directory.
const FileName = "10-skerry.conflist"

// Config says where things are.
type Config struct {
	Dir     string // what containerd watches for configurations
	IPAMDir string // addresses in use; must not outlive a boot, as pods don't
	PodCIDR string // of this node
}

// Write makes the configuration, or leaves an equal one alone. containerd
// watches the directory and takes it at once.
func Write(c Config) error {
	if _, err := netip.ParsePrefix(c.PodCIDR); err != nil {
		return fmt.Errorf("pod range of this node: %w", err)
	}
	type m = map[string]any
	data, err := json.MarshalIndent(m{
		"cniVersion": "1.0.0",
		"name":       "skerry",
		"plugins": []m{{
			"type": "bridge", "bridge": "cni0",
			"isGateway": true, "isDefaultGateway": true, "hairpinMode": true,
			"ipMasq": true, "ipMasqBackend": "nftables",
			"ipam": m{"type": "host-local", "dataDir": c.IPAMDir, "ranges": [][]m{{{"subnet": c.PodCIDR}}}},
		}, {
			"type": "portmap", "backend": "nftables", "capabilities": m{"portMappings": true},
		}},
	}, "", " ")
	if err != nil {
		return fmt.Errorf("encode pod network: %w", err)
	}
	path := filepath.Join(c.Dir, FileName)
	if old, err := os.ReadFile(path); err == nil && string(old) == string(data) {
		return nil
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return fmt.Errorf("make pod network directory: %w", err)
	}
	if err := atomicfile.WriteFile(path, data, 0o644); err != nil {
		return fmt.Errorf("write pod network: %w", err)
	}
	return nil
}
