package store

import (
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestDSNIsDurable(t *testing.T) {
	// A name that needs escaping: '?' would cut the parameters off.
	path := filepath.Join(t.TempDir(), "a b?c#d", "state.db")
	if err := Prepare(t.Context(), path, false); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite3", DSN(path))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("CREATE TABLE t (x)"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ pragma, want string }{
		{"journal_mode", "wal"},
		{"synchronous", "2"}, // FULL
		{"busy_timeout", "30000"},
	} {
		var got string
		if err := db.QueryRow("PRAGMA " + tt.pragma).Scan(&got); err != nil || got != tt.want {
			t.Errorf("PRAGMA %s = %q, %v; want %q", tt.pragma, got, err, tt.want)
		}
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("database is not where it was asked for: %v", err)
	}
	// The index of the log costs no write: it is on the heap, for all connections.
	var conns [3]*sql.Conn
	for i := range conns {
		if conns[i], err = db.Conn(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer conns[i].Close()
		if _, err := conns[i].ExecContext(t.Context(), "INSERT INTO t VALUES (?)", i); err != nil {
			t.Fatal(err)
		}
	}
	var rows int
	if err := conns[0].QueryRowContext(t.Context(), "SELECT count(*) FROM t").Scan(&rows); err != nil || rows != len(conns) {
		t.Errorf("one connection sees %d rows, %v; want those of all %d", rows, err, len(conns))
	}
	if _, err := os.Stat(path + "-shm"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the log's index is a file: %v", err)
	}
}

func TestPrepareRefusesDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := sql.Open("sqlite3", DSN(path))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("CREATE TABLE t (x); WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<5000) INSERT INTO t SELECT i FROM c"); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if err := Prepare(t.Context(), path, false); err != nil {
		t.Fatalf("Prepare(sound database) = %v; want nil", err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func([]byte) []byte{
		"header":    func(d []byte) []byte { copy(d, "not a database!!"); return d },
		"page":      func(d []byte) []byte { copy(d[4096:4200], make([]byte, 104)); return d },
		"truncated": func(d []byte) []byte { return d[:len(d)/2] },
	} {
		t.Run(name, func(t *testing.T) {
			damaged := damage(append([]byte(nil), data...))
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			err := Prepare(t.Context(), path, false)
			if err == nil {
				t.Fatal("Prepare(damaged database) = nil; want an error")
			}
			t.Log(err)
			if st, err := os.Stat(path); err != nil || st.Size() != int64(len(damaged)) {
				t.Errorf("the damaged database was touched: %v, %v", st, err)
			}
		})
	}
}
