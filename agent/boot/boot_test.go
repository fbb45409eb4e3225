package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/clock"
	"skerry.internal/skerry/agent/config"
	"skerry.internal/skerry/agent/modules"
	"skerry.internal/skerry/agent/provision"
)

func names(steps []Step) (list []string) {
	for _, s := range steps {
		name := s.Name
		if s.Optional {
			name += "?"
		}
		list = append(list, name)
	}
	return list
}

// The order of the boot is what a node's life hangs on: changing it takes a
// change here. A question mark is an optional step.
func TestTables(t *testing.T) {
	for _, tt := range []struct {
		name  string
		steps []Step
		want  []string
	}{
		{"Initramfs", Initramfs, []string{"mount kernel file systems", "load listed modules?", "start watchdog?", "load modules for hardware?",
			"find slot", "open slot", "mount root", "check init", "count boot", "switch root"}},
		{"Root", Root, []string{"mount file systems", "take over watchdog?", "load modules?", "start watchdog?", "start console?", "set kernel parameters?", "start swap?",
			"set clock to build time?", "bring up loopback?", "mount STATE", "make state folders", "watch STATE?", "restore random seed?", "restore machine id?",
			"read FIRMWARE?", "set watchdog?", "reserve memory?", "restore clock?", "set hostname?", "start network?", "announce node?", "start clock?", "start status API?", "watch power key?",
			"start containerd?", "note slot", "wait for network?", "wait for claim?", "start skerryd?"}},
		{"onClaim", onClaim, []string{"start status API?", "start skerryd?"}},
		{"Shutdown", Shutdown, []string{"stop units?", "end processes?", "save clock and random seed?", "unmount STATE?", "flush disks?"}},
	} {
		if got := names(tt.steps); !slices.Equal(got, tt.want) {
			t.Errorf("%s = %q; want %q", tt.name, got, tt.want)
		}
		for _, s := range tt.steps {
			if s.Run == nil {
				t.Errorf("%s: %q does nothing", tt.name, s.Name)
			}
		}
	}
	if containerd.Name != "containerd" || skerryd.Name != "skerryd" || skerryd.Watchdog == 0 {
		t.Errorf("units = %+v, %+v", containerd, skerryd)
	}
}

// system returns one whose console is a file, and a function that reads it.
func system(t *testing.T) (*System, func() string) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "console")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	s := New()
	s.Console.kmsg = f
	return s, func() string {
		data, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
}

func TestRun(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name string
		step Step
		want string // on the console
		err  string // the boot's end
	}{
		{"good", Step{Name: "x", Run: func(*System) error { return nil }}, "<5>skerry: x done in ", ""},
		{"optional", Step{Name: "x", Optional: true, Run: func(*System) error { return broken }}, "<3>skerry: error: x: broken\n", ""},
		{"required", Step{Name: "x", Run: func(*System) error { return broken }}, "", "broken"},
		{"panic", Step{Name: "x", Run: func(*System) error { panic("ouch") }}, "", "panic: ouch"},
		{"hung", Step{Name: "x", Limit: 10 * time.Millisecond, Run: func(*System) error { select {} }}, "", "not done after 10ms"},
		{"hung, optional", Step{Name: "x", Optional: true, Limit: 10 * time.Millisecond, Run: func(*System) error { select {} }}, "error: x: not done after 10ms\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, console := system(t)
			after := false
			err := s.Run([]Step{tt.step, {Name: "after", Run: func(*System) error { after = true; return nil }}})
			if got := console(); !strings.Contains(got, tt.want) {
				t.Errorf("console = %q; want %q", got, tt.want)
			}
			if tt.err == "" {
				if err != nil || !after {
					t.Errorf("Run() = %v, went on %v; want the next step", err, after)
				}
				return
			}
			var step *StepError
			if !errors.As(err, &step) || step.Step != "x" || err.Error() != tt.err || after {
				t.Errorf("Run() = %v, went on %v; want %q of x", err, after, tt.err)
			}
		})
	}
}

func TestConsole(t *testing.T) {
	s, console := system(t)
	s.Console.Errorf("two\nlines %s", strings.Repeat("x", 2000))
	got := console()
	if !strings.HasPrefix(got, "<3>skerry: error: two; lines xxx") || strings.Count(got, "\n") != 1 || len(got) > 1000 {
		t.Errorf("Errorf() wrote %q; want one bounded line", got)
	}
}

