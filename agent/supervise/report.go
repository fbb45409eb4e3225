package supervise

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"skerry.internal/skerry/agent/api"
)

// report is what a unit's goroutine leaves for others to read.
type report struct {
	pid      int
	restarts int
	since    time.Time // of the state
	retry    time.Time // while waiting
	lastExit string
}

// Report says how the units are, in the order of their start.
func (s *Supervisor) Report() []api.Unit {
	s.mu.Lock()
	units := append([]*running(nil), s.units...)
	s.mu.Unlock()
	var list []api.Unit
	for _, r := range units {
		r.mu.Lock()
		u := api.Unit{Name: r.Name, State: r.state.String(), Status: r.status, PID: r.report.pid,
			Restarts: r.report.restarts, Since: r.report.since, LastExit: r.report.lastExit, Retry: r.report.retry}
		r.mu.Unlock()
		list = append(list, u)
	}
	return list
}

// entered notes a change of state.
func (r *running) entered(s State) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.since, r.report.retry = now, time.Time{}
	if s == Waiting {
		r.report.retry = now.Add(r.pause())
	}
}

// restarted notes that the unit is started again.
func (r *running) restarted() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.restarts++
}

// launched notes the process that the unit has now.
func (r *running) launched(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.pid = pid
}

// ended notes how a process ended, or why none could be started.
func (r *running) ended(how string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.pid = 0
	r.report.lastExit = time.Now().UTC().Format(time.RFC3339) + " " + how
}

// WriteLog writes the last lines of what a unit has written, all of it if
// lines is negative, and then, if follow is set, what it goes on to write,
// until ctx ends or w fails. When the log file can't be written, because its
// file system is full, read-only or not there, the lines come from memory.
func (s *Supervisor) WriteLog(ctx context.Context, w io.Writer, name string, lines int, follow bool) error {
	l := newLog(filepath.Join(s.cfg.LogDir, name+".log"), logSize) // of an earlier boot
	if r := s.unit(name); r != nil {
		l = r.log
	} else if _, err := os.Stat(l.path); err != nil {
		return fmt.Errorf("read log of %q: no such unit", name)
	}
	sizes, recent, news := l.snapshot(follow)
	if news != nil {
		defer l.unsubscribe(news)
	}
	var err error
	if recent != nil {
		_, err = io.WriteString(w, strings.Join(last(recent, lines), ""))
	} else {
		err = copyTail(w, []string{l.path + ".1", l.path}, sizes, lines)
	}
	if err != nil || news == nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case line := <-news:
			if _, err := io.WriteString(w, line); err != nil {
				return err
			}
		}
	}
}

func last(lines []string, n int) []string {
	if n < 0 {
		return lines
	}
	return lines[max(0, len(lines)-n):]
}

// recentSize bounds the lines that are kept in memory, in bytes.
const recentSize = 64 << 10

// rememberLocked keeps a line for when the file can't, and hands it to who
// follows. Who does not keep up loses lines: a unit never waits for a reader.
func (l *logFile) rememberLocked(line string) {
	l.recent = append(l.recent, line)
	l.recentLen += len(line)
	for l.recentLen > recentSize {
		l.recentLen -= len(l.recent[0])
		l.recent[0] = ""
		l.recent = l.recent[1:]
	}
	for news := range l.followers {
		select {
		case news <- line:
		default:
		}
	}
}

// snapshot returns how long the files are now, or the lines in memory if the
// last one did not reach a file. With follow it returns a channel of all lines
// from here on, without a gap.
func (l *logFile) snapshot(follow bool) (sizes []int64, recent []string, news chan string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if follow {
		news = make(chan string, 1000)
		if l.followers == nil {
			l.followers = map[chan string]bool{}
		}
		l.followers[news] = true
	}
	if l.lost {
		return nil, append([]string{}, l.recent...), news
	}
	for _, path := range []string{l.path + ".1", l.path} {
		var size int64
		if fi, err := os.Stat(path); err == nil {
			size = fi.Size()
		}
		sizes = append(sizes, size)
	}
	return sizes, nil, news
}

func (l *logFile) unsubscribe(news chan string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.followers, news)
}

// copyTail writes the last lines of files as if they were one. A file counts up
// to its size; one that has become shorter meanwhile was moved aside.
func copyTail(w io.Writer, paths []string, sizes []int64, lines int) error {
	var parts []*io.SectionReader
	for i := len(paths) - 1; i >= 0 && lines != 0; i-- {
		f, err := os.Open(paths[i])
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		defer f.Close()
		from, found, err := tailOffset(f, sizes[i], lines)
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		parts = append(parts, io.NewSectionReader(f, from, sizes[i]-from))
		if lines > 0 {
			lines -= found
		}
	}
	for i := len(parts) - 1; i >= 0; i-- {
		if _, err := io.Copy(w, parts[i]); err != nil {
			return err
		}
	}
	return nil
}

// tailOffset returns where the last lines of the first size bytes begin, and
// how many there are.
func tailOffset(f io.ReaderAt, size int64, lines int) (offset int64, found int, err error) {
	if lines < 0 {
		return 0, 0, nil
	}
	buf := make([]byte, 32<<10)
	for end := size; end > 0; {
		start := max(0, end-int64(len(buf)))
		b := buf[:end-start]
		n, err := f.ReadAt(b, start)
		if err != nil && err != io.EOF {
			return 0, 0, err
		}
		b = b[:n]
		for i := bytes.LastIndexByte(b, '\n'); i >= 0; i = bytes.LastIndexByte(b[:i], '\n') {
			if start+int64(i) == size-1 {
				continue // the end of the last line
			}
			if found++; found == lines {
				return start + int64(i) + 1, found, nil
			}
		}
		end = start
	}
	if size > 0 {
		found++ // the first line has none before it
	}
	return 0, found, nil
}
