package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/api"
)

// TestMain runs the tests. As the first process of a virtual machine, which the
// test in agent/cmd/init starts, this program shows a screen instead, and tells
// what the kernel has on its terminals then.
func TestMain(m *testing.M) {
	if name := os.Getenv("SKERRY_SCREEN"); name != "" && os.Getpid() == 1 {
		end := "end"
		if err := machine(name); err != nil {
			end = fmt.Sprintf("error: %v", err)
		}
		os.WriteFile("/dev/kmsg", []byte("<5>vm: "+end+"\n"), 0) // which is on the line before the machine is off
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	os.Exit(m.Run())
}

const vtWaitActive = 0x5607 // VT_WAITACTIVE

// machine shows the named screen on the second terminal until somebody types q
// on the serial line.
func machine(name string) error {
	for _, m := range [][3]string{{"devtmpfs", "/dev"}, {"sysfs", "/sys"}} {
		os.Mkdir(m[1], 0o755)
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	kmsg, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	st, o := well(), Options{}
	for _, s := range screens {
		if s.name == name {
			s.change(&st, &o)
		}
	}
	booted := make(chan struct{})
	close(booted)
	switched := make(chan error, 2)
	var serial atomic.Bool // not before the rest is said: the kernel's lines would tear the block
	c := Config{Status: func() api.Status { return st }, Booted: booted, Serial: "/dev/ttyAMA0", Poll: 100 * time.Millisecond, Wanted: func() (bool, bool) { return true, serial.Load() }, Errorf: func(format string, args ...any) {
		fmt.Fprintf(kmsg, "<3>vm: error: "+format+"\n", args...)
	}}
	var show func(bool) error
	c.VT, show = VT(2)
	c.Switch = func(on bool) error {
		err := show(on)
		switched <- err
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	k := New(c)
	k.serial.received = func(data []byte) {
		k.received(data)
		if bytes.ContainsRune(data, 'q') {
			cancel()
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.Run(ctx)
	}()

	if err := errors.Join(<-switched, active(2)); err != nil {
		return err
	}
	fmt.Fprintln(kmsg, "<5>vm: said after the switch")
	for i, terminal := range []string{"vcs1", "vcs2"} {
		lines, err := contents("/dev/" + terminal)
		if err != nil {
			return err
		}
		text := strings.Join(lines, "\n")
		if got, want := strings.Contains(text, "said after the switch"), i == 0; got != want {
			return fmt.Errorf("%s has the kernel's log: %v; want %v", terminal, got, want)
		}
		if terminal == "vcs2" {
			for _, l := range lines {
				fmt.Fprintf(kmsg, "<5>%s|%s\n", terminal, l)
			}
		}
	}
	attributes, err := os.ReadFile("/dev/vcsa2")
	if err != nil {
		return err
	}
	blank, _ := os.ReadFile("/sys/module/kernel/parameters/consoleblank")
	// Rows, columns, cursor; then a character and its colours at a time.
	fmt.Fprintf(kmsg, "<5>vm: %d rows of %d, colours of the first character %02x, consoleblank %s\n", attributes[0], attributes[1], attributes[5], bytes.TrimSpace(blank))
	serial.Store(true)
	<-done
	return errors.Join(<-switched, active(1))
}

// active waits until terminal n is on the display.
func active(n int) error {
	f, err := os.Open("/dev/tty0")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), vtWaitActive, n); err != nil {
		return fmt.Errorf("wait for terminal %d: %w", n, err)
	}
	return nil
}

// contents returns the lines on a terminal of 80 columns, as the kernel has them.
func contents(file string) (lines []string, err error) {
	data, err := os.ReadFile(file)
	for ; len(data) >= 80; data = data[80:] {
		lines = append(lines, strings.TrimRight(string(data[:80]), " "))
	}
	return lines, err
}
