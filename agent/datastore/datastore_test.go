package datastore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"skerry.internal/skerry/agent/store"
)

func start(t *testing.T, dir string) (d *Datastore, durable, volatile *clientv3.Client) {
	t.Helper()
	run, err := os.MkdirTemp("", "kine") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	d, err = Start(t.Context(), Options{Dir: dir, RunDir: run})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Stop)
	client := func(endpoint string) *clientv3.Client {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	return d, client(d.Endpoint), client(d.VolatileEndpoint)
}

// create does what the API server does to create a key.
func create(t *testing.T, c *clientv3.Client, key, value string) int64 {
	t.Helper()
	r, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, value)).Commit()
	if err != nil || !r.Succeeded {
		t.Fatalf("create %s = %+v, %v", key, r, err)
	}
	return r.Header.Revision
}

// update does what the API server does to change a key it read at rev.
func update(t *testing.T, c *clientv3.Client, key, value string, rev int64) (int64, bool) {
	t.Helper()
	r, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", rev)).Then(clientv3.OpPut(key, value)).Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		t.Fatalf("update %s: %v", key, err)
	}
	return r.Header.Revision, r.Succeeded
}

func value(t *testing.T, c *clientv3.Client, key string) string {
	t.Helper()
	r, err := c.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Kvs) == 0 {
		return ""
	}
	return string(r.Kvs[0].Value)
}

// What is durable outlives a restart; what is volatile doesn't, never touches
// the disk, and its revisions go on rising.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	d, durable, volatile := start(t, dir)
	create(t, durable, "/registry/pods/a", "kept-on-disk")
	before := create(t, volatile, "/registry/leases/a", "kept-in-memory")
	if got := value(t, volatile, "/registry/leases/a"); got != "kept-in-memory" {
		t.Errorf("volatile key = %q before the restart", got)
	}
	d.Stop()

	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	var disk []byte
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		disk = append(disk, data...)
	}
	if !bytes.Contains(disk, []byte("kept-on-disk")) || bytes.Contains(disk, []byte("kept-in-memory")) {
		t.Errorf("on the disk: durable %v, volatile %v; want true, false",
			bytes.Contains(disk, []byte("kept-on-disk")), bytes.Contains(disk, []byte("kept-in-memory")))
	}

	_, durable, volatile = start(t, dir)
	if got := value(t, durable, "/registry/pods/a"); got != "kept-on-disk" {
		t.Errorf("durable key after the restart = %q", got)
	}
	if got := value(t, volatile, "/registry/leases/a"); got != "" {
		t.Errorf("volatile key after the restart = %q; want none", got)
	}
	if _, ok := update(t, volatile, "/registry/leases/a", "x", before); ok {
		t.Error("an update conditional on a revision from before the restart succeeded")
	}
	if after := create(t, volatile, "/registry/leases/a", "y"); after>>32 != before>>32+1 {
		t.Errorf("revision %x after %x; want the upper half one higher", after, before)
	}
	if _, err := volatile.Get(t.Context(), "/registry/leases/a", clientv3.WithRev(before)); err == nil || !strings.Contains(err.Error(), "compacted") {
		t.Errorf("read at a revision from before the restart: %v; want compacted", err)
	}
}