func TestParseCommandLine(t *testing.T) {
	got := ParseCommandLine("ro quiet a=1 a=2 b=\"x y\" \"c=z w\"  d=e=f\n")
	want := map[string]string{"ro": "", "quiet": "", "a": "2", "b": "x y", "c": "z w", "d": "e=f"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("ParseCommandLine() = %q; want %q", got, want)
	}
}

func TestSlotErrors(t *testing.T) {
	s, _ := system(t)
	s.Args = map[string]string{"skerry.slot": "a"}
	if err := openSlot(s); err == nil || !strings.HasPrefix(err.Error(), "slot a: root file system refused: ") {
		t.Errorf("openSlot() without parameters = %v; want it refused", err)
	}
	if err := mountRoot(s); err == nil || !strings.HasPrefix(err.Error(), "slot a: root file system refused: ") {
		t.Errorf("mountRoot() without a type = %v; want it refused", err)
	}
	if err := findSlot(s); err == nil || !strings.HasPrefix(err.Error(), "slot a: no slot: ") {
		t.Errorf("findSlot() without a partition = %v; want no slot", err)
	}
}

func TestOwnHostname(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hostname")
	calls := 0
	id := func() string { calls++; return fmt.Sprintf("12345%d", calls) }
	for range 2 { // the second call reads what the first has kept
		if got, err := ownHostname(file, id); got != "skerry-123451" || err != nil {
			t.Errorf("ownHostname() = %q, %v; want skerry-123451", got, err)
		}
	}
	if err := os.WriteFile(file, []byte("Not A Name\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := ownHostname(file, id); got != "skerry-123452" || err != nil {
		t.Errorf("ownHostname() with a torn file = %q, %v; want a new one", got, err)
	}
}

// A saved time that is wrong must not become a floor for NTP.
func TestRestoreClock(t *testing.T) {
	dir := t.TempDir()
	built, created, saved := time.Unix(1000, 0), time.Unix(2000, 0), time.Unix(3000, 0)
	bundle, err := (&provision.Bundle{Cluster: "c", Role: provision.RoleServer, Created: created,
		CACert: []byte("x"), IntermediateCert: []byte("x"), IntermediateKey: []byte("x")}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, provision.FileName), bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "clock")
	if err := clock.Save(file, saved); err != nil {
		t.Fatal(err)
	}
	s, _ := system(t)
	s.floor = built
	var raised time.Time
	if err := s.restoreClock(file, dir, func(at time.Time) error { raised = at; return nil }); err != nil {
		t.Fatal(err)
	}
	if !raised.Equal(saved) || !s.floor.Equal(created) {
		t.Errorf("restoreClock() raised to %v, floor %v; want %v and %v", raised, s.floor, saved, created)
	}
}

// source is a list of device events; nil stands for lost ones.
type source []modules.Event

func (s *source) Next(time.Duration) (modules.Event, error) {
	if len(*s) == 0 {
		return nil, errors.New("no more events")
	}
	e := (*s)[0]
	*s = (*s)[1:]
	if e == nil {
		return nil, modules.ErrOverrun
	}
	return e, nil
}

// After lost events the devices in /sys are looked at: the one here names a
// module whose file is missing, which shows that it was found.
func TestHotplugOverrun(t *testing.T) {
	root := t.TempDir()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"modules.dep": "missing.ko:\n", "modules.alias": "alias usb:v1* missing\n", "sys/devices/new/modalias": "usb:v1p2\n",
	} {
		if !strings.HasPrefix(name, "sys/") {
			name = filepath.Join("lib/modules", unix.ByteSliceToString(u.Release[:]), name)
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s, console := system(t)
	// The lost one twice: what was tried is not tried again. Then its event.
	s.hotplug(&source{nil, nil, {"ACTION": "add", "MODALIAS": "usb:v1p2"}}, root, filepath.Join(root, "sys"), map[string]bool{})
	if got := console(); strings.Count(got, "missing.ko") != 1 || !strings.Contains(got, "no more events") {
		t.Errorf("console = %q; want the module tried once", got)
	}
}

func TestConfigure(t *testing.T) {
	dir := t.TempDir()
	saved := filepath.Join(dir, "saved.yaml")
	broken := errors.New("broken")
	const a = "hostname: a\n"
	for _, tt := range []struct { // each after the one before, like boots
		name     string
		data     string
		fault    error
		hostname string
		console  string
	}{
		{"unreadable at first boot", "", broken, "", "there is no copy of its skerry.yaml; using defaults"},
		{"read", a, nil, "a", ""},
		{"unreadable", "", broken, "a", "using the copy of its skerry.yaml from an earlier boot"},
		{"changed", "hostname: b\n", nil, "b", ""},
		{"unreadable after a change", "", broken, "b", "using the copy"},
		{"removed", "", nil, "", ""},
		{"unreadable after removal", "", broken, "", "using the copy"},
	} {
		s, console := system(t)
		err := s.configure([]byte(tt.data), tt.fault, saved, dir)
		if !errors.Is(err, tt.fault) || tt.fault == nil && err != nil || string(s.config.Hostname) != tt.hostname {
			t.Errorf("%s: configure() = %v, hostname %q; want %v, %q", tt.name, err, s.config.Hostname, tt.fault, tt.hostname)
		}
		if got := console(); !strings.Contains(got, tt.console) || tt.console == "" && got != "" {
			t.Errorf("%s: console = %q; want %q", tt.name, got, tt.console)
		}
		used, err := os.ReadFile(filepath.Join(dir, config.FileName))
		if err != nil || strings.Contains(string(used), "hostname") != (tt.hostname != "") {
			t.Errorf("%s: skerryd reads %q, %v", tt.name, used, err)
		}
		if st, err := os.Stat(filepath.Join(dir, config.FileName)); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s: skerryd's file has mode %v, %v; want 0600: it may hold passwords", tt.name, st.Mode(), err)
		}
	}
	s, _ := system(t) // a copy that cannot be kept
	if err := s.configure([]byte(a), nil, filepath.Join(dir, "none", "x"), dir); err == nil || s.config.Hostname != "a" {
		t.Errorf("configure() without a place for the copy = %v, hostname %q; want an error and the file in use", err, s.config.Hostname)
	}
}

