package provision

import (
	"fmt"
	"os"
	"path/filepath"

	"skerry.internal/skerry/agent/atomicfile"
)

// Store keeps a bundle that has come over the network in stateDir, as Take does
// with one from FIRMWARE: durable when it returns, mode 0600. It replaces none:
// a node that has a cluster keeps it, also when its bundle can't be read.
func Store(stateDir string, data []byte) error {
	if _, err := Parse(data); err != nil {
		return err
	}
	path := filepath.Join(stateDir, FileName)
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("keep provisioning bundle: %w", os.ErrExist)
	}
	return keep(stateDir, data)
}

// keep writes a checked bundle.
func keep(stateDir string, data []byte) error {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	if err := atomicfile.WriteFile(filepath.Join(stateDir, FileName), data, 0o600); err != nil {
		return fmt.Errorf("keep provisioning bundle: %w", err)
	}
	return nil
}
