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