// A watcher of the volatile store sees each change once and in order, however
// often the store was compacted, be it there before or come after that. What is
// compacted has been seen: the driver hands out to all watchers what one goroutine
// reads, and drops what is compacted before that has read it, without a word. In a
// node that is five minutes.
func TestVolatileWatchAfterCompaction(t *testing.T) {
	_, _, c := start(t, t.TempDir())
	const key = "/registry/leases/a"
	rev := create(t, c, key, "0")
	change := func() {
		t.Helper()
		var ok bool
		if rev, ok = update(t, c, key, "x", rev); !ok {
			t.Fatal("update refused")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// watch returns what waits for all changes until now.
	watch := func() (see func()) {
		next := rev + 1
		w := c.Watch(ctx, key, clientv3.WithRev(next), clientv3.WithPrevKV())
		return func() {
			t.Helper()
			for next <= rev {
				r, ok := <-w
				if !ok || r.Err() != nil {
					t.Fatalf("watch ended at %d of %d: %v", next, rev, r.Err())
				}
				for _, e := range r.Events {
					if e.Kv.ModRevision != next {
						t.Fatalf("event %d; want %d", e.Kv.ModRevision, next)
					}
					if e.PrevKv == nil || e.PrevKv.ModRevision != next-1 {
						t.Errorf("event %d comes after %v; want %d", next, e.PrevKv, next-1)
					}
					next++
				}
			}
		}
	}
	before := watch()
	change()
	before() // from here on by that goroutine
	for range 4 {
		for range 10 {
			change()
		}
		before()
		if _, err := c.Compact(t.Context(), rev-2); err != nil {
			t.Fatal(err)
		}
	}
	after := watch()
	for range 5 {
		change()
	}
	before()
	after()
}

func TestStartRefusesDamage(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct{ file, content, want string }{
		{DatabaseFile, strings.Repeat("not a database. ", 512), "check database"},
		{"boots", "many", "boot counter"},
	} {
		if err := os.WriteFile(filepath.Join(dir, tt.file), []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := Start(t.Context(), Options{Dir: dir, RunDir: t.TempDir()})
		if err == nil {
			d.Stop()
			t.Fatalf("Start() with a damaged %s = nil; want an error", tt.file)
		}
		if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Start() with a damaged %s = %v; want %q in it", tt.file, err, tt.want)
		}
		if got, err := os.ReadFile(filepath.Join(dir, tt.file)); err != nil || string(got) != tt.content {
			t.Errorf("the damaged %s was changed", tt.file)
		}
		os.Remove(filepath.Join(dir, tt.file))
	}
	if err := store.Prepare(t.Context(), filepath.Join(dir, DatabaseFile), true); err != nil {
		t.Errorf("Prepare() after the damage is gone = %v", err)
	}
}

// A database that has been there and is not any more isn't replaced by an empty
// one; at the first start there is none, also after a cut in its making.
func TestStartRefusesLoss(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(dir string) error
		known   bool
		want    string // empty: it starts
	}{
		{"first start", func(string) error { return nil }, false, ""},
		{"cut while it was made", func(dir string) error { return os.WriteFile(filepath.Join(dir, DatabaseFile), nil, 0o600) }, false, ""},
		{"gone", func(dir string) error { return os.Remove(filepath.Join(dir, DatabaseFile)) }, false, "it is gone"},
		{"emptied", func(dir string) error { return os.Truncate(filepath.Join(dir, DatabaseFile), 0) }, false, "it is empty"},
		{"folder gone, snapshots there", func(dir string) error { return os.RemoveAll(dir) }, true, "it is gone"},
	} {
		dir := filepath.Join(t.TempDir(), "db")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if tt.want != "" {
			d, _, _ := start(t, dir)
			d.Stop()
		}
		if err := tt.prepare(dir); err != nil {
			t.Fatal(err)
		}
		d, err := Start(t.Context(), Options{Dir: dir, RunDir: t.TempDir(), Known: tt.known})
		if err == nil {
			d.Stop()
		}
		if (err == nil) != (tt.want == "") || err != nil && (!errors.Is(err, store.ErrDamaged) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: Start() = %v; want %q", tt.name, err, tt.want)
		}
	}
}

// A snapshot of a database that serves is whole, has what was acknowledged
// before it, and is a database that serves; SQLite's exclusive VFS is no
// hindrance within the process.
func TestSnapshotWhileServing(t *testing.T) {
	dir := t.TempDir()
	_, c, _ := start(t, dir)
	for i := range 200 {
		create(t, c, fmt.Sprintf("/registry/configmaps/%d", i), strings.Repeat("x", 4000))
	}
	ctx, stop := context.WithCancel(t.Context())
	wrote := make(chan int, 1)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			key := fmt.Sprintf("/registry/secrets/%d", n)
			if r, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, "v")).Commit(); err != nil || !r.Succeeded {
				t.Errorf("create %s during the snapshot: %v", key, err)
				break
			}
		}
		wrote <- n
	}()
	copied := t.TempDir()
	err := store.Snapshot(t.Context(), filepath.Join(dir, DatabaseFile), filepath.Join(copied, DatabaseFile))
	stop()
	if n := <-wrote; err != nil {
		t.Fatalf("Snapshot() while %d were written = %v", n, err)
	}
	_, again, _ := start(t, copied)
	r, err := again.Get(t.Context(), "/registry/configmaps/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || r.Count != 200 {
		t.Errorf("the snapshot serves %v objects, %v; want 200", r, err)
	}
}
