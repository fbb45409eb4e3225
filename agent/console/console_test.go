package console

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"
	"time"

	"skerry.internal/skerry/agent/api"
)

var update = flag.Bool("update", false, "write testdata and docs/console.md anew")

var now = time.Date(2026, 11, 24, 17, 4, 0, 0, time.UTC)

// well is a node that has nothing to complain of.
func well() api.Status {
	return api.Status{
		Time: now, Uptime: 3*time.Hour + 12*time.Minute,
		Node:    api.Node{Name: "barn-1", Cluster: "home", Role: "server", Board: "rpi4", MachineID: "0123456789abcdef0123456789abcdef"},
		Version: api.Version{Skerry: "0.3.1", Kernel: "6.12.117+deb13-arm64", Arch: "arm64"},
		Slot:    "a",
		Slots:   []api.Slot{{Name: "a", Status: "ok", Good: true, Version: "0.3.1"}, {Name: "b", Status: "empty"}},
		Steps: []api.Step{
			{Name: "mount kernel file systems", Phase: "initramfs", Start: 1210 * time.Millisecond, Took: 8 * time.Millisecond},
			{Name: "find slot", Phase: "initramfs", Start: 1800 * time.Millisecond, Took: 420 * time.Millisecond},
			{Name: "switch root", Phase: "initramfs", Start: 2400 * time.Millisecond, Took: 15 * time.Millisecond},
			{Name: "load modules", Phase: "root", Start: 2600 * time.Millisecond, Took: 1900 * time.Millisecond, Optional: true},
			{Name: "mount STATE", Phase: "root", Start: 4600 * time.Millisecond, Took: 730 * time.Millisecond},
			{Name: "start containerd", Phase: "root", Start: 5900 * time.Millisecond, Took: 3100 * time.Millisecond, Optional: true},
			{Name: "wait for network", Phase: "root", Start: 9 * time.Second, Took: 20 * time.Millisecond, Optional: true},
			{Name: "start skerryd", Phase: "root", Start: 9100 * time.Millisecond, Took: 41 * time.Second, Optional: true},
		},
		Units: []api.Unit{
			{Name: "containerd", State: "ready", PID: 201, Since: now.Add(-3*time.Hour - 11*time.Minute)},
			{Name: "skerryd", State: "ready", PID: 260, Since: now.Add(-3*time.Hour - 11*time.Minute), Status: "node barn-1 is Ready"},
		},
		Memory: api.Memory{Total: 906 << 20, Available: 402 << 20, SwapTotal: 453 << 20, SwapFree: 431 << 20},
		State:  api.FileSystem{Size: 28 << 30, Free: 25 << 30, Inodes: 1800000, InodesFree: 1700000},
		Clock:  api.Clock{Source: "ntp", Server: "192.168.1.1", Synced: now.Add(-17 * time.Minute)},
		Network: api.Network{Address: netip.MustParseAddr("192.168.1.20"), Interfaces: []api.Interface{
			{Name: "end0", MAC: "dc:a6:32:01:02:03", Plugged: true, Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.20/24")}}}},
	}
}

// screens are the states that docs/console.md shows.
var screens = []struct {
	name   string
	change func(*api.Status, *Options)
}{
	{"well", func(*api.Status, *Options) {}},
	{"boot", func(st *api.Status, o *Options) {
		o.Booting = true
		st.Uptime = 21 * time.Second
		last := &st.Steps[len(st.Steps)-1]
		last.Took, last.Running = 0, true
		st.Units[0].Since = now.Add(-12 * time.Second)
		st.Units[1] = api.Unit{Name: "skerryd", State: "starting", Since: now.Add(-11 * time.Second), Status: "starting kube-apiserver"}
		st.Clock = api.Clock{Source: "saved"}
	}},
	{"no-cable", func(st *api.Status, _ *Options) {
		st.Network = api.Network{Interfaces: []api.Interface{{Name: "end0", MAC: "dc:a6:32:01:02:03"}}}
		st.Problems = []api.Problem{{Where: "network", What: "no cable is plugged in", Doing: "pods run on; plug a cable in, and an address is asked for at once"}}
	}},
	{"wrong-gateway", func(st *api.Status, _ *Options) {
		st.Problems = []api.Problem{
			{Where: "network", What: "end0: gateway 192.168.1.2 does not answer: nothing outside of 192.168.1.0/24 is reached", Doing: "it is asked again and again; look at network.interfaces in skerry.yaml"},
			{Where: "clock", What: "no time server has answered; the time comes from the hardware clock", Doing: "they are asked again and again; name one that can be reached under ntp in skerry.yaml"},
		}
		st.Clock = api.Clock{Source: "rtc"}
	}},
	{"mistakes", func(st *api.Status, _ *Options) {
		for _, m := range []api.Mistake{
			{Line: 3, Text: `unknown key "hostnam": want one of hostname, network, ntp, registries, labels, taints, reserved; it is ignored`},
			{Line: 6, Text: "gateway 192.168.2.1: want another address in the interface's network 192.168.1.0/24"},
		} {
			st.Mistakes = append(st.Mistakes, m)
			st.Problems = append(st.Problems, api.Problem{Where: "skerry.yaml", What: fmt.Sprintf("skerry.yaml:%d: %s", m.Line, m.Text),
				Doing: "the rest of the file counts; correct it on the partition FIRMWARE and restart the node"})
		}
	}},
	{"crash-loop", func(st *api.Status, _ *Options) {
		st.Units[1] = api.Unit{Name: "skerryd", State: "waiting", Restarts: 14, Since: now.Add(-12 * time.Second), Retry: now.Add(48 * time.Second), LastExit: "exit status 1 at 17:03:48"}
		st.Problems = []api.Problem{{Where: "unit skerryd", What: "not running; exit status 1 at 17:03:48; restarts: 14", Doing: "it is started again at 17:04:48; skerry node logs shows what it says"}}
	}},
	{"state-full", func(st *api.Status, _ *Options) {
		st.State.Free = 88 << 10
		st.Problems = []api.Problem{{Where: "STATE", What: "full: 0 of 28672 MiB are left", Doing: "Kubernetes removes unused images and ends pods that use much; delete what is not needed"}}
	}},
	{"state-read-only", func(st *api.Status, _ *Options) {
		st.State.ReadOnly = true
		st.Units[1] = api.Unit{Name: "skerryd", State: "waiting", Restarts: 5, Since: now.Add(-3 * time.Second), Retry: now.Add(5 * time.Second), LastExit: "exit status 1 at 17:03:57"}
		st.Problems = []api.Problem{
			{Where: "STATE", What: "the file system is read-only: the kernel has found an error on it", Doing: "it is repaired at the next start; if it comes back, the card is worn out"},
			{Where: "unit skerryd", What: "not running; exit status 1 at 17:03:57; restarts: 5", Doing: "it is started again at 17:04:05; skerry node logs shows what it says"},
		}
	}},
	{"slot-bad", func(st *api.Status, _ *Options) {
		st.Slot = "b"
		st.Slots = []api.Slot{{Name: "a", Status: "bad", Version: "0.3.1"}, {Name: "b", Status: "ok", Good: true, Version: "0.3.0"}}
		st.Version.Skerry = "0.3.0"
		st.Problems = []api.Problem{{Where: "slot a", What: "it was judged bad; the other one runs", Doing: "the next update writes it anew"}}
	}},
	{"clock", func(st *api.Status, _ *Options) {
		st.Clock = api.Clock{Source: "build"}
		st.Problems = []api.Problem{{Where: "clock", What: "no time server has answered; the time comes from when the system was built", Doing: "they are asked again and again; name one that can be reached under ntp in skerry.yaml"}}
	}},
	{"unclaimed", func(st *api.Status, o *Options) {
		st.Node.Cluster, st.Node.Role = "", ""
		st.Units = st.Units[:1]
		o.Notice = []string{
			"This node belongs to nobody yet. On your machine, type",
			"  skerry cluster claim CLUSTER 192.168.1.20",
			"and when it asks",
			"  fingerprint K7QD-2MXN-93TE-B4VW",
			"  code        6JRP-0C8Z",
		}
	}},
}

// Screens are golden: testdata has them at 80 x 25, and docs/console.md is made
// of those.
func TestScreens(t *testing.T) {
	for _, tt := range screens {
		t.Run(tt.name, func(t *testing.T) {
			st, o := well(), Options{}
			tt.change(&st, &o)
			lines := Screen(st, o)
			golden(t, filepath.Join("testdata", tt.name+".txt"), strings.Join(lines, "\n")+"\n")
			text := strings.Join(strings.Fields(strings.Join(lines, " ")), " ")
			for _, p := range st.Problems {
				if !strings.Contains(text, p.Where) || !strings.Contains(text, p.What) || !strings.Contains(text, p.Doing) {
					t.Errorf("the screen lacks %+v", p)
				}
			}
		})
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it); got\n%swant\n%s", file, got, want)
	}
}

// docs/console.md is its template with the screens in it, none left out.
func TestReference(t *testing.T) {
	shown := map[string]bool{}
	page, err := template.New("console.md.tmpl").Funcs(template.FuncMap{"screen": func(name string) (string, error) {
		shown[name] = true
		text, err := os.ReadFile(filepath.Join("testdata", name+".txt"))
		return "```\n" + string(text) + "```", err
	}}).ParseFiles("testdata/console.md.tmpl")
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	if err := page.Execute(&got, nil); err != nil {
		t.Fatal(err)
	}
	golden(t, "../../docs/console.md", got.String())
	for _, s := range screens {
		if !shown[s.name] {
			t.Errorf("docs/console.md does not show %q", s.name)
		}
	}
}

// Whatever the node and the size of the screen: it fits, is ASCII, and what is
// most important is there.
func TestScreenFits(t *testing.T) {
	colour := regexp.MustCompile("\x1b\\[[0-9;]*m")
	worst := well()
	for i := range 30 {
		worst.Problems = append(worst.Problems, api.Problem{Where: fmt.Sprintf("unit %d", i), What: strings.Repeat("sehr große Störung ", 20), Doing: strings.Repeat("x", 400)})
		worst.Steps = append(worst.Steps, api.Step{Name: fmt.Sprintf("step %d\x1b[2J", i), Error: strings.Repeat("no\n", 100)})
		worst.Units = append(worst.Units, api.Unit{Name: fmt.Sprintf("unit %d", i), State: "hung", Status: "\x1b]0;title\a\x9b31m"})
	}
	worst.Node.Name = strings.Repeat("n", 63)
	worst.Node.Cluster = strings.Repeat("c", 300)
	for name, st := range map[string]api.Status{"well": well(), "worst": worst, "nothing known": {}} {
		for _, size := range [][2]int{{80, 25}, {40, 13}, {40, 30}, {1, 1}, {20, 4}, {240, 67}, {0, 0}} {
			for _, booting := range []bool{false, true} {
				o := Options{Width: size[0], Height: size[1], Colour: true, Booting: booting, Notice: []string{"\x1b[31mcode ☺"}}
				lines := Screen(st, o)
				if size[0] == 0 {
					size = [2]int{80, 25}
				}
				if len(lines) == 0 || len(lines) > size[1] {
					t.Errorf("%s, %v: %d lines", name, size, len(lines))
				}
				for _, l := range lines {
					l = colour.ReplaceAllString(l, "")
					if len(l) > size[0] || strings.ContainsFunc(l, func(r rune) bool { return r < ' ' || r > '~' }) {
						t.Errorf("%s, %v: line of %d columns: %q", name, size, len(l), l)
					}
				}
				text := strings.Join(lines, "\n")
				if name == "worst" && size[1] >= 13 {
					for _, want := range []string{"30 PROBLEMS", "! unit 0: sehr", "more: skerry node status"} {
						if !strings.Contains(text, want) {
							t.Errorf("%v, booting %v: no %q in\n%s", size, booting, want, text)
						}
					}
				}
			}
		}
	}
}

// The words say it all: without colour the same text is left.
func TestColour(t *testing.T) {
	for _, tt := range screens {
		st, o := well(), Options{}
		tt.change(&st, &o)
		plain := Screen(st, o)
		o.Colour = true
		coloured := Screen(st, o)
		text := strings.Join(coloured, "\n")
		if red := strings.Contains(text, "\x1b[1;31m"); red != (len(st.Problems) > 0) {
			t.Errorf("%s: red = %v, problems = %d", tt.name, red, len(st.Problems))
		}
		for i := range coloured {
			coloured[i] = strings.NewReplacer("\x1b[1;31m", "", "\x1b[0m", "").Replace(coloured[i])
		}
		if !slices.Equal(plain, coloured) {
			t.Errorf("%s: colour changes the text", tt.name)
		}
	}
}

// A boot with more steps than lines keeps the failed and the newest.
func TestManySteps(t *testing.T) {
	st := well()
	st.Steps = nil
	for i := range 40 {
		st.Steps = append(st.Steps, api.Step{Name: fmt.Sprintf("step %d", i), Start: time.Duration(i) * time.Second, Took: time.Second})
	}
	st.Steps[2].Error = "no such device"
	st.Steps[39].Running = true
	text := strings.Join(Screen(st, Options{Booting: true}), "\n") + "\n"
	for _, want := range []string{"step 2: FAILED: no such device\n", "step 38, took 1.00s\n", "step 39 ... for ", "STARTING"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "step 3,") {
		t.Errorf("an early step is there:\n%s", text)
	}
}

func TestWords(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{span(-time.Second), "0s"}, {span(59 * time.Second), "59s"}, {span(61 * time.Second), "1m 01s"}, {span(26 * time.Hour), "1d 02h"},
		{size(512), "0 KiB"}, {size(3 << 20), "3 MiB"}, {size(1536 << 20), "1.5 GiB"}, {size(64 << 30), "64 GiB"},
		{cut("abcdef", 6), "abcdef"}, {cut("abcdefg", 6), "abc..."}, {cut("abcdefg", 2), "ab"},
		{strings.Join(wrap("the quick brown fox", 10), "|"), "the quick|brown fox"}, {strings.Join(wrap("aaaaaaaaaaaaaaa", 10), "|"), "aaaaaaaaaa|aaaaa"},
		{ascii("a\tb\x1b[1mö"), "a b?[1m?"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q; want %q", tt.got, tt.want)
		}
	}
}
