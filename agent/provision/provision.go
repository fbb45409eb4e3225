// Package provision defines the provisioning bundle: what a node is told at
// its first boot, and how it is taken off the card. The image itself holds no
// secret; `skerry flash --cluster` and `skerry qemu up` put this one file on
// FIRMWARE, init moves it to STATE and wipes it.
//
// Left out: making the certificates (package pki) and deciding what to do with
// them (skerryd). Overwriting a file on flash memory can't promise that no
// worn block keeps a copy; whoever holds the card holds the node's secrets.
package provision

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// FileName is the bundle's name on FIRMWARE and in the state directory.
const FileName = "provision.json"

// MaxSize is the largest bundle, in bytes.
const MaxSize = 1 << 20

// Role says what a node runs.
type Role string

// The roles of a node.
const (
	RoleServer Role = "server" // control plane and worker
)

// Bundle is the content of the provisioning file.
type Bundle struct {
	Cluster string    `json:"cluster"` // the cluster's name
	Role    Role      `json:"role"`
	Created time.Time `json:"created"` // floor of the node's clock

	// CACert is the cluster's root certificate, PEM. Its key never leaves the
	// operator's machine.
	CACert []byte `json:"caCert"`
	// IntermediateCert and IntermediateKey, PEM, sign the node's own
	// certificates; they expire long before the root does.
	IntermediateCert []byte `json:"intermediateCert"`
	IntermediateKey  []byte `json:"intermediateKey"`
}

// Parse reads a bundle and checks that nothing a node needs is missing.
func Parse(data []byte) (*Bundle, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("parse provisioning bundle: got %d bytes, want at most %d", len(data), MaxSize)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	var b Bundle
	if err := d.Decode(&b); err != nil {
		return nil, fmt.Errorf("parse provisioning bundle: %w; write it again with skerry flash --cluster", err)
	}
	switch {
	case b.Cluster == "":
		return nil, errors.New("parse provisioning bundle: no cluster name")
	case b.Role != RoleServer:
		return nil, fmt.Errorf("parse provisioning bundle: got role %q, want %q", b.Role, RoleServer)
	case len(b.CACert) == 0:
		return nil, errors.New("parse provisioning bundle: no CA certificate")
	case len(b.IntermediateCert) == 0 || len(b.IntermediateKey) == 0:
		return nil, errors.New("parse provisioning bundle: no intermediate certificate or key")
	case b.Created.IsZero():
		return nil, errors.New("parse provisioning bundle: no creation time")
	}
	return &b, nil
}

// Marshal is the inverse of Parse.
func (b *Bundle) Marshal() ([]byte, error) {
	data, err := json.MarshalIndent(b, "", " ")
	if err != nil {
		return nil, fmt.Errorf("marshal provisioning bundle: %w", err)
	}
	if len(data) > MaxSize {
		return nil, fmt.Errorf("marshal provisioning bundle: got %d bytes, want at most %d", len(data), MaxSize)
	}
	return append(data, '\n'), nil
}

// Take moves the bundle from the mounted FIRMWARE to stateDir with mode 0600,
// then overwrites the original with zeros, flushes, and removes it. It reports
// whether there was one. A power cut between any two of its steps leaves a
// state from which the next call goes on: the copy is durable before the first
// zero is written, and a file that holds zeros only is just removed. A bundle
// that can't be parsed stays where it is and is reported, so that a
// mistake can be looked at.
func Take(firmwareDir, stateDir string) (taken bool, err error) {
	src := filepath.Join(firmwareDir, FileName)
	st, err := os.Lstat(src)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for provisioning bundle: %w", err)
	}
	if st.Size() > MaxSize {
		return false, fmt.Errorf("take provisioning bundle: got %d bytes, want at most %d", st.Size(), MaxSize)
	}
	data, err := os.ReadFile(src)
	if err != nil {
		return false, fmt.Errorf("read provisioning bundle: %w", err)
	}
	if len(bytes.Trim(data, "\x00")) > 0 {
		if _, err := Parse(data); err != nil {
			// A cut in the middle of wiping leaves the tail of a bundle
			// that was taken already.
			old, rerr := Load(stateDir)
			if rerr != nil || old == nil || !partlyWiped(data) {
				return false, err
			}
		} else {
			if err := keep(stateDir, data); err != nil {
				return false, err
			}
			taken = true
		}
	}
	if err := wipe(src, st.Size()); err != nil {
		return taken, fmt.Errorf("wipe provisioning bundle on FIRMWARE: %w", err)
	}
	return taken, nil
}

// partlyWiped reports whether wipe was cut while it wrote zeros, in whatever
// order they reached the card: JSON never holds one.
func partlyWiped(data []byte) bool { return bytes.IndexByte(data, 0) >= 0 }

// wipe writes zeros over the file's own clusters before it removes the name:
// removing alone would leave the key readable in the free clusters.
func wipe(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, size))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Load reads the bundle that Take has kept in stateDir; nil means that this
// node was never claimed.
func Load(stateDir string) (*Bundle, error) {
	data, err := os.ReadFile(filepath.Join(stateDir, FileName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read provisioning bundle: %w", err)
	}
	return Parse(data)
}
