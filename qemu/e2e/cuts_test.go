package e2e

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.internal/skerry/agent/datastore"
	"skerry.internal/skerry/agent/store"
)

// testPowerCuts cuts the power at random moments, and looks for every object whose
// creation was acknowledged. The first cut comes while objects are created, the others in
// the boots that follow, before it is known whether those would have come to their end; with full counts
// each comes while objects are created, and each boot comes to its end. QEMU is killed, so every
// write is kept, in order; TestRecordedCuts loses what was not flushed.
func (n *node) testPowerCuts() {
	const cuts = 3
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SKERRY_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			n.t.Fatalf("SKERRY_SEED: %v", err)
		}
	}
	n.t.Logf("SKERRY_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	moment := func(limit time.Duration) time.Duration { return time.Duration(r.Int64N(int64(limit))) }
	var acknowledged []string
	for cut := range cuts {
		if cut == 0 || testAll() {
			acknowledged = append(acknowledged, n.createUntilCut(cut, moment(10*time.Second))...)
		} else {
			n.cutBoot(moment(n.limit(time.Minute)))
		}
		n.checkDisk(acknowledged)
		if cut == 0 {
			n.checkChecks(acknowledged)
		}
		if n.t.Failed() {
			return
		}
		if cut < cuts-1 && !testAll() {
			continue
		}
		begin := time.Now()
		n.start()
		n.everythingRuns()
		n.t.Logf("cut %d: all pods run and answer %.0f s after the power came back", cut, time.Since(begin).Seconds())
		have := map[string]bool{}
		for _, name := range strings.Fields(n.k("get", "configmaps", "-o", "name")) {
			have[strings.TrimPrefix(name, "configmap/")] = true
		}
		for _, name := range acknowledged {
			if !have[name] {
				n.t.Errorf("cut %d: %s was acknowledged and is lost", cut, name)
			}
		}
	}
	if len(acknowledged) < cuts {
		n.t.Errorf("%d objects acknowledged over %d cuts: the test tried nothing", len(acknowledged), cuts)
	}
	n.t.Logf("%d cuts, %d acknowledged objects, all there", cuts, len(acknowledged))
}

// cutBoot powers the machine on and cuts the power again after that time.
func (n *node) cutBoot(after time.Duration) {
	n.t.Helper()
	if err := n.vm.Start(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
	<-time.After(after) // the moment of the cut is what is random
	n.vm.Cut()
	lines := strings.Split(strings.TrimRight(n.vm.Console(), "\r\n"), "\n")
	n.t.Logf("cut %.1f s after power-on, after %q", after.Seconds(), strings.TrimSpace(lines[len(lines)-1]))
}

// createUntilCut creates ConfigMaps from several clients until the power is
// cut, after, and returns the names whose creation was acknowledged.
func (n *node) createUntilCut(cut int, after time.Duration) []string {
	n.t.Helper()
	client := n.client()
	ctx, cancel := context.WithCancel(n.t.Context())
	var mu sync.Mutex // guards names
	var names []string
	var wg sync.WaitGroup
	first := make(chan struct{})
	var once sync.Once
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("kept-%d-%d-%d", cut, w, i)
				if _, err := client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
					return // the power is gone
				}
				mu.Lock()
				names = append(names, name)
				mu.Unlock()
				once.Do(func() { close(first) })
			}
		})
	}
	select {
	case <-first:
	case <-time.After(n.limit(time.Minute)):
		n.t.Fatalf("no object was created within %v", n.limit(time.Minute))
	}
	<-time.After(after) // the moment of the cut is what is random
	n.vm.Cut()
	cancel()
	wg.Wait()
	return names
}

// checkDisk reads the database from the cut disk on this machine: with the
// file system's journal replayed, the file system is sound and SQLite finds the
// database whole, and it holds what was acknowledged.
func (n *node) checkDisk(acknowledged []string) {
	n.t.Helper()
	dir := n.t.TempDir()
	defer os.RemoveAll(dir)
	db, err := n.cutDatabase(n.copyState(dir))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, name := range acknowledged {
		if !db[name] {
			n.t.Errorf("%s was acknowledged and is not in the database", name)
		}
	}
}

