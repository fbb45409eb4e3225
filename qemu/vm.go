// Package qemu runs an image in QEMU as its board would: it starts and cuts the
// virtual machine, follows its console, forwards ports and takes snapshots. It
// sees the product from outside: it knows boards, their FIRMWARE and their
// QEMU machines, and what they print.
//
// A machine never writes to the image it was given: the disk is a throw-away
// qcow2 overlay. A machine that isn't detached dies with the process that started
// it, also when that is killed.
//
// Cut keeps all writes in their order. With Config.Record they are recorded as well, and package
// writelog makes from the record the disks on which what was not flushed is lost.
//
// Left out for now: networks between machines.
package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"skerry.internal/skerry/boards"
)

// Files in a machine's folder.
const (
	OverlayFile = "disk.qcow2"
	ConsoleFile = "console.log" // all that was ever printed, over all starts
	consoleSock = "console.sock"
	qmpSock     = "qmp.sock"
	errorsFile  = "qemu.log"
)

// Config describes a machine. The zero value of what is optional is the machine's default.
type Config struct {
	Dir     string // of this machine alone; made if it isn't there
	Machine *boards.QEMUMachine

	// Image is the image to run; the disk is an overlay over it. RawDisk is
	// used and written in place. One of the two, unless Dir already holds an overlay.
	Image   string
	RawDisk string
	// DiskSize grows the overlay, as a larger card would. 0: as the machine needs.
	DiskSize int64
	// Firmware changes the files of FIRMWARE in a new overlay. Optional.
	Firmware func(files map[string][]byte) error

	UBoot  string // for machines that bring U-Boot by -bios; empty: found by FindUBoot
	Memory int    // MiB
	SMP    int

	// Forwards are TCP ports of the guest that get a port on the host's loopback.
	// A port that is not 0 is asked for, 0 means any free one. Ports says which.
	Forwards map[int]int

	Detach   bool   // outlive the process that called Start
	NoEnv    bool   // U-Boot with its built-in environment: two seconds of listening, slow scan
	LoadVM   string // continue from this snapshot
	Watchdog bool   // plug the machine's watchdog device in
	// RTC is what the hardware clock says at each Start, of machines that have one; zero: the host's time.
	RTC   time.Time
	Extra []string

	// Record has QEMU log each write to a new overlay: see WriteLog. A start goes on where the last one ended.
	Record bool
	// Tap is the host's interface that the network cable leads to, in place of QEMU's own network.
	Tap string
	// Faults allows FailDisk, on machines whose disk is no SD card. It costs the machine its snapshots.
	Faults bool
}

// VM is a machine. Its methods may be called from several goroutines, Start not.
type VM struct {
	cfg Config

	mu      sync.Mutex
	console []byte        // since the last Start
	matched int           // where the next Expect begins
	grown   chan struct{} // closed and replaced when console grows or the machine ends
	ended   bool
	exit    error
	done    chan struct{}
	pid     int
	ports   map[int]int
	line    net.Conn
	qmp     *qmpClient
}

// New prepares a machine: folder, overlay, FIRMWARE. It doesn't start it.
func New(ctx context.Context, cfg Config) (*VM, error) {
	m := cfg.Machine
	if cfg.Memory == 0 {
		cfg.Memory = m.Memory
	}
	if cfg.SMP == 0 {
		cfg.SMP = m.SMP
	}
	if m.Fixed && (cfg.Memory != m.Memory || cfg.SMP != m.SMP) {
		return nil, fmt.Errorf("prepare machine %s: got %d MiB and %d processors, want %d and %d: it has no other size", m.Name, cfg.Memory, cfg.SMP, m.Memory, m.SMP)
	}
	if cfg.Faults && m.Disk == "sd" {
		return nil, fmt.Errorf("prepare machine %s: its disk can't be made to fail: QEMU has no way to change an SD card's layers", m.Name)
	}
	if m.UBoot.Name != "" && cfg.UBoot == "" {
		var err error
		if cfg.UBoot, err = FindUBoot(m); err != nil {
			return nil, err
		}
	}
	var err error
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, fmt.Errorf("prepare machine: %w", err)
	}
	if err := makeDir(cfg.Dir); err != nil {
		return nil, fmt.Errorf("prepare machine: %w", err)
	}
	vm := &VM{cfg: cfg, grown: make(chan struct{}), ended: true, ports: map[int]int{}}
	if err := vm.prepareDisk(ctx); err != nil {
		return nil, err
	}
	if cfg.Record {
		if _, err := os.Stat(vm.WriteLog()); err != nil {
			return nil, fmt.Errorf("record machine %q: a record begins with a new overlay: %w", cfg.Dir, err)
		}
	}
	return vm, nil
}

