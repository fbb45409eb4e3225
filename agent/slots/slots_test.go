package slots

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"reflect"
	"strings"
	"testing"
)

// step is one transition of the table below.
type step struct {
	what string
	do   func(State) (State, error)
}

func begin(s Slot) step {
	return step{"begin " + string(s), func(t State) (State, error) { return t.BeginWrite(s) }}
}
func start(s Slot, n int) step {
	return step{"start " + string(s), func(t State) (State, error) { return t.StartTrial(s, n) }}
}
func bad(s Slot) step {
	return step{"bad " + string(s), func(t State) (State, error) { return t.MarkBad(s) }}
}
func rec(s Slot) step {
	return step{"recover " + string(s), func(t State) (State, error) { return t.Recover(s) }}
}
func count(s Slot) step {
	return step{"count " + string(s), func(t State) (State, error) { return t.CountBoot(s) }}
}

var (
	take    = step{"take", State.TakeTry}
	confirm = step{"confirm", State.Confirm}
	abandon = step{"abandon", State.Abandon}
)

func TestTransitions(t *testing.T) {
	tests := []struct {
		name  string
		steps []step
		fails string // the last step must be refused with this
		want  State  // without Seq, which must be 1 plus the steps taken
		phase Phase
		order string
	}{
		{name: "fresh", want: State{Good: A, A: OK, B: Empty}, phase: Steady, order: "a"},
		{name: "update confirmed", steps: []step{begin(B), start(B, 3), take, confirm},
			want: State{Good: B, A: OK, B: OK}, phase: Steady, order: "ba"},
		{name: "on trial", steps: []step{begin(B), start(B, 3)},
			want: State{Good: A, Trial: B, Tries: 3, A: OK, B: OK}, phase: Trial, order: "ba"},
		{name: "tries used up", steps: []step{start(B, 1), take},
			want: State{Good: A, Trial: B, A: OK, B: OK}, phase: Exhausted, order: "ab"},
		{name: "bad verdict", steps: []step{start(B, 1), take, bad(B)},
			want: State{Good: A, A: OK, B: Bad, Fails: 1}, phase: Steady, order: "ab"},
		{name: "no verdict, tried again", steps: []step{start(B, 2), take, abandon, start(B, 1)},
			want: State{Good: A, Trial: B, Tries: 1, A: OK, B: OK}, phase: Trial, order: "ba"},
		{name: "late confirmation", steps: []step{start(B, 1), take, confirm},
			want: State{Good: B, A: OK, B: OK}, phase: Steady, order: "ba"},
		{name: "bad one is written anew", steps: []step{start(B, 1), bad(B), begin(B), start(B, 1)},
			want: State{Good: A, Trial: B, Tries: 1, A: OK, B: OK, Fails: 1}, phase: Trial, order: "ba"},
		{name: "being written never boots", steps: []step{start(B, 1), confirm, begin(A)},
			want: State{Good: B, A: Empty, B: OK}, phase: Steady, order: "b"},
		{name: "confirmed slot rots", steps: []step{start(B, 1), confirm, bad(B)},
			want: State{Good: A, A: OK, B: Bad, Fails: 1}, phase: Steady, order: "ab"},
		{name: "both bad take turns", steps: []step{start(B, 1), confirm, bad(B), bad(A), bad(B)},
			want: State{Good: A, A: Bad, B: Bad, Fails: 3}, phase: Steady, order: "ab"},
		{name: "good slot rots during a trial", steps: []step{start(B, 2), bad(A)},
			want: State{Good: B, A: Bad, B: OK, Fails: 1}, phase: Steady, order: "ba"},
		{name: "only slot bad stays", steps: []step{bad(A)},
			want: State{Good: A, A: Bad, B: Empty, Fails: 1}, phase: Steady, order: "a"},
		{name: "bad slot comes up", steps: []step{bad(A), rec(A)},
			want: State{Good: A, A: OK, B: Empty}, phase: Steady, order: "a"},
		{name: "boots that did not come up", steps: []step{count(A), count(A)},
			want: State{Good: A, A: OK, B: Empty, Boots: 2}, phase: Steady, order: "a"},
		{name: "a boot comes up", steps: []step{count(A), rec(A)},
			want: State{Good: A, A: OK, B: Empty}, phase: Steady, order: "a"},
		{name: "a hopeless slot is given up", steps: []step{start(B, 1), confirm, count(B), count(B), count(B), bad(B)},
			want: State{Good: A, A: OK, B: Bad, Fails: 1}, phase: Steady, order: "ab"},
		{name: "boots are forgotten with a verdict", steps: []step{count(A), start(B, 1), take, confirm},
			want: State{Good: B, A: OK, B: OK}, phase: Steady, order: "ba"},

		{name: "confirm without trial", steps: []step{confirm}, fails: "confirm (boot state is steady"},
		{name: "abandon without trial", steps: []step{abandon}, fails: "abandon the trial (boot state is steady"},
		{name: "take without trial", steps: []step{take}, fails: "take a try (boot state is steady"},
		{name: "take when used up", steps: []step{start(B, 1), take, take}, fails: "take a try (boot state is exhausted"},
		{name: "trial of the good slot", steps: []step{start(A, 1)}, fails: `start trial of slot "a": it is not the idle one`},
		{name: "second trial", steps: []step{start(B, 1), start(B, 1)}, fails: `slot "b" is on trial`},
		{name: "trial of a bad slot", steps: []step{start(B, 1), bad(B), start(B, 1)}, fails: "it was judged bad"},
		{name: "no tries", steps: []step{start(B, 0)}, fails: "got 0 tries, want 1 to 9"},
		{name: "too many tries", steps: []step{start(B, 10)}, fails: "got 10 tries, want 1 to 9"},
		{name: "write the good slot", steps: []step{begin(A)}, fails: "it is not idle"},
		{name: "write the slot on trial", steps: []step{start(B, 1), begin(B)}, fails: "it is not idle"},
		{name: "unwritten slot bad", steps: []step{bad(B)}, fails: "it was never written"},
		{name: "recover unwritten", steps: []step{rec(B)}, fails: "it was never written"},
		{name: "recover what never failed", steps: []step{rec(A)}, fails: "it was never given up"},
		{name: "count on trial", steps: []step{start(B, 1), count(B)}, fails: `count a boot of slot "b": slot "b" is on trial`},
		{name: "count unwritten", steps: []step{count(B)}, fails: "it was never written"},
		{name: "recover on trial", steps: []step{start(B, 1), rec(A)}, fails: "is on trial"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := New(A)
			for i, step := range test.steps {
				next, err := step.do(s)
				if last := i == len(test.steps)-1; last && test.fails != "" {
					if err == nil || !strings.Contains(err.Error(), test.fails) {
						t.Errorf("%s = %v, %v, want error %q", step.what, next, err, test.fails)
					}
					return
				}
				if err != nil {
					t.Fatalf("%s = %v", step.what, err)
				}
				s = next
			}
			test.want.Seq = uint32(1 + len(test.steps))
			if s != test.want {
				t.Errorf("state = %+v, want %+v", s, test.want)
			}
			if got := s.Phase(); got != test.phase {
				t.Errorf("Phase() = %s, want %s", got, test.phase)
			}
			order, next, write := s.Boot()
			var got string
			for _, slot := range order {
				got += string(slot)
			}
			if got != test.order {
				t.Errorf("Boot() tries %q, want %q", got, test.order)
			}
			if want := s.Phase() == Trial; write != want || write && next.Tries != s.Tries-1 || !write && next != s {
				t.Errorf("Boot() writes %v %+v, want %v", write, next, want)
			}
			sector, err := s.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if back, err := Decode(sector); err != nil || back != s {
				t.Errorf("Decode(Encode) = %+v, %v, want %+v", back, err, s)
			}
		})
	}
	last := New(A)
	last.Seq = 1<<32 - 1
	if s, err := last.StartTrial(B, 1); err == nil {
		t.Errorf("StartTrial at the last sequence number = %v, want an error", s)
	}
}

