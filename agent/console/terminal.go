package console

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// patience is how long a write may wait for a terminal that takes nothing.
const patience = 2 * time.Second

// terminal is one that may be wedged or gone: it is written to with a
// deadline, and opened again after an error. A nil one is none.
type terminal struct {
	path     string
	received func([]byte) // gets the input; nil: none is read
	file     *os.File
}

// open opens the terminal if it is not open.
func (t *terminal) open() error {
	if t == nil || t.file != nil {
		return nil
	}
	fd, err := unix.Open(t.path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", t.path, err)
	}
	if err := raw(fd); err != nil {
		unix.Close(fd)
		return fmt.Errorf("set up %s: %w", t.path, err)
	}
	t.file = os.NewFile(uintptr(fd), t.path)
	if t.received != nil {
		go t.read(t.file)
	}
	return nil
}

// raw takes all meaning from what is typed: no echo into the screen, no XOFF
// that stops the output, no signal.
func raw(fd int) error {
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	mode.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON | unix.IXOFF
	mode.Oflag &^= unix.OPOST
	mode.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	mode.Cflag &^= unix.CRTSCTS | unix.HUPCL
	mode.Cflag |= unix.CREAD | unix.CLOCAL
	mode.Cc[unix.VMIN], mode.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(fd, unix.TCSETS, mode)
}

func (t *terminal) read(f *os.File) {
	buf := make([]byte, 256)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return // closed, or gone: whoever writes finds out
		}
		t.received(buf[:n])
	}
}

// write writes all of data. What a wedged terminal has not taken in time is lost
// (os.ErrDeadlineExceeded).
func (t *terminal) write(data []byte) error {
	err := t.file.SetWriteDeadline(time.Now().Add(patience))
	if err == nil {
		_, err = t.file.Write(data)
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.close()
	}
	return err
}

// size returns columns and rows; what has none is taken for the smallest
// screen that a kernel's terminal has.
func (t *terminal) size() (width, height int) {
	if ws, err := unix.IoctlGetWinsize(int(t.file.Fd()), unix.TIOCGWINSZ); err == nil && ws.Col > 0 && ws.Row > 0 {
		return int(ws.Col), int(ws.Row)
	}
	return 80, 25
}

func (t *terminal) close() {
	if t != nil && t.file != nil {
		t.file.Close()
		t.file = nil
	}
}

// What x/sys/unix lacks, of linux/vt.h and linux/tiocl.h.
const (
	vtActivate    = 0x5606
	kmsgRedirect  = 11 // TIOCL_SETKMSGREDIRECT
	firstTerminal = 1
)

// VT returns the path of the kernel's virtual terminal n and what brings it to
// the display, for Config. The kernel's log, which follows the display, stays on
// the first terminal: Alt+F1 shows it.
func VT(n int) (path string, show func(on bool) error) {
	return fmt.Sprintf("/dev/tty%d", n), func(on bool) error {
		f, err := os.OpenFile("/dev/tty0", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("switch display: %w", err)
		}
		defer f.Close()
		to := firstTerminal
		if on {
			to = n
			request := [2]byte{kmsgRedirect, firstTerminal}
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.TIOCLINUX, uintptr(unsafe.Pointer(&request))); errno != 0 {
				return fmt.Errorf("keep kernel log on terminal %d: %w", firstTerminal, errno)
			}
			// It must exist before it can be switched to.
			t, err := os.OpenFile(fmt.Sprintf("/dev/tty%d", n), os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
			if err != nil {
				return fmt.Errorf("switch display: %w", err)
			}
			defer t.Close()
		}
		if err := unix.IoctlSetInt(int(f.Fd()), vtActivate, to); err != nil {
			return fmt.Errorf("switch display to terminal %d: %w", to, err)
		}
		return nil
	}
}
