package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/boards"
)

// stateDisk makes a disk of which only the boot state matters.
func stateDisk(t *testing.T, copies ...slots.State) string {
	t.Helper()
	dev := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(dev)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(boards.FirmwareStart), f.Close()); err != nil {
		t.Fatal(err)
	}
	for i, c := range copies {
		if err := writeBootState(dev, i, c); err != nil {
			t.Fatal(err)
		}
	}
	return dev
}

func held(t *testing.T, dev string) slots.State {
	t.Helper()
	state, _, err := readBootState(dev)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// The only slot is refused again and again, and comes up in the end.
func TestGiveUpTheOnlySlot(t *testing.T) {
	dev := stateDisk(t, slots.New(slots.A))
	var pauses []time.Duration
	for range 9 {
		pause, conclusion, err := giveUp(dev, slots.A)
		if err != nil || !strings.Contains(conclusion, "there is no other") {
			t.Fatalf("giveUp() = %q, %v", conclusion, err)
		}
		if order, _, _ := held(t, dev).Boot(); len(order) != 1 || order[0] != slots.A {
			t.Fatalf("after giveUp() boot.scr tries %v; want a, the only one", order)
		}
		pauses = append(pauses, pause)
	}
	if got, want := fmt.Sprint(pauses), "[10s 20s 40s 1m20s 2m40s 5m20s 10m0s 10m0s 10m0s]"; got != want {
		t.Errorf("pauses %s; want %s", got, want)
	}
	note, err := slotUp(dev, slots.A)
	if err != nil || note == "" || held(t, dev).Status(slots.A) != slots.OK || held(t, dev).Fails != 0 {
		t.Errorf("slotUp() = %q, %v, leaves %v; want slot a good again", note, err, held(t, dev))
	}
}

// Boots that come up leave no trace; the fourth after three that did not is refused.
func TestHopelessBoots(t *testing.T) {
	both := slots.New(slots.A)
	both.B = slots.OK
	dev := stateDisk(t, both)
	begin := func(slot slots.Slot, refused bool) {
		t.Helper()
		if err := slotBegins(dev, slot); errors.As(err, new(refusal)) != refused || !refused && err != nil {
			t.Fatalf("slotBegins(%s) = %v, with boot state %v; want refusal: %v", slot, err, held(t, dev), refused)
		}
	}
	for range 2 * slots.MaxBoots {
		begin(slots.A, false)
		if note, err := slotUp(dev, slots.A); note != "" || err != nil {
			t.Fatalf("slotUp() after a boot like any other = %q, %v; want nothing", note, err)
		}
	}
	for range slots.MaxBoots {
		begin(slots.A, false)
	}
	begin(slots.A, true)
	if _, conclusion, err := giveUp(dev, slots.A); err != nil || conclusion != "slot a is marked bad; slot b is next" {
		t.Errorf("giveUp(a) = %q, %v", conclusion, err)
	}
	for range slots.MaxBoots {
		begin(slots.B, false)
	}
	begin(slots.B, true)
	// Both given up: from now on each gets one boot between two pauses.
	if pause, conclusion, err := giveUp(dev, slots.B); err != nil || pause != 2*FirstPause || !strings.Contains(conclusion, "take turns") {
		t.Errorf("giveUp(b) = %v, %q, %v", pause, conclusion, err)
	}
	begin(slots.A, false)
	begin(slots.A, true)

	if err := slotBegins(stateDisk(t), slots.A); err != nil {
		t.Errorf("slotBegins() without a boot state = %v; want it to boot", err)
	}
}

func TestGiveUpOneOfTwo(t *testing.T) {
	both := slots.New(slots.A)
	both.B, both.Seq = slots.OK, 7
	dev := stateDisk(t, slots.New(slots.A), both)
	pause, conclusion, err := giveUp(dev, slots.A)
	if err != nil || pause != FirstPause || conclusion != "slot a is marked bad; slot b is next" {
		t.Errorf("giveUp(a) = %v, %q, %v", pause, conclusion, err)
	}
	if order, _, _ := held(t, dev).Boot(); order[0] != slots.B {
		t.Errorf("boot.scr tries %v; want b first", order)
	}
	if pause, conclusion, err = giveUp(dev, slots.B); err != nil || pause != 2*FirstPause || !strings.Contains(conclusion, "take turns") {
		t.Errorf("giveUp(b) = %v, %q, %v", pause, conclusion, err)
	}
	if order, _, _ := held(t, dev).Boot(); order[0] != slots.A {
		t.Errorf("boot.scr tries %v; want a first, they take turns", order)
	}
	if note, err := slotUp(dev, slots.A); err != nil || note == "" || held(t, dev).Good != slots.A || held(t, dev).A != slots.OK || held(t, dev).B != slots.Bad {
		t.Errorf("slotUp(a) = %q, %v, leaves %v", note, err, held(t, dev))
	}
}

// boot.scr has passed over a slot whose kernel is damaged, without writing.
func TestSlotUpStandIn(t *testing.T) {
	both := slots.New(slots.A)
	both.B = slots.OK
	dev := stateDisk(t, both)
	if note, err := slotUp(dev, slots.B); err != nil || note == "" || held(t, dev).Good != slots.B {
		t.Errorf("slotUp(b) = %q, %v, leaves %v; want b to be the good one", note, err, held(t, dev))
	}
}

func TestGiveUpWithoutState(t *testing.T) {
	dev := stateDisk(t)
	if _, _, err := giveUp(dev, slots.A); !errors.Is(err, slots.ErrNoState) {
		t.Errorf("giveUp() on a disk without boot state = %v; want ErrNoState", err)
	}
	if note, err := slotUp(dev, slots.B); err != nil || !strings.Contains(note, "written anew") || held(t, dev).Good != slots.B || held(t, dev).A != slots.Empty {
		t.Errorf("slotUp(b) = %q, %v, leaves %v; want b alone", note, err, held(t, dev))
	}
	// A trial is the updater's: its verdict is not due when containerd runs.
	trial := slots.New(slots.A)
	trial.B, trial.Trial, trial.Tries = slots.OK, slots.B, 2
	dev = stateDisk(t, trial)
	if note, err := slotUp(dev, slots.B); note != "" || err != nil || held(t, dev) != trial {
		t.Errorf("slotUp() during a trial = %q, %v, leaves %v", note, err, held(t, dev))
	}
}

func TestOnlyRefusalsCondemn(t *testing.T) {
	s := New()
	s.Args = map[string]string{"skerry.slot": "a"}
	if err := s.slotError("no slot after %v", time.Second); errors.As(err, new(refusal)) {
		t.Error("a disk that did not turn up counts against the slot")
	}
	if err := error(&StepError{"mount root", s.refused(errors.New("x"))}); !errors.As(err, new(refusal)) {
		t.Error("a refused root file system does not count against the slot")
	}
}
