// Package fetch keeps downloads in a cache on disk in which each file is known
// by its sha256, so that an image is built from exactly the bytes its lock
// names, and built again without a network.
//
// A file is checked each time it is asked for, not only when it arrives: disks
// fill up and people press reset, and a damaged package must not end up in an
// image. Left out: resuming half a download (a temporary file is never
// trusted) and eviction (delete the folder; it comes back).
package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Env names the variable that moves the cache.
const Env = "SKERRY_CACHE"

var (
	// ErrGone says that the server answered and does not have the file.
	ErrGone = errors.New("the server no longer has this file")
	// ErrOffline says that no server answered.
	ErrOffline = errors.New("no connection; connect this machine to the network and run this again")
)

// MismatchError says that a server sent something else than was wanted.
type MismatchError struct{ Name, Got, Want string }

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%s is not what was asked for: got %s, want %s", e.Name, e.Got, e.Want)
}

// SHA256 is the name and the proof of a file's content.
type SHA256 [sha256.Size]byte

// ParseSHA256 reads 64 hexadecimal digits.
func ParseSHA256(s string) (sum SHA256, err error) {
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != len(sum) {
		return SHA256{}, fmt.Errorf("parse sha256 %q: want 64 hexadecimal digits", s)
	}
	return SHA256(raw), nil
}

// String returns 64 hexadecimal digits.
func (s SHA256) String() string { return hex.EncodeToString(s[:]) }

// MarshalText is for JSON.
func (s SHA256) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is for JSON; it refuses what ParseSHA256 refuses.
func (s *SHA256) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSHA256(string(text))
	return err
}

// Item is one file that is wanted.
type Item struct {
	Name   string   // for people, in messages and on progress bars
	URLs   []string // tried in this order when one is gone or holds something else
	SHA256 SHA256
	Size   int64
}

// Progress is how far one download has come. Total is 0 when it isn't known.
type Progress struct {
	Name        string
	Done, Total int64
}

// Cache is the folder of downloads. Several goroutines and several processes
// may use one folder at a time; set the fields before the first use.
type Cache struct {
	Dir    string
	Client *http.Client
	// Stall is how long a server may stay silent before its download is
	// given up.
	Stall time.Duration
	// Notice receives one line about something that went well in the end but
	// that somebody should know. Progress is called often, from the
	// goroutine that downloads. Both may be nil.
	Notice   func(string)
	Progress func(Progress)

	// create is where bytes reach the disk: tests let it run full.
	create func(dir string) (file, error)
}

type file interface {
	io.WriteCloser
	Name() string
	Sync() error
}

// Open returns the cache at $SKERRY_CACHE or, without that, in the user's
// cache folder. It clears what a killed process left in it a day ago or more.
func Open() (*Cache, error) {
	if dir := os.Getenv(Env); dir != "" {
		return OpenDir(dir)
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find the user's cache folder (set %s instead): %w", Env, err)
	}
	return OpenDir(filepath.Join(base, "skerry"))
}

// OpenDir returns the cache in dir.
func OpenDir(dir string) (*Cache, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open download cache %q: %w", dir, err)
	}
	c := &Cache{Dir: dir, Client: http.DefaultClient, Stall: time.Minute, create: createTemp}
	if err := os.MkdirAll(c.temp(), 0o755); err != nil {
		return nil, fmt.Errorf("make download cache (%s chooses another place): %w", Env, err)
	}
	left, err := os.ReadDir(c.temp())
	if err != nil {
		return nil, fmt.Errorf("open download cache %q: %w", dir, err)
	}
	for _, e := range left {
		if st, err := e.Info(); err == nil && time.Since(st.ModTime()) > 24*time.Hour {
			if err := os.RemoveAll(filepath.Join(c.temp(), e.Name())); err != nil {
				return nil, fmt.Errorf("clear download cache: %w", err)
			}
		}
	}
	return c, nil
}

// Temp makes an empty folder on the cache's file system for something that is
// to be renamed into the cache when it is whole. The caller removes it.
func (c *Cache) Temp() (string, error) { return os.MkdirTemp(c.temp(), "dir.*") }

