package boot

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/clock"
	"skerry.internal/skerry/agent/config"
	"skerry.internal/skerry/agent/discovery"
	"skerry.internal/skerry/agent/mount"
	"skerry.internal/skerry/agent/network"
	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/boards"
)

// known is what Status reads. Steps write it while others read, so everything
// goes through System.learn.
type known struct {
	steps     []api.Step
	args      map[string]string
	disk      disk
	hostname  string
	cluster   string
	role      string
	mistakes  []config.Mistake
	console   config.Console
	network   *network.Manager
	responder *discovery.Responder
	sync      *clock.Sync
	source    string // of the time at boot
	floor     time.Time
	bootState bootReport

	authorityEnds time.Time
	rot           []api.Problem
}

// learn lets f write what Status reads.
func (s *System) learn(f func(*known)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.known)
}

// recall returns a copy of what is known now.
func (s *System) recall() known {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.known
	k.steps = slices.Clone(k.steps)
	return k
}

// Status says all that init knows of the node. It may be called at any moment
// of a boot and from any goroutine, and does not wait for a disk.
func (s *System) Status() api.Status {
	k := s.recall()
	st := api.Status{
		Time: time.Now().UTC(), Uptime: uptime(),
		Node:    api.Node{Name: k.hostname, Cluster: k.cluster, Role: k.role, Board: k.args["skerry.board"], MachineID: firstLine("/run/machine-id")},
		Version: api.Version{Skerry: firstLine("/etc/skerry/version"), Kernel: firstLine("/proc/sys/kernel/osrelease"), Arch: architecture()},
		Slot:    k.args["skerry.slot"],
		Slots:   s.slotReport(k),
		Steps:   k.steps,
		Clock:   api.Clock{Source: k.source},
		Network: api.Network{Interfaces: network.Interfaces("/sys")},
	}
	if s.units != nil {
		st.Units = s.units.Report()
	}
	if data, err := os.ReadFile("/proc/meminfo"); err == nil {
		st.Memory = parseMemory(data)
	}
	st.State, _ = fileSystem("/var")
	if k.sync != nil {
		if server, at := k.sync.Last(); !at.IsZero() {
			st.Clock = api.Clock{Source: "ntp", Server: server, Synced: at.UTC()}
		}
	}
	var addresses []api.Problem
	if k.network != nil {
		st.Network.Address, addresses = k.network.Address(), k.network.Problems()
	}
	for _, m := range k.mistakes {
		st.Mistakes = append(st.Mistakes, api.Mistake{Line: m.Line, Text: m.Text})
	}
	st.Problems = slices.Concat(k.rot, problems(st), addresses, s.StateFaults(), nameProblems(k.responder), authorityProblems(st.Time, k.authorityEnds))
	return st
}

func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func firstLine(path string) string {
	data, _ := os.ReadFile(path)
	line, _, _ := strings.Cut(string(data), "\n")
	return line
}

func parseMemory(meminfo []byte) (m api.Memory) {
	for line := range strings.Lines(string(meminfo)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			continue
		}
		switch f[0] {
		case "MemTotal:":
			m.Total = kib << 10
		case "MemAvailable:":
			m.Available = kib << 10
		case "SwapTotal:":
			m.SwapTotal = kib << 10
		case "SwapFree:":
			m.SwapFree = kib << 10
		}
	}
	return m
}

// fileSystem is empty as long as nothing is mounted on path.
func fileSystem(path string) (api.FileSystem, error) {
	points, err := mount.Points()
	if err != nil || !slices.ContainsFunc(points, func(p mount.Point) bool { return p.Target == path }) {
		return api.FileSystem{}, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return api.FileSystem{}, fmt.Errorf("measure %q: %w", path, err)
	}
	block := int64(st.Bsize)
	return api.FileSystem{Size: int64(st.Blocks) * block, Free: int64(st.Bavail) * block,
		Inodes: int64(st.Files), InodesFree: int64(st.Ffree), ReadOnly: st.Flags&unix.ST_RDONLY != 0}, nil
}

// timeSource says where the time at boot came from: the latest of the three.
func timeSource(floor, likely, rtc time.Time) string {
	switch {
	case !rtc.IsZero() && !rtc.Before(likely):
		return "rtc"
	case likely.After(floor):
		return "saved"
	}
	return "build"
}

// StepsVariable hands the steps of the initramfs to the root.
const StepsVariable = "SKERRY_STEPS"

// BequeathSteps is the value of StepsVariable.
func (s *System) BequeathSteps() string {
	data, err := json.Marshal(s.recall().steps)
	if err != nil || len(data) > 64<<10 { // the kernel takes 128 KiB
		return ""
	}
	return string(data)
}

