// Package console shows a node to whoever stands before it: one screen of text
// made from api.Status (Screen), drawn on a virtual terminal of its own and
// printed on the serial line (Console).
//
// Only printable ASCII goes out: the fonts of the kernel's terminal have little
// else, and what a program says of itself, or a person has typed into
// skerry.yaml, must not steer a terminal. Colour repeats what the words say.
//
// Left out: what is shown (boot and status find it out), the steps of the boot
// as they pass (they are lines of the kernel's log), and any input but Enter.
package console

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"skerry.internal/skerry/agent/api"
)

// Options say how a screen is to look.
type Options struct {
	Width, Height int      // 0: 80 and 25
	Colour        bool     // red for what is wrong
	Plain         bool     // no empty lines: for a serial line
	Booting       bool     // the boot is not complete
	Notice        []string // text that comes first, like how to claim the node
}

// kubernetesPort is where the API server listens.
const kubernetesPort = 6443

// line is one line of a screen. When there are too many, those of the highest
// rank are left out first, and of those the last.
type line struct {
	text string
	rank int
	red  bool
}

// The ranks, the most important first.
const (
	rankTitle = iota
	rankNotice
	rankProblem
	rankReach
	rankUnits
	rankSteps
	rankState // of STATE, memory and clock
	rankWho
	rankBlank
)

// Screen makes the lines of a screen: at most o.Height of them, none longer than
// o.Width (but for the sequences of o.Colour).
func Screen(st api.Status, o Options) []string {
	if o.Width <= 0 || o.Height <= 0 {
		o.Width, o.Height = 80, 25
	}
	p := &page{o: o}
	p.title(st)
	p.notice()
	p.problems(st)
	p.reach(st)
	p.units(st)
	p.resources(st)
	p.steps(st)
	return p.fit()
}

type page struct {
	o     Options
	lines []line
}

// add adds a line that is cut at the screen's edge.
func (p *page) add(rank int, format string, args ...any) {
	p.lines = append(p.lines, line{text: cut(ascii(fmt.Sprintf(format, args...)), p.o.Width), rank: rank})
}

// field adds a line with a name at its margin.
func (p *page) field(rank int, name, format string, args ...any) {
	p.add(rank, "%-10s %s", name, fmt.Sprintf(format, args...))
}

// command adds what can be typed, whole or not at all.
func (p *page) command(name, text string) {
	if l := fmt.Sprintf("%-10s %s", name, text); len(ascii(l)) <= p.o.Width {
		p.add(rankReach, "%s", l)
	}
}

func (p *page) blank() {
	if n := len(p.lines); n > 0 && p.lines[n-1].text != "" && !p.o.Plain {
		p.lines = append(p.lines, line{rank: rankBlank})
	}
}

// wrap adds a text of at most three lines, cut between words, with a mark
// before the first.
func (p *page) wrap(rank int, red bool, mark, text string) {
	const most = 3
	width := p.o.Width - len(mark)
	lines := wrap(ascii(text), width)
	if len(lines) > most {
		lines = lines[:most]
		lines[most-1] = cut(lines[most-1]+"...", width)
	}
	for _, l := range lines {
		p.lines = append(p.lines, line{cut(mark+l, p.o.Width), rank, red})
		mark = strings.Repeat(" ", len(mark))
	}
}

func (p *page) title(st api.Status) {
	state, red := headline(st, p.o.Booting)
	left := ascii(st.Node.Name)
	if left == "" {
		left = "skerry"
	}
	right := ascii(state + ", up " + span(st.Uptime))
	if len(left)+len(right)+2 > p.o.Width {
		right = ascii(state)
	}
	left = cut(left, max(p.o.Width-len(right)-2, 1))
	gap := max(p.o.Width-len(left)-len(right), 1)
	p.lines = append(p.lines, line{cut(left+strings.Repeat(" ", gap)+right, p.o.Width), rankTitle, red})
	who := []string{"no cluster yet"}
	if st.Node.Cluster != "" {
		who[0] = "cluster " + st.Node.Cluster
		if st.Node.Role != "" {
			who[0] = st.Node.Role + " of " + who[0]
		}
	}
	if st.Node.Board != "" {
		who = append(who, "board "+st.Node.Board)
	}
	p.add(rankWho, "%s", strings.Join(who, ", "))
	p.add(rankWho, "Skerry %s, %s, Linux %s", orUnknown(st.Version.Skerry), slots(st), orUnknown(st.Version.Kernel))
	p.blank()
}