func (c *Cache) temp() string { return filepath.Join(c.Dir, "tmp") }

func (c *Cache) path(sum SHA256) string {
	name := sum.String()
	return filepath.Join(c.Dir, "sha256", name[:2], name)
}

func createTemp(dir string) (file, error) { return os.CreateTemp(dir, "download.*") }

// Get returns the path of a file with exactly the wanted content, downloading
// it when the cache doesn't hold it whole. Don't write to that path.
func (c *Cache) Get(ctx context.Context, item Item) (string, error) {
	path := c.path(item.SHA256)
	err := check(ctx, path, item)
	if err == nil {
		return path, nil
	}
	if bad := (*MismatchError)(nil); errors.As(err, &bad) {
		c.notice("cached %s is damaged (got %s, want %s): fetching it again", item.Name, bad.Got, bad.Want)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("throw away damaged %s: %w", item.Name, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read cached %s: %w", item.Name, err)
	}

	for i, url := range item.URLs {
		err = c.download(ctx, url, item, path)
		var bad *MismatchError
		if again := errors.Is(err, ErrGone) || errors.As(err, &bad); !again || i == len(item.URLs)-1 {
			break
		}
	}
	if err != nil {
		return "", err
	}
	return path, nil
}

// Text returns what url holds now, at most limit bytes of it. It is not
// cached: it is for the few files that change under one name and carry their
// own signature.
func (c *Cache) Text(ctx context.Context, name, url string, limit int64) ([]byte, error) {
	var text []byte
	err := c.request(ctx, name, url, func(body io.Reader, _ int64) (err error) {
		text, err = io.ReadAll(io.LimitReader(body, limit+1))
		return err
	})
	if err != nil {
		return nil, err
	}
	if int64(len(text)) > limit {
		return nil, &MismatchError{Name: name, Got: "more", Want: fmt.Sprintf("at most %d bytes", limit)}
	}
	return text, nil
}

// check returns nil when path holds item, fs.ErrNotExist when it isn't there
// and a MismatchError when it holds something else.
func check(ctx context.Context, path string, item Item) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != item.Size {
		return sizeMismatch(item, st.Size())
	}
	h := sha256.New()
	if _, err := io.Copy(h, reader{ctx, f}); err != nil {
		return err
	}
	return compare(item, h.Sum(nil))
}

func compare(item Item, sum []byte) error {
	if got := SHA256(sum); got != item.SHA256 {
		return &MismatchError{Name: item.Name, Got: "sha256 " + got.String(), Want: item.SHA256.String()}
	}
	return nil
}

func sizeMismatch(item Item, got int64) error {
	return &MismatchError{Name: item.Name, Got: fmt.Sprintf("%d bytes", got), Want: fmt.Sprint(item.Size)}
}

// download writes a temporary file, checks it and renames it to path, so that
// path is either absent or whole, whatever interrupts this.
func (c *Cache) download(ctx context.Context, url string, item Item, path string) error {
	return c.request(ctx, item.Name, url, func(body io.Reader, length int64) (err error) {
		if length >= 0 && length != item.Size {
			return sizeMismatch(item, length)
		}
		f, err := c.create(c.temp())
		if err != nil {
			return c.diskError(item, err)
		}
		defer cleanUp(f, &err)
		h := sha256.New()
		disk := &diskWriter{ctx: ctx, f: f}
		count := &counter{c: c, p: Progress{Name: item.Name, Total: item.Size}}
		// One byte more than wanted is enough to know that it is too much.
		n, err := io.Copy(io.MultiWriter(disk, h, count), io.LimitReader(body, item.Size+1))
		switch {
		case disk.err != nil:
			return c.diskError(item, disk.err)
		case err != nil:
			return err
		case n != item.Size:
			return sizeMismatch(item, n)
		}
		if err := compare(item, h.Sum(nil)); err != nil {
			return err
		}
		return c.keep(f, item, path)
	})
}

