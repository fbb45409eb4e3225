package boot

import (
	"fmt"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/modules"
	"skerry.internal/skerry/agent/zram"
)

// startSwap gives a board with little memory a swap of compressed memory.
func startSwap(s *System) error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("read size of memory: %w", err)
	}
	size := zram.Size(int64(info.Totalram) * int64(info.Unit))
	if size == 0 {
		return nil
	}
	if err := modules.Modprobe([]string{"zram"}); err != nil {
		return err
	}
	if err := zram.Start(size); err != nil {
		return err
	}
	s.Console.Printf("swap of %d MiB in compressed memory", size>>20)
	return nil
}