// headline is the node's state in one or two words.
func headline(st api.Status, booting bool) (text string, red bool) {
	switch n := len(st.Problems); {
	case n == 1:
		text, red = "1 PROBLEM", true
	case n > 1:
		text, red = fmt.Sprintf("%d PROBLEMS", n), true
	}
	switch {
	case booting && red:
		return "STARTING, " + text, true
	case booting:
		return "STARTING", false
	case red:
		return text, true
	case st.Node.Cluster == "":
		return "UNCLAIMED", false
	case len(st.Units) == 0 || slices.ContainsFunc(st.Units, func(u api.Unit) bool { return u.State != ready }):
		return "NOT READY", true
	}
	return "READY", false
}

// ready is a unit's state when all is well; package supervise names it.
const ready = "ready"

func slots(st api.Status) string {
	if st.Slot == "" {
		return "slot unknown"
	}
	text := "slot " + st.Slot
	for _, s := range st.Slots {
		if s.Trial {
			text += fmt.Sprintf(" (%s on trial)", s.Name)
		}
	}
	for _, s := range st.Slots {
		if s.Name != st.Slot && s.Status != "" {
			text += fmt.Sprintf(" (%s: %s)", s.Name, strings.TrimSpace(s.Status+" "+s.Version))
		}
	}
	return text
}

func (p *page) notice() {
	for _, l := range p.o.Notice {
		p.add(rankNotice, "%s", l)
	}
	p.blank()
}

// problems lists what is wrong. They are wrapped, not cut: the end of the
// sentence may be what helps. Those that do not fit are counted.
func (p *page) problems(st api.Status) {
	room := p.o.Height - len(p.o.Notice) - 8 // what else must be seen
	room = max(room, p.o.Height/2)
	for i, pr := range st.Problems {
		before := len(p.lines)
		what := pr.What
		if !strings.HasPrefix(what, pr.Where) {
			what = pr.Where + ": " + what
		}
		p.wrap(rankProblem, true, "! ", what)
		if pr.Doing != "" {
			p.wrap(rankProblem, false, "  -> ", pr.Doing)
		}
		room -= len(p.lines) - before
		if left := len(st.Problems) - i; room < 1 && i > 0 && left > 1 {
			p.lines = p.lines[:before]
			p.add(rankProblem, "! and %d more: skerry node status", left)
			break
		}
	}
	p.blank()
}

func (p *page) reach(st api.Status) {
	for _, i := range st.Network.Interfaces {
		var list []string
		for _, a := range i.Addresses {
			list = append(list, a.String())
		}
		switch {
		case len(list) > 0:
			p.field(rankReach, i.Name, "%s", strings.Join(list, ", "))
		case i.Plugged:
			p.field(rankReach, i.Name, "no address")
		default:
			p.field(rankReach, i.Name, "no cable")
		}
	}
	if a := st.Network.Address; a.IsValid() && st.Node.Cluster != "" && !p.o.Booting {
		api := netip.AddrPortFrom(a, kubernetesPort)
		p.field(rankReach, "API", "https://%s", api)
		p.command("kubectl", fmt.Sprintf("skerry cluster kubeconfig %s --server https://%s", st.Node.Cluster, api))
		p.command("details", fmt.Sprintf("skerry node status %s", a))
	}
	p.blank()
}

func (p *page) units(st api.Status) {
	for _, u := range st.Units {
		text := u.State
		if d := st.Time.Sub(u.Since); !u.Since.IsZero() && d >= 0 && d <= st.Uptime { // else the clock has been set since
			text += " for " + span(d)
		}
		if u.State != ready && u.Retry.After(st.Time) {
			text += ", again in " + span(u.Retry.Sub(st.Time))
		}
		if u.Restarts > 0 {
			text += fmt.Sprintf(", restarts: %d", u.Restarts)
		}
		if u.State != ready && u.LastExit != "" {
			text += ", ended with " + u.LastExit
		} else if u.Status != "" {
			text += ", says: " + u.Status
		}
		p.field(rankUnits, u.Name, "%s", text)
		p.lines[len(p.lines)-1].red = u.State != ready && !p.o.Booting
	}
	p.blank()
}

