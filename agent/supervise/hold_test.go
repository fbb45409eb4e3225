package supervise

import (
	"sync"
	"testing"
	"time"
)

// A stopped unit stays stopped until it is restarted, as often as one likes, and
// whatever it was doing; then it runs again as it did.
func TestStopAndRestart(t *testing.T) {
	for _, mode := range []string{"ready", "die", "sleep"} {
		t.Run(mode, func(t *testing.T) {
			s, c, _ := start(t, Unit{}, mode)
			c.await(t, "unit u started", 1)
			for range 2 {
				if err := s.Stop("u"); err != nil {
					t.Fatal(err)
				}
				if state, _ := s.State("u"); state != Stopped {
					t.Errorf("state after Stop() = %v", state)
				}
			}
			if err := s.Restart("u"); err != nil {
				t.Fatal(err)
			}
			if mode == "ready" {
				if err := s.WaitReady("u", 20*time.Second); err != nil {
					t.Error(err)
				}
				if err := s.Restart("u"); err != nil { // one that runs
					t.Fatal(err)
				}
				if err := s.WaitReady("u", 20*time.Second); err != nil {
					t.Error(err)
				}
				c.await(t, "unit u started", 3)
			}
			s.StopAll()
			if err := s.Restart("u"); err == nil {
				t.Error("Restart() after StopAll() = nil; want an error")
			}
		})
	}
}

// Whoever comes at the same time, the unit ends up stopped, and nothing panics.
func TestStopAtTheSameTime(t *testing.T) {
	s, c, _ := start(t, Unit{}, "ready")
	c.await(t, "unit u ready", 1)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { s.Stop("u") })
		wg.Go(func() { s.Restart("u") })
	}
	wg.Go(s.StopAll)
	wg.Wait()
	if err := s.Stop("u"); err == nil {
		t.Error("Stop() after StopAll() = nil; want an error")
	}
	if err := s.Start(Unit{Name: "v", Args: []string{"/proc/self/exe"}}); err == nil {
		t.Error("Start() after StopAll() = nil; want an error")
	}
}
