// Package datastore gives the API server its etcd: kine on SQLite for what
// must survive, kine's memory driver for what a cluster writes all day and
// makes anew by itself (Leases and Events). Both speak etcd's protocol on unix
// sockets that only root can open.
//
// Left out: external etcd, PostgreSQL and MySQL, which come as drivers of
// their own, because they cost 17 MB.
package datastore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/memory"
	"github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/logstructured"
	"github.com/k3s-io/kine/pkg/logstructured/sqllog"
	"github.com/k3s-io/kine/pkg/server"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"skerry.internal/skerry/agent/atomicfile"
	"skerry.internal/skerry/agent/store"
)

// Volatile lists the resources, in the form of kube-apiserver's
// --etcd-servers-overrides, that are kept in memory only: measured, they are
// nearly all of what an idle cluster writes to its disk. The last is no resource
// of the API: under that name each API server tells the others where it can be
// reached, anew every ten seconds.
var Volatile = []string{"coordination.k8s.io/leases", "/events", "events.k8s.io/events", "/apiServerPeerIPInfo"}

// Emulated is the etcd version that kine claims; the API server asks for it
// before it uses progress notification.
const Emulated = "3.5.13"

// Options says where the data and the sockets are.
type Options struct {
	Dir    string // the database and the boot counter
	RunDir string // the sockets; a unix socket's path has at most 107 bytes
	// Known says that the node has had a database before: then none is made
	// when there is none, since that would be another, empty cluster.
	Known bool
}

// Datastore is a running pair of servers.
type Datastore struct {
	// Endpoint and VolatileEndpoint are URLs for etcd clients.
	Endpoint, VolatileEndpoint string

	guard   *guard
	db      *sql.DB // kine's
	servers []*grpc.Server
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

// DatabaseFile is the name of the SQLite database in Options.Dir.
const DatabaseFile = "state.db"

// madeFile, beside the database, says that it was made.
const madeFile = "made"

// suspectFile, beside the database, says that an earlier start ended with a fault of
// the disk, or with damage: the next one looks at everything.
const suspectFile = "suspect"

// Suspect has the next Start look at all of the database in dir.
func Suspect(dir string) error {
	return atomicfile.WriteFile(filepath.Join(dir, suspectFile), []byte("the disk failed, or damage was come upon\n"), 0o600)
}

// checkThere refuses to make a database where one has been lost, for example to
// lost+found, or is there with nothing in it.
func checkThere(path, mark string, known bool) error {
	st, err := os.Stat(path)
	if err == nil && st.Size() > 0 {
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look at database: %w", err)
	}
	if _, err := os.Stat(mark); err != nil && !known {
		return nil // the first start
	}
	what := "it is gone"
	if err == nil {
		what = "it is empty"
	}
	return fmt.Errorf("check database %q: %w: %s", path, store.ErrDamaged, what)
}

// Start opens the database, refusing a damaged one, and serves until Stop.
func Start(ctx context.Context, o Options) (_ *Datastore, err error) {
	d := &Datastore{}
	ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			d.Stop()
		}
	}()
	path := filepath.Join(o.Dir, DatabaseFile)
	suspect := filepath.Join(o.Dir, suspectFile)
	_, serr := os.Lstat(suspect)
	if err := store.Prepare(ctx, path, serr == nil); err != nil {
		return nil, err
	}
	if serr == nil {
		if err := os.Remove(suspect); err != nil {
			return nil, fmt.Errorf("forget an earlier fault: %w", err)
		}
	}
	mark := filepath.Join(o.Dir, madeFile)
	if err := checkThere(path, mark, o.Known); err != nil {
		return nil, err
	}
	boot, err := countBoot(filepath.Join(o.Dir, "boots"))
	if err != nil {
		return nil, err
	}
	cfg := &drivers.Config{
		// kine's start-up VACUUM rewrites the whole database: minutes on an
		// SD card, and wear for nothing.
		DataSourceName: store.DSN(path) + "&_kine_disable_startup_vacuum",
		// kine's own defaults; its zero values mean "off". But a busy board may need
		// more than its five seconds for one batch, and one that never succeeds would let
		// the database grow for ever.
		CompactInterval:       5 * time.Minute,
		CompactIntervalJitter: 0,
		CompactTimeout:        time.Minute,
		CompactMinRetain:      1000,
		CompactBatchSize:      1000,
		PollBatchSize:         500,
		PollInterval:          time.Second,
	}
	_, dialect, err := sqlite.NewVariant(ctx, &d.wg, "sqlite3", cfg)
	if err != nil {
		return nil, fmt.Errorf("open database %q: %w", path, err)
	}
	d.db = dialect.DB
	d.guard = newGuard(dialect)
	// After the database: a power cut in between leaves one without the mark.
	if err := atomicfile.WriteFile(mark, []byte("the database was made\n"), 0o600); err != nil {
		return nil, fmt.Errorf("mark database as made: %w", err)
	}
	_, mem, err := memory.New(ctx, &d.wg, &drivers.Config{})
	if err != nil {
		return nil, fmt.Errorf("make volatile store: %w", err)
	}
	for _, s := range []struct {
		name     string
		backend  server.Backend
		endpoint *string
	}{
		{"kine.sock", durable{logstructured.New(log{sqllog.New(d.guard, &d.wg, cfg)})}, &d.Endpoint},
		{"volatile.sock", &volatile{Backend: mem, base: boot << 32}, &d.VolatileEndpoint},
	} {
		if *s.endpoint, err = d.serve(ctx, filepath.Join(o.RunDir, s.name), s.backend); err != nil {
			return nil, fmt.Errorf("serve %s: %w", s.name, err)
		}
	}
	return d, nil
}