func (p *page) resources(st api.Status) {
	if m := st.Memory; m.Total > 0 {
		text := fmt.Sprintf("%s of %s available", size(m.Available), size(m.Total))
		if m.SwapTotal > 0 {
			text += fmt.Sprintf(", %s of %s swap free", size(m.SwapFree), size(m.SwapTotal))
		}
		p.field(rankState, "memory", "%s", text)
	}
	if f := st.State; f.Size > 0 {
		text := fmt.Sprintf("%s of %s free", size(f.Free), size(f.Size))
		if f.Inodes > 0 && f.InodesFree < f.Inodes/20 {
			text += fmt.Sprintf(", %d of %d files free", f.InodesFree, f.Inodes)
		}
		if f.ReadOnly {
			text += ", READ-ONLY"
		}
		p.field(rankState, "STATE", "%s", text)
		p.lines[len(p.lines)-1].red = f.ReadOnly
	}
	if !st.Time.IsZero() {
		p.field(rankState, "clock", "%s UTC, %s", st.Time.UTC().Format("2006-01-02 15:04"), source(st))
	}
	p.blank()
}

func source(st api.Status) string {
	switch c := st.Clock; c.Source {
	case "ntp":
		text := "from " + c.Server
		if c.Server == "" {
			text = "from NTP"
		}
		if d := st.Time.Sub(c.Synced); !c.Synced.IsZero() && d >= time.Minute {
			text += ", " + span(d) + " ago"
		}
		return text
	case "rtc":
		return "from the board's clock, unchecked"
	case "":
		return "not set yet"
	case "build":
		return "a guess: when the image was built"
	case "saved":
		return "a guess: as it was saved last"
	default:
		return "from " + c.Source
	}
}

// steps lists the steps of the boot while it goes on: the last that fit, and
// those that failed. Later the kernel's log and the status API have them.
func (p *page) steps(st api.Status) {
	if !p.o.Booting || len(st.Steps) == 0 {
		return
	}
	var list []line
	for _, s := range st.Steps {
		text := fmt.Sprintf("%8.2fs  %s", s.Start.Seconds(), s.Name)
		switch {
		case s.Running:
			text += fmt.Sprintf(" ... for %s", span(st.Uptime-s.Start))
		case s.Error != "":
			text += ": FAILED: " + s.Error
		default:
			text += fmt.Sprintf(", took %.2fs", s.Took.Seconds())
		}
		list = append(list, line{cut(ascii(text), p.o.Width), rankSteps, s.Error != ""})
	}
	// The blank lines and who the node is give way, but not what must be read.
	room := p.o.Height
	for _, l := range p.lines {
		if l.rank != rankBlank {
			room--
		}
	}
	if len(list) > room-1 {
		room = max(room-2, 3)
		list = trim(list, room)
	}
	p.add(rankSteps, "boot")
	p.lines = append(p.lines, list...)
}

// trim keeps n of a boot's steps: those that failed before others, late ones
// before early ones.
func trim(list []line, n int) []line {
	drop := len(list) - n
	for _, failed := range []bool{false, true} {
		list = slices.DeleteFunc(slices.Clone(list), func(l line) bool {
			if drop <= 0 || l.red != failed {
				return false
			}
			drop--
			return true
		})
	}
	return list
}

// fit leaves out what there is no room for.
func (p *page) fit() []string {
	for n := len(p.lines); n > 0 && p.lines[n-1].text == ""; n = len(p.lines) {
		p.lines = p.lines[:n-1]
	}
	for len(p.lines) > p.o.Height {
		worst := len(p.lines) - 1
		for i := worst; i >= 0; i-- {
			if p.lines[i].rank > p.lines[worst].rank {
				worst = i
			}
		}
		p.lines = slices.Delete(p.lines, worst, worst+1)
	}
	var out []string
	for _, l := range p.lines {
		if l.red && p.o.Colour {
			l.text = "\x1b[1;31m" + l.text + "\x1b[0m"
		}
		out = append(out, l.text)
	}
	return out
}
