// Package store knows how Skerry keeps an SQLite database on flash memory:
// where, with which durability, and how to tell that it is whole.
//
// Left out: tables and queries, which belong to whoever opens the database.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/mattn/go-sqlite3" // also the driver "sqlite3"
)

// DSN names the database at path for the driver "sqlite3".
//
// synchronous=FULL makes a commit wait until the write-ahead log has been
// flushed: with NORMAL, which kine has by itself, a power cut may take back
// transactions that were already acknowledged (https://sqlite.org/pragma.html#pragma_synchronous).
//
// The VFS unix-excl keeps the index of the write-ahead log on the heap; it would
// otherwise be a mapped file, written back to flash after each commit for nothing, since it
// is made anew at each start (https://sqlite.org/vfs.html). The price is that one
// process alone can have the database open, with as many connections as it likes.
//
// Callers may append further parameters with "&".
func DSN(path string) string {
	u := url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath()}
	return u.String() + "?vfs=unix-excl&_journal_mode=WAL&_synchronous=FULL&_busy_timeout=30000&_txlock=immediate&_stmt_cache_size=20"
}

// Prepare makes the directory of the database at path (mode 0700) and refuses
// a file that is there but isn't a sound SQLite database: a damaged one is
// never silently replaced. Thorough compares indexes with tables too, which takes
// most of the time of integrity_check; every page is read in any case.
func Prepare(ctx context.Context, path string, thorough bool) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make database directory: %w", err)
	}
	if st, err := os.Stat(path); errors.Is(err, os.ErrNotExist) || err == nil && st.Size() == 0 {
		return nil
	} else if err != nil {
		return fmt.Errorf("look at database: %w", err)
	}
	if thorough {
		return check(ctx, path, "integrity_check")
	}
	return check(ctx, path, "quick_check")
}

// Check reads the whole database at path and returns what PRAGMA
// integrity_check finds wrong, if anything.
func Check(ctx context.Context, path string) error { return check(ctx, path, "integrity_check") }

// ErrDamaged is a database that can't be used as it is, whoever tries: its
// content is wrong, or the disk does not give it back.
var ErrDamaged = errors.New("the database is damaged")

func check(ctx context.Context, path, pragma string) error {
	db, err := sql.Open("sqlite3", DSN(path))
	if err != nil {
		return fmt.Errorf("open database %q: %w", path, err)
	}
	defer db.Close()
	var result string
	if err := db.QueryRowContext(ctx, "PRAGMA "+pragma+"(1)").Scan(&result); err != nil {
		if isDamage(err) {
			err = fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		return fmt.Errorf("check database %q: %w; it is left as it is", path, err)
	}
	if result != "ok" {
		return fmt.Errorf("check database %q: %w: %s: got %q, want \"ok\"; it is left as it is", path, ErrDamaged, pragma, result)
	}
	return nil
}

// isDamage tells damage from what passes, like a full disk or a lock.
func isDamage(err error) bool {
	var e sqlite3.Error
	if !errors.As(err, &e) {
		return false
	}
	switch {
	case e.Code == sqlite3.ErrCorrupt, e.Code == sqlite3.ErrNotADB:
		return true
	case e.ExtendedCode == sqlite3.ErrIoErrRead, e.ExtendedCode == sqlite3.ErrIoErrShortRead, e.ExtendedCode == ioErrCorruptFS:
		return true
	}
	return false
}

// Faulty tells errors of the disk, and damage that was come upon, from what is wrong
// with one statement or passes, like a full disk. After one an open database is not
// to be trusted with another write.
func Faulty(err error) bool {
	var e sqlite3.Error
	return errors.As(err, &e) && (e.Code == sqlite3.ErrIoErr || e.Code == sqlite3.ErrCorrupt || e.Code == sqlite3.ErrNotADB)
}

// ioErrCorruptFS is SQLITE_IOERR_CORRUPTFS, which the driver does not name.
const ioErrCorruptFS = sqlite3.ErrNoExtended(10 | 33<<8)