// makeDir makes a machine's folder, for its owner alone: what is in it holds
// the keys of a cluster. A folder that was there is closed too.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

// Dir is the machine's folder.
func (vm *VM) Dir() string { return vm.cfg.Dir }

func (vm *VM) args() ([]string, error) {
	c, m := vm.cfg, vm.cfg.Machine
	threads := "multi"
	if slices.Contains(m.Args, "-icount") { // counted instructions are in one order
		threads = "single"
	}
	args := append([]string{"-name", "skerry,process=skerry-qemu", "-nodefaults", "-display", "none",
		"-accel", "tcg,thread=" + threads + ",tb-size=512"}, m.Args...)
	args = append(args, "-m", strconv.Itoa(c.Memory), "-smp", strconv.Itoa(c.SMP))
	if m.UBoot.Name != "" {
		args = append(args, "-bios", c.UBoot)
	}
	if m.Env.Size > 0 && !c.NoEnv {
		args = append(args, "-drive", "if=pflash,unit=1,format=raw,readonly=on,file="+escape(vm.path(flashFile)))
	}
	if m.Kernel != "" {
		args = append(args, "-kernel", vm.path(m.Kernel), "-dtb", vm.path(m.DTB))
		if m.Append != "" {
			args = append(args, "-append", m.Append)
		}
	}
	args = append(args, vm.diskArgs()...)
	for _, d := range m.Devices {
		args = append(args, "-device", d)
	}
	if c.Watchdog {
		if m.Watchdog == "" {
			return nil, fmt.Errorf("start machine %s: it has no watchdog that can be used", m.Name)
		}
		args = append(args, "-device", m.Watchdog, "-action", "watchdog=reset")
	}
	netdev, err := vm.netdev()
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", m.Name, err)
	}
	if m.OnBoardNIC {
		args = append(args, "-nic", netdev)
	} else {
		args = append(args, "-netdev", netdev, "-device", m.Net+",netdev=net0")
	}
	// Serial lines before the console's go nowhere. QEMU itself keeps the log,
	// so nothing is lost while nobody is connected.
	for range m.Console {
		args = append(args, "-serial", "null")
	}
	args = append(args,
		"-chardev", "socket,id=console,fd=3,server=on,wait="+onOff(!c.Detach)+",logappend=on,logfile="+escape(vm.path(ConsoleFile)),
		"-serial", "chardev:console",
		"-chardev", "socket,id=qmp,fd=4,server=on,wait=off", "-mon", "chardev=qmp,mode=control")
	if !c.RTC.IsZero() {
		args = append(args, "-rtc", "base="+c.RTC.UTC().Format("2006-01-02T15:04:05"))
	}
	if c.LoadVM != "" {
		args = append(args, "-loadvm", c.LoadVM)
	}
	return append(args, c.Extra...), nil
}

func (vm *VM) path(name string) string { return filepath.Join(vm.cfg.Dir, name) }

// escape doubles the commas in a value of a QEMU option.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// Start turns the machine on. It returns when QEMU runs and answers; what the guest does is for Expect.
func (vm *VM) Start(ctx context.Context) error {
	vm.mu.Lock()
	running := !vm.ended
	vm.mu.Unlock()
	if running {
		return fmt.Errorf("start machine %q: it runs already", vm.cfg.Dir)
	}
	if err := vm.start(ctx); err != nil {
		return fmt.Errorf("start machine %q: %w", vm.cfg.Dir, err)
	}
	return nil
}

