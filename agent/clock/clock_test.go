package clock

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFloor(t *testing.T) {
	a, b := time.Unix(1000, 0), time.Unix(2000, 0)
	for _, tt := range []struct {
		in   []time.Time
		want time.Time
	}{
		{nil, time.Time{}},
		{[]time.Time{{}, a}, a},
		{[]time.Time{b, a, {}}, b},
	} {
		if got := Floor(tt.in...); !got.Equal(tt.want) {
			t.Errorf("Floor(%v) = %v; want %v", tt.in, got, tt.want)
		}
	}
}

func TestReadSave(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock")
	if got, err := Read(path); !got.IsZero() || err != nil {
		t.Errorf("Read() of nothing = %v, %v; want zero", got, err)
	}
	want := time.Unix(1790000000, 0)
	if err := Save(path, want); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path); !got.Equal(want) || err != nil {
		t.Errorf("Read() = %v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"", "x", "-1", "99999999999", "1.5"} {
		if err := os.WriteFile(path, []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(path); err == nil || !got.IsZero() {
			t.Errorf("Read(%q) = %v, %v; want an error", bad, got, err)
		}
	}
}

func TestRTC(t *testing.T) {
	sys := t.TempDir()
	if got := RTC(sys); !got.IsZero() {
		t.Errorf("RTC() without one = %v; want zero", got)
	}
	for name, v := range map[string]string{"rtc0": "bad", "rtc1": "1790000000\n"} {
		dir := filepath.Join(sys, "class/rtc", name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "since_epoch"), []byte(v), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := RTC(sys); got.Unix() != 1790000000 {
		t.Errorf("RTC() = %v; want rtc1's", got)
	}
}

func TestRaiseNeverLowers(t *testing.T) {
	if d, err := Raise(time.Now().Add(-time.Hour)); d != 0 || err != nil {
		t.Errorf("Raise() to the past = %v, %v; want nothing done", d, err)
	}
}

func TestSync(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var applied []time.Duration
	var said strings.Builder
	round := 0
	wake := make(chan struct{})
	s := &Sync{
		Servers: func() []string {
			round++
			return []string{"dead", "liar", "good"}[:round]
		},
		Floor:  time.Now().Add(-time.Hour),
		Printf: func(f string, a ...any) { fmt.Fprintf(&said, f+"\n", a...) },
		Synced: cancel,
		query: func(server string) (time.Duration, error) {
			switch server {
			case "liar":
				return -1000 * time.Hour, nil
			case "good":
				return 10 * time.Second, nil
			}
			return 0, errors.New("no answer")
		},
		apply: func(d time.Duration) error { applied = append(applied, d); return nil },
		pause: func(bool, int) time.Duration { return time.Millisecond },
	}
	s.Run(ctx, wake)
	if len(applied) == 0 || applied[0] != 10*time.Second {
		t.Errorf("Run() applied %v; want the good server's 10s first", applied)
	}
	if !strings.Contains(said.String(), "built or provisioned, and before "+map[int]string{64: "2200-01-01", 32: "2038-01-18"}[bits.UintSize]+"; not believed") || !strings.Contains(said.String(), "clock set by 10s") {
		t.Errorf("Run() said %q; want the liar and the jump named", said.String())
	}
}

func TestPause(t *testing.T) {
	if pause(true, 0) != 17*time.Minute || pause(false, 1) != 32*time.Second || pause(false, 1000) != 17*time.Minute {
		t.Errorf("pause() = %v, %v, %v", pause(true, 0), pause(false, 1), pause(false, 1000))
	}
}