func (d *Datastore) serve(ctx context.Context, socket string, b server.Backend) (string, error) {
	if err := b.Start(ctx); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		return "", err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return "", err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return "", err
	}
	// Limits as etcd has them: requests of 1.5 MiB plus overhead, and no limit
	// on answers (go.etcd.io/etcd/server/v3/embed).
	s := grpc.NewServer(
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * time.Hour, Timeout: 20 * time.Second}),
		grpc.MaxRecvMsgSize(2<<20), grpc.MaxSendMsgSize(math.MaxInt32),
	)
	server.New(b, "unix", 5*time.Second, Emulated).Register(s)
	d.servers = append(d.servers, s)
	d.wg.Go(func() { s.Serve(l) }) // ends with Stop; the listener goes with it
	return "unix://" + socket, nil
}

// Stop ends the servers, then closes the database, or gives up after stopTime.
func (d *Datastore) Stop() {
	for _, s := range d.servers {
		s.Stop()
	}
	d.cancel()
	d.wg.Wait()
	if d.db == nil {
		return
	}
	// Kine does not wait for readers of its own (ttl.Run, the compactor), and SQLite folds
	// its log into the database when the last connection closes. Nothing signals that.
	for end := time.Now().Add(stopTime); d.db.Stats().OpenConnections > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

// stopTime is how long Stop waits for the last reader, who needs less on a disk that
// works; shorter than what unit gives all of it.
const stopTime = 5 * time.Second

// countBoot adds one to the durable counter in file and returns it. Revisions
// of the volatile store start at the counter × 2³², so that a client which
// remembers one from before a restart never sees them go backwards.
func countBoot(file string) (int64, error) {
	var n int64
	data, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return 0, fmt.Errorf("read boot counter: %w", err)
	default:
		if n, err = strconv.ParseInt(strings.TrimSpace(string(data)), 10, 31); err != nil || n < 0 {
			return 0, fmt.Errorf("read boot counter %q: got %q, want a number", file, data)
		}
	}
	n++
	if err := atomicfile.WriteFile(file, fmt.Appendf(nil, "%d\n", n), 0o600); err != nil {
		return 0, fmt.Errorf("write boot counter: %w", err)
	}
	return n, nil
}
