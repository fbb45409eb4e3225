// Package fat writes a FAT16 or FAT32 file system in one go and reads one back.
// The bytes depend on nothing but size, label, time and files: no random serial
// number, no time of day. Files lie in one piece, in the order of their names.
//
// go-diskfs was tried for writing first: fsck.fat found lost clusters, wrong
// ".." entries and a FAT32 table one sector short in what it made, and it takes
// the time from an environment variable.
//
// Left out: changing a file system that exists, FAT12, code pages (names are
// ASCII), attributes, and more than one root folder's worth of FAT16 entries.
package fat

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// File is one file: its content is Data, or what the file Source holds.
type File struct {
	Name   string // slash-separated
	Data   []byte
	Source string
}

// Bytes reads the content.
func (f File) Bytes() ([]byte, error) {
	if f.Source == "" {
		return f.Data, nil
	}
	return os.ReadFile(f.Source)
}

// Spec says what to make.
type Spec struct {
	Size  int64
	Bits  int    // 16 or 32
	Label string // at most 11 characters
	Time  time.Time
}

const (
	sector      = 512
	entrySize   = 32
	rootEntries = 512 // FAT16: its root folder has a fixed place and size
	media       = 0xf8

	minFAT32 = 65525 // clusters; fewer make a FAT16, whatever the header says
	maxFAT16 = 60000 // well clear of that line: not everybody draws it at the same place

	attrLabel, attrDir, attrArchive, attrLong = 0x08, 0x10, 0x20, 0x0f
)

var le = binary.LittleEndian

// geometry is where everything lies, in sectors.
type geometry struct {
	bits                               int
	total, reserved, table, root, data int64
	perCluster, clusters               int64
}

func plan(s Spec) (geometry, error) {
	g := geometry{bits: s.Bits, total: s.Size / sector, reserved: 1, root: rootEntries * entrySize / sector}
	if s.Bits == 32 {
		g.reserved, g.root = 32, 0
	}
	for _, g.perCluster = range []int64{64, 32, 16, 8, 4, 2, 1} {
		// The table's size depends on the number of clusters and the other way round.
		for g.table = 1; ; g.table++ {
			g.data = g.reserved + 2*g.table + g.root
			g.clusters = (g.total - g.data) / g.perCluster
			if (g.clusters+2)*int64(s.Bits)/8 <= g.table*sector {
				break
			}
		}
		// Small clusters waste little: of those allowed take the smallest for
		// FAT16, the largest up to 4 KiB for FAT32.
		if s.Bits == 32 && g.clusters >= minFAT32+16 && g.perCluster <= 8 {
			return g, nil
		}
		if s.Bits == 16 && g.clusters >= 4085+16 && g.clusters < maxFAT16 && (g.perCluster == 1 || 2*g.clusters >= maxFAT16) {
			return g, nil
		}
	}
	return g, fmt.Errorf("make FAT%d of %d bytes: a file system of this size can't be one", s.Bits, s.Size)
}

// node is a folder or file on its way to the disk.
type node struct {
	name     string
	short    [11]byte
	dir      bool
	children []*node
	file     File
	size     int64
	first    int64 // cluster
	count    int64 // clusters
}

// Write makes the file system in w, which must read as zeros.
func Write(w io.WriterAt, s Spec, files []File) error {
	g, err := plan(s)
	if err != nil {
		return err
	}
	root, err := build(files)
	if err != nil {
		return err
	}
	table := make([]byte, g.table*sector)
	next := int64(2)
	if err := g.allocate(root, true, table, &next); err != nil {
		return err
	}
	g.set(table, 0, 0xffffff00|media)
	g.set(table, 1, 0xffffffff)
	for i := range int64(2) {
		if _, err := w.WriteAt(table, (g.reserved+i*g.table)*sector); err != nil {
			return err
		}
	}
	if err := g.writeHeader(w, s, root, g.clusters-(next-2), next); err != nil {
		return err
	}
	return g.writeNode(w, s, root, nil)
}

// build turns paths into a tree of nodes, each folder sorted by name.
func build(files []File) (*node, error) {
	root := &node{dir: true}
	for _, f := range files {
		if path.Clean(f.Name) != f.Name || strings.HasPrefix(f.Name, "/") || strings.HasPrefix(f.Name, "..") {
			return nil, fmt.Errorf("add %q to FAT: not a clean relative path", f.Name)
		}
		at := root
		parts := strings.Split(f.Name, "/")
		for i, part := range parts {
			isDir := i < len(parts)-1
			j := slices.IndexFunc(at.children, func(n *node) bool { return strings.EqualFold(n.name, part) })
			if j >= 0 && (!isDir || !at.children[j].dir) {
				return nil, fmt.Errorf("add %q to FAT: %q is already there", f.Name, at.children[j].name)
			}
			if j < 0 {
				at.children = append(at.children, &node{name: part, dir: isDir})
				j = len(at.children) - 1
			}
			at = at.children[j]
		}
		at.file = f
	}
	return root, root.finish()
}

