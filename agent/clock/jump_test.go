package clock

import (
	"context"
	"testing"
	"time"
)

// That a clock which is set is noticed is TestClock's to show, in a virtual
// machine: a test must not set the clock of whoever runs it.
func TestJumpsEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	jumps, err := Jumps(ctx)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case _, open := <-jumps:
		t.Fatalf("a clock that nobody has set: got a jump (%v)", open)
	case <-time.After(100 * time.Millisecond):
	}
	cancel()
	select {
	case _, open := <-jumps:
		if open {
			t.Error("at the end: got a jump; want none")
		}
	case <-time.After(10 * time.Second):
		t.Error("Jumps goes on after its context's end")
	}
}

// As with Jumps: what a clock that is set does is TestClock's to show.
func TestShift(t *testing.T) {
	from := time.Now()
	<-time.After(20 * time.Millisecond)
	if d := Shift(from, time.Now()); d.Abs() > 10*time.Millisecond {
		t.Errorf("Shift() of a clock that nobody has set = %v; want nothing", d)
	}
}
