package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"skerry.internal/skerry/agent/config"
	"skerry.internal/skerry/agent/console"
)

// screenVT is the virtual terminal with the screen. The first one has the
// kernel's log, and the boot's steps in it.
const screenVT = 2

// startConsole shows the node on the display and on the serial line, as soon as
// the boot's own lines have had their time there.
func startConsole(s *System) error {
	c := console.Config{Status: s.Status, Notice: s.claimNotice, Wanted: s.wantedConsoles, Booted: s.booted, Errorf: s.Console.Errorf}
	if _, err := os.Stat("/dev/tty0"); err == nil {
		c.VT, c.Switch = console.VT(screenVT)
	}
	var err error
	if c.Serial, err = serialLine("/sys/class/tty/console/active", "/dev"); err != nil {
		err = fmt.Errorf("find serial line: %w", err)
	}
	if c.VT == "" && c.Serial == "" {
		return err
	}
	go func() {
		defer s.guard()
		console.New(c).Run(s.screen)
	}()
	return err
}

// wantedConsoles says which consoles skerry.yaml wants the screen on.
func (s *System) wantedConsoles() (vt, serial bool) {
	c := s.recall().console
	return c != config.ConsoleSerial && c != config.ConsoleOff, c != config.ConsoleHDMI && c != config.ConsoleOff
}

// serialLine returns the last of the kernel's consoles, as it lists them, that
// is not a display.
func serialLine(active, dev string) (path string, err error) {
	data, err := os.ReadFile(active)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	for _, name := range strings.Fields(string(data)) {
		if n := strings.TrimPrefix(name, "tty"); n == name || n == "" || n[0] < '0' || n[0] > '9' {
			path = dev + "/" + name
		}
	}
	return path, err
}

// Booted says that the boot is complete.
func (s *System) Booted() {
	s.Console.Printf("boot complete")
	close(s.booted)
}

// ShowLog gives the display back to the kernel's log, for the way down and for
// the error that ended a boot.
func (s *System) ShowLog() { s.stopConsole() }
