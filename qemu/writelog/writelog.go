// Package writelog reads the log in which QEMU's blklogwrites driver records
// each write to a disk, and makes from it the disks that a power cut may leave:
// what was flushed is kept, of the rest any part.
//
// The format is that of Linux's dm-log-writes. An entry is logged when the
// guest issues it, so a write that was under way when a flush began counts as
// flushed: a few disks that could be are not made, none that could not be.
//
// Left out: what the disks are worth (the tests judge that), sectors that are
// torn in themselves (disks write a sector whole or not at all), and a discard
// that leaves noise instead of zeros.
package writelog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
)

// SectorSize is the unit of the log and of what a disk writes whole.
const SectorSize = 512

const (
	magic       = 0x6a736677736872
	version     = 1
	superSize   = 28 // magic, version, entries, sector size
	entryHeader = 32 // sector, sectors, flags, length of data
)

// Flags say what an entry is.
type Flags uint64

// The flags of dm-log-writes.
const (
	Flush   Flags = 1 << iota // everything before it is on the disk
	FUA                       // it is on the disk itself
	Discard                   // the sectors are given back; no data follows
	Mark                      // a note; nothing was written
)

// Entry is one request to the disk.
type Entry struct {
	Sector, Sectors int64
	Flags           Flags
	data            int64 // where in the log the data is
}

// Log is a recording, as far as it had come when it was opened.
type Log struct {
	Entries []Entry
	file    *os.File
}

// Count says how many entries a log has; QEMU may still be writing it. An
// answer of the guest that had to wait for a flush finds that flush counted.
func Count(path string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("read write log: %w", err)
	}
	defer f.Close()
	return count(f)
}

func count(r io.ReaderAt) (int, error) {
	b := make([]byte, superSize)
	if _, err := r.ReadAt(b, 0); err != nil {
		return 0, fmt.Errorf("read write log: head: %w", err)
	}
	le := binary.LittleEndian
	if m, v, s := le.Uint64(b), le.Uint64(b[8:]), le.Uint32(b[24:]); m != magic || v != version || s != SectorSize {
		return 0, fmt.Errorf("read write log: got magic %#x, version %d, sectors of %d bytes, want %#x, %d, %d", m, v, s, uint64(magic), version, SectorSize)
	}
	return int(le.Uint64(b[16:])), nil
}

// Open reads the entries of a log. Their data is read when it is needed.
func Open(path string) (*Log, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open write log: %w", err)
	}
	l := &Log{file: f}
	if err := l.readEntries(); err != nil {
		f.Close()
		return nil, fmt.Errorf("open write log %q: %w", path, err)
	}
	return l, nil
}

func (l *Log) readEntries() error {
	n, err := count(l.file)
	if err != nil {
		return err
	}
	le, b, at := binary.LittleEndian, make([]byte, entryHeader), int64(SectorSize)
	for i := range n {
		if _, err := l.file.ReadAt(b, at); err != nil {
			return fmt.Errorf("read entry %d of %d: %w", i, n, err)
		}
		at += SectorSize
		e := Entry{Sector: int64(le.Uint64(b)), Sectors: int64(le.Uint64(b[8:])), Flags: Flags(le.Uint64(b[16:])), data: at}
		if e.Sector < 0 || e.Sectors < 0 || e.Sectors > 1<<40 {
			return fmt.Errorf("read entry %d of %d: got sector %d, %d sectors", i, n, e.Sector, e.Sectors)
		}
		switch {
		case e.Flags&Mark != 0:
			length := int64(le.Uint64(b[24:]))
			at += (length + SectorSize - 1) / SectorSize * SectorSize
		case e.Flags&Discard == 0:
			at += e.Sectors * SectorSize
		}
		l.Entries = append(l.Entries, e)
	}
	return nil
}

// Close closes the log's file.
func (l *Log) Close() error { return l.file.Close() }

// writes reports whether the entry changes the disk.
func (e Entry) writes() bool { return e.Flags&Mark == 0 && e.Sectors > 0 }

// Holds reports whether an entry writes these bytes at byte offset at of the disk.
func (l *Log) Holds(entry int, at int64, want []byte) (bool, error) {
	e := l.Entries[entry]
	from := at - e.Sector*SectorSize
	if !e.writes() || e.Flags&Discard != 0 || from < 0 || from+int64(len(want)) > e.Sectors*SectorSize {
		return false, nil
	}
	got := make([]byte, len(want))
	if _, err := l.file.ReadAt(got, e.data+from); err != nil {
		return false, fmt.Errorf("read entry %d: %w", entry, err)
	}
	return bytes.Equal(got, want), nil
}

// Flushed is the number of entries that a flush before the cut has covered: they are on the disk.
func (l *Log) Flushed(cut int) int {
	for i := cut - 1; i >= 0; i-- {
		if l.Entries[i].Flags&Flush != 0 {
			return i
		}
	}
	return 0
}

// WithoutFlushes is the log of a disk that forgets the flushes from the given
// entry on: the negative twin of every test that looks for what was flushed.
func (l *Log) WithoutFlushes(from int) *Log {
	twin := &Log{Entries: slices.Clone(l.Entries), file: l.file}
	for i := from; i < len(twin.Entries); i++ {
		twin.Entries[i].Flags &^= Flush | FUA
	}
	return twin
}

// Writing lists the entries from from up to to that write to the bytes [start, end) of the disk.
func (l *Log) Writing(from, to int, start, end int64) []int {
	var list []int
	for i := from; i < to; i++ {
		e := l.Entries[i]
		if e.writes() && e.Sector*SectorSize < end && (e.Sector+e.Sectors)*SectorSize > start {
			list = append(list, i)
		}
	}
	return list
}

// NextFlush is the first flush at or after an entry; the end of the log if there is none.
func (l *Log) NextFlush(at int) int {
	for at < len(l.Entries) && l.Entries[at].Flags&Flush == 0 {
		at++
	}
	return at
}