func TestValidMachineID(t *testing.T) {
	for in, want := range map[string]bool{strings.Repeat("0a", 16) + "\n": true, strings.Repeat("0a", 15): false, "": false, strings.Repeat("zz", 16): false} {
		if got := validMachineID(in); got != want {
			t.Errorf("validMachineID(%q) = %v; want %v", in, got, want)
		}
	}
}

func TestOthers(t *testing.T) {
	for _, tt := range []struct {
		in     string
		pid    int
		flags  uint64
		zombie bool
	}{
		{"77 (a) b (c) S 1 77 77 0 -1 4194560 1 2", 77, 4194560, false},
		{"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0", 2, 2129984, false},
		{"78 (x) Z 1 77 77 0 -1 4228108 0", 78, 4228108, true},
		{"", 0, 0, false}, {"9 (x", 0, 0, false},
	} {
		if pid, flags, zombie := parseStat(tt.in); pid != tt.pid || flags != tt.flags || zombie != tt.zombie {
			t.Errorf("parseStat(%q) = %d, %d, %v", tt.in, pid, flags, zombie)
		}
	}
	if 2129984&kernelThread == 0 || 4194560&kernelThread != 0 {
		t.Error("kernelThread tells kthreadd and a program apart no more")
	}
	if got := others("/proc"); !slices.Contains(got, os.Getpid()) {
		t.Errorf("others() = %v; want this test (%d) among them", got, os.Getpid())
	}
}

func TestPowerKey(t *testing.T) {
	if longSize == 8 {
		for mask, want := range map[string]bool{"10000000000000 0": true, "8000 10000000000000 0": true, "0 0": false, "": false, "ffffffff": false, "x 0": false} {
			if got := hasKey(mask, keyPower); got != want {
				t.Errorf("hasKey(%q) = %v; want %v", mask, got, want)
			}
		}
	}
	event := func(kind, code uint16, value byte) []byte {
		b := make([]byte, inputEvent)
		b[2*longSize], b[2*longSize+2], b[2*longSize+4] = byte(kind), byte(code), value
		return b
	}
	for _, tt := range []struct {
		in   []byte
		want bool
	}{
		{event(unixEvKey, keyPower, 1), true}, {event(unixEvKey, keyPower, 0), false}, {event(unixEvKey, 30, 1), false}, {event(0, keyPower, 1), false},
		{slices.Concat(event(unixEvKey, 30, 1), event(unixEvKey, keyPower, 1)), true}, {event(unixEvKey, keyPower, 1)[:inputEvent-1], false}, {nil, false},
	} {
		if got := pressed(tt.in, keyPower); got != tt.want {
			t.Errorf("pressed(%v) = %v; want %v", tt.in, got, tt.want)
		}
	}
}

func TestEmptyRAMRefusesDisks(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := emptyRAM(dir); err == nil {
		if os.Getenv("CI") != "" {
			t.Fatal("temporary files lie in memory here")
		}
		t.Skip("temporary files lie in memory here")
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("emptyRAM() removed a file from a disk: %v", err)
	}
}
