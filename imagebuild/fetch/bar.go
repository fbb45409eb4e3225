package fetch

import (
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/cheggaaa/pb/v3"
	"golang.org/x/term"
)

// Bar shows all downloads that run at a time as one progress bar, and notices
// between them. Where out is not a terminal there is no bar, just notices.
type Bar struct {
	out      io.Writer
	terminal bool

	mu   sync.Mutex // guards what follows
	bar  *pb.ProgressBar
	last map[string]Progress
}

// NewBar returns a bar that appears with the first download.
func NewBar(out io.Writer) *Bar {
	f, ok := out.(*os.File)
	return &Bar{out: out, terminal: ok && term.IsTerminal(int(f.Fd())), last: map[string]Progress{}}
}

// Progress is for Cache.Progress.
func (b *Bar) Progress(p Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.terminal {
		return
	}
	if b.bar == nil {
		b.bar = pb.New64(0).Set(pb.Bytes, true).SetWriter(b.out).
			SetTemplateString(`{{string . "name"}} {{counters . }} {{bar . }} {{percent . }} {{speed . }} {{rtime . "%s left"}}`).Start()
	}
	b.last[p.Name] = p
	var done, total int64
	for _, q := range b.last {
		done, total = done+q.Done, total+q.Total
	}
	b.bar.Set("name", p.Name).SetTotal(total).SetCurrent(done)
}

// Notice is for Cache.Notice.
func (b *Bar) Notice(line string) {
	b.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	fmt.Fprintln(b.out, line)
}

// Close leaves the bar as it is and goes to the next line. A further download
// starts another one.
func (b *Bar) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bar != nil {
		b.bar.Finish()
		b.bar, b.last = nil, map[string]Progress{}
	}
}
