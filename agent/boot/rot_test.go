package boot

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/slots"
)

func TestRotWatch(t *testing.T) {
	alone, both, bad, trial := slots.New(slots.A), slots.New(slots.A), slots.New(slots.A), slots.New(slots.A)
	both.B, bad.B, trial.B = slots.OK, slots.Bad, slots.OK
	trial.Trial, trial.Tries = slots.B, 2
	for _, tt := range []struct {
		name      string
		copies    []slots.State
		rots      bool
		gone      bool // the disk can't be read
		err       error
		rebooted  bool
		goesOn    bool   // there is more to look for
		says, has string // of a problem
	}{
		{name: "whole", copies: []slots.State{both}, goesOn: true},
		{name: "two slots", copies: []slots.State{both}, rots: true, rebooted: true, says: "slot a is marked bad; slot b is next"},
		{name: "alone", copies: []slots.State{alone}, rots: true, says: "damaged", has: "slot a: its root file system is damaged"},
		{name: "the other is bad, too", copies: []slots.State{bad}, rots: true, says: "damaged", has: "damaged"},
		{name: "on trial, which others judge", copies: []slots.State{trial}, rots: true, goesOn: true, says: "damaged", has: "damaged"},
		{name: "no disk for a moment", gone: true, rots: true, goesOn: true, says: "damaged", has: "damaged"},
		{name: "no boot state", rots: true, says: "damaged", has: "damaged"},
		{name: "the kernel does not tell", copies: []slots.State{both}, err: errors.New("no such device"), goesOn: true, says: "no such device"},
	} {
		var said, has []string
		rebooted := false
		dev := stateDisk(t, tt.copies...)
		if tt.gone {
			dev += ".gone"
		}
		w := &rotWatch{dev: dev, slot: slots.A, corrupted: func() (bool, error) { return tt.rots, tt.err }, reboot: func() { rebooted = true },
			say: func(f string, a ...any) { said = append(said, fmt.Sprintf(f, a...)) },
			report: func(list []api.Problem) {
				for _, p := range list {
					has = append(has, p.Where+": "+p.What)
				}
			}}
		if done := w.turn(); done == tt.goesOn {
			t.Errorf("%s: turn() = %v", tt.name, done)
		}
		if rebooted != tt.rebooted || !strings.Contains(strings.Join(said, "\n"), tt.says) || (tt.has == "") != (len(has) == 0) || !strings.Contains(strings.Join(has, "\n"), tt.has) {
			t.Errorf("%s: rebooted %v, said %q, problems %q; want %v, %q, %q", tt.name, rebooted, said, has, tt.rebooted, tt.says, tt.has)
		}
		if tt.rebooted && held(t, dev).Status(slots.A) != slots.Bad {
			t.Errorf("%s: the boot state has %v; want slot a bad", tt.name, held(t, dev))
		}
	}
}
