package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// server serves content at /file and nothing elsewhere, and counts.
type server struct {
	*httptest.Server
	content []byte
	hits    atomic.Int64
	// breaks is how many answers end in the middle.
	breaks atomic.Int64
}

func newServer(t *testing.T) *server {
	s := &server{content: bytes.Repeat([]byte("skerry "), 50_000)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.hits.Add(1)
		switch {
		case r.URL.Path == "/busy":
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.URL.Path == "/mute":
			<-r.Context().Done()
		case r.URL.Path == "/silent":
			w.Header().Set("Content-Length", fmt.Sprint(len(s.content)))
			w.Write(s.content[:1000])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case r.URL.Path != "/file":
			http.NotFound(w, r)
		case s.breaks.Add(-1) >= 0:
			w.Header().Set("Content-Length", fmt.Sprint(len(s.content)))
			w.Write(s.content[:1000])
		default:
			w.Write(s.content)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) item(paths ...string) Item {
	i := Item{Name: "thing.deb", SHA256: sha256.Sum256(s.content), Size: int64(len(s.content))}
	for _, p := range paths {
		i.URLs = append(i.URLs, s.URL+p)
	}
	return i
}

type testCache struct {
	*Cache
	mu      sync.Mutex
	notices []string
}

func newCache(t *testing.T) *testCache {
	t.Helper()
	c, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	tc := &testCache{Cache: c}
	c.Notice = func(line string) {
		tc.mu.Lock()
		defer tc.mu.Unlock()
		tc.notices = append(tc.notices, line)
	}
	return tc
}

// files returns the content of all files in the cache.
func (c *testCache) files(t *testing.T) (all []string) {
	t.Helper()
	err := filepath.WalkDir(c.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		all = append(all, string(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// refuses checks that err is one line with all of want and that the cache is
// empty.
func (c *testCache) refuses(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want one with %q", want)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error has more than one line: %v", err)
	}
	for _, s := range want {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q lacks %q", err, s)
		}
	}
	if left := c.files(t); len(left) > 0 {
		t.Errorf("the cache holds %d files, want none", len(left))
	}
}

func (c *testCache) gets(t *testing.T, item Item, want []byte) string {
	t.Helper()
	path, err := c.Get(t.Context(), item)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s holds %d bytes, %v, want the %d of the server", path, len(got), err, len(want))
	}
	if n := len(c.files(t)); n != 1 {
		t.Errorf("the cache holds %d files, want 1", n)
	}
	return path
}

func TestGetOnce(t *testing.T) {
	s, c := newServer(t), newCache(t)
	var last Progress
	c.Progress = func(p Progress) { last = p }
	c.gets(t, s.item("/file"), s.content)
	if size := int64(len(s.content)); last != (Progress{"thing.deb", size, size}) {
		t.Errorf("last progress %v, want all of %d", last, size)
	}
	s.Close() // the second time needs no server
	c.gets(t, s.item("/file"), s.content)
	if len(c.notices) > 0 {
		t.Errorf("notices %q, want none", c.notices)
	}
}

func TestGetDamaged(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"truncated": func(path string) error { return os.Truncate(path, 100) },
		"emptied":   func(path string) error { return os.Truncate(path, 0) },
		"bit flipped": func(path string) error {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text[len(text)/2] ^= 1
			return os.WriteFile(path, text, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := newServer(t), newCache(t)
			path := c.gets(t, s.item("/file"), s.content)
			if err := damage(path); err != nil {
				t.Fatal(err)
			}
			c.gets(t, s.item("/file"), s.content)
			if len(c.notices) != 1 || !strings.Contains(c.notices[0], "thing.deb is damaged") {
				t.Errorf("notices %q, want one about damage", c.notices)
			}
			if s.hits.Load() != 2 {
				t.Errorf("asked %d times, want 2", s.hits.Load())
			}
			// Without a server the damaged file must not be given out.
			if err := damage(path); err != nil {
				t.Fatal(err)
			}
			s.Close()
			_, err := c.Get(t.Context(), s.item("/file"))
			c.refuses(t, err, "thing.deb")
		})
	}
}

func TestGetRefuses(t *testing.T) {
	s := newServer(t)
	wrong := s.item("/file")
	wrong.SHA256[0] ^= 1
	short, long := s.item("/file"), s.item("/file")
	short.Size--
	long.Size++
	for _, c := range []struct {
		name string
		item Item
		want []string
		is   error
	}{
		{"other bytes", wrong, []string{"thing.deb is not what was asked for", "got sha256"}, nil},
		{"too long", short, []string{"got 350000 bytes, want 349999"}, nil},
		{"too short", long, []string{"got 350000 bytes, want 350001"}, nil},
		{"gone", s.item("/gone"), []string{"thing.deb", "/gone", "no longer has"}, ErrGone},
		{"server in trouble", s.item("/busy"), []string{"thing.deb", "503"}, nil},
		{"no network", Item{Name: "thing.deb", URLs: []string{"http://127.0.0.1:1/file"}, Size: 1}, []string{"thing.deb", "127.0.0.1:1", "connect this machine"}, ErrOffline},
		{"no address", Item{Name: "thing.deb", URLs: []string{"http://no.invalid./file"}, Size: 1}, []string{"thing.deb", "no.invalid", "connect this machine"}, ErrOffline},
	} {
		t.Run(c.name, func(t *testing.T) {
			cache := newCache(t)
			_, err := cache.Get(t.Context(), c.item)
			cache.refuses(t, err, c.want...)
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("errors.Is(%v, %v) is false", err, c.is)
			}
		})
	}
}