func TestHopeless(t *testing.T) {
	for _, test := range []struct {
		state State
		slot  Slot
		want  bool
	}{
		{State{Good: A, A: OK, B: Empty, Boots: MaxBoots - 1}, A, false},
		{State{Good: A, A: OK, B: Empty, Boots: MaxBoots}, A, true},
		{State{Good: A, A: OK, B: Empty, Boots: MaxBoots}, B, false}, // never written
		{State{Good: A, A: Bad, B: Empty}, A, false},                 // one more boot after each verdict
		{State{Good: A, A: Bad, B: Empty, Boots: 1}, A, true},
		{State{Good: A, A: OK, B: OK, Trial: B, Tries: 1, Boots: MaxBoots}, B, false}, // tries count
	} {
		if got := test.state.Hopeless(test.slot); got != test.want {
			t.Errorf("Hopeless(%s) of %v, boots %d = %v, want %v", test.slot, test.state, test.state.Boots, got, test.want)
		}
	}
}

// sealed is a sector with that text and a right CRC.
func sealed(text string) []byte {
	sector := make([]byte, StateSize)
	copy(sector[4:], text)
	binary.LittleEndian.PutUint32(sector, crc32.ChecksumIEEE(sector[4:]))
	return sector
}

func TestDecode(t *testing.T) {
	const good = "a=ok\x00b=empty\x00boots=0\x00fails=0\x00good=a\x00seq=1f\x00trial=none\x00tries=0\x00"
	tests := []struct {
		name   string
		sector []byte
		err    string
	}{
		{"whole", sealed(good), ""},
		{"another order and a name from the future", sealed("zeal=9\x00" + good), ""},
		{"of a system that counted no boots", sealed(strings.Replace(good, "boots=0\x00", "", 1)), ""},
		{"boots not a number", sealed(strings.Replace(good, "boots=0", "boots=x", 1)), "want hexadecimal"},
		{"zeros", make([]byte, StateSize), "CRC: got"},
		{"short", sealed(good)[:511], "got 511 bytes, want 512"},
		{"nothing", nil, "got 0 bytes, want 512"},
		{"no trial named", sealed(strings.Replace(good, "trial=none\x00", "", 1)), "got no trial"},
		{"good twice", sealed("good=b\x00" + good), "each name once"},
		{"good slot unknown", sealed(strings.Replace(good, "good=a", "good=c", 1)), `good: got "c", want a or b`},
		{"trial of the good one", sealed(strings.Replace(good, "trial=none", "trial=a", 1)), "not the good slot"},
		{"tries without trial", sealed(strings.Replace(good, "tries=0", "tries=2", 1)), `tries: got "2", want 0 without a trial`},
		{"tries too many", sealed(strings.Replace(strings.Replace(good, "none", "b", 1), "tries=0", "tries=a", 1)), `tries: got "10", want at most 9`},
		{"sequence not a number", sealed(strings.Replace(good, "seq=1f", "seq=1g", 1)), "want hexadecimal"},
		{"status unknown", sealed(strings.Replace(good, "a=ok", "a=fine", 1)), `a: got "fine"`},
		{"no end", sealed(strings.Repeat("x", 508)), "got no end"},
	}
	for _, test := range tests {
		s, err := Decode(test.sector)
		if test.err == "" && (err != nil || s.Seq != 0x1f || s.Good != A) {
			t.Errorf("%s: Decode = %+v, %v, want seq 1f, good a", test.name, s, err)
		}
		if test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
			t.Errorf("%s: Decode = %+v, %v, want error %q", test.name, s, err, test.err)
		}
	}
	// Each single flipped bit must be found.
	for bit := range StateSize * 8 {
		sector := sealed(good)
		sector[bit/8] ^= 1 << (bit % 8)
		if s, err := Decode(sector); err == nil {
			t.Fatalf("Decode with bit %d flipped = %+v, want an error", bit, s)
		}
	}
}

