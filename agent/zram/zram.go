// Package zram gives a board with little memory swap space in that very memory,
// compressed: what skerryd has not touched for a while takes a third of its
// size. Nothing of it ever reaches the card.
//
// Left out: swap on disks, which a card would not survive, and swap for pods: the
// kubelet keeps them out of it (its default), so that a pod that wants too much
// memory ends instead of slowing everything down.
package zram

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/mount"
)

// Limit is the memory in bytes up to which a board gets compressed swap.
const Limit = 1 << 30

// Size returns the bytes of swap for a board with so much memory; 0 means none.
// Half of it: at the two to three times that Go's heap compresses by, a
// swap that is full takes a fifth of the memory.
func Size(memory int64) int64 {
	if memory <= 0 || memory > Limit {
		return 0
	}
	page := int64(os.Getpagesize())
	return memory / 2 / page * page
}

// Start makes the first zram device a swap of size bytes and uses it. The
// module must be loaded.
func Start(size int64) error {
	const sys, dev = "/sys/block/zram0", "/dev/zram0"
	err := mount.Apply([]mount.Entry{
		mount.Setting{Path: filepath.Join(sys, "comp_algorithm"), Value: "zstd", Optional: true}, // else the kernel's default
		mount.Setting{Path: filepath.Join(sys, "disksize"), Value: strconv.FormatInt(size, 10)},
		// Reading one page from it is as quick as reading eight.
		mount.Sysctl("vm.page-cluster", "0"),
		mount.Sysctl("vm.swappiness", "100"),
	})
	if err != nil {
		return err
	}
	if err := format(dev, size); err != nil {
		return err
	}
	path, err := unix.BytePtrFromString(dev)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(path)), 0, 0); errno != 0 {
		return fmt.Errorf("swap to %q: %w", dev, errno)
	}
	return nil
}

// format writes the header of a swap space: in its first page a version (1) and the
// number of the last page behind 1024 bytes for a boot loader, the magic at its end
// (union swap_header in the kernel's include/linux/swap.h).
func format(path string, size int64) error {
	page := os.Getpagesize()
	header := make([]byte, page)
	binary.NativeEndian.PutUint32(header[1024:], 1)
	binary.NativeEndian.PutUint32(header[1028:], uint32(size/int64(page)-1))
	copy(header[page-10:], "SWAPSPACE2")
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("format swap: %w", err)
	}
	_, err = f.Write(header)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("format swap: %w", err)
	}
	return nil
}