func (n *node) finish() error {
	slices.SortFunc(n.children, func(a, b *node) int { return strings.Compare(a.name, b.name) })
	taken := map[[11]byte]bool{}
	for _, c := range n.children {
		short, err := shortName(c.name, taken)
		if err != nil {
			return err
		}
		c.short, taken[short] = short, true
		if err := c.finish(); err != nil {
			return err
		}
	}
	return nil
}

// shortName makes the 8.3 name that every entry has.
func shortName(name string, taken map[[11]byte]bool) ([11]byte, error) {
	for _, r := range name {
		if r <= ' ' || r >= 0x7f || strings.ContainsRune(`"*/:<>?\|`, r) {
			return [11]byte{}, fmt.Errorf("add %q to FAT: the name has a character that can't be in one", name)
		}
	}
	if len(name) > 255 {
		return [11]byte{}, fmt.Errorf("add %q to FAT: the name is too long", name)
	}
	base, ext := name, ""
	if i := strings.LastIndex(name, "."); i > 0 {
		base, ext = name[:i], name[i+1:]
	}
	clean := func(s string) string {
		return strings.Map(func(r rune) rune {
			if strings.ContainsRune("+,;=[]. ", r) {
				return -1
			}
			return r
		}, strings.ToUpper(s))
	}
	b, e := clean(base), clean(ext)
	lossy := len(b) > 8 || len(e) > 3 || len(b) != len(base) || len(e) != len(ext)
	for i := 0; i < 1000; i++ {
		tail := ""
		if lossy || i > 0 {
			tail = fmt.Sprintf("~%d", i+1)
		}
		var s [11]byte
		copy(s[:], "           ")
		copy(s[:8], b[:min(len(b), 8-len(tail))]+tail)
		copy(s[8:], e[:min(len(e), 3)])
		if !taken[s] {
			return s, nil
		}
	}
	return [11]byte{}, fmt.Errorf("add %q to FAT: too many names like it in one folder", name)
}

// needsLong says whether the short name alone would not give the name back.
func (n *node) needsLong() bool {
	short := strings.TrimRight(string(n.short[:8]), " ")
	if ext := strings.TrimRight(string(n.short[8:]), " "); ext != "" {
		short += "." + ext
	}
	return short != n.name
}

// slots is the number of directory entries that a node takes in its folder.
func (n *node) slots() int64 {
	if !n.needsLong() {
		return 1
	}
	return 1 + int64(len(n.name)+12)/13
}

// allocate gives clusters to a folder, then to what is in it.
func (g geometry) allocate(n *node, isRoot bool, table []byte, next *int64) error {
	switch {
	case n.dir:
		entries := int64(2) // "." and "..", or the root's label
		for _, c := range n.children {
			entries += c.slots()
		}
		n.size = entries * entrySize
		if isRoot && g.bits == 16 {
			if entries > rootEntries {
				return fmt.Errorf("make FAT16: got %d entries in the root folder, want at most %d", entries, rootEntries)
			}
			break
		}
		n.count = max(1, g.clustersFor(n.size))
	case n.file.Source != "":
		info, err := os.Stat(n.file.Source)
		if err != nil {
			return err
		}
		n.size = info.Size()
		n.count = g.clustersFor(n.size)
	default:
		n.size = int64(len(n.file.Data))
		n.count = g.clustersFor(n.size)
	}
	if n.count > 0 {
		n.first = *next
		*next += n.count
		if *next > g.clusters+2 {
			return fmt.Errorf("make FAT%d: it has %d bytes of room, %q and what comes before it take more", g.bits, g.clusters*g.perCluster*sector, n.name)
		}
		for c := n.first; c < n.first+n.count-1; c++ {
			g.set(table, c, uint32(c+1))
		}
		g.set(table, n.first+n.count-1, 0xffffffff)
	}
	for _, c := range n.children {
		if err := g.allocate(c, false, table, next); err != nil {
			return err
		}
	}
	return nil
}

func (g geometry) clustersFor(size int64) int64 {
	return (size + g.perCluster*sector - 1) / (g.perCluster * sector)
}

func (g geometry) set(table []byte, cluster int64, value uint32) {
	if g.bits == 16 {
		le.PutUint16(table[cluster*2:], uint16(value))
	} else {
		le.PutUint32(table[cluster*4:], value&0x0fffffff)
	}
}

