package boot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"skerry.internal/skerry/boards"
)

// stateOptions are STATE's for mounting. Zeroing inode tables in the background
// would write a hundred megabytes to a card for nothing: their checksums say what
// is unused. The last hundredth of the blocks belongs to a user that nobody is, so
// to programs with all privileges, like skerryd, and not to root in a pod.
const stateOptions = "errors=remount-ro,noinit_itable,resuid=4294967294"

// examineState says what STATE holds. Its own mark and its superblock are in its
// first page, the one that is written most often and so wears out first; a
// second mark, on the disk outside of STATE, says whether there is something to
// lose: then nothing is formatted, whatever that page looks like.
func (s *System) examineState(dev string) (stateKind, error) {
	kind, err := examineDevice(dev)
	marked, merr := hasStateMark(s.disk.dev)
	if merr != nil {
		s.Console.Errorf("%v", merr)
	}
	switch {
	case marked && (err != nil || kind == stateBlank):
		return stateDamaged, nil
	case err != nil:
		return 0, err
	case !marked && kind != stateBlank:
		// First boot was cut short between the two, or it was made by a release that had one.
		if err := markState(s.disk.dev); err != nil {
			s.Console.Errorf("%v", err)
		}
	}
	return kind, nil
}

func hasStateMark(disk string) (bool, error) {
	sector, err := readSector(disk, boards.StateMark/boards.SectorSize)
	if err != nil {
		return false, fmt.Errorf("read mark of STATE: %w", err)
	}
	return bytes.HasPrefix(sector, []byte(formatted)), nil
}

func markState(disk string) error {
	sector := make([]byte, boards.SectorSize)
	copy(sector, formatted)
	if err := writeSector(disk, boards.StateMark/boards.SectorSize, sector); err != nil {
		return fmt.Errorf("write mark of STATE: %w", err)
	}
	return nil
}

// reclaim repairs a STATE whose first page is lost.
func (s *System) reclaim(dev string) error {
	s.Console.Errorf("the start of STATE is damaged; its file system is looked for by the copies of its superblock")
	if err := s.repair(dev); err != nil {
		return err
	}
	sector := make([]byte, boards.SectorSize)
	copy(sector, formatted)
	if err := writeSector(dev, 0, sector); err != nil {
		return fmt.Errorf("mark STATE: %w", err)
	}
	return nil
}

// repair mends STATE, and remembers that there was something to mend.
func (s *System) repair(dev string) error {
	s.repaired = true
	return repair(s.tool, s.Console.Errorf, dev)
}

// Copies of the superblock are where mkfs.ext4 puts the first: it takes blocks of
// 4 KiB from half a gigabyte on, and of 1 KiB below.
var superblocks = [][]string{{"-b", "32768", "-B", "4096"}, {"-b", "8193", "-B", "1024"}}

// repair lets e2fsck mend what it can without questions, and then whatever is
// left: an unattended node has nobody to ask, and the alternative is none. Last it
// is told where a copy of the superblock is: it looks for one by itself when the
// first is wrong, but not when that can't be read. It never formats.
func repair(tool func(path string, good int, args ...string) error, say func(string, ...any), dev string) error {
	const corrected = 3 // exit status up to which the file system is fine
	attempts := [][]string{{"-p", dev}, {"-y", dev}}
	for _, at := range superblocks {
		attempts = append(attempts, append(append([]string{"-y"}, at...), dev))
	}
	var errs []error
	for _, args := range attempts {
		err := tool("/usr/sbin/e2fsck", corrected, args...)
		if err == nil {
			return nil
		}
		say("%v", err)
		errs = append(errs, err)
	}
	return fmt.Errorf("STATE can't be repaired, and is left as it is: its data may still be read on another machine (%w)", errs[0])
}

// Pause is the time between an error that ended a boot and the reboot. With a
// STATE that can't be used there is no place to count boots in; each tries a
// repair, so they come slowly.
func (s *System) Pause(err error) time.Duration {
	var step *StepError
	if errors.As(err, &step) && step.Step == stepMountState {
		return lastPause
	}
	return FirstPause
}

const stepMountState = "mount STATE"

// countFaults remembers in file how many boots in a row had to repair STATE,
// and returns that number.
func countFaults(file string, repaired bool, write func(string, []byte) error) (int, error) {
	n := 0
	data, err := os.ReadFile(file)
	if err == nil {
		n, err = strconv.Atoi(strings.TrimSpace(string(data)))
	}
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if n < 0 || n > 1000 {
		n = 0
	}
	if !repaired {
		return n, err
	}
	n++
	return n, errors.Join(err, write(file, fmt.Appendf(nil, "%d\n", n)))
}
