package qemu_test

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// pidfdOpen holds on to a process that is not our child, to be told when it ends.
func pidfdOpen(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

func pidfdEnded(f *os.File, within time.Duration) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}, int(within.Milliseconds()))
	return err == nil && n == 1
}
