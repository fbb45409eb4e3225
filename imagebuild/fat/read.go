package fat

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// Read returns all files of a file system. It trusts nothing in it: whatever
// the bytes are, the answer is files or an error.
func Read(r io.ReaderAt, size int64) ([]File, error) {
	head := make([]byte, sector)
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read FAT: %w", err)
	}
	f, err := parse(head, size)
	if err != nil {
		return nil, fmt.Errorf("read FAT: %w", err)
	}
	f.r = r
	f.table = make([]byte, f.g.table*sector)
	if _, err := r.ReadAt(f.table, f.g.reserved*sector); err != nil {
		return nil, fmt.Errorf("read FAT: %w", err)
	}
	root := make([]byte, f.g.root*sector)
	if f.g.bits == 16 {
		_, err = r.ReadAt(root, (f.g.data-f.g.root)*sector)
	} else {
		root, err = f.chain(int64(le.Uint32(head[44:])), -1)
	}
	if err != nil {
		return nil, fmt.Errorf("read FAT: root folder: %w", err)
	}
	if err := f.folder("", root, 0); err != nil {
		return nil, fmt.Errorf("read FAT: %w", err)
	}
	return f.files, nil
}

type reader struct {
	r     io.ReaderAt
	g     geometry
	table []byte
	read  int64 // bytes so far: a loop of folders would never end
	files []File
}

func parse(b []byte, size int64) (*reader, error) {
	g := geometry{bits: 16}
	g.perCluster = int64(b[13])
	g.reserved = int64(le.Uint16(b[14:]))
	g.root = int64(le.Uint16(b[17:])) * entrySize / sector
	g.table = int64(le.Uint16(b[22:]))
	g.total = max(int64(le.Uint16(b[19:])), int64(le.Uint32(b[32:])))
	if g.table == 0 {
		g.bits, g.table = 32, int64(le.Uint32(b[36:]))
	}
	g.data = g.reserved + int64(b[16])*g.table + g.root
	switch {
	case b[510] != 0x55 || b[511] != 0xaa || le.Uint16(b[11:]) != sector:
		return nil, errors.New("no FAT file system here")
	case g.perCluster == 0 || g.reserved == 0 || g.table == 0 || b[16] == 0 || g.total*sector > size || g.data >= g.total:
		return nil, errors.New("the header makes no sense")
	}
	g.clusters = (g.total - g.data) / g.perCluster
	if (g.clusters+2)*int64(g.bits)/8 > g.table*sector {
		return nil, errors.New("the table is shorter than the file system")
	}
	return &reader{g: g}, nil
}

// chain reads the clusters from first on: size bytes, or all if size is negative.
func (f *reader) chain(first, size int64) ([]byte, error) {
	var out []byte
	per := f.g.perCluster * sector
	for c := first; size < 0 || int64(len(out)) < size; {
		if c < 2 || c >= f.g.clusters+2 {
			return nil, fmt.Errorf("cluster %d is not in the file system", c)
		}
		if f.read += per; f.read > 2*f.g.total*sector {
			return nil, errors.New("its folders or files contain each other")
		}
		b := make([]byte, per)
		if _, err := f.r.ReadAt(b, f.g.offset(c)); err != nil {
			return nil, err
		}
		out = append(out, b...)
		if f.g.bits == 16 {
			c = int64(le.Uint16(f.table[c*2:]))
		} else {
			c = int64(le.Uint32(f.table[c*4:]) & 0x0fffffff)
		}
		if end := int64(1)<<min(f.g.bits, 28) - 8; c >= end {
			break
		}
	}
	if size >= 0 {
		if int64(len(out)) < size {
			return nil, fmt.Errorf("got %d bytes, want %d", len(out), size)
		}
		out = out[:size]
	}
	return out, nil
}

func (f *reader) folder(prefix string, b []byte, depth int) error {
	if depth > 8 {
		return errors.New("folders are nested too deeply")
	}
	long := ""
	for ; len(b) >= entrySize && b[0] != 0; b = b[entrySize:] {
		e := b[:entrySize]
		attr := e[11]
		if attr == attrLong && e[0] != 0xe5 {
			long = longPart(e) + long
			continue
		}
		name := long
		long = ""
		if name == "" {
			name = strings.TrimRight(string(e[:8]), " ")
			if ext := strings.TrimRight(string(e[8:11]), " "); ext != "" {
				name += "." + ext
			}
		}
		if e[0] == 0xe5 || e[0] == '.' || attr&attrLabel != 0 {
			continue
		}
		if err := f.one(prefix+name, e, depth); err != nil {
			return fmt.Errorf("%q: %w", prefix+name, err)
		}
	}
	return nil
}

func (f *reader) one(name string, e []byte, depth int) error {
	first := int64(le.Uint16(e[26:])) | int64(le.Uint16(e[20:]))<<16
	if e[11]&attrDir != 0 {
		b, err := f.chain(first, -1)
		if err != nil {
			return err
		}
		return f.folder(name+"/", b, depth+1)
	}
	var data []byte
	var err error
	if size := int64(le.Uint32(e[28:])); size > 0 {
		data, err = f.chain(first, size)
	}
	f.files = append(f.files, File{Name: name, Data: data})
	return err
}

func longPart(e []byte) string {
	var s strings.Builder
	for _, place := range longPlaces {
		c := le.Uint16(e[place:])
		if c == 0 || c == 0xffff {
			break
		}
		s.WriteRune(rune(c))
	}
	return s.String()
}
