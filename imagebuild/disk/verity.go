package disk

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"

	"github.com/containerd/go-dmverity/pkg/verity"
)

// VerityBlock is the size of data and hash blocks.
const VerityBlock = 4096

// veritySalt is fixed: images are public and equal for everybody, so a salt
// hides nothing, and a random one would make two builds differ.
func verityParams(blocks uint64) verity.Params {
	p := verity.DefaultParams()
	salt := sha256.Sum256([]byte("skerry root file system"))
	p.Salt, p.SaltSize = salt[:], uint16(len(salt))
	copy(p.UUID[:], salt[:16])
	p.UUID[6] = p.UUID[6]&0x0f | 0x50
	p.UUID[8] = p.UUID[8]&0x3f | 0x80
	p.DataBlockSize, p.HashBlockSize, p.DataBlocks = VerityBlock, VerityBlock, blocks
	return p
}

// PadFile extends a file with zeros to whole verity blocks and returns its size.
func PadFile(file string) (int64, error) {
	info, err := os.Stat(file)
	if err != nil {
		return 0, err
	}
	size := (info.Size() + VerityBlock - 1) / VerityBlock * VerityBlock
	return size, os.Truncate(file, size)
}

// MakeVerity writes the hash tree of a file, superblock first, to treeFile and
// returns the root hash in hex.
func MakeVerity(file, treeFile string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	if info.Size() == 0 || info.Size()%VerityBlock != 0 {
		return "", fmt.Errorf("make verity tree of %q: got %d bytes, want whole blocks of %d", file, info.Size(), VerityBlock)
	}
	p := verityParams(uint64(info.Size() / VerityBlock))
	p.HashAreaOffset = VerityBlock // after the superblock
	root, err := verity.Create(&p, file, treeFile)
	if err != nil {
		return "", fmt.Errorf("make verity tree of %q: %w", file, err)
	}
	return hex.EncodeToString(root), nil
}

// CheckVerity reads all of a root file system and its tree and returns the
// numbers of the blocks that are not what the root hash covers, at most max.
// An error says that the tree itself can't be trusted.
func CheckVerity(r io.ReaderAt, rootOffset, hashOffset int64, rootHash string, max int) (bad []int64, err error) {
	sb, err := verity.ReadSuperblock(r, uint64(hashOffset))
	if err != nil {
		return nil, fmt.Errorf("read verity superblock: %w", err)
	}
	blocks := (hashOffset - rootOffset) / VerityBlock
	if sb.DataBlockSize != VerityBlock || sb.HashBlockSize != VerityBlock || int64(sb.DataBlocks) != blocks {
		return nil, fmt.Errorf("read verity superblock: got %d blocks of %d, want %d of %d", sb.DataBlocks, sb.DataBlockSize, blocks, VerityBlock)
	}
	if int(sb.SaltSize) > len(sb.Salt) {
		return nil, fmt.Errorf("read verity superblock: got a salt of %d bytes, want at most %d", sb.SaltSize, len(sb.Salt))
	}
	want, err := hex.DecodeString(rootHash)
	if err != nil || len(want) != sha256.Size {
		return nil, fmt.Errorf("parse root hash %q: want %d hex digits", rootHash, 2*sha256.Size)
	}
	salt := sb.Salt[:sb.SaltSize]
	// From the top: each level lies before the one below it, after the superblock.
	level := [][]byte{want}
	off := hashOffset + VerityBlock
	for _, n := range levels(blocks) {
		next, _, err := readLevel(r, off, n, level, salt)
		if err != nil {
			return nil, err
		}
		level = next
		off += n * VerityBlock
	}
	buf := make([]byte, VerityBlock)
	for i := range blocks {
		if _, err := r.ReadAt(buf, rootOffset+i*VerityBlock); err != nil {
			return bad, fmt.Errorf("read block %d of the root file system: %w", i, err)
		}
		if got := digest(salt, buf); string(got[:]) != string(level[i]) {
			if bad = append(bad, i); len(bad) == max {
				break
			}
		}
	}
	return bad, nil
}

const perBlock = VerityBlock / sha256.Size

// levels returns the number of hash blocks of each level, the top first.
func levels(blocks int64) []int64 {
	var up []int64
	for n := blocks; n > 1; {
		n = (n + perBlock - 1) / perBlock
		up = append([]int64{n}, up...)
	}
	return up
}

func readLevel(r io.ReaderAt, off, n int64, above [][]byte, salt []byte) ([][]byte, int64, error) {
	var out [][]byte
	for i := range n {
		b := make([]byte, VerityBlock)
		if _, err := r.ReadAt(b, off+i*VerityBlock); err != nil {
			return nil, 0, fmt.Errorf("read verity tree: %w", err)
		}
		if got := digest(salt, b); string(got[:]) != string(above[i]) {
			return nil, 0, fmt.Errorf("verity tree is damaged at byte %d: its hash is not the one above it", off+i*VerityBlock)
		}
		for j := range perBlock {
			out = append(out, b[j*sha256.Size:(j+1)*sha256.Size])
		}
	}
	return out, n, nil
}

func digest(salt, block []byte) [sha256.Size]byte {
	return sha256.Sum256(append(append(make([]byte, 0, len(salt)+len(block)), salt...), block...))
}
