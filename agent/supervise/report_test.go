package supervise

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTail(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("x", 40<<10)
	for _, tt := range []struct {
		name           string
		older, current string // the files; "" is none
		lines          int
		want           string
	}{
		{"none", "", "", 10, ""},
		{"all", "a\nb\n", "c\nd\n", -1, "a\nb\nc\nd\n"},
		{"nothing", "a\n", "b\n", 0, ""},
		{"one", "a\nb\n", "c\nd\n", 1, "d\n"},
		{"one file", "a\nb\n", "c\nd\n", 2, "c\nd\n"},
		{"across", "a\nb\n", "c\nd\n", 3, "b\nc\nd\n"},
		{"more than there are", "a\nb\n", "c\nd\n", 30, "a\nb\nc\nd\n"},
		{"only the older", "a\nb\n", "", 1, "b\n"},
		{"no end yet", "", "a\nb", 1, "b"},
		{"longer than a block", "", "a\n" + long + "\nb\n", 2, long + "\nb\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var paths []string
			var sizes []int64
			for i, text := range []string{tt.older, tt.current} {
				path := filepath.Join(dir, strings.ReplaceAll(tt.name, " ", "-")+fmt.Sprint(i))
				if text != "" {
					if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				paths, sizes = append(paths, path), append(sizes, int64(len(text)))
			}
			var got bytes.Buffer
			if err := copyTail(&got, paths, sizes, tt.lines); err != nil || got.String() != tt.want {
				t.Errorf("copyTail(%d lines) = %d bytes %.40q, %v; want %d bytes %.40q", tt.lines, got.Len(), got.String(), err, len(tt.want), tt.want)
			}
		})
	}
}

// A log whose file can't be written is read from memory, and only as much of
// it as fits.
func TestRecent(t *testing.T) {
	l := newLog(filepath.Join(t.TempDir(), "missing", "u.log"), logSize)
	line := strings.Repeat("y", 1000)
	for range 100 {
		l.writeLine([]byte(line + "\n"))
	}
	l.writeLine([]byte("the last\n"))
	sizes, recent, _ := l.snapshot(false)
	if sizes != nil || len(recent) == 0 || recent[len(recent)-1] != "the last\n" {
		t.Fatalf("snapshot() = %v, %d lines; want the lines in memory", sizes, len(recent))
	}
	if n := len(strings.Join(recent, "")); n > recentSize || n < recentSize/2 {
		t.Errorf("%d bytes are in memory; want at most %d", n, recentSize)
	}
}

// Who follows gets what was there and what comes, each line once.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	s := New(Config{LogDir: dir})
	l := newLog(filepath.Join(dir, "u.log"), logSize)
	s.units = append(s.units, &running{Unit: Unit{Name: "u"}, log: l})
	l.writeLine([]byte("one\n"))
	l.writeLine([]byte("two\n"))
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- s.WriteLog(ctx, w, "u", 1, true) }()
	read := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
			t.Fatalf("read %q, %v; want %q", got, err, want)
		}
	}
	read("two\n")
	l.writeLine([]byte("three\n"))
	read("three\n")
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("WriteLog() = %v after its end; want nil", err)
	}
	if len(l.followers) != 0 {
		t.Errorf("%d followers are left; want none", len(l.followers))
	}
	if err := s.WriteLog(t.Context(), io.Discard, "none", 1, false); err == nil {
		t.Error("WriteLog(none) = nil; want an error")
	}
}

func TestReport(t *testing.T) {
	s, c, _ := start(t, Unit{}, "die")
	c.await(t, "exit status 3", 3)
	got := s.Report()
	if len(got) != 1 || got[0].Name != "u" || got[0].Restarts < 2 || !strings.Contains(got[0].LastExit, "exit status 3") || got[0].Since.IsZero() {
		t.Errorf("Report() = %+v; want a unit that was restarted twice and ended with status 3", got)
	}
	s, c, _ = start(t, Unit{}, "ready")
	c.await(t, "unit u ready", 1)
	if got := s.Report(); len(got) != 1 || got[0].State != "ready" || got[0].PID == 0 || got[0].Restarts != 0 || !got[0].Retry.IsZero() {
		t.Errorf("Report() = %+v; want it ready", got)
	}
}
