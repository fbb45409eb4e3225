package snapshots

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"skerry.internal/skerry/agent/api"
)

// Keeper takes snapshots: one a day, and whenever it is asked.
type Keeper struct {
	Dir      string                                      // where they lie
	Database string                                      // the file that is copied
	Take     func(ctx context.Context, dst string) error // makes dst, a whole copy, or leaves nothing
	Report   func(problem error)                         // of the schedule; nil: all is well again

	mu    sync.Mutex // one at a time
	space func(path string) (size, free int64, err error)
}

const (
	every  = 24 * time.Hour
	settle = 5 * time.Minute // after a start there is enough to do
	look   = time.Hour       // between two looks at the clock, which may jump
)

// Now takes a snapshot. reason is one word, in lower case, and becomes part of
// its name. Callers are those that are about to do something risky.
func (k *Keeper) Now(ctx context.Context, reason string) (s api.Snapshot, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.space == nil {
		k.space = space
	}
	if err := os.MkdirAll(k.Dir, 0o700); err != nil {
		return s, fmt.Errorf("make folder of snapshots: %w", err)
	}
	halves, _ := filepath.Glob(filepath.Join(k.Dir, "*.tmp*")) // what a power cut has left
	for _, half := range halves {
		if err := os.Remove(half); err != nil {
			return s, fmt.Errorf("remove half a snapshot: %w", err)
		}
	}
	list, err := List(k.Dir)
	if err != nil {
		return s, err
	}
	now, next := time.Now().UTC().Truncate(time.Second), int64(1)
	if len(list) > 0 {
		next = number(list[0]) + 1
	}
	s = api.Snapshot{Name: fmt.Sprintf("%06d-%s-%s.db", next, now.Format(timeFormat), reason), Time: now, Reason: reason}
	if _, _, _, ok := parse(s.Name); !ok {
		return s, fmt.Errorf("take snapshot: reason %q: want lower-case letters and digits", reason)
	}
	list, limit, err := k.makeRoom(list)
	if err != nil {
		return s, err
	}
	path := filepath.Join(k.Dir, s.Name)
	if err := k.Take(ctx, path); err != nil {
		return s, fmt.Errorf("take snapshot: %w", err)
	}
	st, err := os.Stat(path)
	if err != nil {
		return s, fmt.Errorf("take snapshot: %w", err)
	}
	s.Bytes = st.Size()
	return s, k.remove(surplus(append([]api.Snapshot{s}, list...), now, limit))
}

// makeRoom drops old snapshots, but never the newest, until there is room for one
// more; none when that would not be enough. It returns those that are left, and how
// many bytes all together may take: an eighth of the disk.
func (k *Keeper) makeRoom(list []api.Snapshot) (left []api.Snapshot, limit int64, err error) {
	st, err := os.Stat(k.Database)
	if err != nil {
		return nil, 0, fmt.Errorf("look at database: %w", err)
	}
	size, free, err := k.space(k.Dir)
	if err != nil {
		return nil, 0, err
	}
	// What is left over must do for the log that grows meanwhile.
	need := st.Size() + max(st.Size()/4, 8<<20)
	keep := len(list)
	for would := free; would < need; keep-- {
		if keep < 2 {
			return nil, 0, fmt.Errorf("take snapshot: %d MiB are free, want %d", free>>20, need>>20)
		}
		would += list[keep-1].Bytes
	}
	return list[:keep], size / 8, k.remove(list[keep:])
}

func (k *Keeper) remove(drop []api.Snapshot) error {
	var errs []error
	for _, s := range drop {
		errs = append(errs, os.Remove(filepath.Join(k.Dir, s.Name)))
	}
	return errors.Join(errs...)
}

// due says whether it is time for the daily one. A newest one from the future is
// from before a jump of the clock.
func due(list []api.Snapshot, now time.Time) bool {
	return len(list) == 0 || now.Sub(list[0].Time) >= every || list[0].Time.After(now.Add(time.Hour))
}

// Run takes a snapshot a day until ctx ends. One that fails is tried again an
// hour later.
func (k *Keeper) Run(ctx context.Context) {
	wait := time.NewTimer(settle)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		list, err := List(k.Dir)
		if err == nil && due(list, time.Now()) {
			if _, err = k.Now(ctx, "daily"); err == nil {
				k.Report(nil)
			}
		}
		if err != nil && ctx.Err() == nil {
			k.Report(err)
		}
		wait.Reset(look)
	}
}

// Serve answers POST /v1/snapshot?reason=R on a unix socket that only root can
// open, until ctx ends.
func (k *Keeper) Serve(ctx context.Context, socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("serve snapshots: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("serve snapshots: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return fmt.Errorf("serve snapshots: %w", errors.Join(err, l.Close()))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/snapshot", func(w http.ResponseWriter, r *http.Request) {
		s, err := k.Now(r.Context(), cmp.Or(r.URL.Query().Get("reason"), "request"))
		answer(w, s, err)
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); ctx.Err() == nil {
		return fmt.Errorf("serve snapshots: %w", err)
	}
	return nil
}

func answer(w http.ResponseWriter, v any, err error) {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		http.Error(w, err.Error(), http.StatusNotFound)
	case errors.Is(err, errRequest):
		http.Error(w, err.Error(), http.StatusBadRequest)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v) // an error is the client's, who has gone
	}
}