func TestGetSecondURL(t *testing.T) {
	s, c := newServer(t), newCache(t)
	c.gets(t, s.item("/gone", "/file"), s.content)
}

func TestGetBrokenConnection(t *testing.T) {
	s, c := newServer(t), newCache(t)
	s.breaks.Store(2)
	c.gets(t, s.item("/file"), s.content)
	if len(c.notices) != 2 || !strings.Contains(c.notices[0], "trying again") {
		t.Errorf("notices %q, want two that it is tried again", c.notices)
	}

	c = newCache(t)
	s.breaks.Store(3)
	_, err := c.Get(t.Context(), s.item("/file"))
	c.refuses(t, err, "thing.deb", "the connection broke")
}

func TestGetSilentServer(t *testing.T) {
	s, c := newServer(t), newCache(t)
	c.Stall = 50 * time.Millisecond
	for _, path := range []string{"/silent", "/mute"} { // in the middle, from the start
		_, err := c.Get(t.Context(), s.item(path))
		c.refuses(t, err, "thing.deb", "silent for 50ms")
	}
}

func TestGetCancelled(t *testing.T) {
	s, c := newServer(t), newCache(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.Progress = func(Progress) { cancel() } // in the middle of the file
	_, err := c.Get(ctx, s.item("/silent"))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Get = %v, want context.Canceled", err)
	}
	c.refuses(t, err, "thing.deb")
}

// fullDisk is a disk on which left more bytes have room.
type fullDisk struct {
	*os.File
	left int
}

func (d *fullDisk) Write(p []byte) (int, error) {
	n, err := d.File.Write(p[:min(len(p), d.left)])
	d.left -= n
	if err == nil && n < len(p) {
		err = &fs.PathError{Op: "write", Path: d.Name(), Err: syscall.ENOSPC}
	}
	return n, err
}

func TestGetDiskFull(t *testing.T) {
	s, c := newServer(t), newCache(t)
	c.create = func(dir string) (file, error) {
		f, err := os.CreateTemp(dir, "download.*")
		return &fullDisk{f, 100_000}, err
	}
	_, err := c.Get(t.Context(), s.item("/file"))
	c.refuses(t, err, "thing.deb", "350000 bytes", "no space left", "make room", Env)
	if s.hits.Load() != 1 {
		t.Errorf("asked %d times although the disk is full, want once", s.hits.Load())
	}
}

func TestGetManyAtOnce(t *testing.T) {
	s, c := newServer(t), newCache(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := c.Get(t.Context(), s.item("/file")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	c.gets(t, s.item("/file"), s.content)
}

func TestText(t *testing.T) {
	s, c := newServer(t), newCache(t)
	if got, err := c.Text(t.Context(), "index", s.URL+"/file", 1<<20); err != nil || !bytes.Equal(got, s.content) {
		t.Errorf("Text = %d bytes, %v, want %d", len(got), err, len(s.content))
	}
	_, err := c.Text(t.Context(), "index", s.URL+"/file", 1000)
	c.refuses(t, err, "index", "at most 1000 bytes")
}

func TestOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "cache")
	t.Setenv(Env, dir)
	c, err := Open()
	if err != nil || c.Dir != dir {
		t.Fatalf("Open = %v, %v, want it in %s", c, err, dir)
	}
	// What a killed process left is cleared, what a running one has is not.
	old, recent := filepath.Join(dir, "tmp", "download.old"), filepath.Join(dir, "tmp", "download.new")
	for _, name := range []string{old, recent} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	then := time.Now().Add(-25 * time.Hour)
	if err := os.Chtimes(old, then, then); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old temporary file: %v, want that it is gone", err)
	}
	if _, err := os.Stat(recent); err != nil {
		t.Errorf("the recent temporary file: %v", err)
	}

	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(Env, filepath.Join(dir, "file"))
	if _, err := Open(); err == nil || !strings.Contains(err.Error(), Env) {
		t.Errorf("Open of a file = %v, want an error that names %s", err, Env)
	}
	t.Setenv(Env, "")
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	if c, err := Open(); err != nil || c.Dir != filepath.Join(os.Getenv("XDG_CACHE_HOME"), "skerry") {
		t.Errorf("Open = %v, %v, want it in the user's cache folder", c, err)
	}
}

func TestParseSHA256(t *testing.T) {
	good := strings.Repeat("0a", 32)
	if sum, err := ParseSHA256(good); err != nil || sum.String() != good {
		t.Errorf("ParseSHA256(%q) = %v, %v", good, sum, err)
	}
	for _, bad := range []string{
		"",
		good[1:],   // too short
		good + "0", // too long
		good + "00",
		"g" + good[1:], // not hexadecimal
	} {
		if _, err := ParseSHA256(bad); err == nil {
			t.Errorf("ParseSHA256(%q) gave no error", bad)
		}
	}
}