func TestRead(t *testing.T) {
	older, newer := New(A), New(A)
	newer.Seq, newer.B = 2, OK
	encode := func(s State) []byte {
		b, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	torn := encode(newer)
	copy(torn[256:], bytes.Repeat([]byte{0xff}, 256))
	tests := []struct {
		name   string
		copies [2][]byte
		want   State
		index  int
		err    error
	}{
		{"second newer", [2][]byte{encode(older), encode(newer)}, newer, 1, nil},
		{"first newer", [2][]byte{encode(newer), encode(older)}, newer, 0, nil},
		{"equal", [2][]byte{encode(newer), encode(newer)}, newer, 0, nil},
		{"newer torn", [2][]byte{encode(older), torn}, older, 0, nil},
		{"first never written", [2][]byte{make([]byte, 512), encode(older)}, older, 1, nil},
		{"second unreadable", [2][]byte{encode(older), nil}, older, 0, nil},
		{"none", [2][]byte{make([]byte, 512), torn}, State{}, 0, ErrNoState},
	}
	for _, test := range tests {
		disk := make([]byte, 2048)
		copy(disk[512:], test.copies[0])
		got, index, err := Read(bytes.NewReader(append(disk[:1536:1536], test.copies[1]...)), [2]int64{512, 1536})
		if got != test.want || index != test.index || !errors.Is(err, test.err) {
			t.Errorf("%s: Read = %+v, %d, %v, want %+v, %d, %v", test.name, got, index, err, test.want, test.index, test.err)
		}
	}
}

func manifest() *Manifest {
	return &Manifest{
		Version: "0.1.0+5-gabc", Arch: "arm64", RootHash: strings.Repeat("0f", 32),
		Args:   []string{"ro", "panic=10", "skerry.rootoff=67108864", "8250.nr_uarts=4"},
		Kernel: NewBootFile("Image.gz", []byte("kernel")), Initrd: NewBootFile("initrd.img", []byte("initrd")),
		DTBs: map[string]BootFile{"dtb_rpi4": NewBootFile("dtbs/broadcom/bcm2711-rpi-4-b.dtb", []byte("dtb"))},
	}
}

func TestManifest(t *testing.T) {
	text, err := manifest().Format()
	if err != nil {
		t.Fatal(err)
	}
	const want = `version=0.1.0+5-gabc
arch=arm64
roothash=0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f
args=ro panic=10 skerry.rootoff=67108864 8250.nr_uarts=4
kernel=Image.gz
kernel_length=6
kernel_crc32=5dd29aab
initrd=initrd.img
initrd_length=6
initrd_crc32=fa3bf02d
dtb_rpi4=dtbs/broadcom/bcm2711-rpi-4-b.dtb
dtb_rpi4_length=3
dtb_rpi4_crc32=58700668
`
	if string(text) != want {
		t.Errorf("Format = %s, want %s", text, want)
	}
	if got, err := Parse(text); err != nil || !reflect.DeepEqual(got, manifest()) {
		t.Errorf("Parse(Format) = %+v, %v, want %+v", got, err, manifest())
	}
	if v, ok := manifest().Arg("skerry.rootoff"); !ok || v != "67108864" {
		t.Errorf(`Arg("skerry.rootoff") = %q, %v, want "67108864", true`, v, ok)
	}
	if err := CheckChecksum(text, FormatChecksum(text)); err != nil {
		t.Errorf("CheckChecksum = %v, want nil", err)
	}
	for name, damaged := range map[string][]byte{"flipped": append([]byte("w"), text[1:]...), "short": text[:len(text)-1], "empty": nil} {
		if err := CheckChecksum(damaged, FormatChecksum(text)); err == nil {
			t.Errorf("CheckChecksum of %s slot.txt = nil, want an error", name)
		}
	}
	if err := manifest().Kernel.Check([]byte("kernal")); err == nil || !strings.Contains(err.Error(), "CRC: got") {
		t.Errorf("Check of a changed kernel = %v, want a CRC error", err)
	}
}

func TestManifestRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*Manifest){
		"version with a space": func(m *Manifest) { m.Version = "1 2" },
		"short root hash":      func(m *Manifest) { m.RootHash = "0f" },
		"shell in args":        func(m *Manifest) { m.Args = []string{"ro;reset"} },
		"expansion in args":    func(m *Manifest) { m.Args = []string{"x=${y}"} },
		"quote in args":        func(m *Manifest) { m.Args = []string{`x="y z"`} },
		"no args":              func(m *Manifest) { m.Args = nil },
		"too many args":        func(m *Manifest) { m.Args = []string{strings.Repeat("a", maxArgs+1)} },
		"path that climbs":     func(m *Manifest) { m.Kernel.Name = "../Image.gz" },
		"no initrd":            func(m *Manifest) { m.Initrd = BootFile{} },
		"a tree's name":        func(m *Manifest) { m.DTBs = map[string]BootFile{"dtb_a b": m.Kernel} },
	} {
		m := manifest()
		spoil(m)
		if text, err := m.Format(); err == nil {
			t.Errorf("%s: Format = %q, want an error", name, text)
		}
	}
	text, _ := manifest().Format()
	for name, damaged := range map[string]string{
		"empty":              "",
		"no newline at end":  strings.TrimSuffix(string(text), "\n"),
		"line without value": string(text) + "x=\n",
		"line without =":     string(text) + "x\n",
		"twice":              string(text) + "arch=arm64\n",
		"backslash":          string(text) + "x=a\\\n",
		"not text":           string(text) + "x=\x00\n",
		"upper-case length":  strings.Replace(string(text), "kernel_length=6", "kernel_length=A", 1),
		"no checksum":        strings.Replace(string(text), "kernel_crc32=", "kernel_crc=", 1),
		"too long":           string(text) + "x=" + strings.Repeat("y", maxManifest) + "\n",
	} {
		if m, err := Parse([]byte(damaged)); err == nil {
			t.Errorf("%s: Parse = %+v, want an error", name, m)
		}
	}
}

// FuzzParse: whatever is parsed is written back to something that means the same.
func FuzzParse(f *testing.F) {
	text, err := manifest().Format()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("a=b\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := Parse(text)
		if err != nil {
			return
		}
		again, err := m.Format()
		if err != nil {
			t.Fatalf("Format(Parse(%q)) = %v", text, err)
		}
		if back, err := Parse(again); err != nil || !reflect.DeepEqual(back, m) {
			t.Fatalf("Parse(Format(m)) = %+v, %v, want %+v", back, err, m)
		}
	})
}

// FuzzDecode: a sector either is refused or means the same when it is written back.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("a=ok\x00b=empty\x00boots=0\x00fails=0\x00good=a\x00seq=1f\x00trial=none\x00tries=0\x00"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := Decode(sealed(string(text)))
		if err != nil {
			return
		}
		sector, err := s.Encode()
		if err != nil {
			t.Fatalf("Encode(Decode(%q)) = %v", text, err)
		}
		if back, err := Decode(sector); err != nil || back != s {
			t.Fatalf("Decode(Encode(s)) = %+v, %v, want %+v", back, err, s)
		}
	})
}
