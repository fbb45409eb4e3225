package unit

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

type journal struct {
	mu    sync.Mutex // guards lines
	lines []string
}

func (j *journal) add(s string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, s)
}

// good is ready at once and runs until it is told to stop.
func (j *journal) good(name string) Unit {
	return Unit{name, func(ctx context.Context, ready func()) error {
		j.add("start " + name)
		ready()
		<-ctx.Done()
		j.add("stop " + name)
		return ctx.Err()
	}}
}

func TestRun(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name  string
		third func(ctx context.Context, ready func()) error
		err   string // "" wants nil
		ready bool
	}{
		{"told to stop", func(ctx context.Context, ready func()) error { ready(); <-ctx.Done(); return ctx.Err() }, "", true},
		{"fails before ready", func(context.Context, func()) error { return broken }, "c: broken", false},
		{"ends by itself", func(_ context.Context, ready func()) error { return nil }, "c: ended by itself", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var j journal
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ready := false
			err := Run(ctx, []Unit{j.good("a"), j.good("b"), {"c", tt.third}},
				func(string, time.Duration) {}, func() { ready = true; cancel() })
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("Run() = %v; want %q", err, tt.err)
			}
			if ready != tt.ready {
				t.Errorf("all ready = %v; want %v", ready, tt.ready)
			}
			if want := []string{"start a", "start b", "stop b", "stop a"}; !slices.Equal(j.lines, want) {
				t.Errorf("order %v; want %v", j.lines, want)
			}
		})
	}
}

// A unit that fails later takes the others down with it, and its cause is kept.
func TestRunFailsLater(t *testing.T) {
	var j journal
	fail := make(chan struct{})
	late := Unit{"late", func(ctx context.Context, ready func()) error { ready(); <-fail; return errors.New("late failure") }}
	err := Run(t.Context(), []Unit{late, j.good("b")}, func(string, time.Duration) {}, func() { close(fail) })
	if err == nil || !strings.Contains(err.Error(), "late: late failure") {
		t.Errorf("Run() = %v; want the unit's own error", err)
	}
	if !slices.Equal(j.lines, []string{"start b", "stop b"}) {
		t.Errorf("order %v; want b started and stopped", j.lines)
	}
}
