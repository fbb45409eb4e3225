package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/atomicfile"
	"skerry.internal/skerry/boards"
)

// stateWatch looks after STATE while the node runs.
//
// Full: the ballast, a file that holds nothing, is given up when even the blocks
// that only the system may use run out: so the datastore, logs and evictions,
// which have to write before they free anything, can go on. It is made again when
// there is room.
//
// Too many files: ext4 keeps no inodes for the system. So some are kept by empty files, and
// given up at the start, before any pod runs, when there are no others: skerryd can't start
// without a new file, and only the kubelet in it ends the pod that has made so many. Later
// that pod would take these too. So a skerryd that is down then has the node reboot.
//
// Read-only: the kernel refuses writes after it has found an error. What runs, runs
// on; after a while the node reboots, in order, and e2fsck repairs STATE.
type stateWatch struct {
	dir     string // on STATE
	ballast string // a file
	spares  string // a folder of empty files
	errors  string // the kernel's count of errors of this file system
	faults  int    // boots in a row that repaired STATE
	since   time.Time
	now     func() time.Time
	statfs  func(string, *unix.Statfs_t) error
	probe   func() error // of writing
	reboot  func()
	ready   func() bool  // of skerryd
	settled func() error // STATE was well for a day
	say     func(format string, args ...any)

	mu       sync.Mutex // guards problems
	problems []api.Problem

	// Owned by turn.
	known   int64     // errors at the last good probe
	broken  time.Time // since when writing fails
	cause   error
	leaving bool
	quiet   bool      // settled was called
	looked  bool      // once
	stuck   time.Time // since when skerryd is down and there are no inodes
}

const (
	stateLook   = 10 * time.Second
	maxBallast  = 64 << 20
	minFree     = 8 << 20
	spareFiles  = 256
	stuckFor    = 10 * time.Minute
	firstFault  = 30 * time.Minute // from the first failed write to the reboot
	lastFault   = 24 * time.Hour
	settleAfter = 24 * time.Hour
)

const (
	ballastFile = stateDir + "/ballast"
	sparesDir   = stateDir + "/spare-inodes"
	faultsFile  = initDir + "/state-faults"
)

func watchState(s *System) error {
	faults, err := countFaults(faultsFile, s.repaired, func(file string, data []byte) error { return atomicfile.WriteFile(file, data, 0o600) })
	dev, derr := s.disk.partition("/dev", boards.PartState)
	if derr != nil {
		return errors.Join(err, derr)
	}
	w := &stateWatch{
		dir: stateDir, ballast: ballastFile, spares: sparesDir, faults: faults, since: time.Now(), now: time.Now,
		errors: filepath.Join("/sys/fs/ext4", filepath.Base(dev), "errors_count"),
		statfs: unix.Statfs, probe: func() error { return probeWrite(initDir) }, say: s.Console.Errorf,
		reboot: func() { s.request(Request{unix.LINUX_REBOOT_CMD_RESTART, "reboot, for STATE's sake"}) },
		ready: func() bool {
			return slices.ContainsFunc(s.units.Report(), func(u api.Unit) bool { return u.Name == skerryd.Name && u.State == "ready" })
		},
		settled: func() error {
			if err := os.Remove(faultsFile); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return nil
		},
	}
	w.known = -1 // whatever it is: writing is tried once, since errors may have come before this
	s.watch.Store(w)
	go func() {
		defer s.guard()
		look := time.NewTicker(stateLook)
		defer look.Stop()
		for {
			w.turn()
			select {
			case <-look.C:
			case <-s.ctx.Done():
				return
			}
		}
	}()
	return err
}

// StateFaults is what is wrong with STATE that its size and flags don't tell.
func (s *System) StateFaults() []api.Problem {
	w := s.watch.Load()
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.problems)
}

// turn looks once.
func (w *stateWatch) turn() {
	first := !w.looked // no pod runs yet
	w.looked = true
	var st unix.Statfs_t
	if err := w.statfs(w.dir, &st); err != nil {
		w.set(api.Problem{Where: "STATE", What: err.Error()})
		return
	}
	var list []api.Problem
	if w.writable(st) {
		list = append(w.balance(st), w.spare(st, first)...)
		if !w.quiet && w.now().Sub(w.since) > settleAfter {
			w.quiet = true
			if err := w.settled(); err != nil {
				w.say("forget earlier faults of STATE: %v", err)
			}
		}
	} else {
		list = w.leave()
	}
	w.set(list...)
}

// writable says whether the kernel takes writes. The flag alone doesn't tell: since
// Linux 6.12 it stays off after an error. So where the kernel's count of errors has
// risen, a file is written; not otherwise, for that would wear the card.
func (w *stateWatch) writable(st unix.Statfs_t) bool {
	count := readCount(w.errors)
	if st.Flags&unix.ST_RDONLY == 0 && count <= w.known && w.broken.IsZero() {
		return true
	}
	err := w.probe()
	if err == nil || errors.Is(err, unix.ENOSPC) {
		if !w.broken.IsZero() {
			w.say("STATE can be written again")
		}
		w.known, w.broken, w.cause = count, time.Time{}, nil
		return true
	}
	if w.broken.IsZero() {
		w.broken, w.cause = w.now(), err
		w.say("STATE can't be written: %v; what runs, runs on; the node reboots in %v to repair it", err, w.patience())
	}
	return false
}

