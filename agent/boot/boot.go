// Package boot is the order in which Skerry comes up and goes down: three
// tables of named steps (Initramfs, Root, Shutdown) and what runs them. Each
// step prints its name and its time; a required one that fails ends the boot.
//
// Left out: the mechanisms, which are packages of their own, and every decision
// to exit or reboot, which is main's.
package boot

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// Step is one named piece of a boot. A required one that fails, hangs or
// panics stops the boot; an optional one is reported, and the boot goes on.
type Step struct {
	Name     string
	Optional bool
	// Limit is the time after which the step counts as hung; 0 means one
	// minute.
	Limit time.Duration
	Run   func(*System) error
}

const stepLimit = time.Minute

// Run runs steps in order and returns the first error of a required one.
func (s *System) Run(steps []Step) error {
	for _, step := range steps {
		limit := step.Limit
		if limit == 0 {
			limit = stepLimit
		}
		s.Feeder.Alive(limit + 10*time.Second) // the rest is for saying so
		start, ended := time.Now(), s.began(step)
		err := s.run(step, limit)
		ended(err)
		switch {
		case err == nil:
			s.Console.Printf("%s done in %dms", step.Name, time.Since(start).Milliseconds())
		case step.Optional:
			s.Console.Errorf("%s: %v", step.Name, err)
		default:
			return &StepError{step.Name, err}
		}
	}
	return nil
}

// StepError says which step has ended a boot.
type StepError struct {
	Step string
	Err  error
}

func (e *StepError) Error() string { return e.Err.Error() }

func (e *StepError) Unwrap() error { return e.Err }

func (s *System) run(step Step, limit time.Duration) error {
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("panic: %v", p)
			}
		}()
		done <- step.Run(s)
	}()
	hung := time.NewTimer(limit)
	defer hung.Stop()
	select {
	case err := <-done:
		return err
	case <-hung.C:
		return fmt.Errorf("not done after %v", limit)
	}
}

// Console prints lines for people (and tests) at the machine. They go through
// the kernel's log: so they reach every console whole, are not torn by the
// kernel's own lines, and can be read again later.
type Console struct {
	mu   sync.Mutex // guards kmsg
	kmsg *os.File   // nil until /dev is there
}

const (
	levelError  = 3 // of the kernel's log
	levelNotice = 5
	maxLine     = 900 // the kernel's records hold about a thousand bytes
)

// Printf prints one line.
func (c *Console) Printf(format string, args ...any) {
	c.line(levelNotice, fmt.Sprintf(format, args...))
}

// Errorf prints lines that an operator should look at.
func (c *Console) Errorf(format string, args ...any) {
	c.line(levelError, "error: "+fmt.Sprintf(format, args...))
}

func (c *Console) line(level int, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kmsg == nil {
		c.kmsg, _ = os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	}
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' }), "; ")
	text = fmt.Sprintf("skerry: %.*s\n", maxLine, text)
	if c.kmsg != nil {
		if _, err := fmt.Fprintf(c.kmsg, "<%d>%s", level, text); err == nil {
			return
		}
	}
	os.Stderr.WriteString(text)
}

// ParseCommandLine reads the kernel's command line. A word without a value is
// present and empty; of several the last counts, as with the kernel.
func ParseCommandLine(text string) map[string]string {
	args := map[string]string{}
	for _, word := range split(text) {
		key, value, _ := strings.Cut(word, "=")
		args[key] = value
	}
	return args
}

// split cuts at spaces outside of double quotes, and drops the quotes.
func split(text string) []string {
	quoted := false
	words := strings.FieldsFunc(text, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return !quoted && (r == ' ' || r == '\t' || r == '\n')
	})
	for i := range words {
		words[i] = strings.ReplaceAll(words[i], `"`, "")
	}
	return words
}

// errNotFound is a device that has not turned up.
var errNotFound = errors.New("not found")