// lazy is what ext4 leaves to the next unmount or e2fsck: the totals in the super
// block, and the mark that the list of orphans is in use.
var lazy = regexp.MustCompile(`^(e2fsck \d.*|Pass \d.*|Free (blocks|inodes) count wrong \(.*|Feature orphan_present is set but orphan file is clean\.|(Fix|Clear)\? no|STATE: .*|)$`)

// fsckProblems is what e2fsck -n has found, but for what is lazy.
func fsckProblems(out string) string {
	if !strings.Contains(out, "Pass 5: ") {
		return "e2fsck did not get to its end:\n" + out
	}
	var problems []string
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); !lazy.MatchString(line) {
			problems = append(problems, line)
		}
	}
	return strings.Join(problems, "\n")
}

// replay takes the journal of a file system in and frees the files that were
// removed while they were open, as a mount would. It refuses whatever else
// e2fsck finds to mend.
func replay(state string) error {
	out, _ := hostCommand("e2fsck", "-p", state).CombinedOutput() // its status says what its text does
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); !replayed.MatchString(line) {
			return fmt.Errorf("replay the journal: %s\n%s", line, out)
		}
	}
	return nil
}

// replayed is what e2fsck says of a sound file system that was not unmounted;
// the backup of the super block does not know that there are orphans.
var replayed = regexp.MustCompile(`^(STATE:? (recovering journal` +
	`|primary superblock features different from backup, check forced\.` +
	`|Feature orphan_present is set but orphan file is clean\.` +
	`|Orphan file \(inode \d+\) block \d+ is not clean\.` +
	`|(Clearing|Truncating) orphaned inode \d+ .*` +
	`|Free (blocks|inodes) count wrong \(.*` +
	`|clean, .*|\d+/\d+ files .*)|CLEARED\.|FIXED\.|)$`)

// sound replays the journal of STATE, as a mount would, and refuses a file
// system in which anything is left to mend.
func sound(state string) error {
	if err := replay(state); err != nil {
		return err
	}
	out, _ := hostCommand("e2fsck", "-f", "-n", state).CombinedOutput() // its status says what its text does
	if problems := fsckProblems(string(out)); problems != "" {
		return fmt.Errorf("file system after its journal was replayed: %s", problems)
	}
	return nil
}

// cutDatabase wants STATE sound after a cut, and returns the names of the
// ConfigMaps in its database.
func (n *node) cutDatabase(state string) (map[string]bool, error) {
	n.t.Helper()
	if err := sound(state); err != nil {
		return nil, err
	}
	return n.database(state)
}

// database wants the database on STATE whole, and returns the names of the ConfigMaps in it.
func (n *node) database(state string) (map[string]bool, error) {
	n.t.Helper()
	path := filepath.Join(filepath.Dir(state), datastore.DatabaseFile)
	for _, suffix := range []string{"", "-wal"} {
		n.debugfs(state, "dump /lib/skerry/db/"+datastore.DatabaseFile+suffix+" "+path+suffix)
	}
	// The same SQLite that wrote it reads it; it takes the log in on opening.
	if err := store.Check(n.t.Context(), path); err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite3", store.DSN(path))
	if err != nil {
		return nil, err
	}
	defer db.Close()
	rows, err := db.Query("SELECT name FROM kine WHERE name LIKE '/registry/configmaps/default/kept-%' AND deleted = 0")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	have := map[string]bool{}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		have[strings.TrimPrefix(name, "/registry/configmaps/default/")] = true
	}
	return have, rows.Err()
}