// cleanUp removes a temporary file after an error.
func cleanUp(f file, err *error) {
	if *err == nil {
		return
	}
	f.Close() // it may be closed already; what matters is that it goes
	if rm := os.Remove(f.Name()); rm != nil && !errors.Is(rm, fs.ErrNotExist) {
		*err = fmt.Errorf("%w; and %w", *err, rm)
	}
}

func (c *Cache) keep(f file, item Item, path string) error {
	if err := f.Sync(); err != nil {
		return c.diskError(item, err)
	}
	if err := f.Close(); err != nil {
		return c.diskError(item, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return c.diskError(item, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return c.diskError(item, err)
	}
	return nil
}

func (c *Cache) diskError(item Item, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("store %s (%d bytes or more) in %q: %w: make room there, or set %s to a folder on a larger disk", item.Name, item.Size, c.Dir, err, Env)
	}
	return fmt.Errorf("store %s in %q: %w", item.Name, c.Dir, err)
}

// request runs a GET and hands its body over. A connection that breaks while
// the body arrives is tried again, twice, from the start; a server that can't
// be reached at all is not.
func (c *Cache) request(ctx context.Context, name, url string, use func(body io.Reader, length int64) error) error {
	for attempt := 1; ; attempt++ {
		broken, err := c.requestOnce(ctx, name, url, use)
		if err == nil {
			return nil
		}
		if !broken || attempt == 3 || ctx.Err() != nil {
			return err
		}
		c.notice("%v: trying again", err)
	}
}

func (c *Cache) requestOnce(ctx context.Context, name, url string, use func(body io.Reader, length int64) error) (broken bool, err error) {
	parent := ctx
	stalled := fmt.Errorf("the server was silent for %s", c.Stall)
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	timer := time.AfterFunc(c.Stall, func() { cancel(stalled) })
	defer timer.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false, fmt.Errorf("fetch %s from %q: %w", name, url, err)
	}
	resp, err := c.Client.Do(req)
	if err != nil {
		return false, fmt.Errorf("fetch %s: %w", name, reason(parent, causeOf(ctx, err)))
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone:
		return false, fmt.Errorf("fetch %s from %s: %w (%s)", name, url, ErrGone, resp.Status)
	case resp.StatusCode != http.StatusOK:
		return resp.StatusCode >= 500, fmt.Errorf("fetch %s from %s: the server answered %s", name, url, resp.Status)
	}
	body := &body{r: resp.Body, timer: timer, stall: c.Stall}
	if err := use(body, resp.ContentLength); err != nil {
		if body.err != nil {
			return true, fmt.Errorf("fetch %s from %s: the connection broke: %w", name, url, causeOf(ctx, err))
		}
		return false, err
	}
	return false, nil
}

// reason tells a server that can't be reached from a caller who gave up.
func reason(caller context.Context, err error) error {
	if caller.Err() != nil {
		return context.Cause(caller)
	}
	return fmt.Errorf("%w (%w)", ErrOffline, err)
}

func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func (c *Cache) notice(format string, args ...any) {
	if c.Notice != nil {
		c.Notice(fmt.Sprintf(format, args...))
	}
}

// reader stops a long read when its context ends.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// body remembers that it was the network that failed, and pushes the stall
// timer away as long as bytes arrive.
type body struct {
	r     io.Reader
	timer *time.Timer
	stall time.Duration
	err   error
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if n > 0 {
		b.timer.Reset(b.stall)
	}
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// diskWriter remembers that it was the disk that failed, and stops when its
// context ends.
type diskWriter struct {
	ctx context.Context
	f   io.Writer
	n   int64
	err error
}

func (w *diskWriter) Write(p []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	n, err := w.f.Write(p)
	w.n += int64(n)
	if err != nil {
		w.err = err
	}
	return n, err
}

type counter struct {
	c *Cache
	p Progress
}

func (w *counter) Write(p []byte) (int, error) {
	w.p.Done += int64(len(p))
	if w.c.Progress != nil {
		w.c.Progress(w.p)
	}
	return len(p), nil
}
