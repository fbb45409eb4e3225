package snapshots

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"skerry.internal/skerry/agent/api"
)

// Server is init's side: it answers operators, also while skerryd is dead.
type Server struct {
	Dir      string // of the snapshots
	Database string // the database's folder
	Socket   string // Keeper's
	// Stop ends the program that uses the database; Start starts it again.
	Stop, Start func() error
	Printf      func(format string, args ...any) // prints a line on the console

	restoring sync.Mutex
}

// transferLimit is the time for one database on its way.
const transferLimit = time.Hour

// Handlers are what the status API serves, to administrators only.
func (s *Server) Handlers() map[string]http.Handler {
	return map[string]http.Handler{
		"GET /v1/snapshots":        http.HandlerFunc(s.list),
		"POST /v1/snapshots":       http.HandlerFunc(s.take),
		"GET /v1/snapshots/{name}": http.HandlerFunc(s.download),
		"POST /v1/restore":         http.HandlerFunc(s.restore),
	}
}

func (s *Server) list(w http.ResponseWriter, _ *http.Request) {
	list, err := List(s.Dir)
	answer(w, list, err)
}

// take has skerryd take a snapshot: it has the database open, alone.
func (s *Server) take(w http.ResponseWriter, r *http.Request) {
	extend(w)
	resp, err := s.ask(r.Context(), "/v1/snapshot?reason="+url.QueryEscape(r.URL.Query().Get("reason")))
	if err != nil {
		http.Error(w, fmt.Sprintf("skerryd does not answer, so no snapshot can be taken now (%v); those that are there can be had", err), http.StatusServiceUnavailable)
		return
	}
	defer resp.Body.Close()
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.WriteHeader(resp.StatusCode)
	io.Copy(w, resp.Body)
}

// ask sends skerryd a request over a connection of its own: net/http's client, with
// its proxies and pools, would add 262 kB to init.
func (s *Server) ask(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://skerryd"+path, nil)
	if err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", s.Socket)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	resp, err := (*http.Response)(nil), conn.SetDeadline(time.Now().Add(transferLimit))
	if err == nil {
		err = req.Write(conn)
	}
	if err == nil {
		resp, err = http.ReadResponse(bufio.NewReader(conn), req)
	}
	if err != nil {
		stop()
		conn.Close()
		return nil, err
	}
	resp.Body = closer{resp.Body, func() { stop(); conn.Close() }}
	return resp, nil
}

// closer closes more than its body.
type closer struct {
	io.ReadCloser
	also func()
}

func (c closer) Close() error {
	defer c.also()
	return c.ReadCloser.Close()
}

func (s *Server) download(w http.ResponseWriter, r *http.Request) {
	extend(w)
	path, err := file(s.Dir, r.PathValue("name"))
	if err != nil {
		answer(w, nil, err)
		return
	}
	f, err := os.Open(path)
	if err != nil {
		answer(w, nil, err)
		return
	}
	defer f.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, f)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		answer(w, nil, fmt.Errorf("read snapshot: %w", err))
		return
	}
	w.Header().Set(api.SHA256Header, hex.EncodeToString(sum.Sum(nil)))
	w.Header().Set("Content-Type", "application/vnd.sqlite3")
	w.Header().Set("Content-Length", fmt.Sprint(size))
	io.Copy(w, f)
}

func (s *Server) restore(w http.ResponseWriter, r *http.Request) {
	extend(w)
	if !s.restoring.TryLock() {
		http.Error(w, "another restore is under way", http.StatusConflict)
		return
	}
	defer s.restoring.Unlock()
	var from string
	var body io.Reader = r.Body
	sum := r.URL.Query().Get(api.SHA256Parameter)
	if from = r.URL.Query().Get("snapshot"); from != "" {
		path, err := file(s.Dir, from)
		if err != nil {
			answer(w, nil, err)
			return
		}
		f, err := os.Open(path)
		if err != nil {
			answer(w, nil, err)
			return
		}
		defer f.Close()
		body, sum = f, ""
	} else if from = "upload"; len(sum) != hex.EncodedLen(sha256.Size) {
		answer(w, nil, fmt.Errorf("%w: want ?snapshot=NAME, or a database as the body and its SHA-256 as ?%s=HEX", errRequest, api.SHA256Parameter))
		return
	}
	staged, err := stage(s.Database, body, strings.ToLower(sum), time.Now())
	if err != nil {
		answer(w, nil, err)
		return
	}
	answer(w, api.Restored{From: from, Aside: filepath.Base(staged.aside)}, s.putInPlace(staged, from))
}

// putInPlace exchanges the database while nobody uses it. Whatever happens, its
// user is started again.
func (s *Server) putInPlace(staged *staged, from string) error {
	s.Printf("restore: putting the database from %s in place; the one that was in use goes to %s", from, filepath.Base(staged.aside))
	if err := s.Stop(); err != nil {
		return errors.Join(err, staged.discard(), s.Start())
	}
	err := staged.commit()
	if err != nil {
		s.Printf("restore: %v", err)
		if _, serr := os.Stat(filepath.Join(staged.aside, incoming)); !errors.Is(serr, fs.ErrNotExist) {
			err = errors.Join(err, staged.discard()) // it did not get in use
		}
	}
	return errors.Join(err, s.Start())
}

// extend gives a transfer its time; the server's own limits are for short answers.
// A writer that knows no deadlines has none that could be in the way.
func extend(w http.ResponseWriter) {
	c, end := http.NewResponseController(w), time.Now().Add(transferLimit)
	c.SetReadDeadline(end)
	c.SetWriteDeadline(end)
}
