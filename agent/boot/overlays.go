package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/atomicfile"
	"skerry.internal/skerry/boards"
)

// triedOverlays is the list that FIRMWARE was given last, until a boot finds
// it there.
const triedOverlays = initDir + "/overlays"

var errNotKept = errors.New("overlays were written to FIRMWARE at an earlier boot already, and were not there at this one; they are written again, and count from the next start on")

// storeOverlays writes the overlays of skerry.yaml down where boot.scr, which
// can't read YAML, finds them: on FIRMWARE, mounted at dir, once writable has
// been called. It says whether the machine has to start again for them. That
// happens once for each list: a card that loses what is written must not make
// a machine that starts for ever.
func (s *System) storeOverlays(dir, tried string, writable func() error) (restart bool, err error) {
	var names []string
	for _, o := range s.config.Overlays {
		names = append(names, string(o))
		if _, err := os.Stat(filepath.Join(dir, boards.OverlaysDir, string(o)+".dtbo")); err != nil {
			s.Console.Errorf("overlay %s: there is no %s/%s.dtbo on FIRMWARE", o, boards.OverlaysDir, o)
		}
	}
	want, err := boards.OverlaysEnv(names)
	if err != nil {
		return false, err
	}
	file := filepath.Join(dir, boards.OverlaysFile)
	have, err := os.ReadFile(file)
	switch none := errors.Is(err, fs.ErrNotExist); {
	case err != nil && !none:
		return false, fmt.Errorf("read overlays: %w", err)
	case none && len(names) == 0, bytes.Equal(have, want):
		if err := os.Remove(tried); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("forget overlays: %w", err)
		}
		return false, nil
	}
	again, err := os.ReadFile(tried)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read overlays tried: %w", err)
	}
	if err := writable(); err != nil {
		return false, err
	}
	if err := overwrite(file, want); err != nil {
		return false, fmt.Errorf("store overlays on FIRMWARE: %w", err)
	}
	if bytes.Equal(again, want) {
		return false, errNotKept
	}
	if err := atomicfile.WriteFile(tried, want, 0o600); err != nil {
		return false, fmt.Errorf("note overlays, which count from the next start on: %w", err)
	}
	s.Console.Printf("overlays stored for U-Boot: %s", strings.Join(names, " "))
	return true, nil
}

// overwrite writes data in place where it can: one sector, in which a power cut
// leaves the old or the new. A new file has a checksum against the rest.
func overwrite(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Truncate(int64(len(data)))
	}
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}

// restart asks main to go down and start again, and lets no other step begin
// until then.
func (s *System) restart(why string) {
	s.request(Request{unix.LINUX_REBOOT_CMD_RESTART, why})
	select {}
}
