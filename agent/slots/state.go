package slots

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
)

// Slot names one of the two places an operating system lies in. The zero value names none.
type Slot string

const (
	A Slot = "a"
	B Slot = "b"
)

// ParseSlot checks a slot's name, as it stands on the kernel's command line.
func ParseSlot(s string) (Slot, error) {
	if s != string(A) && s != string(B) {
		return "", fmt.Errorf("parse slot: got %q, want %q or %q", s, A, B)
	}
	return Slot(s), nil
}

// Other is the slot that s is not.
func (s Slot) Other() Slot {
	if s == A {
		return B
	}
	return A
}

// Status is what is known of one slot's content.
type Status string

const (
	Empty Status = "empty" // never written, or a write has begun and not ended: never booted
	OK    Status = "ok"    // written whole
	Bad   Status = "bad"   // judged unable to run: booted only when nothing better is left
)

// Phase is the named state that the transitions go between.
type Phase string

const (
	Steady    Phase = "steady"    // the good slot boots
	Trial     Phase = "trial"     // the slot on trial boots, each boot costs one try
	Exhausted Phase = "exhausted" // the tries are used up: the good slot boots and a verdict is due
)

const (
	// StateSize is the length of one copy: a sector, which a disk writes whole or not at all.
	StateSize = 512
	// MaxTries keeps the counter one digit, the same in U-Boot's hexadecimal and in ours.
	MaxTries = 9

	// MaxBoots is how many boots in a row may fail to come up before a slot is
	// given up; of one that was given up before, it is one.
	MaxBoots = 3

	noTrial = "none" // U-Boot can't export a variable without a value
)

// ErrNoState says that neither copy holds a valid state.
var ErrNoState = errors.New("no valid copy of the boot state")

// State is the boot state. It is a value: a transition returns the next one,
// with the next sequence number, and leaves its receiver as it was.
//
//	                   StartTrial
//	          ┌────────────────────────────────┐
//	          │                                ▼
//	      ┌────────┐  Confirm, Abandon,    ┌───────┐
//	┌────▶│ Steady │◀──────────────────────│ Trial │──┐ TakeTry,
//	│     └────────┘  MarkBad              └───────┘◀─┘ tries left
//	│      ▲      │                            │
//	│      └──────┘                            │ TakeTry, the last
//	│   BeginWrite, CountBoot, MarkBad,        ▼
//	│   Recover                          ┌───────────┐
//	└────────────────────────────────────│ Exhausted │
//	    Confirm, Abandon, MarkBad        └───────────┘
//
// TakeTry is what boot.scr does; the others are init's and the updater's.
type State struct {
	Seq   uint32 // grows by one with each write; the valid copy with the higher one holds
	Good  Slot   // boots when there is no trial
	Trial Slot   // the slot on trial, or none
	Tries uint8  // boots left to the slot on trial
	Fails uint8  // slots given up since one last came up: the pause before the next boot grows with it
	Boots uint8  // boots begun since one last came up, of whichever slot
	A, B  Status
}

// New is the state of a disk as it is flashed: one slot written, the other not.
func New(written Slot) State {
	return State{Seq: 1, Good: written, A: Empty, B: Empty}.with(written, OK)
}

// Rebuilt is the state to write when both copies were lost and booted has come up.
// Nothing is known of the other slot, so it counts as never written.
func Rebuilt(booted Slot) State { return New(booted) }

// Status is what is known of slot.
func (s State) Status(slot Slot) Status {
	if slot == A {
		return s.A
	}
	return s.B
}

func (s State) with(slot Slot, status Status) State {
	if slot == A {
		s.A = status
	} else {
		s.B = status
	}
	return s
}

// Phase is the named state s is in.
func (s State) Phase() Phase {
	switch {
	case s.Trial == "":
		return Steady
	case s.Tries > 0:
		return Trial
	}
	return Exhausted
}

// Boot says what boot.scr makes of s: the slots in the order it tries them,
// the state it leaves, and whether that had to be written. The tests hold
// U-Boot and this function against each other.
func (s State) Boot() (order []Slot, next State, write bool) {
	next = s
	if s.Phase() == Trial && s.Status(s.Trial) == OK {
		if n, err := s.TakeTry(); err == nil {
			next, write, order = n, true, append(order, s.Trial)
		}
	}
	for _, status := range []Status{OK, Bad} {
		for _, slot := range []Slot{s.Good, s.Good.Other()} {
			if s.Status(slot) == status && (len(order) == 0 || order[0] != slot) {
				order = append(order, slot)
			}
		}
	}
	return order, next, write
}

// BeginWrite makes the idle slot one that never boots, before its first byte is overwritten.
func (s State) BeginWrite(slot Slot) (State, error) {
	if s.Phase() != Steady || slot != s.Good.Other() {
		return s.illegal("begin to write slot %q: it is not idle", slot)
	}
	return s.with(slot, Empty).advance()
}

