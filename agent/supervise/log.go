package supervise

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

const (
	logSize   = 5 << 20 // bytes after which a log is moved aside
	tailLines = 10      // lines that are shown when a unit dies
	lineSize  = 8 << 10 // longer lines are cut into several
)

// logFile keeps what a unit writes: one file and one older one. What can't be
// written is dropped and never stops the unit; the last lines are in memory.
type logFile struct {
	mu   sync.Mutex // guards all that follows
	path string
	max  int64
	f    *os.File
	size int64
	tail []string
	shut bool // nothing is written any more
	lost bool // the last line did not reach the file

	recent    []string // with their ends, for when the file can't be written
	recentLen int      // bytes in recent
	followers map[chan string]bool
}

func newLog(path string, max int64) *logFile { return &logFile{path: path, max: max} }

// copy reads lines until the last writer of the pipe is gone.
func (l *logFile) copy(r io.ReadCloser) {
	defer r.Close()
	br := bufio.NewReaderSize(r, lineSize)
	for {
		line, err := br.ReadSlice('\n')
		if len(line) > 0 {
			l.writeLine(line)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func (l *logFile) writeLine(line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := string(line)
	if text[len(text)-1] == '\n' {
		text = text[:len(text)-1]
	}
	if l.tail = append(l.tail, text); len(l.tail) > tailLines {
		l.tail = append(l.tail[:0:0], l.tail[1:]...)
	}
	l.appendLocked(text)
}

func (l *logFile) appendLocked(text string) {
	l.rememberLocked(text + "\n")
	if l.f != nil && l.size+int64(len(text)) >= l.max {
		l.f.Close()
		l.f = nil
		os.Rename(l.path, l.path+".1")
	}
	if l.shut || l.f == nil && !l.openLocked() {
		l.lost = true
		return
	}
	n, err := l.f.Write(append([]byte(text), '\n')) // a full disk costs log lines, nothing else
	l.size += int64(n)
	l.lost = err != nil
}

func (l *logFile) openLocked() bool {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return false
	}
	if fi, err := f.Stat(); err == nil {
		l.size = fi.Size()
	}
	l.f = f
	return true
}

// mark writes a line of our own, which is none of the unit's last.
func (l *logFile) mark(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.appendLocked("skerry: " + fmt.Sprintf(format, args...))
}

// last returns the unit's last lines and forgets them.
func (l *logFile) last() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tail
	l.tail = nil
	return t
}

// close ends writing for good, so that the file system can be unmounted though
// a pipe is still open somewhere.
func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shut = true
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
}
