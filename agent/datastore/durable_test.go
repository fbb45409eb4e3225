package datastore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/store"
)

// limitFiles has the kernel refuse to make any file of this process larger.
func limitFiles(t *testing.T, size int64) {
	t.Helper()
	signal.Ignore(unix.SIGXFSZ)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	limit.Cur = min(uint64(size), limit.Max)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
}

// TestFailedWrite has the write-ahead log refuse to grow: whatever is written then
// must be refused too, be it new, changed or removed. The same writes before and
// after a new start succeed.
func TestFailedWrite(t *testing.T) {
	dir := t.TempDir()
	d, c, volatile := start(t, dir)
	changed := create(t, c, "/registry/pods/changed", "old")
	removed := create(t, c, "/registry/pods/removed", "old")
	write := func() map[string]error {
		errs := map[string]error{}
		try := func(name string, cmp clientv3.Cmp, op clientv3.Op) {
			r, err := c.Txn(t.Context()).If(cmp).Then(op).Else(clientv3.OpGet("/registry/pods/" + name)).Commit()
			if err == nil && !r.Succeeded {
				err = fmt.Errorf("refused as a conflict: %v", r)
			}
			errs[name] = err
		}
		try("new", clientv3.Compare(clientv3.ModRevision("/registry/pods/new"), "=", 0), clientv3.OpPut("/registry/pods/new", "new"))
		try("changed", clientv3.Compare(clientv3.ModRevision("/registry/pods/changed"), "=", changed), clientv3.OpPut("/registry/pods/changed", "new"))
		try("removed", clientv3.Compare(clientv3.ModRevision("/registry/pods/removed"), "=", removed), clientv3.OpDelete("/registry/pods/removed"))
		return errs
	}

	log, err := os.Stat(filepath.Join(dir, DatabaseFile+"-wal"))
	if err != nil {
		t.Fatal(err)
	}
	limitFiles(t, log.Size())
	defer limitFiles(t, math.MaxInt64)
	for name, err := range write() {
		if err == nil {
			t.Errorf("%s: acknowledged, and not written", name)
		}
	}
	select {
	case <-d.Failed():
		t.Log(d.Err())
	default:
		t.Error("Failed is open after a write that the disk refused")
	}
	if got := value(t, c, "/registry/pods/changed"); got != "old" {
		t.Errorf("what was there before reads as %q; want old", got)
	}
	create(t, volatile, "/registry/leases/a", "in memory")

	// The disk is well again, the database of this start is not to be trusted.
	limitFiles(t, math.MaxInt64)
	if err := write()["new"]; err == nil {
		t.Error("a write on top of one that failed was acknowledged")
	}
	d.Stop()
	d, c, _ = start(t, dir)
	for name, err := range write() {
		if err != nil {
			t.Errorf("%s, after a new start: %v", name, err)
		}
	}
	if err := d.Err(); err != nil {
		t.Errorf("Err() = %v on a disk that is well", err)
	}
}

// TestFailedCompaction ends a compaction on a disk that refuses it. kine's own
// way would be to end the process, which is this one.
func TestFailedCompaction(t *testing.T) {
	dir := t.TempDir()
	d, c, _ := start(t, dir)
	create(t, c, "/registry/pods/a", "old")
	compact := func() error {
		tx, err := d.guard.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelSerializable})
		if err != nil {
			return err
		}
		defer tx.MustRollback()
		if err := tx.SetCompactRevision(t.Context(), 1); err != nil {
			return err
		}
		tx.MustCommit()
		return nil
	}
	if err := compact(); err != nil { // the twin
		t.Fatal(err)
	}
	if err := d.Err(); err != nil {
		t.Fatalf("Err() = %v on a disk that is well", err)
	}
	log, err := os.Stat(filepath.Join(dir, DatabaseFile+"-wal"))
	if err != nil {
		t.Fatal(err)
	}
	limitFiles(t, log.Size())
	defer limitFiles(t, math.MaxInt64)
	if err := compact(); err == nil && d.Err() == nil {
		t.Error("a compaction that could not be written was not noticed")
	}
	limitFiles(t, math.MaxInt64)
	if _, err := d.guard.BeginTx(t.Context(), &sql.TxOptions{}); err == nil {
		t.Error("a transaction began on top of one that failed")
	}
	if err := d.guard.PostCompact(t.Context()); err == nil {
		t.Error("the log was moved on top of a write that failed")
	}
}

// TestLateCompaction ends a compaction whose time is over: nothing of it is kept, the disk is
// not blamed, and the next one goes on from what the database holds.
func TestLateCompaction(t *testing.T) {
	d, c, _ := start(t, t.TempDir())
	create(t, c, "/registry/pods/a", "old")
	compact := func(ctx context.Context, over func()) (revision int64) {
		tx, err := d.guard.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelSerializable})
		if err != nil {
			t.Fatal(err)
		}
		defer tx.MustRollback()
		if revision, err = tx.GetCompactRevision(ctx); err != nil {
			t.Fatal(err)
		}
		if err := tx.SetCompactRevision(ctx, revision+1); err != nil {
			t.Fatal(err)
		}
		over()
		tx.MustCommit()
		return revision
	}
	first := compact(t.Context(), func() {})
	late, cancel := context.WithCancel(t.Context())
	if got := compact(late, cancel); got != first+1 {
		t.Errorf("revision %d after a compaction to %d", got, first+1)
	}
	if err := d.Err(); err != nil {
		t.Errorf("Err() = %v after a compaction that came too late", err)
	}
	create(t, c, "/registry/pods/b", "new")
	if got := compact(t.Context(), func() {}); got != first+1 {
		t.Errorf("revision %d; want %d, since the late compaction must count for nothing", got, first+1)
	}
}

// TestSuspect has an index name a row as it was, which the quick check of each start does
// not see and that after a fault does.
func TestSuspect(t *testing.T) {
	dir := t.TempDir()
	d, c, _ := start(t, dir)
	create(t, c, "/registry/pods/a", "x")
	d.Stop()
	for _, step := range []string{
		`CREATE TABLE saved AS SELECT * FROM sqlite_schema WHERE name = 'kine_name_index'; PRAGMA writable_schema = ON; DELETE FROM sqlite_schema WHERE name = 'kine_name_index'`,
		`UPDATE kine SET name = '/registry/pods/b' WHERE name = '/registry/pods/a'`,
		`PRAGMA writable_schema = ON; INSERT INTO sqlite_schema SELECT * FROM saved; PRAGMA writable_schema = RESET; DROP TABLE saved`,
	} {
		db, err := sql.Open("sqlite3", store.DSN(filepath.Join(dir, DatabaseFile)))
		if err != nil {
			t.Fatal(err)
		}
		db.SetMaxOpenConns(1)
		if _, err := db.Exec(step); err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		db.Close()
	}
	d, _, _ = start(t, dir)
	d.Stop()
	if err := Suspect(dir); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it stays suspect
		if d, err := Start(t.Context(), Options{Dir: dir, RunDir: t.TempDir()}); !errors.Is(err, store.ErrDamaged) {
			t.Errorf("Start of a suspect database whose index is wrong = %v, %v; want ErrDamaged", d, err)
		}
	}
}
