package boot

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/modules"
	"skerry.internal/skerry/agent/mount"
	"skerry.internal/skerry/agent/zram"
)

// startSwap gives a board with little memory a swap of compressed memory.
func startSwap(s *System) error {
	total, err := totalMemory()
	if err != nil {
		return err
	}
	size := zram.Size(total)
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

// reserveMemory keeps for the units what pods can't have by skerry.yaml: before the kernel takes
// that from them, be it only the pages of their programs, it ends a pod. Each unit's own
// group has it too, of which the kernel lets them have their parent's together: that a parent's holds for
// those below is an option of the mount, and crun takes that away with the first privileged pod (docs/known-faults.md).
func reserveMemory(s *System) error {
	total, err := totalMemory()
	if err != nil {
		return err
	}
	value := strconv.FormatInt(s.config.ReservedMemory(total), 10)
	var list []mount.Entry
	for _, dir := range []string{unitCgroup, unitCgroup + "/" + containerd.Name, unitCgroup + "/" + skerryd.Name} {
		list = append(list, mount.Dir{Path: dir, Mode: 0o755}, mount.Setting{Path: dir + "/memory.min", Value: value})
	}
	return mount.Apply(list)
}

// totalMemory is the machine's memory in bytes.
func totalMemory() (int64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("read size of memory: %w", err)
	}
	return int64(info.Totalram) * int64(info.Unit), nil
}
