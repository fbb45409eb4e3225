package boot

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/agent/verity"
)

// rotWatch looks whether the root file system of a slot that has come up goes bad while
// it runs: a program on a block that has rotted ends, or does not start, whatever is tried.
// With another slot that is whole the node goes there; else it says what is wrong and runs on.
type rotWatch struct {
	dev       string
	slot      slots.Slot
	corrupted func() (bool, error)
	reboot    func()
	say       func(format string, args ...any)
	report    func([]api.Problem)

	said string // the last that was said, once
}

const rotLook = 10 * time.Second

// watchRot begins once the boot state has been written for this boot: there is one writer at a time.
func (s *System) watchRot(slot slots.Slot) {
	w := &rotWatch{dev: s.disk.dev, slot: slot, corrupted: verity.Corrupted, say: s.Console.Errorf,
		reboot: func() { s.request(Request{unix.LINUX_REBOOT_CMD_RESTART, "reboot, to the slot that is whole"}) },
		report: func(list []api.Problem) { s.learn(func(k *known) { k.rot = list }) }}
	go func() {
		defer s.guard()
		look := time.NewTicker(rotLook)
		defer look.Stop()
		for !w.turn() {
			select {
			case <-look.C:
			case <-s.ctx.Done():
				return
			}
		}
	}()
}

// turn looks once, and says whether there is nothing more to look for: the kernel does
// not take back that it has found damage.
func (w *rotWatch) turn() (done bool) {
	bad, err := w.corrupted()
	if err != nil {
		w.once(fmt.Sprintf("slot %s: look for damage: %v", w.slot, err))
		return false
	}
	if !bad {
		return false
	}
	const what = "its root file system is damaged: blocks differ from what was built"
	w.once(fmt.Sprintf("slot %s: %s", w.slot, what))
	conclusion, done, err := w.leave()
	if conclusion != "" {
		w.say("%s", conclusion)
		w.reboot()
		return true
	}
	doing := "what can run does; flash the card anew"
	if err != nil {
		doing += fmt.Sprintf("; whether the other slot can be next is not known: %v", err)
	}
	w.report([]api.Problem{{Where: "slot " + string(w.slot), What: what, Doing: doing}})
	return done
}

func (w *rotWatch) once(line string) {
	if line != w.said {
		w.said = line
		w.say("%s", line)
	}
}

// leave makes the other slot the next, if it is whole. Else it concludes nothing, and done
// says that this is how it stays: there is no other, and no trial whose verdict is to come.
func (w *rotWatch) leave() (conclusion string, done bool, err error) {
	state, _, err := readBootState(w.dev)
	switch {
	case errors.Is(err, slots.ErrNoState):
		return "", true, nil
	case err != nil:
		return "", false, err
	case state.Phase() != slots.Steady:
		return "", false, nil
	case state.Status(w.slot.Other()) != slots.OK:
		return "", true, nil
	}
	_, conclusion, err = giveUp(w.dev, w.slot)
	return conclusion, false, err
}
