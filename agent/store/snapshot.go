package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/mattn/go-sqlite3"

	"skerry.internal/skerry/agent/atomicfile"
)

// A snapshot is copied in steps, so that a card that is busy with it still
// takes the writes of others in between.
const (
	stepPages = 256 // 1 MiB
	stepPause = 10 * time.Millisecond
)

// Snapshot copies the database at path, which may be in use in this process, to
// the file dst: as it is at one moment, checked, and whole even when the power
// is cut. Until all of that has worked, a file that was at dst stays. Writers are
// not held up; what they write meanwhile is not in the copy.
func Snapshot(ctx context.Context, path, dst string) (err error) {
	tmp := dst + ".tmp"
	if err := removeDatabase(tmp); err != nil {
		return fmt.Errorf("remove half a snapshot: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeDatabase(tmp))
		}
	}()
	if err := copyPages(ctx, path, tmp); err != nil {
		return fmt.Errorf("copy database %q: %w", path, err)
	}
	if err := check(ctx, tmp, "quick_check"); err != nil {
		return fmt.Errorf("check the copy of %q: %w", path, err)
	}
	if err := flush(tmp); err != nil {
		return fmt.Errorf("flush snapshot: %w", err)
	}
	if err := os.Rename(tmp, dst); err != nil {
		return fmt.Errorf("name snapshot: %w", err)
	}
	if err := atomicfile.SyncDir(filepath.Dir(dst)); err != nil {
		return fmt.Errorf("flush snapshot's name: %w", err)
	}
	return nil
}

// removeDatabase removes a database and what SQLite keeps beside it.
func removeDatabase(path string) error {
	var errs []error
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func flush(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// copyPages makes the copy with SQLite's backup API.
func copyPages(ctx context.Context, path, tmp string) error {
	src, closeSrc, err := conn(ctx, DSN(path))
	if err != nil {
		return err
	}
	defer closeSrc()
	u := url.URL{Scheme: "file", Opaque: (&url.URL{Path: tmp}).EscapedPath()}
	// Nobody reads the copy before it is flushed as a whole: it needs no journal.
	dst, closeDst, err := conn(ctx, u.String()+"?vfs=unix-excl&_journal_mode=OFF&_synchronous=OFF")
	if err != nil {
		return err
	}
	defer closeDst()
	if err := os.Chmod(tmp, 0o600); err != nil {
		return err
	}
	return src.Raw(func(s any) error {
		return dst.Raw(func(d any) error {
			return backup(ctx, d.(*sqlite3.SQLiteConn), s.(*sqlite3.SQLiteConn))
		})
	})
}

// conn opens a database with one connection.
func conn(ctx context.Context, dsn string) (*sql.Conn, func(), error) {
	db, err := sql.Open("sqlite3", dsn)
	if err != nil {
		return nil, nil, err
	}
	c, err := db.Conn(ctx)
	if err == nil {
		_, err = c.ExecContext(ctx, "PRAGMA user_version") // the driver opens the file lazily
	}
	if err != nil {
		db.Close()
		return nil, nil, err
	}
	return c, func() { c.Close(); db.Close() }, nil
}

func backup(ctx context.Context, dst, src *sqlite3.SQLiteConn) (err error) {
	// In a read transaction the source stays as it is at this moment: else each
	// write of another connection makes the copy begin anew, which on a busy
	// node never ends (https://sqlite.org/c3ref/backup_finish.html).
	if err := begin(ctx, src); err != nil {
		return err
	}
	defer src.ExecContext(context.WithoutCancel(ctx), "ROLLBACK", nil)
	b, err := dst.Backup("main", src, "main")
	if err != nil {
		return err
	}
	for {
		done, err := b.Step(stepPages)
		if done || err != nil {
			return errors.Join(err, b.Finish())
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), b.Finish())
		case <-time.After(stepPause):
		}
	}
}

// begin begins a read transaction; SQLite does so at the first read only.
func begin(ctx context.Context, c *sqlite3.SQLiteConn) error {
	if _, err := c.ExecContext(ctx, "BEGIN DEFERRED", nil); err != nil {
		return err
	}
	rows, err := c.QueryContext(ctx, "SELECT count(*) FROM sqlite_schema", nil)
	if err != nil {
		return err
	}
	err = rows.Next(make([]driver.Value, 1))
	return errors.Join(err, rows.Close())
}
