package snapshots

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/atomicfile"
)

// errRequest is what the one who asks can mend.
var errRequest = errors.New("refused")

const (
	databaseFile = "state.db" // as package datastore has it
	// incoming marks a folder whose database has been put there by a restore
	// that is not finished. In one that lies aside it says: not in use yet, so
	// the restore was cut short, and nothing is lost with it.
	incoming = "incoming"
)

// staged is a database that waits to be put in place.
//
// The folder of the database is exchanged as a whole, by one rename: the
// database and its write-ahead log are two files, and either with the other's
// partner would be a third database, a damaged one.
type staged struct {
	dir, aside string       // the folder in use, and the one that it changes places with
	step       func(string) // a test's view between any two steps
}

var asideName = regexp.MustCompile(`\.aside-([0-9]{4,9})-`)

// asides lists the folders that databases were put aside to, the oldest first.
func asides(dir string) ([]string, error) {
	list, err := filepath.Glob(dir + ".aside-*")
	sort.Slice(list, func(i, j int) bool { return asideNumber(list[i]) < asideNumber(list[j]) })
	return list, err
}

func asideNumber(path string) int {
	m := asideName.FindStringSubmatch(filepath.Base(path))
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

const (
	keepAside = 2 // besides the one that comes
	maxUpload = 16 << 30
)

// stage copies a database to a place beside dir, flushed, and checks that all of
// it has come. want is its sum in hex; empty: there is none.
func stage(dir string, r io.Reader, want string, now time.Time) (_ *staged, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make database directory: %w", err)
	}
	// Left over from a restore that was cut short after its database was in place.
	if err := os.Remove(filepath.Join(dir, incoming)); err == nil {
		err = atomicfile.SyncDir(dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("end earlier restore: %w", err)
	}
	old, err := asides(dir)
	if err != nil {
		return nil, err
	}
	number := 1
	var whole []string
	for _, o := range old {
		number = max(number, asideNumber(o)+1)
		if _, err := os.Stat(filepath.Join(o, incoming)); err != nil {
			whole = append(whole, o)
		} else if err := os.RemoveAll(o); err != nil {
			return nil, fmt.Errorf("remove half a restore: %w", err)
		}
	}
	for _, o := range whole[:max(0, len(whole)-keepAside)] {
		if err := os.RemoveAll(o); err != nil {
			return nil, fmt.Errorf("remove old database: %w", err)
		}
	}
	s := &staged{dir: dir, aside: fmt.Sprintf("%s.aside-%04d-%s", dir, number, now.UTC().Format(timeFormat)), step: func(string) {}}
	if err := os.Mkdir(s.aside, 0o700); err != nil {
		return nil, fmt.Errorf("make place for database: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.discard())
		}
	}()
	if err := atomicfile.WriteFile(filepath.Join(s.aside, incoming), []byte("not in use yet\n"), 0o600); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(s.aside, databaseFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("write database: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	size, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(r, maxUpload))
	if err != nil {
		return nil, fmt.Errorf("write database: %w", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); want != "" && got != want {
		return nil, fmt.Errorf("%w: got %d bytes with SHA-256 %s, want %s: it was changed on its way", errRequest, size, got, want)
	}
	if err := checkFile(f, size); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, fmt.Errorf("flush database: %w", err)
	}
	return s, nil
}

// discard removes what waits.
func (s *staged) discard() error { return os.RemoveAll(s.aside) }

// commit puts the database in place; nobody may have the one there open. A power
// cut at any point leaves the old database or the new one, whole.
func (s *staged) commit() error {
	// What else lies beside the database, like its counter of boots, stays.
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("put database in place: %w", err)
	}
	for _, e := range entries {
		switch e.Name() {
		case databaseFile, databaseFile + "-wal", databaseFile + "-shm", databaseFile + "-journal":
			continue
		}
		if e.Type().IsRegular() {
			if err := os.Link(filepath.Join(s.dir, e.Name()), filepath.Join(s.aside, e.Name())); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("put database in place: %w", err)
			}
		}
	}
	s.step("linked")
	if err := errors.Join(atomicfile.SyncDir(s.aside), atomicfile.SyncDir(filepath.Dir(s.dir))); err != nil {
		return fmt.Errorf("flush database's folder: %w", err)
	}
	s.step("flushed")
	if err := unix.Renameat2(unix.AT_FDCWD, s.aside, unix.AT_FDCWD, s.dir, unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("put database in place: %w", err)
	}
	s.step("exchanged")
	if err := atomicfile.SyncDir(filepath.Dir(s.dir)); err != nil {
		return fmt.Errorf("flush database's folder: %w", err)
	}
	if err := os.Remove(filepath.Join(s.dir, incoming)); err != nil {
		return fmt.Errorf("put database in place: %w", err)
	}
	s.step("done")
	return atomicfile.SyncDir(s.dir)
}

// checkFile tells a whole SQLite file from half of one, and from anything else
// (https://sqlite.org/fileformat2.html#the_database_header). Whether its content
// is sound, skerryd sees before it uses it.
func checkFile(r io.ReaderAt, size int64) error {
	head := make([]byte, 100)
	if _, err := r.ReadAt(head, 0); err != nil || !bytes.HasPrefix(head, []byte("SQLite format 3\x00")) {
		return fmt.Errorf("%w: %d bytes that are no SQLite database", errRequest, size)
	}
	be := binary.BigEndian
	page := int64(be.Uint16(head[16:]))
	if page == 1 {
		page = 1 << 16
	}
	if page < 512 || page&(page-1) != 0 {
		return fmt.Errorf("%w: a database with pages of %d bytes", errRequest, page)
	}
	want := size / page * page
	if be.Uint32(head[24:]) == be.Uint32(head[92:]) && be.Uint32(head[28:]) != 0 { // else the count is stale
		want = int64(be.Uint32(head[28:])) * page
	}
	if size != want || size == 0 {
		return fmt.Errorf("%w: the database has %d bytes, want %d: it is not whole", errRequest, size, want)
	}
	return nil
}