func (vm *VM) start(ctx context.Context) error {
	args, err := vm.args()
	if err != nil {
		return err
	}
	binary, err := Binary(vm.cfg.Machine.Arch)
	if err != nil {
		return err
	}
	console, err := listen(vm.cfg.Dir, consoleSock)
	if err != nil {
		return err
	}
	defer console.Close()
	qmp, err := listen(vm.cfg.Dir, qmpSock)
	if err != nil {
		return err
	}
	defer qmp.Close()
	stderr, err := os.Create(vm.path(errorsFile))
	if err != nil {
		return err
	}
	defer stderr.Close()

	cmd := exec.Command(binary, args...)
	cmd.ExtraFiles = []*os.File{console, qmp}
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if vm.cfg.Detach {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	vm.mu.Lock()
	vm.console, vm.matched, vm.ended, vm.exit, vm.done = nil, 0, false, nil, make(chan struct{})
	vm.mu.Unlock()
	if err := vm.spawn(cmd); err != nil {
		vm.finish(err)
		return err
	}
	// Only QEMU listens now: when it ends, what waits for an answer ends too.
	console.Close()
	qmp.Close()
	if err := vm.connect(ctx); err != nil {
		vm.Cut()
		return errors.Join(err, vm.complaint())
	}
	return nil
}

// spawn starts and waits for QEMU on one locked thread: the kernel sends the
// parent-death signal when the thread that forked ends, not the process.
func (vm *VM) spawn(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			vm.mu.Lock()
			vm.pid = cmd.Process.Pid
			vm.mu.Unlock()
		}
		started <- err
		if err == nil {
			vm.finish(cmd.Wait())
		}
	}()
	return <-started
}

func (vm *VM) finish(err error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.ended, vm.exit, vm.pid = true, err, 0
	if vm.done != nil {
		close(vm.done)
	}
	vm.wakeLocked()
}

func (vm *VM) wakeLocked() {
	close(vm.grown)
	vm.grown = make(chan struct{})
}

// connect attaches to console and control socket; ports are known after that.
func (vm *VM) connect(ctx context.Context) error {
	line, err := dial(vm.cfg.Dir, consoleSock)
	if err != nil {
		return err
	}
	control, err := dial(vm.cfg.Dir, qmpSock)
	if err != nil {
		line.Close()
		return err
	}
	vm.mu.Lock()
	vm.line, vm.qmp = line, newQMP(control)
	vm.mu.Unlock()
	go vm.follow(line)
	if err := vm.qmp.hello(ctx); err != nil {
		return err
	}
	if len(vm.cfg.Forwards) == 0 {
		return nil
	}
	table, err := vm.qmp.human(ctx, "info usernet")
	if err != nil {
		return err
	}
	ports := parseForwards(table)
	for guest := range vm.cfg.Forwards {
		if ports[guest] == 0 {
			return fmt.Errorf("forward port %d: QEMU lists no host port for it", guest)
		}
	}
	vm.mu.Lock()
	vm.ports = ports
	vm.mu.Unlock()
	return nil
}

func (vm *VM) follow(line net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := line.Read(buf)
		vm.mu.Lock()
		vm.console = append(vm.console, buf[:n]...)
		vm.wakeLocked()
		vm.mu.Unlock()
		if err != nil {
			line.Close()
			return
		}
	}
}

// Port is the port on the host's loopback that leads to the guest's.
func (vm *VM) Port(guest int) int {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.ports[guest]
}

// Ports lists all forwards, guest to host.
func (vm *VM) Ports() map[int]int {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	ports := map[int]int{}
	for g, h := range vm.ports {
		ports[g] = h
	}
	return ports
}

// PID is QEMU's process, 0 when the machine is off.
func (vm *VM) PID() int {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.pid
}

// expectLimit bounds an Expect whose context has no deadline.
const expectLimit = 10 * time.Minute

// Expect waits until the console prints what matches pattern, after what the last
// Expect matched, and returns match and groups. It ends with an error that
// shows the console's tail when ctx does or when the machine does.
func (vm *VM) Expect(ctx context.Context, pattern string) ([]string, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, fmt.Errorf("expect %q: %w", pattern, err)
	}
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, expectLimit)
		defer cancel()
	}
	for {
		vm.mu.Lock()
		if at := re.FindSubmatchIndex(vm.console[vm.matched:]); at != nil {
			rest := vm.console[vm.matched:]
			groups := make([]string, len(at)/2)
			for i := range groups {
				if at[2*i] >= 0 {
					groups[i] = string(rest[at[2*i]:at[2*i+1]])
				}
			}
			vm.matched += at[1]
			vm.mu.Unlock()
			return groups, nil
		}
		grown, ended, exit := vm.grown, vm.ended, vm.exit
		vm.mu.Unlock()
		if ended {
			return nil, fmt.Errorf("expect %q: the machine ended (%v); %s", pattern, exitText(exit), vm.tail())
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return nil, fmt.Errorf("expect %q: %w; %s", pattern, ctx.Err(), vm.tail())
		}
	}
}

