package snapshots

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/api"
)

// database is a file that checkFile takes for a whole one; text tells it from others.
func database(text string) []byte {
	b := make([]byte, 2*4096)
	copy(b, "SQLite format 3\x00")
	binary.BigEndian.PutUint16(b[16:], 4096)
	binary.BigEndian.PutUint32(b[28:], 2)
	copy(b[4096:], text)
	return b
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// inUse says which database a start would use: its text, and its log's.
func inUse(t *testing.T, dir string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, databaseFile))
	if err != nil || checkFile(bytes.NewReader(data), int64(len(data))) != nil {
		return fmt.Sprintf("none (%v)", err)
	}
	text, _, _ := strings.Cut(string(data[4096:]), "\x00")
	if wal, err := os.ReadFile(filepath.Join(dir, databaseFile+"-wal")); err == nil {
		text += " with " + string(wal)
	}
	return text
}

func used(t *testing.T) (dir string) {
	dir = filepath.Join(t.TempDir(), "db")
	write(t, filepath.Join(dir, databaseFile), database("old"))
	write(t, filepath.Join(dir, databaseFile+"-wal"), []byte("old's log"))
	write(t, filepath.Join(dir, "boots"), []byte("7\n"))
	return dir
}

// A power cut between any two steps leaves the old database with its log or the
// new one without, and a later restore works and loses neither.
func TestRestoreCut(t *testing.T) {
	dir := used(t)
	images := t.TempDir()
	var steps []string
	cut := func(step string) {
		steps = append(steps, step)
		if out, err := exec.Command("cp", "-a", filepath.Dir(dir), filepath.Join(images, step)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	s, err := stage(dir, bytes.NewReader(database("new")), "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cut("staged")
	s.step = cut
	if err := s.commit(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"staged", "linked", "flushed", "exchanged", "done"}; !slices.Equal(steps, want) {
		t.Fatalf("steps %q; want %q", steps, want)
	}
	for i, step := range steps {
		dir := filepath.Join(images, step, "db")
		want := "old with old's log"
		if i >= 3 {
			want = "new"
		}
		if got := inUse(t, dir); got != want {
			t.Errorf("cut when %s: in use is %q; want %q", step, got, want)
		}
		if boots, err := os.ReadFile(filepath.Join(dir, "boots")); err != nil || string(boots) != "7\n" {
			t.Errorf("cut when %s: boots = %q, %v", step, boots, err)
		}
		again, err := stage(dir, bytes.NewReader(database("newer")), "", time.Now())
		if err == nil {
			err = again.commit()
		}
		if got := inUse(t, dir); err != nil || got != "newer" {
			t.Errorf("cut when %s, then another restore: %q, %v; want newer", step, got, err)
		}
		var kept []string
		list, _ := asides(dir)
		for _, a := range list {
			kept = append(kept, inUse(t, a))
		}
		all := []string{"old with old's log"}
		if i >= 3 {
			all = append(all, "new")
		}
		if !slices.Equal(kept, all) {
			t.Errorf("cut when %s, then another restore: aside are %q; want %q", step, kept, all)
		}
	}
}

// What is no whole database, or not the one that was sent, changes nothing.
func TestStageRefuses(t *testing.T) {
	whole := database("new")
	half := whole[:4096]
	noise := bytes.Repeat([]byte("noise"), 2000)
	odd := bytes.Clone(whole)
	binary.BigEndian.PutUint16(odd[16:], 1000)
	stale := append(bytes.Clone(whole), make([]byte, 4096)...)
	binary.BigEndian.PutUint32(stale[24:], 5) // written by an old program: the count does not hold
	sum := sha256.Sum256(whole)
	for _, tt := range []struct {
		name string
		data []byte
		sum  string
		ok   bool
	}{
		{"whole", whole, hex.EncodeToString(sum[:]), true},
		{"stale page count", stale, "", true},
		{"half", half, "", false},
		{"half, with the whole one's sum", half, hex.EncodeToString(sum[:]), false},
		{"noise", noise, "", false},
		{"page size", odd, "", false},
		{"empty", nil, "", false},
		{"a byte more", append(bytes.Clone(whole), 0), "", false},
	} {
		dir := used(t)
		s, err := stage(dir, bytes.NewReader(tt.data), tt.sum, time.Now())
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, errRequest) {
			t.Errorf("%s: stage() = %v; want ok %v", tt.name, err, tt.ok)
		}
		if got := inUse(t, dir); got != "old with old's log" {
			t.Errorf("%s: in use is %q", tt.name, got)
		}
		if left, _ := asides(dir); err != nil && len(left) > 0 {
			t.Errorf("%s: left behind %q", tt.name, left)
		}
		if err == nil {
			s.discard()
		}
	}
}

// Old databases do not pile up.
func TestAsidesAreBounded(t *testing.T) {
	dir := used(t)
	for i := range 12 {
		s, err := stage(dir, bytes.NewReader(database(fmt.Sprint(i))), "", time.Now())
		if err == nil {
			err = s.commit()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	list, _ := asides(dir)
	var kept []string
	for _, a := range list {
		kept = append(kept, inUse(t, a))
	}
	if want := []string{"8", "9", "10"}; !slices.Equal(kept, want) {
		t.Errorf("aside are %q; want %q", kept, want)
	}
}

func TestSurplus(t *testing.T) {
	now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	// Names in the tables are ages in days; each has 10 bytes.
	for _, tt := range []struct {
		name  string
		ages  []int // the newest first
		limit int64
		want  []int // kept
	}{
		{"none", nil, 100, nil},
		{"few", []int{0, 1}, 100, []int{0, 1}},
		{"a fourth", []int{0, 1, 2, 3}, 100, []int{0, 1, 2, 3}},
		{"the elder grows old", []int{0, 1, 2, 3, 9}, 100, []int{0, 1, 2, 9}},
		{"and is replaced", []int{0, 1, 2, 3, 14}, 100, []int{0, 1, 2, 3}},
		{"all old: the clock jumped by years", []int{1000, 1001, 1002, 1003, 1004}, 100, []int{1000, 1001, 1002, 1003}},
		{"the clock went back", []int{0, -900, -901, -902}, 100, []int{0, -900, -901, -902}},
		{"little room", []int{0, 1, 2, 3, 9}, 25, []int{0, 1}},
		{"no room", []int{0, 1, 2}, 5, []int{0}},
	} {
		var list []api.Snapshot
		for i, age := range tt.ages {
			list = append(list, api.Snapshot{Name: fmt.Sprint(age), Time: now.AddDate(0, 0, -age), Bytes: 10})
			_ = i
		}
		drop := surplus(list, now, tt.limit)
		var kept []int
		for i, s := range list {
			if !slices.ContainsFunc(drop, func(d api.Snapshot) bool { return d.Name == s.Name }) {
				kept = append(kept, tt.ages[i])
			}
		}
		if !slices.Equal(kept, tt.want) {
			t.Errorf("%s: kept %v of %v; want %v", tt.name, kept, tt.ages, tt.want)
		}
	}
}

// Halves that power cuts have left go, and numbers go on.
func TestNow(t *testing.T) {
	dir := used(t)
	k := &Keeper{Dir: filepath.Join(filepath.Dir(dir), "snapshots"), Database: filepath.Join(dir, databaseFile), Take: func(_ context.Context, dst string) error {
		return os.WriteFile(dst, database("x"), 0o600)
	}}
	write(t, filepath.Join(k.Dir, "000041-20300101T000000Z-daily.db"), database("from the future"))
	write(t, filepath.Join(k.Dir, "000042-20260101T000000Z-daily.db.tmp"), []byte("half"))
	write(t, filepath.Join(k.Dir, "000042-20260101T000000Z-daily.db.tmp-wal"), []byte("half"))
	s, err := k.Now(t.Context(), "update")
	if err != nil || !strings.HasPrefix(s.Name, "000042-") {
		t.Errorf("Now() = %+v, %v; want number 42", s, err)
	}
	entries, err := os.ReadDir(k.Dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("in the folder: %v, %v; want two snapshots alone", entries, err)
	}
	list, err := List(k.Dir)
	if err != nil || len(list) != 2 || list[0].Name != s.Name {
		t.Errorf("List() = %v, %v; want the one with the highest number first", list, err)
	}
	k.Take = func(context.Context, string) error { return errors.New("no") }
	if _, err := k.Now(t.Context(), "update"); err == nil {
		t.Error("Now() without a copy = nil; want an error")
	}
	if list, err := List(k.Dir); err != nil || len(list) != 2 {
		t.Errorf("after a failure: %v, %v; want both kept", list, err)
	}
}

// Old snapshots go for a new one when that makes room enough, else none does.
func TestMakeRoom(t *testing.T) {
	for _, tt := range []struct {
		name string
		free int64
		kept int // of three, of a MiB each; the new one is no part of it
		ok   bool
	}{{"room", 100 << 20, 3, true}, {"one is enough", 8 << 20, 2, true}, {"none would do", 1 << 20, 3, false}} {
		dir := used(t)
		db := filepath.Join(dir, databaseFile)
		write(t, db, make([]byte, 1<<20))
		k := &Keeper{Dir: filepath.Join(filepath.Dir(dir), "snapshots"), Database: db, space: func(string) (int64, int64, error) { return 1 << 30, tt.free + 1<<19, nil },
			Take: func(_ context.Context, dst string) error { return os.WriteFile(dst, make([]byte, 1<<20), 0o600) }}
		for i := range 3 {
			write(t, filepath.Join(k.Dir, fmt.Sprintf("00000%d-2026010%dT000000Z-daily.db", i+1, i+1)), make([]byte, 1<<20))
		}
		s, err := k.Now(t.Context(), "daily")
		list, lerr := List(k.Dir)
		want := tt.kept
		if tt.ok {
			want++
		}
		if (err == nil) != tt.ok || lerr != nil || len(list) != want || tt.ok && list[0].Name != s.Name {
			t.Errorf("%s: Now() = %+v, %v; left %v, %v; want %d", tt.name, s, err, list, lerr, want)
		}
	}
}

func TestDue(t *testing.T) {
	now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	for age, want := range map[time.Duration]bool{0: false, 23 * time.Hour: false, 24 * time.Hour: true, -time.Minute: false, -48 * time.Hour: true} {
		if got := due([]api.Snapshot{{Time: now.Add(-age)}}, now); got != want {
			t.Errorf("due() with one %v old = %v; want %v", age, got, want)
		}
	}
	if !due(nil, now) {
		t.Error("due() without any = false")
	}
}

// The whole way: an operator asks init, init asks skerryd; downloads and restores
// need no skerryd.
func TestServer(t *testing.T) {
	dir := used(t)
	state := filepath.Dir(dir)
	short, err := os.MkdirTemp("", "sn") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	k := &Keeper{Dir: filepath.Join(state, "snapshots"), Database: filepath.Join(dir, databaseFile), Take: func(_ context.Context, dst string) error {
		return os.WriteFile(dst, database("old"), 0o600)
	}}
	var events []string
	s := &Server{Dir: k.Dir, Database: dir, Socket: filepath.Join(short, "s"), Printf: t.Logf,
		Stop:  func() error { events = append(events, "stop "+inUse(t, dir)); return nil },
		Start: func() error { events = append(events, "start "+inUse(t, dir)); return nil }}
	mux := http.NewServeMux()
	for pattern, h := range s.Handlers() {
		mux.Handle(pattern, h)
	}
	srv := httptest.NewServer(mux)
	defer srv.Close()
	do := func(method, path string, body []byte, want int) (string, http.Header) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != want {
			t.Fatalf("%s %s = %d %s, %v; want %d", method, path, resp.StatusCode, got, err, want)
		}
		return string(got), resp.Header
	}
	if got, _ := do("GET", "/v1/snapshots", nil, 200); strings.TrimSpace(got) != "[]" {
		t.Errorf("list without any = %q", got)
	}
	if got, _ := do("POST", "/v1/snapshots", nil, 503); !strings.Contains(got, "skerryd does not answer") {
		t.Errorf("take without skerryd = %q", got)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- k.Serve(ctx, s.Socket) }()
	for {
		c, err := net.Dial("unix", s.Socket)
		if err == nil {
			c.Close()
			break
		}
		select {
		case err := <-served:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	got, _ := do("POST", "/v1/snapshots?reason=test", nil, 200)
	var taken api.Snapshot
	if err := json.Unmarshal([]byte(got), &taken); err != nil || taken.Reason != "test" || taken.Bytes != 8192 {
		t.Errorf("taken: %s, %v", got, err)
	}
	do("POST", "/v1/snapshots?reason=..%2fx", nil, 500)
	stop()
	if err := <-served; err != nil {
		t.Errorf("Serve() = %v", err)
	}

	data, head := do("GET", "/v1/snapshots/"+taken.Name, nil, 200)
	sum := sha256.Sum256([]byte(data))
	if data != string(database("old")) || head.Get(api.SHA256Header) != hex.EncodeToString(sum[:]) {
		t.Errorf("downloaded %d bytes, sum %q", len(data), head.Get(api.SHA256Header))
	}
	for _, bad := range []string{"000009-20260101T000000Z-x.db", "..%2Fdb%2Fstate.db", "boots"} {
		do("GET", "/v1/snapshots/"+bad, nil, 404)
		do("POST", "/v1/restore?snapshot="+bad, nil, 404)
	}

	up := database("uploaded")
	sum = sha256.Sum256(up)
	do("POST", "/v1/restore", up, 400)
	do("POST", "/v1/restore?sha256="+strings.Repeat("0", 64), up, 400)
	if len(events) > 0 {
		t.Errorf("what was refused has led to %q", events)
	}
	got, _ = do("POST", "/v1/restore?sha256="+hex.EncodeToString(sum[:]), up, 200)
	var r api.Restored
	if err := json.Unmarshal([]byte(got), &r); err != nil || inUse(t, filepath.Join(state, r.Aside)) != "old with old's log" {
		t.Errorf("restored: %s, %v", got, err)
	}
	do("POST", "/v1/restore?snapshot="+taken.Name, nil, 200)
	if want := []string{"stop old with old's log", "start uploaded", "stop uploaded", "start old"}; !slices.Equal(events, want) {
		t.Errorf("events %q; want %q", events, want)
	}
	// A unit that doesn't stop is not robbed of its database.
	s.Stop = func() error { return errors.New("does not end") }
	do("POST", "/v1/restore?sha256="+hex.EncodeToString(sum[:]), up, 500)
	if got := inUse(t, dir); got != "old" {
		t.Errorf("in use is %q", got)
	}
}