// checkChecks shows that checkDisk would see harm: a database with noise in it,
// and a file system with noise in it.
func (n *node) checkChecks(acknowledged []string) {
	n.t.Helper()
	damage := func(blocks string) error {
		dir := n.t.TempDir()
		defer os.RemoveAll(dir)
		state := n.copyState(dir)
		if err := replay(state); err != nil { // else it would mend what the noise hits
			n.t.Fatal(err)
		}
		numbers := regexp.MustCompile(`(?m)^[1-9]\d*$`).FindAllString(n.debugfs(state, blocks), -1) // 0: the file does not reach that far
		if len(numbers) == 0 {
			n.t.Fatalf("debugfs %s finds no block", blocks)
		}
		f, err := os.OpenFile(state, os.O_WRONLY, 0)
		if err != nil {
			n.t.Fatal(err)
		}
		defer f.Close()
		for _, number := range numbers {
			block, err := strconv.ParseInt(number, 10, 64)
			if err != nil {
				n.t.Fatal(err)
			}
			if _, err := f.WriteAt(bytes.Repeat([]byte{0xa5}, 4096), block*4096); err != nil {
				n.t.Fatal(err)
			}
		}
		db, err := n.cutDatabase(state)
		if err == nil && len(db) < len(acknowledged) {
			err = fmt.Errorf("%d of %d objects", len(db), len(acknowledged))
		}
		return err
	}
	// Of the database each page but the first, which may be newer in the log.
	var pages strings.Builder
	for page := 1; page < 200; page++ {
		fmt.Fprintf(&pages, "bmap /lib/skerry/db/%s %d\n", datastore.DatabaseFile, page)
	}
	for _, tt := range []struct{ what, blocks, seen string }{
		{"the database", pages.String(), store.ErrDamaged.Error()},
		{"a directory", "bmap /lib/skerry 0", "file system after its journal was replayed"},
	} {
		if err := damage(tt.blocks); err == nil || !strings.Contains(err.Error(), tt.seen) {
			n.t.Errorf("noise in %s: %v; want %q", tt.what, err, tt.seen)
		} else {
			n.t.Logf("noise in %s: %.200s", tt.what, err)
		}
	}
}

func TestReplayed(t *testing.T) {
	for _, tt := range []struct {
		out  string
		fine bool
	}{
		{"STATE: recovering journal\nSTATE: clean, 1765/71424 files, 25566/569344 blocks\n", true},
		{"STATE: recovering journal\nSTATE primary superblock features different from backup, check forced.\nSTATE: Feature orphan_present is set but orphan file is clean.\nCLEARED.\nSTATE: 1765/71424 files (0.4% non-contiguous), 25566/569344 blocks\n", true},
		{"STATE: recovering journal\nSTATE: Clearing orphaned inode 1324 (uid=0, gid=0, mode=0100600, size=4096)\nSTATE: Free blocks count wrong (546641, counted=543566).\nFIXED.\nSTATE: 12/71424 files (41.7% non-contiguous), 22703/569344 blocks\n", true},
		{"STATE: recovering journal\nSTATE: Clearing orphaned inode 32 (uid=0, gid=0, mode=0100644, size=0)\nSTATE primary superblock features different from backup, check forced.\nSTATE: Orphan file (inode 12) block 13 is not clean.\nCLEARED.\nSTATE: 35/71424 files (0.0% non-contiguous), 25566/569344 blocks\n", true},
		{"STATE: recovering journal\nSTATE: Orphan file (inode 12) block 0 contains wrong magic. Terminating orphan file recovery.\n", false},
		{"STATE contains a file system with errors, check forced.\nSTATE: 12/71424 files (41.7% non-contiguous), 22703/569344 blocks\n", false},
		{"STATE: recovering journal\nSTATE: Inode 20, i_blocks is 16, should be 8.  FIXED.\nSTATE: 12/71424 files (41.7% non-contiguous), 22703/569344 blocks\n", false},
		{"STATE: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY.\n\t(i.e., without -a or -p options)\n", false},
	} {
		fine := true
		for line := range strings.Lines(tt.out) {
			fine = fine && replayed.MatchString(strings.TrimSpace(line))
		}
		if fine != tt.fine {
			t.Errorf("taken as sound: %v; want %v:\n%s", fine, tt.fine, tt.out)
		}
	}
}
