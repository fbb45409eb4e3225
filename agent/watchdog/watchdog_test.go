package watchdog

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

type fake struct{ fed chan time.Time }

func (f fake) Feed() error   { f.fed <- time.Now(); return nil }
func (f fake) Disarm() error { return nil }

func TestFeeder(t *testing.T) {
	f := fake{make(chan time.Time, 1000)}
	start := time.Now()
	feeder := NewFeeder(f, 5*time.Millisecond, 100*time.Millisecond)
	for range 5 {
		select {
		case <-f.fed:
		case <-time.After(10 * time.Second):
			t.Fatal("it was not fed")
		}
	}
	// No further promise: the last feed lies within the first one.
	time.Sleep(300 * time.Millisecond)
	var last time.Time
	for len(f.fed) > 0 {
		last = <-f.fed
	}
	if d := last.Sub(start); d > 250*time.Millisecond {
		t.Errorf("fed until %v; want at most 100ms and a little", d)
	}
	// A new promise feeds again.
	feeder.Alive(time.Minute)
	select {
	case <-f.fed:
	case <-time.After(10 * time.Second):
		t.Fatal("it was not fed after Alive")
	}
	feeder.Stop()
	for len(f.fed) > 0 {
		<-f.fed
	}
	time.Sleep(50 * time.Millisecond)
	if len(f.fed) > 0 {
		t.Error("it was fed after Stop")
	}
	var none *Feeder // a board without a watchdog
	none.Alive(time.Second)
	none.Stop()
}

func TestNoHardware(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "watchdog")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open() = %v; want %v", err, os.ErrNotExist)
	}
	for _, v := range []string{"", "x", "0", "999"} {
		if h := Inherit(v); h != nil {
			t.Errorf("Inherit(%q) = %v; want nil", v, h)
		}
	}
}
