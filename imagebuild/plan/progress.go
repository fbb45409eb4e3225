package plan

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cheggaaa/pb/v3"
	"golang.org/x/term"
)

// Progress is what a step says about itself while it runs. It may be used by
// several goroutines.
type Progress struct {
	out  io.Writer
	bar  *pb.ProgressBar // nil when out is no terminal
	note string
}

// Total says how much there is to do, in whatever unit Add counts.
func (p *Progress) Total(n int64) {
	if p != nil && p.bar != nil {
		p.bar.SetTotal(n).SetTemplateString(showBar)
	}
}

// Add says that n more are done.
func (p *Progress) Add(n int64) {
	if p != nil && p.bar != nil {
		p.bar.Add64(n)
	}
}

// Note replaces what is shown after the step's name.
func (p *Progress) Note(format string, args ...any) {
	if p == nil {
		return
	}
	p.note = fmt.Sprintf(format, args...)
	if p.bar != nil {
		p.bar.Set("note", p.note)
	}
}

// Writer counts what goes through it.
func (p *Progress) Writer(w io.Writer) io.Writer { return countingWriter{w, p} }

type countingWriter struct {
	w io.Writer
	p *Progress
}

func (c countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.p.Add(int64(n))
	return n, err
}

const (
	showBar  = `{{string . "step"}} {{bar . "[" "=" ">" " " "]"}} {{percent .}} {{etime .}} {{string . "note"}}`
	showTime = `{{string . "step"}} {{etime .}} {{string . "note"}}`
)

// Run runs the steps in order, and shows each with its time: on a terminal with
// a bar while it lasts, elsewhere as one line once it is done. The first error
// ends it, with the name of the step.
func Run(ctx context.Context, steps []Step, out io.Writer) error {
	tty := false
	if f, ok := out.(*os.File); ok {
		tty = term.IsTerminal(int(f.Fd()))
	}
	for i, s := range steps {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		title := fmt.Sprintf("%2d/%d %-26s", i+1, len(steps), s.Name)
		p := &Progress{out: out}
		if tty {
			p.bar = pb.New64(0).SetWriter(out).SetTemplateString(showTime).Set("step", title).SetRefreshRate(200 * time.Millisecond)
			p.bar.Set(pb.CleanOnFinish, true)
			p.bar.Start()
		}
		start := time.Now()
		err := s.Run(ctx, p)
		if p.bar != nil {
			p.bar.Finish()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		fmt.Fprintf(out, "%s %6.1fs  %s\n", title, time.Since(start).Seconds(), p.note)
	}
	return nil
}
