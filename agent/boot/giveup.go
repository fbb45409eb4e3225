package boot

import (
	"errors"
	"fmt"
	"os"
	"time"

	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/boards"
)

// refusal is the error of a slot that can't run, however often it is tried.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// Pauses before the reboot that follows an error: it stays on the console
// meanwhile. They grow while there is no other slot to hope for, up to a pace at
// which neither the card nor whoever looks at the console is worn out.
const (
	FirstPause = 10 * time.Second
	lastPause  = 10 * time.Minute
)

// GiveUp draws the conclusion from the error that ended a boot, and returns the
// pause before the next. A slot that can't run is marked bad in the boot
// state, so that boot.scr takes the other one, if that was ever written.
func (s *System) GiveUp(cause error) time.Duration {
	var r refusal
	if !errors.As(cause, &r) {
		return FirstPause
	}
	slot, err := slots.ParseSlot(s.slot())
	if err == nil {
		var d disk
		if d, err = findDisk("/sys", "/dev"); err == nil {
			pause, conclusion, gerr := giveUp(d.dev, slot)
			if err = gerr; err == nil {
				s.Console.Errorf("%s", conclusion)
				return pause
			}
		}
	}
	s.Console.Errorf("mark slot %s bad: %v", s.slot(), err)
	return FirstPause
}

var bootStates = [2]int64{boards.BootState0, boards.BootState1}

func giveUp(dev string, slot slots.Slot) (pause time.Duration, conclusion string, err error) {
	state, index, err := readBootState(dev)
	if err != nil {
		return 0, "", err
	}
	next, err := state.MarkBad(slot)
	if err != nil {
		return 0, "", err
	}
	if err := writeBootState(dev, 1-index, next); err != nil {
		return 0, "", err
	}
	pause = lastPause
	if n := next.Fails - 1; n < 6 {
		pause = min(FirstPause<<n, lastPause)
	}
	switch other := slot.Other(); next.Status(other) {
	case slots.OK:
		return FirstPause, fmt.Sprintf("slot %s is marked bad; slot %s is next", slot, other), nil
	case slots.Bad:
		return pause, fmt.Sprintf("slot %s is marked bad, as slot %s is: they take turns, with pauses that grow to %v; flash the card anew", slot, other, lastPause), nil
	default:
		return pause, fmt.Sprintf("slot %s is marked bad, and there is no other: it is tried again, with pauses that grow to %v; flash the card anew", slot, lastPause), nil
	}
}

// countBoot notes in the boot state that the slot begins to boot; noteSlot takes
// that back once containerd runs. A slot whose last boots all ended before that,
// by a panic, a hang that the watchdog ended or noteSlot's own reboot, is refused.
// Two sectors written per boot are the price of seeing a kernel that panics
// before anything else can be written. What goes wrong here stops no boot.
func countBoot(s *System) error {
	slot, err := slots.ParseSlot(s.slot())
	if err == nil {
		var d disk
		if d, err = findDisk("/sys", "/dev"); err == nil {
			err = slotBegins(d.dev, slot)
		}
	}
	if errors.As(err, new(refusal)) {
		return err
	}
	if err != nil {
		s.Console.Errorf("count boot: %v", err)
	}
	return nil
}

func slotBegins(dev string, slot slots.Slot) error {
	state, index, err := readBootState(dev)
	if errors.Is(err, slots.ErrNoState) {
		return nil // noteSlot makes a new one
	}
	if err != nil || state.Phase() != slots.Steady {
		return err
	}
	if state.Hopeless(slot) {
		return refusal{fmt.Errorf("slot %s: the last boots (%d) did not get as far as containerd", slot, state.Boots)}
	}
	next, err := state.CountBoot(slot)
	if err != nil {
		return err
	}
	return writeBootState(dev, 1-index, next)
}

// noteSlot tells the boot state that the booted slot has come up: it may have
// been marked bad, or have stood in for one that was. A slot in which containerd does not
// start is left only for another that is whole: a reboot would mend nothing else,
// and while the node is up it says what is wrong.
func noteSlot(s *System) error {
	slot, err := slots.ParseSlot(s.slot())
	if err != nil {
		s.Console.Errorf("note slot: %v", err)
		return nil
	}
	if !s.proven {
		state, _, err := readBootState(s.disk.dev)
		if other := slot.Other(); err == nil && state.Phase() == slots.Steady && state.Status(other) == slots.OK {
			return fmt.Errorf("slot %s: containerd does not start; slot %s is whole and is next after %d such boots", slot, other, slots.MaxBoots)
		}
		s.watchRot(slot)
		return nil
	}
	defer s.watchRot(slot)
	note, err := slotUp(s.disk.dev, slot)
	if err != nil {
		s.Console.Errorf("note slot: %v", err)
	} else if note != "" {
		s.Console.Printf("%s", note)
	}
	return nil
}

func slotUp(dev string, slot slots.Slot) (note string, err error) {
	state, index, err := readBootState(dev)
	if errors.Is(err, slots.ErrNoState) {
		// One after the other: a cut in between leaves one valid copy.
		err = errors.Join(writeBootState(dev, 0, slots.Rebuilt(slot)), writeBootState(dev, 1, slots.Rebuilt(slot)))
		return fmt.Sprintf("both copies of the boot state were lost; written anew with slot %s", slot), err
	}
	if err != nil || state.Phase() != slots.Steady || state.Good == slot && state.Status(slot) == slots.OK && state.Fails == 0 && state.Boots == 0 {
		return "", err
	}
	next, err := state.Recover(slot)
	if err != nil {
		return "", err
	}
	if state.Good == slot && state.Status(slot) == slots.OK && state.Fails == 0 {
		return "", writeBootState(dev, 1-index, next) // a boot like any other
	}
	return fmt.Sprintf("slot %s has come up; it is the good one now", slot), writeBootState(dev, 1-index, next)
}

func readBootState(dev string) (slots.State, int, error) {
	f, err := os.Open(dev)
	if err != nil {
		return slots.State{}, 0, fmt.Errorf("read boot state: %w", err)
	}
	defer f.Close()
	return slots.Read(f, bootStates)
}

// writeBootState writes one copy, flushed. It must not be the one that holds.
func writeBootState(dev string, index int, state slots.State) error {
	sector, err := state.Encode()
	if err != nil {
		return err
	}
	if err := writeSector(dev, bootStates[index]/boards.SectorSize, sector); err != nil {
		return fmt.Errorf("write boot state: %w", err)
	}
	return nil
}
