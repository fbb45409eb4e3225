//go:build full

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.internal/skerry/agent/datastore"
	"skerry.internal/skerry/agent/provision"
	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/qemu"
	"skerry.internal/skerry/qemu/writelog"
)

// stateMark is in STATE's first sector once its file system is whole.
const stateMark = "skerry: STATE is formatted\n"

// acknowledged is an object and where the log stood when its creation had been
// acknowledged: whatever the disk loses after that, it must not be this.
type acknowledged struct {
	name string
	at   int
}

// phase is a piece of the recorded run: cuts are tried from entry from up to to.
type phase struct {
	name     string
	from, to int
}

// recording is a run of a node whose every write to the disk is known.
type recording struct {
	*node
	log       *writelog.Log
	raw       string // the disk as it was before the first write, then as it is followed
	size      int64
	firmware  map[string][]byte // FIRMWARE before the first boot
	formatted int               // from this cut on STATE has its mark
	taken     int               // from this cut on FIRMWARE holds no secret
	ready     int               // the node was Ready
	acks      []acknowledged
	phases    []phase
}

// record boots an image for the first time, starts a pod, and creates objects
// until the power is cut.
func record(t *testing.T, image string) *recording {
	t.Helper()
	r := &recording{node: startNode(t, func(c *qemu.Config) {
		c.Record = true
		if image != "" {
			c.Image = image
		}
	})}
	r.ready = r.position()
	if out, err := r.try(r.podOne(), "apply", "-f", "-"); err != nil {
		t.Fatalf("apply: %v\n%s", err, out)
	}
	r.k("wait", "--for=condition=Ready", "pod/one", "--timeout=240s")
	started := r.position()
	r.create(200)
	written := r.position()
	r.vm.Cut()

	var err error
	if r.log, err = writelog.Open(r.vm.WriteLog()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.log.Close() })
	r.raw = filepath.Join(r.home, "followed.raw")
	if err := r.vm.CopyUnwritten(t.Context(), r.raw); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(r.raw)
	if err != nil {
		t.Fatal(err)
	}
	r.size = info.Size()
	if r.firmware, err = qemu.ReadFirmware(r.raw); err != nil {
		t.Fatal(err)
	}
	r.findFirstBoot()
	bundle := r.log.Writing(0, r.ready, boards.FirmwareStart, boards.SlotAStart)
	if len(bundle) == 0 {
		t.Fatal("nothing was written to FIRMWARE, so no bundle was taken from it")
	}
	r.taken = r.log.NextFlush(bundle[len(bundle)-1]) + 1
	r.phases = []phase{
		{"STATE is grown and formatted", 1, r.formatted},
		{"the bundle is taken", bundle[0], r.taken},
		{"the node gets Ready", r.taken, r.ready},
		{"a pod starts", r.ready, started},
		{"objects are created", started, written},
	}
	t.Logf("recorded %d requests; STATE formatted at %d, bundle taken at %d to %d, Ready at %d, pod at %d, %d objects by %d",
		len(r.log.Entries), r.formatted, bundle[0], r.taken, r.ready, started, len(r.acks), written)
	return r
}

