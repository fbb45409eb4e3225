package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"skerry.internal/skerry/agent/datastore"
	"skerry.internal/skerry/agent/snapshots"
	"skerry.internal/skerry/agent/store"
	"skerry.internal/skerry/agent/unit"
)

// The folders of the database and of its snapshots, in DataDir, and the socket of
// those who ask for one, in RunDir. init uses them too.
const (
	databaseDir    = "db"
	snapshotDir    = "snapshots"
	snapshotSocket = "skerryd.sock"
)

// lookAgain is the time after which a damaged database is read once more: a bad
// contact may have healed. Sooner would only keep the card busy.
const lookAgain = 10 * time.Minute

// runDatastore serves the database, and hands it to use. With a damaged one it
// says so to whoever looks, and waits: a person decides what is to take its place,
// and is not helped by a process that starts every minute.
func (n *node) runDatastore(again time.Duration, use func(*datastore.Datastore)) func(context.Context, func()) error {
	return outside(n.supervisor, func(ctx context.Context, ready func()) error {
		kept, err := snapshots.List(n.path(snapshotDir))
		if err != nil {
			return err
		}
		d, err := datastore.Start(ctx, datastore.Options{Dir: n.path(databaseDir), RunDir: n.RunDir, Known: len(kept) > 0})
		if errors.Is(err, store.ErrDamaged) {
			n.say("error: " + n.advise(err))
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(again):
			}
		}
		if err != nil {
			return err
		}
		defer d.Stop()
		use(d)
		ready()
		select {
		case <-ctx.Done():
			return nil
		case <-d.Failed():
		}
		n.say(fmt.Sprintf("error: the disk failed the database (%v); objects can be read, as far as they are in memory, and not changed; skerryd starts anew when the disk takes writes", d.Err()))
		return n.untilWritable(ctx, d.Err())
	})
}

// untilWritable returns err when the disk takes writes again, nil when ctx ends
// first. The next start is to look at the whole database: it may be damaged.
func (n *node) untilWritable(ctx context.Context, err error) error {
	const tryEvery = 10 * time.Second // nothing tells when a disk is well again
	for {
		if datastore.Suspect(n.path(databaseDir)) == nil {
			return fmt.Errorf("the disk failed the database: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(tryEvery):
		}
	}
}

// say tells the supervisor, who shows it on the console and in the status, and
// the log.
func (n *node) say(status string) {
	status = strings.ReplaceAll(status, "\n", " ")
	fmt.Fprintln(os.Stderr, "skerryd: "+status)
	n.supervisor.Send("STATUS=" + status)
}

// advise says what to do about a damaged database. What to type comes first: a
// console may cut a long line.
func (n *node) advise(damage error) string {
	what := "no snapshot of it is here; type: skerry cluster restore " + n.name + " FILE"
	if kept, err := snapshots.List(n.path(snapshotDir)); err == nil && len(kept) > 0 {
		what = fmt.Sprintf("type: skerry cluster restore %s --snapshot %s (the newest, of %s)", n.name, kept[0].Name, kept[0].Time.Format(time.DateTime+" UTC"))
	}
	return fmt.Sprintf("the database is damaged: the Kubernetes API is off, and pods run on unwatched; %s; the database is left as it is (%v)", what, damage)
}

// snapshotUnit keeps snapshots of the database: of each day, and when asked.
func (n *node) snapshotUnit() unit.Unit {
	database := n.path(databaseDir, datastore.DatabaseFile)
	failed := false // Report is called by one goroutine
	n.snapshots = &snapshots.Keeper{
		Dir: n.path(snapshotDir), Database: database,
		Take: func(ctx context.Context, dst string) error { return store.Snapshot(ctx, database, dst) },
		Report: func(problem error) {
			switch {
			case errors.Is(problem, store.ErrDamaged):
				n.say("error: " + n.advise(problem))
			case problem != nil:
				n.say(fmt.Sprintf("error: no snapshot of the database: %v; tried again in an hour", problem))
			case failed:
				n.say("the database has a snapshot again")
			}
			failed = problem != nil
		},
	}
	return unit.Unit{Name: "snapshots", Run: func(ctx context.Context, ready func()) error {
		daily := make(chan struct{})
		go func() {
			defer close(daily)
			n.snapshots.Run(ctx)
		}()
		ready()
		err := n.snapshots.Serve(ctx, filepath.Join(n.RunDir, snapshotSocket))
		if ctx.Err() != nil {
			<-daily // no copy must be under way when the database is closed
		}
		return err
	}}
}