// StartTrial gives slot, whose content the caller has written and verified, that many boots to prove itself.
func (s State) StartTrial(slot Slot, tries int) (State, error) {
	switch {
	case s.Phase() != Steady:
		return s.illegal("start trial of slot %q: slot %q is on trial", slot, s.Trial)
	case slot != s.Good.Other():
		return s.illegal("start trial of slot %q: it is not the idle one", slot)
	case s.Status(slot) == Bad:
		return s.illegal("start trial of slot %q: it was judged bad", slot)
	case tries < 1 || tries > MaxTries:
		return s.illegal("start trial of slot %q: got %d tries, want 1 to %d", slot, tries, MaxTries)
	}
	s = s.with(slot, OK)
	s.Trial, s.Tries = slot, uint8(tries)
	return s.advance()
}

// TakeTry takes one try off the slot on trial.
func (s State) TakeTry() (State, error) {
	if s.Phase() != Trial {
		return s.illegal("take a try")
	}
	s.Tries--
	return s.advance()
}

// Confirm makes the slot on trial the good one.
func (s State) Confirm() (State, error) {
	if s.Phase() == Steady {
		return s.illegal("confirm")
	}
	s.Good, s.Trial, s.Tries, s.Fails, s.Boots = s.Trial, "", 0, 0, 0
	return s.advance()
}

// Abandon ends a trial without a verdict: the slot may be tried again.
func (s State) Abandon() (State, error) {
	if s.Phase() == Steady {
		return s.illegal("abandon the trial")
	}
	s.Trial, s.Tries = "", 0
	return s.advance()
}

// MarkBad gives a slot up. A good slot hands over to the other one, if that
// was ever written, so two bad slots take turns.
func (s State) MarkBad(slot Slot) (State, error) {
	if s.Status(slot) == Empty {
		return s.illegal("mark slot %q bad: it was never written", slot)
	}
	if s.Trial == slot {
		s.Trial, s.Tries = "", 0
	}
	s = s.with(slot, Bad)
	s.Boots = 0
	if s.Good == slot && s.Status(slot.Other()) != Empty {
		s.Good = slot.Other()
		if s.Trial == s.Good { // nothing is left to fall back to: no more counting
			s.Trial, s.Tries = "", 0
		}
	}
	if s.Fails < 0xff {
		s.Fails++
	}
	return s.advance()
}

// CountBoot notes that a slot begins to boot; Recover takes it back. During a trial
// the tries are what counts.
func (s State) CountBoot(slot Slot) (State, error) {
	switch {
	case s.Phase() != Steady:
		return s.illegal("count a boot of slot %q: slot %q is on trial", slot, s.Trial)
	case s.Status(slot) == Empty:
		return s.illegal("count a boot of slot %q: it was never written", slot)
	}
	if s.Boots < 0xff {
		s.Boots++
	}
	return s.advance()
}

// Hopeless reports whether slot has begun to boot often enough, without coming
// up, to be given up. boot.scr has passed over the good slot when it is another that boots.
func (s State) Hopeless(slot Slot) bool {
	limit := uint8(MaxBoots)
	if s.Status(slot) == Bad {
		limit = 1
	}
	return s.Phase() == Steady && s.Status(slot) != Empty && s.Boots >= limit
}

// Recover notes that a slot has come up: after all, if it was judged bad or another was.
func (s State) Recover(slot Slot) (State, error) {
	switch {
	case s.Phase() != Steady:
		return s.illegal("recover slot %q: slot %q is on trial", slot, s.Trial)
	case s.Status(slot) == Empty:
		return s.illegal("recover slot %q: it was never written", slot)
	case s.Good == slot && s.Status(slot) == OK && s.Fails == 0 && s.Boots == 0:
		return s.illegal("recover slot %q: it was never given up", slot)
	}
	s = s.with(slot, OK)
	s.Good, s.Fails, s.Boots = slot, 0, 0
	return s.advance()
}

func (s State) illegal(format string, args ...any) (State, error) {
	return s, fmt.Errorf("%s (boot state is %s)", fmt.Sprintf(format, args...), s)
}

func (s State) advance() (State, error) {
	if s.Seq == 1<<32-1 {
		return s.illegal("write boot state: the sequence number is used up")
	}
	s.Seq++
	return s, nil
}

func (s State) String() string {
	t := fmt.Sprintf("%s, good %s, a %s, b %s, seq %d", s.Phase(), s.Good, s.A, s.B, s.Seq)
	if s.Trial != "" {
		t += fmt.Sprintf(", trial %s, %d tries", s.Trial, s.Tries)
	}
	return t
}