// patience grows with the repairs that did not last, so that a card that is
// dying is not worn out by reboots.
func (w *stateWatch) patience() time.Duration {
	d := firstFault
	for i := 0; i < w.faults && d < lastFault; i++ {
		d *= 2
	}
	return min(d, lastFault)
}

func (w *stateWatch) leave() []api.Problem {
	left := w.patience() - w.now().Sub(w.broken)
	if left <= 0 && !w.leaving {
		w.leaving = true
		w.say("rebooting to repair STATE")
		w.reboot()
	}
	what := fmt.Sprintf("nothing can be written: %v", w.cause)
	if w.faults > 0 {
		what += fmt.Sprintf("; it was repaired at the last %d starts: the card is failing", w.faults)
	}
	return []api.Problem{{Where: "STATE", What: what,
		Doing: fmt.Sprintf("what runs, runs on; the node reboots in %v to repair it", max(left, 0).Round(time.Minute))}}
}

// balance gives the ballast up or makes it.
func (w *stateWatch) balance(st unix.Statfs_t) []api.Problem {
	bsize := int64(st.Bsize)
	size, avail := int64(st.Blocks)*bsize, int64(st.Bavail)*bsize
	// ext4 keeps the smaller of 2 % and 4096 blocks to itself, and counts them as free.
	free := int64(st.Bfree)*bsize - min(size/50, 4096*bsize)
	weight := min(maxBallast, size/100)
	_, err := os.Lstat(w.ballast)
	there := err == nil
	switch {
	case there && free < max(size/200, minFree):
		if err := os.Remove(w.ballast); err != nil {
			return []api.Problem{{Where: "STATE", What: fmt.Sprintf("it is full, and its reserve can't be given up: %v", err)}}
		}
		there = false
		w.say("STATE is full (%d of %d MiB are free): its reserve of %d MiB is given up, so that room can be made", max(free, 0)>>20, size>>20, weight>>20)
	case !there && avail > 4*weight+minFree:
		if err := makeBallast(w.ballast, weight); err != nil {
			return []api.Problem{{Where: "STATE", What: fmt.Sprintf("its reserve can't be made: %v", err)}}
		}
		there = true
	}
	if !there {
		return []api.Problem{{Where: "STATE", What: fmt.Sprintf("full: %d of %d MiB are free, and the reserve was given up", avail>>20, size>>20),
			Doing: "pods that use much disk are evicted; delete what is not needed"}}
	}
	return nil
}

// spare gives the spare inodes up or makes them.
func (w *stateWatch) spare(st unix.Statfs_t, first bool) []api.Problem {
	_, err := os.Lstat(w.spares)
	there := err == nil
	tight := st.Files > 0 && st.Ffree < spareFiles/2
	if !tight || w.ready() {
		w.stuck = time.Time{}
	}
	switch {
	case tight && there && first:
		if err := dropSpares(w.spares); err != nil {
			return []api.Problem{{Where: "STATE", What: fmt.Sprintf("it has too many files, and its reserve can't be given up: %v", err)}}
		}
		w.say("STATE has too many files: its reserve of %d is given up, so that skerryd can start", spareFiles)
	case tight && there && !w.ready(): // without a reserve a reboot would change nothing
		if w.stuck.IsZero() {
			w.stuck = w.now()
		}
		left := stuckFor - w.now().Sub(w.stuck)
		if left <= 0 && !w.leaving {
			w.leaving = true
			w.say("rebooting, so that skerryd can start before the pods that take all files of STATE")
			w.reboot()
		}
		return []api.Problem{{Where: "STATE", What: "no file can be made, and skerryd, which ends the pods that make so many, does not run",
			Doing: fmt.Sprintf("the node reboots in %v, so that it starts before them", max(left, 0).Round(time.Minute))}}
	case !there && st.Ffree > 16*spareFiles:
		if err := makeSpares(w.spares); err != nil {
			return []api.Problem{{Where: "STATE", What: fmt.Sprintf("its reserve of files can't be made: %v", err)}}
		}
	}
	return nil
}

// dropSpares removes the folder, of which nothing may be left that looks like a whole one.
func dropSpares(dir string) error {
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if err := os.Rename(dir, part); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.RemoveAll(part)
}

// makeSpares makes the folder whole or not at all.
func makeSpares(dir string) error {
	part := dir + ".part"
	if err := errors.Join(os.RemoveAll(part), os.Mkdir(part, 0o700)); err != nil {
		return err
	}
	for i := range spareFiles {
		f, err := os.Create(filepath.Join(part, strconv.Itoa(i)))
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return errors.Join(err, os.RemoveAll(part))
		}
	}
	return os.Rename(part, dir)
}

// makeBallast reserves blocks without writing them.
func makeBallast(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, size), f.Close())
	if err != nil {
		os.Remove(path)
	}
	return err
}

func (w *stateWatch) set(list ...api.Problem) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problems = list
}

// probeWrite writes a file and takes it away.
func probeWrite(dir string) error {
	path := filepath.Join(dir, ".probe")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString("is this disk well?\n")
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(path))
}

func readCount(path string) int64 {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return n
}