func exitText(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// Console is all that was printed since the last Start.
func (vm *VM) Console() string {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return string(vm.console)
}

func (vm *VM) tail() string {
	lines := strings.Split(strings.TrimRight(vm.Console(), "\r\n"), "\n")
	if len(lines) > 40 {
		lines = lines[len(lines)-40:]
	}
	text := "the console's end:\n" + strings.Join(lines, "\n")
	if err := vm.complaint(); err != nil {
		text += "\n" + err.Error()
	}
	return text
}

// complaint is what QEMU itself printed.
func (vm *VM) complaint() error {
	b, err := os.ReadFile(vm.path(errorsFile))
	if b = bytes.TrimSpace(b); err != nil || len(b) == 0 {
		return nil
	}
	return fmt.Errorf("QEMU says: %s", b)
}

// Send types on the console.
func (vm *VM) Send(text string) error {
	vm.mu.Lock()
	line := vm.line
	vm.mu.Unlock()
	if _, err := line.Write([]byte(text)); err != nil {
		return fmt.Errorf("type on the console: %w", err)
	}
	return nil
}

// Cut takes the power away and waits until the machine is gone. A machine that is off is no error.
func (vm *VM) Cut() {
	vm.mu.Lock()
	pid, done := vm.pid, vm.done
	vm.mu.Unlock()
	if done == nil {
		return
	}
	if pid != 0 {
		syscall.Kill(pid, syscall.SIGKILL) // it is ours and not waited for yet, so the number is not another's
	}
	<-done
}

// Wait waits until the machine has ended by itself.
func (vm *VM) Wait(ctx context.Context) error {
	vm.mu.Lock()
	done := vm.done
	vm.mu.Unlock()
	select {
	case <-done:
		vm.mu.Lock()
		defer vm.mu.Unlock()
		return vm.exit
	case <-ctx.Done():
		return fmt.Errorf("wait for the machine to end: %w; %s", ctx.Err(), vm.tail())
	}
}

// Powerdown presses the power button and waits until the machine is off.
func (vm *VM) Powerdown(ctx context.Context) error {
	if vm.cfg.Machine.NoPowerOff {
		return fmt.Errorf("power machine %s down: QEMU does not end when it does", vm.cfg.Machine.Name)
	}
	if err := vm.qmp.run(ctx, "system_powerdown", nil, nil); err != nil {
		return fmt.Errorf("press the power button: %w", err)
	}
	return vm.Wait(ctx)
}

// Snapshot keeps memory and disk under name in the overlay; Restore goes back there.
func (vm *VM) Snapshot(ctx context.Context, name string) error {
	return vm.monitor(ctx, "savevm "+name)
}

// Restore goes back to a snapshot; the console keeps what was printed since.
func (vm *VM) Restore(ctx context.Context, name string) error { return vm.monitor(ctx, "loadvm "+name) }

// Screenshot writes a PNG of what the machine's display shows.
func (vm *VM) Screenshot(ctx context.Context, file string) error {
	if err := vm.qmp.run(ctx, "screendump", map[string]any{"filename": file, "format": "png"}, nil); err != nil {
		return fmt.Errorf("take a picture of the display: %w", err)
	}
	return nil
}

func (vm *VM) monitor(ctx context.Context, command string) error {
	answer, err := vm.qmp.human(ctx, command)
	if err == nil && strings.TrimSpace(answer) != "" {
		err = errors.New(strings.TrimSpace(answer)) // these commands print only what went wrong
	}
	if err != nil {
		return fmt.Errorf("run %q: %w", command, err)
	}
	return nil
}

// Stats is what QEMU counts.
type Stats struct {
	Written  int64 `json:"bytesWritten"` // to the disk since Start
	Read     int64 `json:"bytesRead"`
	Flushes  int64 `json:"flushes"`
	Resident int64 `json:"residentBytes"` // of QEMU on the host
}

// Stats asks for the disk's counters.
func (vm *VM) Stats(ctx context.Context) (Stats, error) {
	var s Stats
	if err := vm.qmp.stats(ctx, &s); err != nil {
		return s, fmt.Errorf("ask for disk statistics: %w", err)
	}
	s.Resident = resident(vm.PID())
	return s, nil
}

func resident(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	fields := strings.Fields(string(b))
	if err != nil || len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// Disconnect leaves a detached machine's console and control socket to whoever attaches next.
func (vm *VM) Disconnect() {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.line != nil { // it was connected
		vm.line.Close()
		vm.qmp.conn.Close()
	}
}

// Size is the machine's memory in MiB and its number of processors.
func (vm *VM) Size() (memory, smp int) { return vm.cfg.Memory, vm.cfg.SMP }
