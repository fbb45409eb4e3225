//go:build full

package main

import (
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/watchdog"
)

// An init that hangs is ended by the hardware; one that doesn't hang, with the
// same watchdog, lives for longer than that takes: three minutes, so it is part of
// make test-all only, which sets the tag.
func TestWatchdog(t *testing.T) {
	p := load(t, "wedge")
	const feeding, hardware = turnLimit, watchdog.Timeout
	for _, tt := range []struct {
		test  string
		wedge bool
	}{{"wedge", true}, {"none", false}} {
		t.Run(tt.test, func(t *testing.T) {
			t.Parallel()
			m := p.start(t, map[string]string{"skerry.test": tt.test}, "-device", "i6300esb")
			m.expect("hardware watchdog started", "")
			m.expect("skerry: boot complete", "error: init")
			if tt.wedge {
				m.expect("test: init hangs", "")
			}
			begin := time.Now()
			select {
			case <-m.exited:
				if !tt.wedge {
					t.Errorf("the machine was reset after %v though init does not hang:\n%s", time.Since(begin), m.tail())
				}
				// The watchdog, and nothing before it, has ended the machine.
				if took := time.Since(begin); took < hardware/2 || strings.Contains(m.tail(), "Kernel panic") {
					t.Errorf("the machine ended %v after init hung; the watchdog takes %v:\n%s", took, hardware, m.tail())
				}
				t.Logf("reset %v after init hung", time.Since(begin).Round(time.Second))
			case <-time.After(feeding + hardware + time.Minute):
				if tt.wedge {
					t.Errorf("init hangs, and the watchdog does nothing:\n%s", m.tail())
				}
			}
		})
	}
}
