package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// filled makes a database of about that many MiB, open for writing.
func filled(t *testing.T, path string, mib int) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", DSN(path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if _, err := db.Exec("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)"); err != nil {
		t.Fatal(err)
	}
	for range mib {
		if _, err := db.Exec("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<256) INSERT INTO t (v) SELECT randomblob(4000) FROM c"); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

func count(t *testing.T, path string) (n int) {
	t.Helper()
	db, err := sql.Open("sqlite3", DSN(path))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// A snapshot that is taken while others write ends, is whole, holds all that was
// acknowledged before it began, and holds no writer up until it is done.
func TestSnapshotWhileWriting(t *testing.T) {
	dir := t.TempDir()
	path, dst := filepath.Join(dir, "a b?.db"), filepath.Join(dir, "snap.db")
	db := filled(t, path, 16)
	ctx, stop := context.WithCancel(t.Context())
	wrote := make(chan int, 1)
	first := make(chan struct{})
	go func() {
		n := 0
		for ctx.Err() == nil {
			if _, err := db.Exec("INSERT INTO t (v) VALUES (randomblob(2000))"); err != nil {
				t.Errorf("write during the snapshot: %v", err)
				break
			}
			if n++; n == 10 {
				close(first)
			}
		}
		wrote <- n
	}()
	<-first
	before := count(t, path)
	limit, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := Snapshot(limit, path, dst)
	stop()
	n := <-wrote
	if err != nil {
		t.Fatalf("Snapshot() while others write = %v", err)
	}
	after := count(t, path)
	if got := count(t, dst); got < before || got > after {
		t.Errorf("the snapshot has %d rows; want between %d and %d", got, before, after)
	}
	if got := 16*256 + n; got != after {
		t.Errorf("%d rows were acknowledged, %d are there", got, after)
	}
	if n < 20 {
		t.Errorf("%d writes while the snapshot was taken; want writers to go on", n)
	}
	if err := Check(t.Context(), dst); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(dst); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode of the snapshot: %v, %v; want 0600: it holds every Secret", st.Mode(), err)
	}
	left, _ := filepath.Glob(dst + ".tmp*")
	if len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// Without room the snapshot that is there stays, and nothing is left behind.
func TestSnapshotWithoutRoom(t *testing.T) {
	path, small := filepath.Join(t.TempDir(), "state.db"), t.TempDir()
	filled(t, path, 4)
	if err := unix.Mount("none", small, "tmpfs", 0, "size=1m"); err != nil {
		if os.Getenv("CI") != "" || !errors.Is(err, unix.EPERM) {
			t.Fatal(err)
		}
		t.Skip("only root can make a small file system")
	}
	defer unix.Unmount(small, unix.MNT_DETACH)
	dst := filepath.Join(small, "snap.db")
	if err := os.WriteFile(dst, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Snapshot(t.Context(), path, dst); err == nil || !strings.Contains(err.Error(), "full") {
		t.Errorf("Snapshot() without room = %v; want an error that says so", err)
	}
	entries, err := os.ReadDir(small)
	if err != nil || len(entries) != 1 {
		t.Errorf("after it: %v, %v; want the old one alone", entries, err)
	}
	if got, err := os.ReadFile(dst); err != nil || string(got) != "old" {
		t.Errorf("the old snapshot = %q, %v", got, err)
	}
}

// Damage is not copied over a good snapshot, and is told from what passes.
func TestSnapshotOfDamage(t *testing.T) {
	dir := t.TempDir()
	path, dst := filepath.Join(dir, "state.db"), filepath.Join(dir, "snap.db")
	filled(t, path, 2).Close()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Pages of the table's tree, not of a row's value, so that it is seen.
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for at := int64(4096); at < st.Size(); at += 4096 {
		if _, err := f.WriteAt([]byte("noise noise"), at); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	if err := os.WriteFile(dst, []byte("good"), 0o600); err != nil {
		t.Fatal(err)
	}
	err = Snapshot(t.Context(), path, dst)
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("Snapshot(damaged) = %v; want %v", err, ErrDamaged)
	}
	if got, err := os.ReadFile(dst); err != nil || string(got) != "good" {
		t.Errorf("the good snapshot = %q, %v", got, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	sound := filepath.Join(dir, "sound.db")
	filled(t, sound, 1)
	if err := Snapshot(ended, sound, dst); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("Snapshot() that was called off = %v; want an error that is no damage", err)
	}
	if left, _ := filepath.Glob(fmt.Sprintf("%s.tmp*", dst)); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
