package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"skerry.internal/skerry/agent/snapshots"
)

// client is the way to a node that needs no certificates.
type client struct{ url string }

func (c client) Do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err == nil && resp.StatusCode >= 300 {
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return nil, fmt.Errorf("node: %s", text)
	}
	return resp, err
}

// smallDatabase is the least that a node takes for a whole database.
func smallDatabase(text string) []byte {
	b := make([]byte, 2*4096)
	copy(b, "SQLite format 3\x00")
	binary.BigEndian.PutUint16(b[16:], 4096)
	binary.BigEndian.PutUint32(b[28:], 2)
	copy(b[4096:], text)
	return b
}

// An operator's way from a backup to the restored database, against what a node
// runs.
func TestBackupAndRestore(t *testing.T) {
	state, here := t.TempDir(), t.TempDir()
	database := filepath.Join(state, "db", "state.db")
	if err := errors.Join(os.Mkdir(filepath.Dir(database), 0o700), os.WriteFile(database, smallDatabase("before"), 0o600)); err != nil {
		t.Fatal(err)
	}
	k := &snapshots.Keeper{Dir: filepath.Join(state, "snapshots"), Database: database, Take: func(_ context.Context, dst string) error {
		data, err := os.ReadFile(database)
		return errors.Join(err, os.WriteFile(dst, data, 0o600))
	}}
	s := &snapshots.Server{Dir: k.Dir, Database: filepath.Dir(database), Socket: filepath.Join(state, "none"), Printf: t.Logf,
		Stop: func() error { return nil }, Start: func() error { return nil }}
	mux := http.NewServeMux()
	for pattern, h := range s.Handlers() {
		mux.Handle(pattern, h)
	}
	node := httptest.NewServer(mux)
	defer node.Close()
	run := func(args ...string) (string, error) {
		dial := func(string, string) (doer, error) { return client{node.URL}, nil }
		root := &cobra.Command{Use: "skerry", SilenceErrors: true, SilenceUsage: true}
		root.AddCommand(clusterBackupCommand(dial), clusterRestoreCommand(dial), clusterSnapshotsCommand(dial))
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetArgs(args)
		err := root.ExecuteContext(t.Context())
		return out.String(), err
	}
	file := filepath.Join(here, "backup.db")
	if _, err := run("backup", "barn", "-o", file); err == nil || !strings.Contains(err.Error(), "skerry cluster snapshots barn") {
		t.Errorf("backup of a dead node: %v; want what else there is", err)
	}
	taken, err := k.Now(t.Context(), "daily")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := run("snapshots", "barn"); err != nil || !strings.Contains(out, taken.Name) {
		t.Errorf("snapshots = %q, %v; want %s in it", out, err, taken.Name)
	}
	if _, err := run("backup", "barn", "--snapshot", taken.Name, "-o", file); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("backup: %v, %v; want mode 0600: it holds every Secret", st, err)
	}
	if _, err := run("backup", "barn", "--snapshot", taken.Name, "-o", file); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("backup over a file that is there: %v", err)
	}

	set := func(text string) {
		t.Helper()
		if err := os.WriteFile(database, smallDatabase(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	is := func(what, want string) {
		t.Helper()
		if got, err := os.ReadFile(database); err != nil || !bytes.Equal(got, smallDatabase(want)) {
			t.Errorf("%s: the database in use is not %q: %v", what, want, err)
		}
	}
	half := filepath.Join(here, "half.db")
	if err := os.WriteFile(half, smallDatabase("half")[:5000], 0o600); err != nil {
		t.Fatal(err)
	}
	set("later")
	for _, tt := range []struct {
		args  []string
		usage bool
		want  string
	}{
		{[]string{"restore", "barn", file}, true, "--yes barn"},
		{[]string{"restore", "barn", file, "--yes", "other"}, true, "--yes barn"},
		{[]string{"restore", "barn", "--yes", "barn"}, true, "either a file or --snapshot"},
		{[]string{"restore", "barn", file, "--snapshot", taken.Name, "--yes", "barn"}, true, "either a file or --snapshot"},
		{[]string{"restore", "barn", half, "--yes", "barn"}, false, "not whole"},
		{[]string{"restore", "barn", filepath.Join(here, "none"), "--yes", "barn"}, false, "read database"},
		{[]string{"restore", "barn", "--snapshot", "none", "--yes", "barn"}, false, "none"},
	} {
		_, err := run(tt.args...)
		var usage usageError
		if err == nil || errors.As(err, &usage) != tt.usage || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q = %v; want %q, wrongly called: %v", tt.args, err, tt.want, tt.usage)
		}
		is(strings.Join(tt.args, " "), "later")
	}
	if out, err := run("restore", "barn", file, "--yes", "barn"); err != nil || !strings.Contains(out, "aside") {
		t.Errorf("restore of a file = %q, %v", out, err)
	}
	is("restore of a file", "before")
	set("much later")
	if _, err := run("restore", "barn", "--snapshot", taken.Name, "--yes", "barn"); err != nil {
		t.Error(err)
	}
	is("restore of a snapshot", "before")
}
