package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"skerry.internal/skerry/agent/datastore"
	"skerry.internal/skerry/agent/notify"
	"skerry.internal/skerry/agent/snapshots"
)

// supervised is a node without data, and the socket on which it speaks to its supervisor.
func supervised(t *testing.T) (*node, *notify.Socket) {
	t.Helper()
	run, err := os.MkdirTemp("", "sk") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	socket, err := notify.Listen(filepath.Join(run, "notify"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	t.Setenv("NOTIFY_SOCKET", socket.Path())
	return &node{options: options{DataDir: t.TempDir(), RunDir: run}, name: "barn", supervisor: notify.Take()}, socket
}

// A damaged database is left as it is, and what to type is said, with the newest
// snapshot's name; the process stays, so that nothing spins. After a while it looks
// again, and a database that is whole by then serves.
func TestDamagedDatabase(t *testing.T) {
	n, socket := supervised(t)
	serve := func(again time.Duration) (ended chan error, ready chan struct{}, stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		ended, ready = make(chan error, 1), make(chan struct{})
		go func() {
			ended <- n.runDatastore(again, func(*datastore.Datastore) {})(ctx, func() { close(ready) })
		}()
		return ended, ready, cancel
	}
	ended, ready, stop := serve(time.Hour)
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	n.snapshotUnit()
	taken, err := n.snapshots.Now(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}

	path := filepath.Join(n.DataDir, databaseDir, datastore.DatabaseFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Repeat([]byte("noise "), len(whole)/6)
	if err := os.WriteFile(path, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 64)
	go func() {
		for {
			m, err := socket.Receive()
			if err != nil {
				return
			}
			if strings.HasPrefix(m.Status, "error") {
				said <- m.Status
			}
		}
	}()
	ended, ready, stop = serve(time.Hour)
	select {
	case s := <-said:
		if want := "skerry cluster restore barn --snapshot " + taken.Name; !strings.Contains(s, want) {
			t.Errorf("status %q; want %q in it", s, want)
		}
	case <-time.After(time.Minute):
		t.Fatal("the damage was not said within a minute")
	}
	select {
	case err := <-ended:
		t.Errorf("the unit ended: %v", err)
	case <-ready:
		t.Error("a damaged database serves")
	default:
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("stopped while it waits: %v", err)
	}
	ended, _, stop = serve(time.Nanosecond)
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("it looks again by ending: %v", err)
	}
	stop()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, damaged) {
		t.Errorf("the damaged database was changed: %v", err)
	}

	// Lost with its folder, snapshots being there: as bad.
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	ended, _, stop = serve(time.Nanosecond)
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("a lost database: %v", err)
	}
	stop()

	snap, err := os.ReadFile(filepath.Join(n.DataDir, snapshotDir, taken.Name))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, snap, 0o600); err != nil {
		t.Fatal(err)
	}
	ended, ready, stop = serve(time.Hour)
	select {
	case <-ready:
	case err := <-ended:
		t.Errorf("the snapshot does not serve: %v", err)
	}
	stop()
	<-ended
	if list, err := snapshots.List(n.path(snapshotDir)); err != nil || len(list) != 1 {
		t.Errorf("snapshots: %v, %v", list, err)
	}
}

// A whole control plane whose database was spoilt while it was off: it says what
// to type, and what was typed brings the objects back, from a snapshot and from a
// file, through what init serves.
func TestRestoredControlPlane(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.start()
	server := &snapshots.Server{Dir: filepath.Join(s.dir, snapshotDir), Database: filepath.Join(s.dir, databaseDir), Socket: filepath.Join(s.run, snapshotSocket), Printf: t.Logf,
		Stop:  func() error { s.kill(syscall.SIGTERM); return nil },
		Start: func() error { s.start(); return nil }}
	mux := http.NewServeMux()
	for pattern, h := range server.Handlers() {
		mux.Handle(pattern, h)
	}
	api := httptest.NewServer(mux)
	defer api.Close()
	do := func(method, path string, body []byte) []byte {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, api.URL+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := api.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s %s = %d, %s, %v", method, path, resp.StatusCode, data, err)
		}
		return data
	}
	s.want(`created`, "", "create", "configmap", "kept", "--from-literal=a=b")
	var taken struct{ Name string }
	if err := json.Unmarshal(do("POST", "/v1/snapshots?reason=test", nil), &taken); err != nil {
		t.Fatal(err)
	}
	backup := do("GET", "/v1/snapshots/"+taken.Name, nil)
	s.want(`created`, "", "create", "configmap", "later", "--from-literal=a=b")
	s.kill(syscall.SIGTERM) // the log is in the file now

	path := filepath.Join(s.dir, databaseDir, datastore.DatabaseFile)
	spoilt, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	third := len(spoilt) / 3
	for i := third; i < 2*third; i++ {
		spoilt[i] = byte(i * 7)
	}
	if err := os.WriteFile(path, spoilt, 0o600); err != nil {
		t.Fatal(err)
	}
	if said := s.startUntil("STATUS=error"); !strings.Contains(said, "--snapshot "+taken.Name) {
		t.Errorf("said %q; want the snapshot %s in it", said, taken.Name)
	}
	do("POST", "/v1/restore?snapshot="+taken.Name, nil)
	gone := func() {
		t.Helper()
		s.want(`kept`, "", "get", "configmap", "kept")
		if out, err := s.try("", "get", "configmap", "later"); err == nil {
			t.Errorf("what was made after the snapshot is there: %s", out)
		}
	}
	gone()
	s.want(`created`, "", "create", "configmap", "later", "--from-literal=a=b")
	sum := sha256.Sum256(backup)
	do("POST", "/v1/restore?sha256="+hex.EncodeToString(sum[:]), backup)
	gone()
	s.kill(syscall.SIGTERM)
}
