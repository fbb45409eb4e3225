package status

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kernelLogSize bounds what is kept of the kernel's log, in bytes; the kernel
// keeps less.
const kernelLogSize = 8 << 20

// writeKernelLog writes the last lines of the kernel's log as dmesg prints
// it, all of it if lines is negative, and then, if follow is set, what comes,
// until ctx ends or w fails.
func writeKernelLog(ctx context.Context, w io.Writer, lines int, follow bool) error {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open kernel log: %w", err)
	}
	f := os.NewFile(uintptr(fd), "/dev/kmsg") // reads of which wait without a thread
	defer f.Close()
	log, err := readKernelLog(func(b []byte) (int, error) { return unix.Read(fd, b) })
	if err == nil {
		_, err = w.Write(lastLines(log, lines))
	}
	if err != nil || !follow {
		return err
	}
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for buf := make([]byte, 8<<10); ; {
		n, err := f.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.EPIPE):
			continue
		case err != nil:
			return fmt.Errorf("read kernel log: %w", err)
		}
		if _, err := io.WriteString(w, kernelLine(string(buf[:n]))); err != nil {
			return err
		}
	}
}

// readKernelLog reads records until there are no more for now.
func readKernelLog(read func([]byte) (int, error)) ([]byte, error) {
	var log bytes.Buffer
	for buf := make([]byte, 8<<10); log.Len() < kernelLogSize; {
		n, err := read(buf)
		switch {
		case errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EINTR):
			continue // overwritten meanwhile: the next is the oldest that is left
		case errors.Is(err, unix.EAGAIN) || err == nil && n == 0:
			return log.Bytes(), nil
		case err != nil:
			return nil, fmt.Errorf("read kernel log: %w", err)
		}
		log.WriteString(kernelLine(string(buf[:n])))
	}
	return log.Bytes(), nil
}

// kernelLine makes a line of a record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg
// in the kernel's source): priority,sequence,microseconds,flags;text.
func kernelLine(record string) string {
	head, text, _ := strings.Cut(record, ";")
	text, _, _ = strings.Cut(text, "\n") // then come lines with keys and values
	f := strings.Split(head, ",")
	if len(f) < 3 {
		return ""
	}
	us, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("[%5d.%06d] %s\n", us/1e6, us%1e6, text)
}

func lastLines(log []byte, n int) []byte {
	switch {
	case n < 0:
		return log
	case n == 0:
		return nil
	}
	for i := len(log) - 1; i > 0; i-- {
		if log[i-1] == '\n' {
			if n--; n == 0 {
				return log[i:]
			}
		}
	}
	return log
}
