package datastore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"

	"github.com/k3s-io/kine/pkg/logstructured"
	"github.com/k3s-io/kine/pkg/query"
	"github.com/k3s-io/kine/pkg/server"

	"skerry.internal/skerry/agent/store"
)

// durable is kine on SQLite, and honest about writes that fail. kine forgets why an
// insert into its log failed, and looks at what is there instead: a new object is then not
// there, which kine takes for success, so a full or broken disk would take
// objects that nobody keeps (kine 0.17.5, logstructured.Create and Delete).
type durable struct{ server.Backend }

// outcome is where, in a call's context, the log leaves why it failed.
type outcome struct{}

func (d durable) Create(ctx context.Context, key string, value []byte, lease int64) (rev int64, err error) {
	ctx, failure := withOutcome(ctx)
	if rev, err = d.Backend.Create(ctx, key, value, lease); *failure != nil {
		return 0, *failure
	}
	return rev, err
}

func (d durable) Update(ctx context.Context, key string, value []byte, revision, lease int64) (rev int64, kv *server.KeyValue, ok bool, err error) {
	ctx, failure := withOutcome(ctx)
	if rev, kv, ok, err = d.Backend.Update(ctx, key, value, revision, lease); *failure != nil {
		return 0, nil, false, *failure
	}
	return rev, kv, ok, err
}

func (d durable) Delete(ctx context.Context, key string, revision int64) (rev int64, kv *server.KeyValue, ok bool, err error) {
	ctx, failure := withOutcome(ctx)
	if rev, kv, ok, err = d.Backend.Delete(ctx, key, revision); *failure != nil {
		return 0, nil, false, *failure
	}
	return rev, kv, ok, err
}

func withOutcome(ctx context.Context) (context.Context, *error) {
	failure := new(error)
	return context.WithValue(ctx, outcome{}, failure), failure
}

// log is kine's, which tells the caller of durable how its last insert went.
type log struct{ logstructured.Log }

func (l log) Append(ctx context.Context, e *server.Event) (int64, error) {
	rev, err := l.Log.Append(ctx, e)
	var failed error
	if err != nil && !errors.Is(err, server.ErrKeyExists) {
		failed = fmt.Errorf("write to the database: %w", err)
	}
	if failure, ok := ctx.Value(outcome{}).(*error); ok {
		*failure = failed
	}
	return rev, err
}

// guard watches what kine does with the database. After an error of the disk, or in what the
// database holds, nothing more is written: what the kernel still shows of a file
// whose flush has failed is not what the disk has
// (https://wiki.postgresql.org/wiki/Fsync_Errors), and a commit on top of it
// might be lost. A new start reads the log again and moves it, flushed, into the database.
//
// One writer at a time is let in, as SQLite would have it anyway: so that the next
// one knows how the last has ended.
type guard struct {
	server.Dialect
	writer chan struct{} // holds one token while nobody writes
	once   sync.Once
	failed chan struct{} // closed after the first such error
	err    error         // which; read it when failed is closed
}

func newGuard(d server.Dialect) *guard {
	g := &guard{Dialect: d, writer: make(chan struct{}, 1), failed: make(chan struct{})}
	g.writer <- struct{}{}
	return g
}

// enter waits for its turn to write; leave ends it.
func (g *guard) enter(ctx context.Context) error {
	select {
	case <-g.writer:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-g.failed:
		g.leave()
		return g.err
	default:
		return nil
	}
}

func (g *guard) leave() { g.writer <- struct{}{} }

// look notes an error that concerns more than its own call, and returns it.
func (g *guard) look(err error) error {
	if store.Faulty(err) {
		g.fail(err)
	}
	return err
}

func (g *guard) fail(err error) {
	g.once.Do(func() {
		g.err = err
		close(g.failed)
	})
}

func (g *guard) ListCurrent(ctx context.Context, key, end string, limit int64, includeDeleted, keysOnly bool) (*sql.Rows, error) {
	rows, err := g.Dialect.ListCurrent(ctx, key, end, limit, includeDeleted, keysOnly)
	return rows, g.look(err)
}

func (g *guard) List(ctx context.Context, key, end string, limit, revision int64, includeDeleted, keysOnly bool) (*sql.Rows, error) {
	rows, err := g.Dialect.List(ctx, key, end, limit, revision, includeDeleted, keysOnly)
	return rows, g.look(err)
}