func (r *recording) position() int {
	r.t.Helper()
	n, err := writelog.Count(r.vm.WriteLog())
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// findFirstBoot finds the flush that made STATE's mark last.
func (r *recording) findFirstBoot() {
	r.t.Helper()
	for _, i := range r.log.Writing(0, r.ready, boards.StateStart, boards.StateStart+boards.SectorSize) {
		is, err := r.log.Holds(i, boards.StateStart, []byte(stateMark))
		if err != nil {
			r.t.Fatal(err)
		}
		if is {
			r.formatted = r.log.NextFlush(i) + 1
			return
		}
	}
	r.t.Fatal("STATE's mark was never written")
}

// create creates ConfigMaps from several clients and notes each acknowledgement.
func (r *recording) create(count int) {
	r.t.Helper()
	client := r.client()
	ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Minute)
	defer cancel()
	const clients = 4
	var mu sync.Mutex // guards acks and errs
	var errs []error
	var wg sync.WaitGroup
	for w := range clients {
		wg.Go(func() {
			for i := range count / clients {
				name := fmt.Sprintf("kept-%d-%d", w, i)
				_, err := client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
				at, cerr := writelog.Count(r.vm.WriteLog())
				mu.Lock()
				if err := errors.Join(err, cerr); err != nil {
					errs = append(errs, err)
				} else {
					r.acks = append(r.acks, acknowledged{name, at})
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		r.t.Fatal(err)
	}
}

// cut is one power cut to try.
type cut struct {
	phase, at int
	seed      uint64
	boot      bool
}

// choose spreads cuts over the phases; half of them come right before a flush,
// when most is at stake. Of those to boot, four fifths are of the last phase, when there
// are objects and a pod. The list is in the order of the log.
func (r *recording) choose(count, boots int, rnd *rand.Rand) []cut {
	var cuts []cut
	for i := range count {
		c := cut{phase: i % len(r.phases), seed: rnd.Uint64()}
		p := r.phases[c.phase]
		c.at = p.from + rnd.IntN(p.to-p.from+1)
		if rnd.IntN(2) == 0 {
			c.at = min(r.log.NextFlush(c.at), p.to)
		}
		cuts = append(cuts, c)
	}
	late := boots * 4 / 5
	early := boots - late
	for _, i := range rnd.Perm(count) {
		left := &early
		if cuts[i].phase == len(r.phases)-1 {
			left = &late
		}
		if *left > 0 {
			*left--
			cuts[i].boot = true
		}
	}
	slices.SortStableFunc(cuts, func(a, b cut) int { return a.at - b.at })
	return cuts
}

// seeded is random numbers of a seed that is printed, or given as SKERRY_SEED.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SKERRY_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("SKERRY_SEED: %v", err)
		}
	}
	t.Logf("SKERRY_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// TestRecordedCuts records a node's first boot, a pod's start and a stream of
// objects, and judges disks as power cuts at any moment of it may leave them:
// all on this machine, some by booting them.
func TestRecordedCuts(t *testing.T) {
	count, boots := 60, 2
	if testAll() {
		count, boots = 250, 20
	}
	rnd := seeded(t)
	r := record(t, "")
	cuts := r.choose(count, boots, rnd)
	disk, err := r.log.Follow(r.raw, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	tried, lost := make([]int, len(r.phases)), make([]int, len(r.phases))
	begin := time.Now()
	twin := filepath.Join(r.home, "twin.raw")
	last := len(r.phases) - 1
	var twinFrom int
	for i, c := range cuts {
		if c.at >= r.phases[last].from && twinFrom == 0 {
			// The disk as it is before the objects come, for the twin.
			if err := errors.Join(disk.Advance(r.phases[last].from), disk.Write(twin, nil, 0, r.size)); err != nil {
				t.Fatal(err)
			}
			twinFrom = disk.Done()
		}
		tried[c.phase]++
		if err := r.judge(disk, r.log, c); err != nil {
			lost[c.phase]++
			t.Errorf("cut before entry %d (%s), seed %d: %v", c.at, r.phases[c.phase].name, c.seed, err)
		}
		if (i+1)%20 == 0 {
			t.Logf("%d of %d states, %.1f s each", i+1, len(cuts), time.Since(begin).Seconds()/float64(i+1))
		}
	}
	for i, p := range r.phases {
		t.Logf("%s: %d states tried, %d lost", p.name, tried[i], lost[i])
	}

	r.twin(twin, twinFrom, last, rnd)
	unwritten := filepath.Join(r.home, "unwritten.raw")
	if err := r.vm.CopyUnwritten(t.Context(), unwritten); err != nil {
		t.Fatal(err)
	}
	r.twin(unwritten, 0, 1, rnd)
}

// twin is the same run on a disk that forgets every flush from an entry on; raw
// holds the entries before it. The end of a phase must not be found whole on it.
func (r *recording) twin(raw string, done, phase int, rnd *rand.Rand) {
	r.t.Helper()
	forgetful := r.log.WithoutFlushes(done + 1) // the flush that made them last stays
	disk, err := forgetful.Follow(raw, done)
	if err != nil {
		r.t.Fatal(err)
	}
	defer disk.Close()
	caught := 0
	const cuts = 8
	for range cuts {
		if err := r.judge(disk, forgetful, cut{phase: phase, at: r.phases[phase].to, seed: rnd.Uint64()}); err != nil {
			if caught++; caught == 1 {
				r.t.Logf("%s, without flushes: %.200s", r.phases[phase].name, err)
			}
		}
	}
	r.t.Logf("%s, without flushes: %d of %d states caught", r.phases[phase].name, caught, cuts)
	if caught == 0 {
		r.t.Errorf("%s: a disk without flushes lost nothing in %d cuts: these checks see nothing", r.phases[phase].name, cuts)
	}
}

// judge makes the disk that a cut leaves and says what is wrong with it. That it
// can't be made is no verdict: it ends the test.
func (r *recording) judge(disk *writelog.Disk, log *writelog.Log, c cut) error {
	r.t.Helper()
	dir, err := os.MkdirTemp(r.home, "cut")
	if err != nil {
		r.t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	parts := log.Choose(c.at, c.seed)
	front, state := filepath.Join(dir, "front.raw"), filepath.Join(dir, "state.raw")
	if err := disk.Advance(c.at); err != nil {
		r.t.Fatal(err)
	}
	if err := errors.Join(disk.Write(front, parts, 0, boards.SlotAStart), disk.Write(state, parts, boards.StateStart, r.size)); err != nil {
		r.t.Fatal(err)
	}
	err = r.check(front, state, c.at)
	if err == nil && c.boot {
		whole := filepath.Join(dir, "whole.raw")
		if err := disk.Write(whole, parts, 0, r.size); err != nil {
			r.t.Fatal(err)
		}
		err = r.bootCut(whole, c)
	}
	return err
}

// due are the objects that must be on a disk that was cut there.
func (r *recording) due(at int) []string {
	var names []string
	for _, a := range r.acks {
		if a.at <= at {
			names = append(names, a.name)
		}
	}
	return names
}

// check judges a disk without booting it. front is the disk up to the end of FIRMWARE.
func (r *recording) check(front, state string, at int) error {
	f, err := os.Open(front)
	if err != nil {
		return err
	}
	defer f.Close()
	s, _, err := slots.Read(f, [2]int64{boards.BootState0, boards.BootState1})
	if err != nil {
		return err
	}
	if s.Good != slots.A || s.Phase() != slots.Steady {
		return fmt.Errorf("boot state: got %s, want slot a, steady", s)
	}
	onFirmware, err := r.checkFirmware(f, at)
	if err != nil {
		return err
	}
	formatted, err := r.checkPartition(f, state, at)
	if err != nil {
		return err
	}
	if !formatted {
		if !onFirmware {
			return errors.New("no bundle: STATE is not made yet, and FIRMWARE has none")
		}
		return nil
	}
	return r.checkState(state, at, onFirmware)
}

// checkFirmware wants all files but the bundle as they were, and says whether
// the bundle is there, whole. Once it was taken nothing of it may be left.
func (r *recording) checkFirmware(front *os.File, at int) (bundle bool, err error) {
	all, err := io.ReadAll(io.NewSectionReader(front, boards.FirmwareStart, boards.FirmwareSize))
	if err != nil {
		return false, err
	}
	files, err := qemu.ReadFirmware(front.Name())
	if err != nil {
		// FAT has no journal. A cut while the bundle is removed may leave a name
		// whose clusters are free already, which our strict reader refuses.
		if files, err = mendFirmware(all, filepath.Dir(front.Name())); err != nil {
			return false, err
		}
	}
	for name, want := range r.firmware {
		if name != provision.FileName && !bytes.Equal(files[name], want) {
			return false, fmt.Errorf("FIRMWARE: %s is %d bytes, not the %d that were there", name, len(files[name]), len(want))
		}
	}
	_, err = provision.Parse(files[provision.FileName])
	bundle = err == nil
	if at >= r.taken && (bundle || bytes.Contains(all, []byte("intermediateKey"))) {
		return bundle, errors.New("FIRMWARE: the bundle was taken and is still there")
	}
	return bundle, nil
}

// mendFirmware returns the files that fsck.fat leaves.
func mendFirmware(all []byte, dir string) (map[string][]byte, error) {
	partition, whole := filepath.Join(dir, "firmware.raw"), filepath.Join(dir, "mended.raw")
	if err := os.WriteFile(partition, all, 0o600); err != nil {
		return nil, err
	}
	if out, err := hostCommand("fsck.fat", "-a", "-w", partition).CombinedOutput(); err != nil && hostStatus(err) != 1 { // 1: mended
		return nil, fmt.Errorf("mend FIRMWARE: %w\n%s", err, out)
	}
	mended, err := os.ReadFile(partition)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(whole, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteAt(mended, boards.FirmwareStart)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return qemu.ReadFirmware(whole)
}

func hostStatus(err error) int {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

// checkPartition looks at STATE's partition as init does before it mounts it.
func (r *recording) checkPartition(front *os.File, state string, at int) (formatted bool, err error) {
	mbr := make([]byte, boards.SectorSize)
	if _, err := front.ReadAt(mbr, 0); err != nil {
		return false, err
	}
	entry := mbr[446+16*(boards.PartState-1):]
	sectors := int64(entry[12]) | int64(entry[13])<<8 | int64(entry[14])<<16 | int64(entry[15])<<24
	f, err := os.Open(state)
	if err != nil {
		return false, err
	}
	defer f.Close()
	head := make([]byte, len(stateMark))
	if _, err := f.ReadAt(head, 0); err != nil {
		return false, err
	}
	formatted = string(head) == stateMark
	want := r.size - boards.StateStart
	switch {
	case mbr[510] != 0x55 || mbr[511] != 0xaa || entry[4] != boards.TypeState:
		return false, errors.New("the boot record is broken")
	case !formatted && at >= r.formatted:
		return false, errors.New("STATE was formatted and has lost its mark")
	case formatted && sectors*boards.SectorSize != want:
		return false, fmt.Errorf("STATE is formatted, and its partition has %d bytes, want %d", sectors*boards.SectorSize, want)
	}
	return formatted, nil
}

// checkState judges STATE's file system and what is in it.
func (r *recording) checkState(state string, at int, bundleOnFirmware bool) error {
	dir := filepath.Dir(state)
	if err := sound(state); err != nil {
		return err
	}
	dump := func(path string) (file string, size int64) {
		file = filepath.Join(dir, filepath.Base(path))
		r.debugfs(state, "dump "+path+" "+file)
		if info, err := os.Stat(file); err == nil {
			size = info.Size()
		}
		return file, size
	}
	if !bundleOnFirmware {
		file, _ := dump("/lib/skerry/" + provision.FileName)
		data, err := os.ReadFile(file)
		if err == nil {
			_, err = provision.Parse(data)
		}
		if err != nil {
			return fmt.Errorf("no bundle: neither on FIRMWARE nor on STATE: %w", err)
		}
	}
	file, size := dump("/lib/containerd/io.containerd.metadata.v1.bolt/meta.db")
	if size == 0 && at >= r.ready {
		return errors.New("containerd's metadata is gone")
	}
	if size > 0 {
		if err := checkBolt(file); err != nil {
			return fmt.Errorf("containerd's metadata: %w", err)
		}
	}
	due := r.due(at)
	if _, size := dump("/lib/skerry/db/" + datastore.DatabaseFile); size == 0 {
		if at >= r.ready {
			return errors.New("the database is gone")
		}
		return nil
	}
	have, err := r.database(state)
	if err != nil && at >= r.ready || err != nil && !strings.Contains(err.Error(), "no such table: kine") {
		return err
	}
	for _, name := range due {
		if !have[name] {
			return fmt.Errorf("%s was acknowledged and is not in the database, which has %d of %d", name, len(have), len(due))
		}
	}
	return nil
}

func checkBolt(file string) error {
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return err
	}
	defer db.Close()
	return db.View(func(tx *bbolt.Tx) error {
		var errs []error
		for err := range tx.Check() {
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

// bootCut boots a disk as it was after a cut, until its node is Ready, and asks for the objects.
func (r *recording) bootCut(whole string, c cut) error {
	board, err := boards.ByName("rpi4")
	if err != nil {
		return err
	}
	machine, err := board.Machine("virt")
	if err != nil {
		return err
	}
	vm, err := qemu.New(r.t.Context(), qemu.Config{
		Dir: filepath.Join(filepath.Dir(whole), "vm"), Machine: machine, RawDisk: whole,
		Memory: 2048, SMP: 2, Forwards: map[int]int{6443: r.vm.Port(6443)}, // the kubeconfig names it
	})
	if err != nil {
		return err
	}
	defer vm.Cut()
	ctx, cancel := context.WithTimeout(r.t.Context(), bootTime)
	defer cancel()
	begin := time.Now()
	if err := vm.Start(ctx); err != nil {
		return err
	}
	if _, err := vm.Expect(ctx, `skerry: node ready`); err != nil {
		return err
	}
	r.t.Logf("cut before entry %d (%s): booted, Ready after %.0f s", c.at, r.phases[c.phase].name, time.Since(begin).Seconds())
	out, err := r.try("", "get", "configmaps", "-o", "name")
	if err != nil {
		return fmt.Errorf("ask for the objects: %w: %s", err, out)
	}
	have := strings.Fields(out)
	for _, name := range r.due(c.at) {
		if !slices.Contains(have, "configmap/"+name) {
			return fmt.Errorf("%s was acknowledged and is lost", name)
		}
	}
	if c.at < r.phases[3].to {
		return nil
	}
	// What is said of the pod may be from before the cut until kubelet has looked at
	// it, so a command in it says whether it runs.
	deadline := time.Now().Add(3 * time.Minute)
	for {
		out, err := r.try("", "exec", "one", "--", "/bin/busybox", "echo", "it runs")
		if err == nil && out == "it runs\n" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the pod that ran before does not run again: %v: %s", err, out)
		}
		<-time.After(time.Second)
	}
}
