package datastore

import (
	"context"

	"github.com/k3s-io/kine/pkg/server"
)

// volatile shifts the revisions of kine's memory driver, which always start
// from 0, by base. It also mends two things that matter when the driver runs
// for months: ListStream walks the driver's tree without its lock, and after
// each compaction its watchers get one more event that they have seen before
// (the driver trims its log one entry short).
type volatile struct {
	server.Backend
	base int64
}

var _ server.Backend = (*volatile)(nil)

// in maps a client's revision to the driver's. 0 keeps its meaning, "now".
func (v *volatile) in(rev int64) (int64, error) {
	switch {
	case rev == 0:
		return 0, nil
	case rev <= v.base:
		return 0, server.ErrCompacted // from before this start
	}
	return rev - v.base, nil
}

func (v *volatile) out(rev int64) int64 { return rev + v.base }

func (v *volatile) kv(kv *server.KeyValue) *server.KeyValue {
	if kv == nil {
		return nil
	}
	c := *kv // the driver shares what it returns
	c.CreateRevision = v.out(c.CreateRevision)
	c.ModRevision = v.out(c.ModRevision)
	return &c
}

func (v *volatile) now(ctx context.Context) int64 {
	rev, _ := v.Backend.CurrentRevision(ctx) // a counter in memory: no error
	return v.out(rev)
}

func (v *volatile) CurrentRevision(ctx context.Context) (int64, error) { return v.now(ctx), nil }

func (v *volatile) Get(ctx context.Context, key string, rev int64, keysOnly bool) (int64, *server.KeyValue, error) {
	rev, err := v.in(rev)
	if err != nil {
		return v.now(ctx), nil, err
	}
	now, kv, err := v.Backend.Get(ctx, key, rev, keysOnly)
	return v.out(now), v.kv(kv), err
}

func (v *volatile) Create(ctx context.Context, key string, value []byte, lease int64) (int64, error) {
	rev, err := v.Backend.Create(ctx, key, value, lease)
	return v.out(rev), err
}

func (v *volatile) Delete(ctx context.Context, key string, rev int64) (int64, *server.KeyValue, bool, error) {
	if rev, err := v.in(rev); err == nil {
		now, kv, ok, err := v.Backend.Delete(ctx, key, rev)
		return v.out(now), v.kv(kv), ok, err
	}
	return v.mismatch(ctx, key)
}

func (v *volatile) Update(ctx context.Context, key string, value []byte, rev, lease int64) (int64, *server.KeyValue, bool, error) {
	if rev, err := v.in(rev); err == nil {
		now, kv, ok, err := v.Backend.Update(ctx, key, value, rev, lease)
		return v.out(now), v.kv(kv), ok, err
	}
	return v.mismatch(ctx, key)
}

// mismatch answers a write that was conditional on a revision from before this
// start: it doesn't match whatever is there now.
func (v *volatile) mismatch(ctx context.Context, key string) (int64, *server.KeyValue, bool, error) {
	now, kv, err := v.Get(ctx, key, 0, false)
	return now, kv, false, err
}

func (v *volatile) List(ctx context.Context, key, end string, limit, rev int64, keysOnly bool) (int64, []*server.KeyValue, error) {
	rev, err := v.in(rev)
	if err != nil {
		return v.now(ctx), nil, err
	}
	now, kvs, err := v.Backend.List(ctx, key, end, limit, rev, keysOnly)
	shifted := make([]*server.KeyValue, len(kvs))
	for i, kv := range kvs {
		shifted[i] = v.kv(kv)
	}
	return v.out(now), shifted, err
}

func (v *volatile) ListStream(ctx context.Context, key, end string, limit, rev int64, keysOnly bool) server.ListResult {
	now, kvs, err := v.List(ctx, key, end, limit, rev, keysOnly)
	kvc, errc := make(chan *server.KeyValue, len(kvs)), make(chan error, 1)
	defer close(kvc)
	defer close(errc)
	if err != nil {
		errc <- err
	}
	for _, kv := range kvs {
		kvc <- kv
	}
	return server.ListResult{CurrentRevision: now, KVc: kvc, Errorc: errc}
}

func (v *volatile) Count(ctx context.Context, key, end string, rev int64) (int64, int64, error) {
	rev, err := v.in(rev)
	if err != nil {
		return v.now(ctx), 0, err
	}
	now, n, err := v.Backend.Count(ctx, key, end, rev)
	return v.out(now), n, err
}

func (v *volatile) Compact(ctx context.Context, rev int64) (int64, error) {
	rev, err := v.in(rev)
	if err != nil {
		return v.now(ctx), err
	}
	now, err := v.Backend.Compact(ctx, rev)
	return v.out(now), err
}

func (v *volatile) Watch(ctx context.Context, rev int64) server.WatchResult {
	shifted, err := v.in(rev)
	if err != nil {
		events := make(chan server.EventBatch)
		close(events)
		return server.WatchResult{CurrentRevision: v.now(ctx), CompactRevision: v.out(1), Eventc: events, Errorc: make(chan error)}
	}
	w := v.Backend.Watch(ctx, shifted)
	in, events := w.Eventc, make(chan server.EventBatch, cap(w.Eventc))
	seen := shifted - 1
	go func() {
		defer close(events)
		for batch := range in {
			batch = batch.After(seen)
			seen = max(seen, batch.CurrentRev)
			out := server.EventBatch{CurrentRev: v.out(batch.CurrentRev)}
			for _, e := range batch.Events {
				out.Events = append(out.Events, &server.Event{Delete: e.Delete, Create: e.Create, KV: v.kv(e.KV), PrevKV: v.kv(e.PrevKV)})
			}
			select {
			case events <- out:
			case <-ctx.Done():
				return
			}
		}
	}()
	w.Eventc = events
	w.CurrentRevision = v.out(w.CurrentRevision)
	if w.CompactRevision != 0 {
		w.CompactRevision = v.out(w.CompactRevision)
	}
	return w
}
