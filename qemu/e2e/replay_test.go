package e2e

import (
	"strings"
	"testing"
)

func TestReplayed(t *testing.T) {
	for _, tt := range []struct {
		out  string
		fine bool
	}{
		{"STATE: recovering journal\nSTATE: clean, 1765/71424 files, 25566/569344 blocks\n", true},
		{"STATE: recovering journal\nSTATE primary superblock features different from backup, check forced.\nSTATE: Feature orphan_present is set but orphan file is clean.\nCLEARED.\nSTATE: 1765/71424 files (0.4% non-contiguous), 25566/569344 blocks\n", true},
		{"STATE: recovering journal\nSTATE: Clearing orphaned inode 1324 (uid=0, gid=0, mode=0100600, size=4096)\nSTATE: Free blocks count wrong (546641, counted=543566).\nFIXED.\nSTATE: 12/71424 files (41.7% non-contiguous), 22703/569344 blocks\n", true},
		{"STATE contains a file system with errors, check forced.\nSTATE: 12/71424 files (41.7% non-contiguous), 22703/569344 blocks\n", false},
		{"STATE: recovering journal\nSTATE: Inode 20, i_blocks is 16, should be 8.  FIXED.\nSTATE: 12/71424 files (41.7% non-contiguous), 22703/569344 blocks\n", false},
		{"STATE: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY.\n\t(i.e., without -a or -p options)\n", false},
	} {
		fine := true
		for line := range strings.Lines(tt.out) {
			fine = fine && replayed.MatchString(strings.TrimSpace(line))
		}
		if fine != tt.fine {
			t.Errorf("taken as sound: %v; want %v:\n%s", fine, tt.fine, tt.out)
		}
	}
}
