package supervise

import "fmt"

// Stop stops one unit and returns when its main process has ended. It stays
// stopped, in its place among the others, until Restart.
func (s *Supervisor) Stop(name string) error {
	r := s.unit(name)
	if r == nil {
		return fmt.Errorf("stop unit %q: no such unit", name)
	}
	r.end()
	return nil
}

// end stops a unit, once, and waits until it has stopped.
func (r *running) end() {
	r.stopOne.Do(func() { close(r.stop) })
	<-r.stopped
}

// Restart starts a unit again, as it was given to Start; one that runs is
// stopped first. It counts as new: without failures, and not yet ready.
func (s *Supervisor) Restart(name string) error {
	if err := s.Stop(name); err != nil {
		return fmt.Errorf("restart unit %q: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, r := range s.units {
		if r.Name != name {
			continue
		}
		select {
		case <-r.stopped:
		default:
			return nil // somebody else has started it meanwhile
		}
		again, err := s.startLocked(r.Unit)
		if err != nil {
			return err
		}
		s.units[i] = again
		return nil
	}
	return fmt.Errorf("restart unit %q: the system is going down", name)
}
