package writelog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"
)

// Part is what reached the disk of one entry: runs of sectors, counted from the entry's first.
type Part struct {
	Entry int
	Runs  []Run
}

// Run is the sectors from From up to, not including, To.
type Run struct{ From, To int64 }

// odds are how likely an unflushed write is to have reached the disk, one choice for
// each cut: the ends, where all or nothing did, are what happens most in life.
var odds = []float64{0, 0.1, 0.5, 0.9, 1}

// torn is how likely a write that reached the disk did so in part only.
const torn = 0.25

// Choose says what of the entries after the last flush is on the disk after a cut
// before entry cut: each whole, in part or not at all. The same seed says the same.
func (l *Log) Choose(cut int, seed uint64) []Part {
	r := rand.New(rand.NewPCG(seed, uint64(cut)))
	keep := odds[r.IntN(len(odds))]
	var parts []Part
	for i := l.Flushed(cut); i < cut; i++ {
		e := l.Entries[i]
		switch {
		case !e.writes():
		case e.Flags&FUA != 0:
			parts = append(parts, Part{i, []Run{{0, e.Sectors}}})
		case r.Float64() >= keep:
		case e.Sectors > 1 && r.Float64() < torn:
			if runs := tear(r, e.Sectors); len(runs) > 0 {
				parts = append(parts, Part{i, runs})
			}
		default:
			parts = append(parts, Part{i, []Run{{0, e.Sectors}}})
		}
	}
	return parts
}

// tear picks some of a write's sectors: its beginning, its end, or any of them.
func tear(r *rand.Rand, sectors int64) []Run {
	at := 1 + r.Int64N(sectors-1)
	switch r.IntN(3) {
	case 0:
		return []Run{{0, at}}
	case 1:
		return []Run{{at, sectors}}
	}
	var runs []Run
	for s := range sectors {
		switch {
		case r.IntN(2) == 0:
		case len(runs) > 0 && runs[len(runs)-1].To == s:
			runs[len(runs)-1].To++
		default:
			runs = append(runs, Run{s, s + 1})
		}
	}
	return runs
}

// Disk follows a log: a raw, sparse file that holds what was flushed up to some entry.
type Disk struct {
	log  *Log
	file *os.File
	done int // entries that are in the file
}

// Follow opens the raw file that holds the disk as the log's first done
// entries left it: 0 is the disk as it was before. The file is changed.
func (l *Log) Follow(raw string, done int) (*Disk, error) {
	f, err := os.OpenFile(raw, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("follow write log: %w", err)
	}
	return &Disk{log: l, file: f, done: done}, nil
}

// Done is how many of the log's entries are on the disk.
func (d *Disk) Done() int { return d.done }

// Close closes the file.
func (d *Disk) Close() error { return d.file.Close() }

// Advance takes in everything that was flushed before the cut, and no more. It can't go back.
func (d *Disk) Advance(cut int) error {
	flushed := d.log.Flushed(cut)
	if flushed < d.done {
		return fmt.Errorf("advance disk: got a cut with %d flushed entries, want at least the %d that are there", flushed, d.done)
	}
	for ; d.done < flushed; d.done++ {
		if e := d.log.Entries[d.done]; e.writes() {
			if err := d.log.apply(d.file, e, Run{0, e.Sectors}, 0); err != nil {
				return fmt.Errorf("apply entry %d: %w", d.done, err)
			}
		}
	}
	return nil
}

// Write makes file the bytes [start, end) of the disk as it is with the
// parts: sparse, a new file. Parts outside of them are left out.
func (d *Disk) Write(file string, parts []Part, start, end int64) (err error) {
	out, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("write crash state: %w", err)
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			err = fmt.Errorf("write crash state: %w", err)
		}
	}()
	if err := copySparse(out, d.file, start, end); err != nil {
		return err
	}
	for _, p := range parts {
		e := d.log.Entries[p.Entry]
		for _, run := range p.Runs {
			run.From = max(run.From, start/SectorSize-e.Sector)
			run.To = min(run.To, end/SectorSize-e.Sector)
			if run.From >= run.To {
				continue
			}
			if err := d.log.apply(out, e, run, start); err != nil {
				return fmt.Errorf("apply entry %d: %w", p.Entry, err)
			}
		}
	}
	return nil
}

// chunk is how much is moved at a time, and the least that becomes a hole.
const chunk = 1 << 20

// apply does to a file, which begins at byte start of the disk, what a run of an entry's sectors did.
func (l *Log) apply(out *os.File, e Entry, run Run, start int64) error {
	at, end := (e.Sector+run.From)*SectorSize-start, (e.Sector+run.To)*SectorSize-start
	if e.Flags&Discard != 0 {
		return punch(out, at, end-at)
	}
	from := e.data + run.From*SectorSize
	buf := make([]byte, min(chunk, end-at))
	for at < end {
		b := buf[:min(int64(len(buf)), end-at)]
		if _, err := l.file.ReadAt(b, from); err != nil {
			return err
		}
		var err error
		if len(b) >= 4096 && zeros(b) {
			err = punch(out, at, int64(len(b)))
		} else {
			_, err = out.WriteAt(b, at)
		}
		if err != nil {
			return err
		}
		at, from = at+int64(len(b)), from+int64(len(b))
	}
	return nil
}

func zeros(b []byte) bool { return b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1]) }

// punch makes bytes of a file zero, and gives their space back.
func punch(f *os.File, at, n int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, n)
}

// copySparse copies [start, end) of a file to the beginning of another, holes as holes.
func copySparse(out, in *os.File, start, end int64) error {
	if err := out.Truncate(end - start); err != nil {
		return err
	}
	for at := start; at < end; {
		data, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= end {
			return nil // nothing but a hole up to the end
		}
		if err != nil {
			return fmt.Errorf("find data: %w", err)
		}
		hole, err := unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("find hole: %w", err)
		}
		hole = min(hole, end)
		if _, err := in.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(data-start, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(out, in, hole-data); err != nil { // the kernel copies
			return err
		}
		at = hole
	}
	return nil
}
