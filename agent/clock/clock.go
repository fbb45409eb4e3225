// Package clock keeps a board without a battery from living in 1970: the clock
// never starts before a floor made of what is known to have happened, is
// corrected by NTP when there is a network, and remembers where it was.
//
// Left out: being a time server, and smooth discipline to the microsecond:
// certificates and leases need seconds.
package clock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/beevik/ntp"
	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/atomicfile"
)

// Floor returns the latest of the times; zero ones do not count.
func Floor(times ...time.Time) time.Time {
	var floor time.Time
	for _, t := range times {
		if t.After(floor) {
			floor = t
		}
	}
	return floor
}

// Read reads a time from a file that holds unix seconds. A file that is
// missing is the zero time; one that holds no time is an error.
func Read(path string) (time.Time, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("read time: %w", err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil || n < 0 || n > maxUnix {
		return time.Time{}, fmt.Errorf("read time from %q: got %.20q, want unix seconds", path, data)
	}
	return time.Unix(n, 0), nil
}

// maxUnix is the end of 2199: later times are garbage. On 32 bits it is a day before the end
// of what Go's runtime and the kernel's interfaces that it uses can tell, in January 2038 (Go 1.26).
const maxUnix int64 = 7258118399*(bits.UintSize/64) + (1<<31-1-86400)*(1-bits.UintSize/64)

// Save writes a time for Read.
func Save(path string, t time.Time) error {
	return atomicfile.WriteFile(path, fmt.Appendf(nil, "%d\n", t.Unix()), 0o644)
}

// RTC returns the time of the first hardware clock below sys (normally /sys);
// zero if there is none or it holds no sensible time.
func RTC(sys string) time.Time {
	clocks, _ := filepath.Glob(filepath.Join(sys, "class/rtc/rtc*/since_epoch"))
	for _, c := range clocks {
		if t, err := Read(c); err == nil && !t.IsZero() {
			return t
		}
	}
	return time.Time{}
}

// Raise sets the system clock to floor if it is before that, and says by how
// much it moved.
func Raise(floor time.Time) (time.Duration, error) {
	d := time.Until(floor)
	if d <= 0 {
		return 0, nil
	}
	return d, set(floor)
}

func set(t time.Time) error {
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return fmt.Errorf("set clock to %v: %w", t, err)
	}
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set clock to %v: %w", t, err)
	}
	return nil
}

// Jump is the offset from which the clock is set at once; a smaller one is
// worked off by the kernel, so that no time passes twice.
const Jump = 500 * time.Millisecond

// Sync asks time servers for ever, the first that answers counts, and corrects
// the clock. It never goes before Floor, which must be a time that is certain
// to have passed: one that was only read from a clock may have been wrong, and
// would have the right time refused for ever. Servers is called before each
// round, since DHCP may name others.
type Sync struct {
	Servers func() []string
	Floor   time.Time
	Printf  func(format string, args ...any)
	// Synced is called after each correction.
	Synced func()

	query func(server string) (time.Duration, error) // nil: NTP
	apply func(offset time.Duration) error           // nil: the system clock
	pause func(ok bool, failures int) time.Duration  // nil: pause

	mu     sync.Mutex // guards what follows
	server string
	synced time.Time
}

// Last says which server answered last, and when by the corrected clock; zero
// if none has.
func (s *Sync) Last() (server string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.server, s.synced
}

// Run returns when ctx ends. wake cuts a pause short: a network has come up.
func (s *Sync) Run(ctx context.Context, wake <-chan struct{}) {
	query, apply, pauseFor := s.query, s.apply, s.pause
	if query == nil {
		query = ask
	}
	if apply == nil {
		apply = adjust
	}
	if pauseFor == nil {
		pauseFor = pause
	}
	failures := 0
	for {
		ok := s.round(query, apply)
		if ok {
			failures = 0
		} else {
			failures++
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
			failures = 0
		case <-time.After(pauseFor(ok, failures)):
		}
	}
}

// pause is the time to the next round.
func pause(ok bool, failures int) time.Duration {
	if ok {
		return 17 * time.Minute
	}
	return min(16*time.Second<<min(failures, 6), 17*time.Minute)
}

func (s *Sync) round(query func(string) (time.Duration, error), apply func(time.Duration) error) bool {
	for _, server := range s.Servers() {
		offset, err := query(server)
		if err != nil {
			continue // servers come and go; the next one, or the next round
		}
		if t := time.Now().Add(offset); t.Before(s.Floor) || t.Unix() > maxUnix {
			s.Printf("clock: %s says it is %s, want a time after %s, when this system was built or provisioned, and before %s; not believed",
				server, t.UTC().Format(time.RFC3339), s.Floor.UTC().Format(time.RFC3339), time.Unix(maxUnix+1, 0).UTC().Format(time.DateOnly))
			continue
		}
		if err := apply(offset); err != nil {
			s.Printf("error: clock: %v", err)
			return false
		}
		if offset.Abs() >= Jump {
			s.Printf("clock set by %v to %s, from %s", offset.Round(time.Millisecond), time.Now().UTC().Format(time.RFC3339), server)
		}
		s.mu.Lock()
		s.server, s.synced = server, time.Now()
		s.mu.Unlock()
		if s.Synced != nil {
			s.Synced()
		}
		return true
	}
	return false
}

func ask(server string) (time.Duration, error) {
	r, err := ntp.QueryWithOptions(server, ntp.QueryOptions{Timeout: 5 * time.Second})
	if err != nil {
		return 0, err
	}
	return r.ClockOffset, r.Validate()
}

// adjust corrects the system clock, and tells the kernel that it is right now:
// the kernel then keeps the hardware clock.
func adjust(offset time.Duration) error {
	tx := unix.Timex{Modes: unix.ADJ_STATUS | unix.ADJ_MAXERROR | unix.ADJ_ESTERROR, Status: unix.STA_PLL}
	if offset.Abs() >= Jump {
		if err := set(time.Now().Add(offset)); err != nil {
			return err
		}
	} else {
		tx.Modes |= unix.ADJ_OFFSET | unix.ADJ_NANO | unix.ADJ_TIMECONST
		tx.Constant = 4
		setOffset(&tx, offset)
	}
	if _, err := unix.Adjtimex(&tx); err != nil {
		return fmt.Errorf("adjust clock: %w", err)
	}
	return nil
}

// setOffset exists since the field's type depends on the architecture.
func setOffset(tx *unix.Timex, offset time.Duration) {
	switch p := any(&tx.Offset).(type) {
	case *int64:
		*p = int64(offset)
	case *int32:
		*p = int32(offset) // below Jump, so it fits
	}
}
