package boot

import (
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.internal/skerry/agent/api"
)

func TestProblems(t *testing.T) {
	now := time.Unix(1.8e9, 0)
	good := func() api.Status {
		return api.Status{
			Time: now, Uptime: time.Hour, Slot: "a",
			Slots:   []api.Slot{{Name: "a", Status: "ok", Good: true}, {Name: "b", Status: "empty"}},
			Steps:   []api.Step{{Name: "mount STATE"}},
			Units:   []api.Unit{{Name: "skerryd", State: "ready", Since: now.Add(-time.Hour)}},
			Memory:  api.Memory{Total: 1 << 30, Available: 1 << 29},
			State:   api.FileSystem{Size: 1 << 30, Free: 1 << 29, Inodes: 1000, InodesFree: 900},
			Clock:   api.Clock{Source: "ntp", Synced: now.Add(-time.Minute)},
			Network: api.Network{Address: netip.MustParseAddr("10.0.0.2"), Interfaces: []api.Interface{{Name: "eth0", Plugged: true}}},
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*api.Status)
		want   string // of each problem: where, and a part of what; "" is none
	}{
		{"well", func(*api.Status) {}, ""},
		{"state read-only", func(s *api.Status) { s.State.ReadOnly = true }, "STATE: read-only"},
		{"state full", func(s *api.Status) { s.State.Free = 1 << 20 }, "STATE: full: 1 of 1024 MiB"},
		{"no inodes", func(s *api.Status) { s.State.InodesFree = 3 }, "STATE: room for 3 of 1000"},
		{"state not mounted yet", func(s *api.Status) { s.State = api.FileSystem{} }, ""},
		{"this slot bad", func(s *api.Status) { s.Slots[0].Status = "bad" }, "slot a: nothing better"},
		{"other slot bad", func(s *api.Status) { s.Slots[1].Status = "bad" }, "slot b: the other one runs"},
		{"no interface", func(s *api.Status) { s.Network = api.Network{} }, "network: no wired network interface"},
		{"no cable", func(s *api.Status) { s.Network.Address, s.Network.Interfaces[0].Plugged = netip.Addr{}, false }, "network: no cable"},
		{"no address", func(s *api.Status) { s.Network.Address = netip.Addr{} }, "network: no DHCP server"},
		{"IPv6 alone", func(s *api.Status) {
			s.Network.Address, s.Network.Interfaces[0].Addresses = netip.Addr{}, []netip.Prefix{netip.MustParsePrefix("2001:db8::2/64")}
		}, ""},
		{"unit waits", func(s *api.Status) {
			s.Units[0] = api.Unit{Name: "skerryd", State: "waiting", Restarts: 2, Retry: now, LastExit: "exit status 2"}
		}, "unit skerryd: not running; exit status 2; restarts: 2"},
		{"unit hangs", func(s *api.Status) { s.Units[0].State = "hung" }, "unit skerryd: hangs"},
		{"unit starts", func(s *api.Status) { s.Units[0].State, s.Units[0].Since = "starting", now.Add(-time.Minute) }, ""},
		{"unit starts for long", func(s *api.Status) { s.Units[0].State = "starting" }, "unit skerryd: not ready yet"},
		{"unit starts again", func(s *api.Status) { s.Units[0].State, s.Units[0].Since, s.Units[0].Restarts = "starting", now, 1 }, "unit skerryd: not ready yet"},
		{"unit flaps", func(s *api.Status) { s.Units[0].Since, s.Units[0].Restarts = now, 9 }, "unit skerryd: for how long"},
		{"unit has recovered", func(s *api.Status) { s.Units[0].Restarts = 9 }, ""},
		{"optional step", func(s *api.Status) {
			s.Steps = append(s.Steps, api.Step{Name: "load modules", Error: "no such file", Optional: true})
		}, "boot: load modules: no such file"},
		{"a step whose fault is over", func(s *api.Status) {
			s.Steps = append(s.Steps, api.Step{Name: "wait for network", Error: "no address yet"})
		}, ""},
		{"mistake", func(s *api.Status) { s.Mistakes = []api.Mistake{{Line: 3, Text: "unknown key"}} }, "skerry.yaml: skerry.yaml:3: unknown key"},
		{"never synced", func(s *api.Status) { s.Clock = api.Clock{Source: "saved"} }, "clock: when it was last on"},
		{"not synced yet", func(s *api.Status) { s.Clock, s.Uptime = api.Clock{Source: "saved"}, time.Minute }, ""},
		{"synced long ago", func(s *api.Status) { s.Clock.Synced = now.Add(-48 * time.Hour) }, "clock: no time server has answered since"},
		{"memory", func(s *api.Status) { s.Memory.Available = 10 << 20 }, "memory: 10 of 1024 MiB"},
		{"the worst first", func(s *api.Status) {
			s.Memory.Available, s.State.ReadOnly = 10<<20, true
		}, "STATE: read-only\nmemory: 10 of"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			st := good()
			tt.change(&st)
			got := problems(st)
			var wants []string
			if tt.want != "" {
				wants = strings.Split(tt.want, "\n")
			}
			if len(got) != len(wants) {
				t.Fatalf("problems() = %+v; want %q", got, wants)
			}
			for i, want := range wants {
				where, what, _ := strings.Cut(want, ": ")
				if got[i].Where != where || !strings.Contains(got[i].What, what) || got[i].Doing == "" {
					t.Errorf("problems()[%d] = %+v; want %q, and what is done", i, got[i], want)
				}
			}
		})
	}
}

