// Package verity opens the root file system of a slot through dm-verity: every
// block that is ever read is checked against one hash, or reading it is an I/O
// error.
//
// What is trusted is the root hash from the kernel command line, and the
// places of data and tree beside it. Of the tree's superblock only the salt is
// used: the root hash covers it. Left out: making the tree (the image builder
// does), checking a signature of the hash (slot.txt's business) and forward
// error correction.
package verity

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/go-dmverity/pkg/dm"
)

// BlockSize of data and tree.
const BlockSize = 4096

const (
	sector  = 512
	maxSalt = 256
)

// Params says where in a block device a verified file system lies.
type Params struct {
	Device     string // for example /dev/mmcblk0p2
	RootOffset int64  // of the file system, in bytes
	HashOffset int64  // of the tree, superblock first; the file system ends here
	RootHash   string // sha256, hex
}

// ParseParams reads the values of skerry.rootoff, skerry.hashoff and
// skerry.roothash.
func ParseParams(device, rootOffset, hashOffset, rootHash string) (Params, error) {
	p := Params{Device: device, RootHash: rootHash}
	var err error
	if p.RootOffset, err = strconv.ParseInt(rootOffset, 10, 64); err != nil {
		return p, fmt.Errorf("parse skerry.rootoff %q: %w", rootOffset, err)
	}
	if p.HashOffset, err = strconv.ParseInt(hashOffset, 10, 64); err != nil {
		return p, fmt.Errorf("parse skerry.hashoff %q: %w", hashOffset, err)
	}
	if h, err := hex.DecodeString(rootHash); err != nil || len(h) != 32 {
		return p, fmt.Errorf("parse skerry.roothash %q: want 64 hex digits", rootHash)
	}
	if p.RootOffset < 0 || p.RootOffset%BlockSize != 0 || p.HashOffset%BlockSize != 0 || p.HashOffset <= p.RootOffset {
		return p, fmt.Errorf("parse place of the root file system: got %d to %d, want multiples of %d, rising", p.RootOffset, p.HashOffset, BlockSize)
	}
	return p, nil
}

// Open makes the verified device and returns its path. The modules dm_mod and
// dm_verity must be loaded.
func Open(p Params) (string, error) {
	salt, err := readSalt(p)
	if err != nil {
		return "", fmt.Errorf("open verity device: %w", err)
	}
	c, err := dm.Open()
	if err != nil {
		return "", fmt.Errorf("open device mapper: %w", err)
	}
	defer c.Close()
	// dm-verity knows an offset of the tree but none of the data: a linear
	// device in between starts where the file system does.
	data, err := create(c, "skerry-data", p.linear())
	if err != nil {
		return "", err
	}
	root, err := create(c, "skerry-root", p.verity(data, salt))
	if err != nil {
		return "", errors.Join(err, c.RemoveDevice("skerry-data"))
	}
	return root, nil
}

// Corrupted says whether the kernel has read a block of the verified device that is
// not what was built, since it was opened. Such a read fails with EIO.
func Corrupted() (bool, error) {
	c, err := dm.Open()
	if err != nil {
		return false, fmt.Errorf("open device mapper: %w", err)
	}
	defer c.Close()
	status, err := c.TableStatus("skerry-root", false)
	if err != nil {
		return false, err
	}
	return parseStatus(status)
}

// parseStatus reads what dm-verity reports: V, valid, or C, corrupted
// (Documentation/admin-guide/device-mapper/verity.rst).
func parseStatus(status string) (corrupted bool, err error) {
	switch word, _, _ := strings.Cut(strings.TrimSpace(status), " "); word {
	case "V":
		return false, nil
	case "C":
		return true, nil
	}
	return false, fmt.Errorf("status of the verity device: got %q, want V or C", status)
}

func create(c *dm.Control, name string, target dm.Target) (string, error) {
	if _, err := c.CreateDevice(name); err != nil {
		return "", err
	}
	err := c.LoadTable(name, []dm.Target{target})
	if err == nil {
		err = c.SuspendDevice(name, false)
	}
	var st dm.DeviceStatus
	if err == nil {
		st, err = c.DeviceStatus(name)
	}
	if err != nil {
		return "", errors.Join(err, c.RemoveDevice(name))
	}
	return fmt.Sprintf("/dev/dm-%d", st.Minor), nil
}

func (p Params) linear() dm.Target {
	return dm.Target{Length: uint64(p.HashOffset-p.RootOffset) / sector, Type: "linear",
		Params: fmt.Sprintf("%s %d", p.Device, p.RootOffset/sector)}
}

func (p Params) verity(data, salt string) dm.Target {
	return dm.Target{Length: uint64(p.HashOffset-p.RootOffset) / sector, Type: "verity",
		Params: fmt.Sprintf("1 %s %s %d %d %d %d sha256 %s %s", data, p.Device, BlockSize, BlockSize,
			(p.HashOffset-p.RootOffset)/BlockSize, p.HashOffset/BlockSize+1, p.RootHash, salt)}
}

// readSalt reads the salt out of the tree's superblock and refuses one that
// describes another tree than the command line does: then the slot was torn or
// mixed up, and saying so beats an I/O error.
func readSalt(p Params) (string, error) {
	f, err := os.Open(p.Device)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sb := make([]byte, sector)
	if _, err := f.ReadAt(sb, p.HashOffset); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the partition ends before it")
		}
		return "", fmt.Errorf("read superblock at %d of %s: %w", p.HashOffset, p.Device, err)
	}
	return parseSuperblock(sb, uint64(p.HashOffset-p.RootOffset)/BlockSize)
}

func parseSuperblock(sb []byte, blocks uint64) (salt string, err error) {
	le := binary.LittleEndian
	size := int(le.Uint16(sb[80:]))
	switch {
	case !bytes.Equal(sb[:8], []byte("verity\x00\x00")):
		return "", errors.New("no verity superblock")
	case le.Uint32(sb[8:]) != 1 || le.Uint32(sb[12:]) != 1:
		return "", fmt.Errorf("superblock: got version %d, type %d, want 1, 1", le.Uint32(sb[8:]), le.Uint32(sb[12:]))
	case string(bytes.TrimRight(sb[32:64], "\x00")) != "sha256":
		return "", fmt.Errorf("superblock: got algorithm %q, want sha256", bytes.TrimRight(sb[32:64], "\x00"))
	case le.Uint32(sb[64:]) != BlockSize || le.Uint32(sb[68:]) != BlockSize:
		return "", fmt.Errorf("superblock: got block sizes %d, %d, want %d", le.Uint32(sb[64:]), le.Uint32(sb[68:]), BlockSize)
	case le.Uint64(sb[72:]) != blocks:
		return "", fmt.Errorf("superblock: got %d blocks, want %d", le.Uint64(sb[72:]), blocks)
	case size > maxSalt:
		return "", fmt.Errorf("superblock: got a salt of %d bytes, want at most %d", size, maxSalt)
	case size == 0:
		return "-", nil
	}
	return hex.EncodeToString(sb[88 : 88+size]), nil
}