// inheritSteps is the inverse of BequeathSteps; steps that can't be read are
// missing from the report and nothing else.
func (s *System) inheritSteps(text string) {
	var steps []api.Step
	if json.Unmarshal([]byte(text), &steps) == nil {
		s.learn(func(k *known) { k.steps = append(steps, k.steps...) })
	}
}

// began notes that a step runs, and returns how to note its end.
func (s *System) began(step Step) (ended func(error)) {
	start := uptime()
	a := api.Step{Name: step.Name, Phase: "initramfs", Start: start, Running: true, Optional: step.Optional}
	if s.units != nil {
		a.Phase = "root"
	}
	var i int
	s.learn(func(k *known) { i = len(k.steps); k.steps = append(k.steps, a) })
	return func(err error) {
		took := uptime() - start
		s.learn(func(k *known) {
			k.steps[i].Took, k.steps[i].Running = took, false
			if err != nil {
				k.steps[i].Error = fmt.Sprintf("%.*s", maxLine, err)
			}
		})
	}
}

// bootReport is what was last read of the boot state and the slots. Reading it
// is the one thing of a report that may wait for the disk, so it is read in
// the background, and the last answer counts meanwhile.
type bootReport struct {
	reading bool
	at      time.Duration // uptime when it was read
	state   *slots.State
	err     error
	version string // of what lies in the slot that does not run
	seq     uint32 // of the boot state with which that was read
}

// slotAge is how old that may be: a console asks every second.
const slotAge = 5 * time.Second

// diskPatience is how long a report waits for a disk that stalls.
const diskPatience = time.Second

func (s *System) slotReport(k known) []api.Slot {
	if k.disk.dev != "" {
		k.bootState = s.readSlots(k)
	}
	b := k.bootState
	if b.state == nil {
		return nil
	}
	var list []api.Slot
	for _, slot := range []slots.Slot{slots.A, slots.B} {
		a := api.Slot{Name: string(slot), Status: string(b.state.Status(slot)), Good: b.state.Good == slot, Trial: b.state.Trial == slot, Version: b.version}
		if a.Name == k.args["skerry.slot"] {
			a.Version = firstLine("/etc/skerry/version")
		}
		list = append(list, a)
	}
	return list
}

// readSlots has the boot state read, and waits for it a little.
func (s *System) readSlots(k known) bootReport {
	if old := k.bootState; !old.reading && (old.at == 0 || uptime()-old.at >= slotAge) {
		mine := false
		s.learn(func(k *known) { mine = !k.bootState.reading; k.bootState.reading = true })
		if mine {
			done := make(chan struct{})
			go func() {
				defer s.guard()
				defer close(done)
				fresh := old
				fresh.at = uptime()
				defer func() { fresh.reading = false; s.learn(func(k *known) { k.bootState = fresh }) }()
				state, _, err := readBootState(k.disk.dev)
				if fresh.err = err; err != nil {
					return
				}
				if old.state == nil || old.seq != state.Seq {
					fresh.version = s.otherVersion(k, state)
				}
				fresh.state, fresh.seq = &state, state.Seq
			}()
			select {
			case <-done:
			case <-time.After(diskPatience):
			}
		}
	}
	return s.recall().bootState
}

// otherVersion reads the version of what lies in the slot that does not run;
// empty when nothing whole lies there.
func (s *System) otherVersion(k known, state slots.State) string {
	running, err := slots.ParseSlot(k.args["skerry.slot"])
	if err != nil || state.Status(running.Other()) == slots.Empty {
		return ""
	}
	number := boards.PartSlotA
	if running.Other() == slots.B {
		number = boards.PartSlotB
	}
	dev, err := k.disk.partition("/dev", number)
	if err != nil {
		return ""
	}
	fat := mount.Mount{Source: dev, Target: runDir + "/slot", Type: "vfat", Flags: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, Data: "umask=0077"}
	if err := fat.Apply(); err != nil {
		return ""
	}
	defer unix.Unmount(fat.Target, unix.MNT_DETACH)
	data, err := os.ReadFile(filepath.Join(fat.Target, slots.ManifestFile))
	if err != nil {
		return ""
	}
	m, err := slots.Parse(data)
	if err != nil {
		return ""
	}
	return m.Version
}

// architecture is this machine's, as boards/ names it.
func architecture() string {
	if runtime.GOARCH == "arm" {
		return "armv7"
	}
	return runtime.GOARCH
}
