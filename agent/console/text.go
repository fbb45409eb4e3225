package console

import (
	"fmt"
	"strings"
	"time"
)

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// ascii makes text printable on any terminal, in one line.
func ascii(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\r' || r == '\t':
			return ' '
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, s)
}

// cut shortens ASCII text to n columns, and says so.
func cut(s string, n int) string {
	const mark = "..."
	switch {
	case len(s) <= n:
		return s
	case n <= len(mark):
		return s[:max(n, 0)]
	}
	return s[:n-len(mark)] + mark
}

// wrap splits ASCII text into lines of at most n columns, between words where
// there are any.
func wrap(s string, n int) (lines []string) {
	n = max(n, 1)
	for len(s) > n {
		at := strings.LastIndexByte(s[:n+1], ' ')
		if at < n/2 {
			at = n
		}
		lines = append(lines, strings.TrimRight(s[:at], " "))
		s = strings.TrimLeft(s[at:], " ")
	}
	return append(lines, s)
}

// span is a duration in its two largest units.
func span(d time.Duration) string {
	d = max(d, 0)
	switch s := int(d.Seconds()); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", s)
	case d < time.Hour:
		return fmt.Sprintf("%dm %02ds", s/60, s%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh %02dm", s/3600, s/60%60)
	default:
		return fmt.Sprintf("%dd %02dh", s/86400, s/3600%24)
	}
}

// size is a number of bytes, in units of 1024.
func size(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	default:
		return fmt.Sprintf("%d KiB", n>>10)
	}
}
