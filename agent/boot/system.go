package boot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/bits"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/atomicfile"
	"skerry.internal/skerry/agent/clock"
	"skerry.internal/skerry/agent/config"
	"skerry.internal/skerry/agent/modules"
	"skerry.internal/skerry/agent/mount"
	"skerry.internal/skerry/agent/network"
	"skerry.internal/skerry/agent/provision"
	"skerry.internal/skerry/agent/supervise"
	"skerry.internal/skerry/agent/watchdog"
)

// System is what steps leave for later ones.
type System struct {
	Console  *Console
	Args     map[string]string // the kernel's command line
	Hardware *watchdog.Hardware
	Feeder   *watchdog.Feeder
	Reaper   *supervise.Reaper // from the root file system on
	// PowerKey receives when somebody presses the power key.
	PowerKey chan struct{}
	// Requests receives what the status API is asked to do to the machine.
	Requests chan Request

	ctx      context.Context // of what runs in the background
	cancel   context.CancelFunc
	tree     *modules.Tree
	events   *modules.Uevents
	device   string // of the slot, then of its verified root
	disk     disk
	config   *config.Config
	hostname string
	floor    time.Time // certain to have passed
	network  *network.Manager
	units    *supervise.Supervisor
	proven   bool // the slot has brought up containerd

	unclaimed bool // when this boot came to it; a claim leaves it as it is
	claiming  claiming

	mu    sync.Mutex // guards what follows
	known known

	starting sync.Mutex // held while the status API is being started; guards what follows
	serving  bool
	repaired bool // STATE had to be, at this boot
	watch    atomic.Pointer[stateWatch]

	booted      chan struct{} // closed when the boot is complete
	screen      context.Context
	stopConsole context.CancelFunc // ends screen
}