func (g geometry) writeHeader(w io.WriterAt, s Spec, root *node, free, next int64) error {
	b := make([]byte, sector)
	copy(b, "\xeb\x58\x90SKERRY  ")
	le.PutUint16(b[11:], sector)
	b[13] = byte(g.perCluster)
	le.PutUint16(b[14:], uint16(g.reserved))
	b[16] = 2
	b[21] = media
	le.PutUint16(b[24:], 63)
	le.PutUint16(b[26:], 255)
	le.PutUint32(b[32:], uint32(g.total))
	ext := b[36:]
	if g.bits == 16 {
		le.PutUint16(b[17:], rootEntries)
		le.PutUint16(b[22:], uint16(g.table))
		if g.total < 1<<16 {
			le.PutUint16(b[19:], uint16(g.total))
			le.PutUint32(b[32:], 0)
		}
	} else {
		le.PutUint32(b[36:], uint32(g.table))
		le.PutUint32(b[44:], uint32(root.first))
		le.PutUint16(b[48:], 1) // FSInfo
		le.PutUint16(b[50:], 6) // copy of this sector
		ext = b[64:]
	}
	ext[0], ext[2] = 0x80, 0x29
	le.PutUint32(ext[3:], crc32.ChecksumIEEE([]byte(s.Label)))
	copy(ext[7:], pad(s.Label, 11))
	copy(ext[18:], fmt.Sprintf("FAT%d   ", g.bits))
	b[510], b[511] = 0x55, 0xaa
	if _, err := w.WriteAt(b, 0); err != nil || g.bits == 16 {
		return err
	}
	info := make([]byte, sector)
	copy(info, "RRaA")
	copy(info[484:], "rrAa")
	le.PutUint32(info[488:], uint32(free))
	le.PutUint32(info[492:], uint32(next))
	info[510], info[511] = 0x55, 0xaa
	for at, part := range map[int64][]byte{1: info, 6: b, 7: info} {
		if _, err := w.WriteAt(part, at*sector); err != nil {
			return err
		}
	}
	return nil
}

func pad(s string, n int) string { return (s + strings.Repeat(" ", n))[:n] }

func (g geometry) offset(cluster int64) int64 {
	return (g.data + (cluster-2)*g.perCluster) * sector
}

func (g geometry) writeNode(w io.WriterAt, s Spec, n, parent *node) error {
	if !n.dir {
		b, err := n.file.Bytes()
		if err != nil {
			return err
		}
		if int64(len(b)) != n.size {
			return fmt.Errorf("write %q to FAT: it changed while it was read", n.file.Name)
		}
		if len(b) > 0 {
			_, err = w.WriteAt(b, g.offset(n.first))
		}
		return err
	}
	var b []byte
	at := g.offset(n.first)
	if parent == nil {
		b = append(b, g.entry([11]byte([]byte(pad(s.Label, 11))), attrLabel, 0, 0, s.Time)...)
		if g.bits == 16 {
			at = (g.data - g.root) * sector
		}
	} else {
		up := parent.first // 0 where it is FAT16's root, which has no cluster
		if parent.name == "" {
			up = 0
		}
		b = append(b, g.entry([11]byte([]byte(pad(".", 11))), attrDir, n.first, 0, s.Time)...)
		b = append(b, g.entry([11]byte([]byte(pad("..", 11))), attrDir, up, 0, s.Time)...)
	}
	for _, c := range n.children {
		b = append(b, longEntries(c)...)
		attr, size := byte(attrArchive), c.size
		if c.dir {
			attr, size = attrDir, 0
		}
		b = append(b, g.entry(c.short, attr, c.first, size, s.Time)...)
	}
	if _, err := w.WriteAt(b, at); err != nil {
		return err
	}
	for _, c := range n.children {
		if err := g.writeNode(w, s, c, n); err != nil {
			return err
		}
	}
	return nil
}

func (g geometry) entry(short [11]byte, attr byte, first, size int64, at time.Time) []byte {
	at = at.UTC()
	date := uint16(max(at.Year()-1980, 0)<<9 | int(at.Month())<<5 | at.Day())
	clock := uint16(at.Hour()<<11 | at.Minute()<<5 | at.Second()/2)
	b := make([]byte, entrySize)
	copy(b, short[:])
	b[11] = attr
	le.PutUint16(b[14:], clock)
	le.PutUint16(b[16:], date)
	le.PutUint16(b[18:], date)
	le.PutUint16(b[20:], uint16(first>>16))
	le.PutUint16(b[22:], clock)
	le.PutUint16(b[24:], date)
	le.PutUint16(b[26:], uint16(first))
	le.PutUint32(b[28:], uint32(size))
	return b
}

// longPlaces are where the 13 characters of a long name's entry lie.
var longPlaces = [13]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30}

func longEntries(n *node) []byte {
	if !n.needsLong() {
		return nil
	}
	var sum byte
	for _, c := range n.short {
		sum = sum>>1 | sum<<7
		sum += c
	}
	count := (len(n.name) + 12) / 13
	var out []byte
	for i := count; i > 0; i-- {
		b := make([]byte, entrySize)
		b[0], b[11], b[13] = byte(i), attrLong, sum
		if i == count {
			b[0] |= 0x40
		}
		for j, place := range longPlaces {
			c := uint16(0xffff)
			switch k := (i-1)*13 + j; {
			case k < len(n.name):
				c = uint16(n.name[k])
			case k == len(n.name):
				c = 0
			}
			le.PutUint16(b[place:], c)
		}
		out = append(out, b...)
	}
	return out
}