func (s State) check() error {
	for _, c := range []struct {
		name, got string
		ok        bool
		want      string
	}{
		{"good", string(s.Good), s.Good == A || s.Good == B, "a or b"},
		{"trial", string(s.Trial), s.Trial == "" || s.Trial == A || s.Trial == B, "a, b or none"},
		{"trial", string(s.Trial), s.Trial == "" || s.Trial != s.Good, "not the good slot"},
		{"tries", fmt.Sprint(s.Tries), s.Tries <= MaxTries, fmt.Sprintf("at most %d", MaxTries)},
		{"tries", fmt.Sprint(s.Tries), s.Trial != "" || s.Tries == 0, "0 without a trial"},
		{"a", string(s.A), s.A == Empty || s.A == OK || s.A == Bad, "empty, ok or bad"},
		{"b", string(s.B), s.B == Empty || s.B == OK || s.B == Bad, "empty, ok or bad"},
	} {
		if !c.ok {
			return fmt.Errorf("boot state: %s: got %q, want %s", c.name, c.got, c.want)
		}
	}
	return nil
}

// Encode writes s as U-Boot's "env export -c -s 0x200" does: the CRC-32 of
// the other 508 bytes, low byte first, then name=value strings sorted by name,
// each ended by a zero, and zeros to the end of the sector.
func (s State) Encode() ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	trial := string(s.Trial)
	if trial == "" {
		trial = noTrial
	}
	b := bytes.NewBuffer(make([]byte, 4, StateSize))
	fmt.Fprintf(b, "a=%s\x00b=%s\x00boots=%x\x00fails=%x\x00good=%s\x00seq=%x\x00trial=%s\x00tries=%x\x00",
		s.A, s.B, s.Boots, s.Fails, s.Good, s.Seq, trial, s.Tries)
	sector := make([]byte, StateSize)
	copy(sector, b.Bytes())
	binary.LittleEndian.PutUint32(sector, crc32.ChecksumIEEE(sector[4:]))
	return sector, nil
}

// Decode reads one copy. Names it doesn't know are passed over: an older
// system must be able to read what a newer one left.
func Decode(sector []byte) (State, error) {
	if len(sector) != StateSize {
		return State{}, fmt.Errorf("decode boot state: got %d bytes, want %d", len(sector), StateSize)
	}
	if got, want := crc32.ChecksumIEEE(sector[4:]), binary.LittleEndian.Uint32(sector); got != want {
		return State{}, fmt.Errorf("decode boot state: CRC: got %08x, want %08x", got, want)
	}
	text, _, ended := bytes.Cut(sector[4:], []byte{0, 0})
	if !ended {
		return State{}, errors.New("decode boot state: got no end of the list, want two zeros")
	}
	values := map[string]string{}
	for _, line := range strings.Split(string(text), "\x00") {
		name, value, ok := strings.Cut(line, "=")
		if _, twice := values[name]; !ok || twice {
			return State{}, fmt.Errorf("decode boot state: got %q, want name=value, each name once", line)
		}
		values[name] = value
	}
	for _, name := range []string{"a", "b", "fails", "good", "seq", "trial", "tries"} {
		if values[name] == "" {
			return State{}, fmt.Errorf("decode boot state: got no %s, want one", name)
		}
	}
	if values["boots"] == "" {
		values["boots"] = "0" // of a system that did not count
	}
	number := func(name string, bits int) uint64 {
		n, err := strconv.ParseUint(values[name], 16, bits)
		if err != nil {
			ended = false
		}
		return n
	}
	s := State{
		Seq: uint32(number("seq", 32)), Good: Slot(values["good"]), Trial: Slot(values["trial"]),
		Tries: uint8(number("tries", 8)), Fails: uint8(number("fails", 8)), Boots: uint8(number("boots", 8)),
		A: Status(values["a"]), B: Status(values["b"]),
	}
	if !ended {
		return State{}, fmt.Errorf("decode boot state: got seq %q, tries %q, fails %q, boots %q, want hexadecimal numbers", values["seq"], values["tries"], values["fails"], values["boots"])
	}
	if s.Trial == noTrial {
		s.Trial = ""
	}
	return s, s.check()
}

// Newest picks the valid copy with the higher sequence number, the first if
// they are equal. The next state is written over the other copy, so that a
// torn write loses nothing. If no copy is valid the error is ErrNoState with both reasons.
func Newest(copies [2][]byte) (s State, index int, err error) {
	first, err0 := Decode(copies[0])
	second, err1 := Decode(copies[1])
	switch {
	case err0 != nil && err1 != nil:
		return State{}, 0, fmt.Errorf("%w: copy 0: %w; copy 1: %w", ErrNoState, err0, err1)
	case err0 != nil || err1 == nil && second.Seq > first.Seq:
		return second, 1, nil
	}
	return first, 0, nil
}

// Read reads both copies of a disk, which lie at the given byte offsets, and picks as Newest does.
func Read(disk io.ReaderAt, offsets [2]int64) (s State, index int, err error) {
	var copies [2][]byte
	for i := range copies {
		copies[i] = make([]byte, StateSize)
		if _, err := disk.ReadAt(copies[i], offsets[i]); err != nil {
			copies[i] = nil // a sector that can't be read is a bad copy, not the end
		}
	}
	return Newest(copies)
}