// New returns a system of which nothing is known yet.
func New() *System {
	s := &System{Console: &Console{}, PowerKey: make(chan struct{}, 1), Requests: make(chan Request, 1), config: &config.Config{}, booted: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.screen, s.stopConsole = context.WithCancel(s.ctx)
	return s
}

// Supervise makes this process the parent of programs; from then on it must
// not start any by other means than r.
func (s *System) Supervise(r *supervise.Reaper) {
	s.Reaper = r
	s.inheritSteps(os.Getenv(StepsVariable))
	s.units = supervise.New(supervise.Config{
		Reaper: r, RunDir: runDir + "/notify", LogDir: logDir, Cgroup: unitCgroup,
		Printf: s.Console.Printf, Errorf: s.Console.Errorf,
		Status: func(unit, status string) { s.Console.Printf("%s", status) },
	})
	go func() {
		defer s.guard()
		s.units.WakeStopped(s.ctx, 30*time.Second)
	}()
}

// Root is the second half of a boot: from the verified root file system to
// running units.
var Root = []Step{
	{Name: "mount file systems", Run: mountAll},
	{Name: "take over watchdog", Optional: true, Run: startWatchdog},
	{Name: "load modules", Optional: true, Limit: 2 * time.Minute, Run: loadModules},
	{Name: "start watchdog", Optional: true, Run: startWatchdog}, // a driver of the root's modules
	{Name: "start console", Optional: true, Run: startConsole},
	{Name: "set kernel parameters", Optional: true, Run: setParameters},
	{Name: "start swap", Optional: true, Run: startSwap},
	{Name: "set clock to build time", Optional: true, Run: raiseClock},
	{Name: "bring up loopback", Optional: true, Run: func(*System) error { return network.Loopback() }},
	{Name: stepMountState, Limit: 30 * time.Minute, Run: mountState},
	{Name: "make state folders", Run: makeFolders},
	{Name: "watch STATE", Optional: true, Run: watchState},
	{Name: "restore random seed", Optional: true, Run: restoreSeed},
	{Name: "restore machine id", Optional: true, Run: restoreMachineID},
	{Name: "read FIRMWARE", Optional: true, Run: readFirmware},
	{Name: "set watchdog", Optional: true, Run: setWatchdog},
	{Name: "reserve memory", Optional: true, Run: reserveMemory},
	{Name: "restore clock", Optional: true, Run: restoreClock},
	{Name: "set hostname", Optional: true, Run: setHostname},
	{Name: "start network", Optional: true, Run: startNetwork},
	{Name: "announce node", Optional: true, Run: announceNode},
	{Name: "start clock", Optional: true, Run: startClock},
	{Name: "start status API", Optional: true, Run: func(s *System) error { return s.startStatus() }},
	{Name: "watch power key", Optional: true, Run: watchPowerKey},
	{Name: "start containerd", Optional: true, Limit: 6 * time.Minute, Run: startContainerd},
	{Name: "note slot", Run: noteSlot},
	{Name: "wait for network", Optional: true, Run: waitNetwork},
	{Name: "wait for claim", Optional: true, Run: waitClaim}, // in the background
	{Name: "start skerryd", Optional: true, Limit: 11 * time.Minute, Run: startSkerryd},
}

// Where things are. What begins with /run is gone after a reboot.
const (
	runDir      = "/run/skerry"
	stateDir    = "/var/lib/skerry"
	initDir     = stateDir + "/init" // what init remembers
	logDir      = "/var/log/skerry"
	cgroupRoot  = "/sys/fs/cgroup"
	unitCgroup  = cgroupRoot + "/skerry"
	firmwareDir = "/boot/firmware"
	rootModules = "/etc/skerry/modules-root"
	buildTime   = "/etc/skerry/build-time"
	clockFile   = initDir + "/clock"
	seedFile    = initDir + "/random-seed"
	savedConfig = initDir + "/" + config.FileName // FIRMWARE's, as it was read last
)

var rootMounts = []mount.Entry{
	// Mounts made by pods and by the kubelet must be seen by both.
	mount.Propagation{Target: "/", Flags: unix.MS_SHARED | unix.MS_REC},
	mount.Mount{Source: "devpts", Target: "/dev/pts", Type: "devpts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: "mode=0620,gid=5,ptmxmode=0666"},
	mount.Mount{Source: "tmpfs", Target: "/dev/shm", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=1777"},
	mount.Mount{Source: "mqueue", Target: "/dev/mqueue", Type: "mqueue", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	mount.Symlink{Target: "/proc/self/fd", Path: "/dev/fd"},
	mount.Symlink{Target: "/proc/self/fd/0", Path: "/dev/stdin"},
	mount.Symlink{Target: "/proc/self/fd/1", Path: "/dev/stdout"},
	mount.Symlink{Target: "/proc/self/fd/2", Path: "/dev/stderr"},
	mount.Mount{Source: "tmpfs", Target: "/run", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=0755"},
	mount.Mount{Source: "tmpfs", Target: "/tmp", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=1777,size=25%"},
	mount.Mount{Source: "cgroup2", Target: cgroupRoot, Type: "cgroup2", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, Data: "nsdelegate"},
	mount.Mount{Source: "bpf", Target: "/sys/fs/bpf", Type: "bpf", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, Data: "mode=0700"},
	mount.Dir{Path: runDir, Mode: 0o755},
	mount.Dir{Path: runDir + "/notify", Mode: 0o700},
}

func mountAll(s *System) error {
	if err := mountKernel(s); err != nil {
		return err
	}
	if err := mount.Apply(rootMounts); err != nil {
		return err
	}
	// The targets of the root's links, so that who opens them before the
	// network is up finds an empty file.
	if err := os.WriteFile("/run/resolv.conf", nil, 0o644); err != nil {
		return err
	}
	return enableControllers()
}

// enableControllers hands the resource controllers down to the units' cgroups
// and to those that the kubelet makes.
func enableControllers() error {
	data, err := os.ReadFile(cgroupRoot + "/cgroup.controllers")
	if err != nil {
		return fmt.Errorf("list cgroup controllers: %w", err)
	}
	var list []mount.Entry
	for _, dir := range []string{cgroupRoot, unitCgroup} {
		list = append(list, mount.Dir{Path: dir, Mode: 0o755})
		for _, c := range strings.Fields(string(data)) {
			list = append(list, mount.Setting{Path: dir + "/cgroup.subtree_control", Value: "+" + c})
		}
	}
	return mount.Apply(list)
}

// needed is loaded in any case: br_netfilter, without which there are no
// settings for pods that talk over a bridge, since nothing asks for it; the
// rest since finding it here is quicker than by the kernel's request, which
// starts a program for each.
var needed = []string{"br_netfilter", "ext4", "vfat", "nls_cp437", "nls_ascii", "overlay"}

// loadModules loads what the hardware needs and what the list names, and goes
// on loading for hardware that turns up.
func loadModules(s *System) error {
	events, err := modules.Listen()
	if err != nil {
		return err
	}
	tree, err := modules.Open("/")
	if err != nil {
		return err
	}
	list, err := modules.ReadList(rootModules)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // the image's builder has nothing to add
	}
	err = errors.Join(err, tree.LoadAll(slices.Concat(needed, list)), tree.Coldplug("/sys"))
	go s.hotplug(events, "/", "/sys", tree.Seen()) // the tree itself is a megabyte: let it go
	return err
}

// hotplug loads modules for new devices through a modprobe of its own. When
// events were lost, it looks at all devices again.
func (s *System) hotplug(events interface {
	Next(time.Duration) (modules.Event, error)
}, root, sys string, seen map[string]bool) {
	defer s.guard()
	for {
		e, err := events.Next(-1)
		alias := e["MODALIAS"]
		if errors.Is(err, modules.ErrOverrun) {
			tree, err := modules.Open(root)
			if err == nil {
				maps.Copy(tree.Seen(), seen)
				err = tree.Coldplug(sys)
				seen = tree.Seen()
			}
			if err != nil {
				s.Console.Errorf("look at devices again: %v", err)
			}
		}
		if err != nil && !errors.Is(err, modules.ErrOverrun) {
			s.Console.Errorf("%v", err)
			return
		}
		if e["SUBSYSTEM"] == "input" && e["ACTION"] == "add" && strings.HasPrefix(e["DEVNAME"], "input/event") {
			s.openKey("/dev/" + e["DEVNAME"])
		}
		if alias == "" || e["ACTION"] != "add" || seen[alias] {
			continue
		}
		seen[alias] = true
		ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
		s.Reaper.Output(ctx, "/sbin/modprobe", "-q", "--", alias) // most devices have no module of their own
		cancel()
	}
}

// guard keeps a panic in the background from being the end of PID 1.
func (s *System) guard() {
	if p := recover(); p != nil {
		s.Console.Errorf("init: panic: %v", p)
	}
}

// pidMax is as many processes as the kernel can number (PID_MAX_LIMIT of Linux).
const pidMax = 32768 << (7 * (bits.UintSize / 64))

// parameters are the kernel's settings of a Kubernetes node. Those the kubelet
// insists on (protectKernelDefaults) are marked k.
var parameters = []mount.Entry{
	mount.Sysctl("kernel.panic", "10"),                    // k
	mount.Sysctl("kernel.panic_on_oops", "1"),             // k
	mount.Sysctl("kernel.keys.root_maxkeys", "1000000"),   // k
	mount.Sysctl("kernel.keys.root_maxbytes", "25000000"), // k
	mount.Sysctl("vm.overcommit_memory", "1"),             // k
	mount.Sysctl("vm.panic_on_oom", "0"),                  // k
	mount.Sysctl("kernel.pid_max", strconv.Itoa(pidMax)),
	mount.Sysctl("vm.max_map_count", "262144"),
	mount.Sysctl("fs.inotify.max_user_instances", "8192"),
	mount.Sysctl("fs.inotify.max_user_watches", "524288"),
	mount.Sysctl("fs.protected_hardlinks", "1"),
	mount.Sysctl("fs.protected_symlinks", "1"),
	mount.Sysctl("net.ipv4.ip_forward", "1"),
	mount.Sysctl("net.ipv4.conf.all.rp_filter", "0"), // pods answer on other ways than they were asked
	mount.Sysctl("net.ipv4.conf.default.rp_filter", "0"),
	// Another address of the same network, from DHCP, must outlive the first one.
	mount.Sysctl("net.ipv4.conf.all.promote_secondaries", "1"),
	mount.Setting{Path: "/proc/sys/net/ipv6/conf/all/forwarding", Value: "1", Optional: true},
	mount.Setting{Path: "/proc/sys/net/bridge/bridge-nf-call-iptables", Value: "1", Optional: true},
	mount.Setting{Path: "/proc/sys/net/bridge/bridge-nf-call-ip6tables", Value: "1", Optional: true},
	mount.Setting{Path: "/proc/sys/kernel/modprobe", Value: "/sbin/modprobe"},
}

func setParameters(*System) error { return mount.Apply(parameters) }

func raiseClock(s *System) error {
	built, err := clock.Read(buildTime)
	s.setFloor(built)
	return errors.Join(err, s.raise(s.floor))
}

func restoreClock(s *System) error { return s.restoreClock(clockFile, stateDir, s.raise) }

// restoreClock has the clock begin where it was, and learns from the bundle
// what is certain to have passed. The saved time is not certain: NTP may
// correct it backwards, or one bad answer would hold for ever.
func (s *System) restoreClock(file, state string, raise func(time.Time) error) error {
	saved, err := clock.Read(file)
	b, berr := provision.Load(state)
	if b != nil {
		s.setFloor(b.Created)
	}
	return errors.Join(err, berr, raise(clock.Floor(s.floor, saved)))
}

func (s *System) setFloor(t time.Time) {
	s.floor = clock.Floor(s.floor, t)
	s.learn(func(k *known) { k.floor = s.floor })
}

// raise sets the clock to the latest time that is likely to have passed.
func (s *System) raise(likely time.Time) error {
	rtc := clock.RTC("/sys")
	s.learn(func(k *known) { k.source = timeSource(s.floor, likely, rtc) })
	moved, err := clock.Raise(clock.Floor(likely, rtc))
	if moved > clock.Jump {
		s.Console.Printf("clock set forward to %s", time.Now().UTC().Format(time.RFC3339))
	}
	return err
}

// makeFolders makes what programs expect to find on STATE.
func makeFolders(*System) error {
	return mount.Apply([]mount.Entry{
		mount.Dir{Path: stateDir, Mode: 0o700},
		mount.Dir{Path: initDir, Mode: 0o700},
		mount.Dir{Path: "/var/lib/containerd", Mode: 0o711},
		mount.Dir{Path: "/var/lib/kubelet", Mode: 0o750},
		mount.Dir{Path: "/var/log/containers", Mode: 0o755},
		mount.Dir{Path: "/var/log/pods", Mode: 0o755},
		mount.Dir{Path: logDir, Mode: 0o750},
		mount.Dir{Path: "/var/tmp", Mode: 0o777 | fs.ModeSticky},
		mount.Symlink{Target: "/run", Path: "/var/run"},
	})
}

const seedSize = 512

// restoreSeed stirs the last boot's randomness in, and replaces it before it
// can be used twice. It is not counted as entropy: a card may be a copy.
func restoreSeed(*System) error {
	old, err := os.ReadFile(seedFile)
	if err == nil {
		err = os.WriteFile("/dev/urandom", old, 0)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, saveSeed())
}

func saveSeed() error {
	seed := make([]byte, seedSize)
	rand.Read(seed)
	return atomicfile.WriteFile(seedFile, seed, 0o600)
}

// restoreMachineID gives the machine the same id at every boot.
func restoreMachineID(*System) error {
	const file = initDir + "/machine-id"
	id, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !validMachineID(string(id)) {
		raw := make([]byte, 16)
		rand.Read(raw)
		id = append([]byte(hex.EncodeToString(raw)), '\n')
		err = atomicfile.WriteFile(file, id, 0o444)
	}
	if err != nil {
		return err
	}
	return os.WriteFile("/run/machine-id", id, 0o444)
}

func validMachineID(s string) bool {
	b, err := hex.DecodeString(strings.TrimSuffix(s, "\n"))
	return err == nil && len(b) == 16
}

// setHostname names the node: what skerry.yaml says, or a name made from the
// hardware at first boot and kept, so that another network adaptor does not
// make another node.
func setHostname(s *System) error {
	name, err := string(s.config.Hostname), error(nil)
	if name == "" {
		name, err = ownHostname(initDir+"/hostname", hardwareID)
	}
	if name == "" {
		name = "skerry"
	}
	s.hostname = name
	s.learn(func(k *known) { k.hostname = name })
	return errors.Join(err, unix.Sethostname([]byte(name)), os.WriteFile("/run/hostname", []byte(name+"\n"), 0o644))
}

func ownHostname(file string, id func() string) (string, error) {
	data, err := os.ReadFile(file)
	if name := strings.TrimSpace(string(data)); err == nil && config.CheckHostname(name) == nil {
		return name, nil
	}
	name := "skerry-" + id()
	return name, atomicfile.WriteFile(file, []byte(name+"\n"), 0o644)
}

// hardwareID is the last six digits of the first network adaptor's address. A
// USB adaptor may need a moment; a machine without any has its machine id.
func hardwareID() string {
	for deadline := time.Now().Add(10 * time.Second); ; {
		if mac := network.FirstMAC("/sys"); len(mac) == 6 {
			return hex.EncodeToString(mac[3:])
		}
		if !time.Now().Before(deadline) {
			break
		}
		time.Sleep(200 * time.Millisecond) // sysfs has no event of its own, and this is once in a node's life
	}
	id, _ := os.ReadFile("/run/machine-id")
	return string(id[:min(len(id), 6)])
}

func startNetwork(s *System) error {
	s.network = network.New(network.Config{
		JSON: runDir + "/network.json", ResolvConf: "/run/resolv.conf", SavedLease: initDir + "/lease.json",
		Hostname: s.hostname, Interfaces: s.config.Network.Interfaces, Printf: s.Console.Printf, Errorf: s.Console.Errorf,
	})
	s.learn(func(k *known) { k.network = s.network })
	go func() {
		defer s.guard()
		s.network.Run(s.ctx)
	}()
	return nil
}

// startClock keeps the clock right and remembers it once an hour.
func startClock(s *System) error {
	keeper := &clock.Sync{Floor: s.floor, Printf: s.Console.Printf, Synced: func() { s.saveClock() }, Servers: func() []string {
		var servers []string
		for _, server := range s.config.NTP {
			servers = append(servers, string(server))
		}
		if len(servers) == 0 {
			return s.network.NTP()
		}
		return servers
	}}
	s.learn(func(k *known) { k.sync = keeper })
	go func() {
		defer s.guard()
		keeper.Run(s.ctx, s.network.Changed())
	}()
	go func() {
		defer s.guard()
		hourly := time.NewTicker(time.Hour)
		defer hourly.Stop()
		for {
			select {
			case <-hourly.C:
				s.saveClock()
			case <-s.ctx.Done():
				return
			}
		}
	}()
	return nil
}

// saveClock remembers the time if the remembered one is older than half an
// hour: each save is a write to flash memory.
func (s *System) saveClock() {
	if old, err := clock.Read(clockFile); err == nil && time.Since(old).Abs() < 30*time.Minute {
		return
	}
	if err := clock.Save(clockFile, time.Now()); err != nil {
		s.Console.Errorf("save clock: %v", err)
	}
}

// The units, in the order of their start.
var (
	containerd = supervise.Unit{
		Name: "containerd", Args: []string{"/usr/bin/containerd", "--config", "/etc/containerd/config.toml"},
		StartTimeout: 3 * time.Minute, Watchdog: time.Minute, Probe: answersHTTP2("/run/containerd/containerd.sock"), OOMScoreAdj: -999,
	}
	skerryd = supervise.Unit{
		Name: "skerryd", Args: []string{"/usr/bin/skerryd", "--config", runDir + "/" + config.FileName, "--data-dir", stateDir},
		StartTimeout: 10 * time.Minute, StopTimeout: 30 * time.Second, Watchdog: time.Minute, OOMScoreAdj: -999,
	}
)

// containerdPatience is how long containerd may take before a slot counts as one
// that does not come up. It reads its database from a slow card, and is
// started anew meanwhile should it end.
const containerdPatience = 3 * time.Minute

func startContainerd(s *System) error {
	err := s.startUnit(containerd, containerdPatience)
	s.proven = err == nil
	return err
}

// startSkerryd leaves it to a claim where there is no cluster yet.
func startSkerryd(s *System) error {
	if s.unclaimed {
		return nil
	}
	return s.startUnit(skerryd, 10*time.Minute)
}

func (s *System) startUnit(u supervise.Unit, patience time.Duration) error {
	if err := s.units.Start(u); err != nil {
		return err
	}
	return s.units.WaitReady(u.Name, patience)
}

// waitNetwork gives DHCP a moment, so that the first start needs no second. A
// node without a network starts all the same.
func waitNetwork(s *System) error {
	select {
	case <-s.network.Up():
		return nil
	case <-time.After(15 * time.Second):
		return errors.New("no address yet; going on without")
	}
}
