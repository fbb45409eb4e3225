package main

import (
	"context"
	"math"
	"os/signal"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/datastore"
)

// TestDiskFailsDatabase: after a write that the disk refused skerryd says so, stays
// while nothing can be written, and ends, to be started anew, when the disk is well.
func TestDiskFailsDatabase(t *testing.T) {
	n, socket := supervised(t)
	serving, ended := make(chan *datastore.Datastore, 1), make(chan error, 1)
	go func() {
		ended <- n.runDatastore(time.Hour, func(d *datastore.Datastore) { serving <- d })(t.Context(), func() {})
	}()
	var d *datastore.Datastore
	select {
	case d = <-serving:
	case err := <-ended:
		t.Fatal(err)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{d.Endpoint}, DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	put := func(key string) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, "v")).Commit()
		return err
	}
	if err := put("/registry/before"); err != nil {
		t.Fatal(err)
	}

	signal.Ignore(unix.SIGXFSZ)
	limit := func(size uint64) {
		t.Helper()
		var l unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &l); err != nil {
			t.Fatal(err)
		}
		l.Cur = min(size, l.Max)
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &l); err != nil {
			t.Fatal(err)
		}
	}
	limit(1) // no file of this process can hold more
	defer limit(math.MaxUint64)
	if err := put("/registry/on-bad-disk"); err == nil {
		t.Error("an object was acknowledged that could not be written")
	}
	for said := ""; !strings.HasPrefix(said, "error: the disk failed the database"); {
		m, err := socket.Receive()
		if err != nil {
			t.Fatal(err)
		}
		said = m.Status
	}
	select {
	case err := <-ended:
		t.Fatalf("ended with %v while nothing can be written; want it to answer what is read", err)
	default:
	}
	if r, err := c.Get(t.Context(), "/registry/before"); err != nil || r.Count != 1 {
		t.Errorf("read while nothing can be written: %v, %v", r, err)
	}
	limit(math.MaxUint64)
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "the disk failed the database") {
		t.Errorf("ended with %v; want the failure of the disk", err)
	}
}
