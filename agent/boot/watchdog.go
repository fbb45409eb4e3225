package boot

import (
	"errors"
	"time"

	"skerry.internal/skerry/agent/config"
)

// setWatchdog does with the running watchdog what skerry.yaml says.
func setWatchdog(s *System) error {
	want := s.config.Watchdog
	switch {
	case want == 0 || want == config.WatchdogOff && s.Hardware == nil:
		return nil
	case s.Hardware == nil:
		return errors.New("skerry.yaml sets the hardware watchdog, but there is none")
	case want == config.WatchdogOff:
		if err := s.Hardware.Stop(); err != nil {
			return err // and it is fed on
		}
		s.Feeder.Stop()
		err := s.Hardware.Disarm()
		s.Hardware, s.Feeder = nil, nil
		s.Console.Printf("hardware watchdog stopped, as skerry.yaml says")
		return err
	}
	if err := s.Hardware.SetTimeout(time.Duration(want)); err != nil {
		return err
	}
	s.Console.Printf("hardware watchdog set to %v", s.Hardware.Timeout)
	return nil
}