// The root's init goes on with the steps that the initramfs has left.
func TestStepsAreHandedOver(t *testing.T) {
	first, _ := system(t)
	first.Run([]Step{{Name: "one", Run: func(*System) error { return nil }},
		{Name: "two", Optional: true, Run: func(*System) error { return errors.New("broken " + strings.Repeat("x", 5000)) }}})
	handed := first.BequeathSteps()
	if len(handed) > 2000 {
		t.Errorf("BequeathSteps() has %d bytes; want it bounded", len(handed))
	}
	second, _ := system(t)
	second.inheritSteps(handed)
	second.inheritSteps("garbage") // changes nothing
	var during api.Step
	second.Run([]Step{{Name: "three", Run: func(s *System) error { during = s.Status().Steps[2]; return nil }}})
	got := second.Status().Steps
	if len(got) != 3 || got[0].Name != "one" || got[0].Error != "" || !strings.HasPrefix(got[1].Error, "broken") || !got[1].Optional || got[2].Name != "three" {
		t.Fatalf("Status().Steps = %+v; want one, two, three", got)
	}
	if !during.Running || got[2].Running || got[2].Start < got[0].Start+got[0].Took {
		t.Errorf("step three was %+v and is %+v; want it running, then done, after step one", during, got[2])
	}
}

// Anybody may ask at any moment; go test -race looks on.
func TestStatusAtAnyMoment(t *testing.T) {
	s, _ := system(t)
	if st := s.Status(); st.Time.IsZero() || st.Uptime <= 0 || st.Memory.Total == 0 || st.Version.Arch == "" {
		t.Errorf("Status() of a system that knows nothing = %+v; want what the kernel says", st)
	}
	stop := make(chan struct{})
	var asking sync.WaitGroup
	for range 2 {
		asking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					s.Status()
				}
			}
		})
	}
	dir := t.TempDir()
	s.Run([]Step{
		{Name: "configure", Run: func(s *System) error { return s.configure([]byte("nonsense: 1\n"), nil, dir+"/saved", dir) }},
		{Name: "floor", Run: func(s *System) error { s.setFloor(time.Now()); return nil }},
		{Name: "name", Run: func(s *System) error { s.learn(func(k *known) { k.hostname = "barn-1" }); return nil }},
	})
	close(stop)
	asking.Wait()
	if st := s.Status(); st.Node.Name != "barn-1" || len(st.Mistakes) != 1 {
		t.Errorf("Status() = %+v; want the name and the mistake", st)
	}
}

func TestTimeSource(t *testing.T) {
	at := func(n int64) time.Time { return time.Unix(n, 0) }
	for _, tt := range []struct {
		floor, likely, rtc time.Time
		want               string
	}{
		{at(10), at(10), time.Time{}, "build"},
		{at(10), at(20), time.Time{}, "saved"},
		{at(10), at(20), at(5), "saved"},
		{at(10), at(20), at(30), "rtc"},
		{at(10), at(10), at(5), "build"},
	} {
		if got := timeSource(tt.floor, tt.likely, tt.rtc); got != tt.want {
			t.Errorf("timeSource(%d, %d, %d) = %s; want %s", tt.floor.Unix(), tt.likely.Unix(), tt.rtc.Unix(), got, tt.want)
		}
	}
}

func TestParseMemory(t *testing.T) {
	got := parseMemory([]byte("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable: 500 kB\nSwapTotal: 20 kB\nSwapFree: 10 kB\nHugePages_Total: 0\n"))
	if want := (api.Memory{Total: 1000 << 10, Available: 500 << 10, SwapTotal: 20 << 10, SwapFree: 10 << 10}); got != want {
		t.Errorf("parseMemory() = %+v; want %+v", got, want)
	}
}

func TestAuthorityProblems(t *testing.T) {
	now := time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC)
	for ends, want := range map[time.Time]string{{}: "", now.AddDate(1, 0, 0): "", now.AddDate(0, 5, 0): "ends on 2031-06-01", now.AddDate(0, 0, -1): "has ended on 2030-12-31"} {
		got := authorityProblems(now, ends)
		if (want == "") != (len(got) == 0) || want != "" && !strings.Contains(got[0].What, want) {
			t.Errorf("authorityProblems(%v) = %+v; want %q", ends, got, want)
		}
	}
}