func (g *guard) CountCurrent(ctx context.Context, key, end string) (int64, int64, error) {
	rev, n, err := g.Dialect.CountCurrent(ctx, key, end)
	return rev, n, g.look(err)
}

func (g *guard) Count(ctx context.Context, key, end string, revision int64) (int64, int64, int64, error) {
	rev, compacted, n, err := g.Dialect.Count(ctx, key, end, revision)
	return rev, compacted, n, g.look(err)
}

func (g *guard) CurrentRevision(ctx context.Context) (int64, error) {
	rev, err := g.Dialect.CurrentRevision(ctx)
	return rev, g.look(err)
}

func (g *guard) After(ctx context.Context, key, end string, rev, limit int64) (*sql.Rows, error) {
	rows, err := g.Dialect.After(ctx, key, end, rev, limit)
	return rows, g.look(err)
}

func (g *guard) QueryAfter(ctx context.Context, stmt *query.Stmt, rev int64) (*sql.Rows, error) {
	rows, err := g.Dialect.QueryAfter(ctx, stmt, rev)
	return rows, g.look(err)
}

func (g *guard) PostCompact(ctx context.Context) error {
	if err := g.enter(ctx); err != nil {
		return err
	}
	defer g.leave()
	return g.look(g.Dialect.PostCompact(ctx))
}

func (g *guard) Fill(ctx context.Context, revision int64) error {
	if err := g.enter(ctx); err != nil {
		return err
	}
	defer g.leave()
	return g.look(g.Dialect.Fill(ctx, revision))
}

// BeginTx is followed by the end of its transaction in all that kine does.
func (g *guard) BeginTx(ctx context.Context, opts *sql.TxOptions) (server.Transaction, error) {
	if err := g.enter(ctx); err != nil {
		return nil, err
	}
	tx, err := g.Dialect.BeginTx(ctx, opts)
	if err != nil {
		g.leave()
		return nil, g.look(err)
	}
	return &transaction{Transaction: tx, guard: g}, nil
}

type transaction struct {
	server.Transaction
	guard *guard
	ended sync.Once
}

func (t *transaction) end(err error) error {
	if !errors.Is(err, sql.ErrTxDone) {
		t.guard.look(err)
	}
	t.ended.Do(t.guard.leave)
	return err
}

func (t *transaction) Commit() error   { return t.end(t.Transaction.Commit()) }
func (t *transaction) Rollback() error { return t.end(t.Transaction.Rollback()) }

// MustCommit ends a compaction. kine's own ends the process when it fails, and kine goes on
// as if it had succeeded after this one. When only its time was over (database/sql has rolled
// it back then) that does no harm: at the next turn kine finds another revision in the database
// than it thought, and goes on from that. For any other reason nothing more is written.
func (t *transaction) MustCommit() {
	err := t.Transaction.Commit()
	late := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, sql.ErrTxDone)
	if err != nil && !late {
		t.guard.fail(err)
	}
	t.end(err)
}

// MustRollback does not end the process either: SQLite has rolled back by itself after an error of the disk.
func (t *transaction) MustRollback() { t.Rollback() }

func (t *transaction) Insert(ctx context.Context, key string, created, deleted bool, previousRevision, ttl int64, value []byte) (int64, error) {
	rev, err := t.Transaction.Insert(ctx, key, created, deleted, previousRevision, ttl, value)
	return rev, t.guard.look(err)
}

func (t *transaction) Compact(ctx context.Context, from, to int64) (int64, error) {
	n, err := t.Transaction.Compact(ctx, from, to)
	return n, t.guard.look(err)
}

func (t *transaction) SetCompactRevision(ctx context.Context, revision int64) error {
	return t.guard.look(t.Transaction.SetCompactRevision(ctx, revision))
}

func (t *transaction) CurrentRevision(ctx context.Context) (int64, error) {
	rev, err := t.Transaction.CurrentRevision(ctx)
	return rev, t.guard.look(err)
}

// Failed is closed when the disk has refused to take or give something of the
// durable database, or damage was come upon. From then on it takes no writes; Err says
// why. A new Start is needed.
func (d *Datastore) Failed() <-chan struct{} { return d.guard.failed }

// Err is what has failed, nil while Failed is open.
func (d *Datastore) Err() error {
	select {
	case <-d.guard.failed:
		return d.guard.err
	default:
		return nil
	}
}
