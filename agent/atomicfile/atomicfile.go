// Package atomicfile replaces a file so that a power cut leaves either the old
// content or the new one, whole: temporary file beside the target, fsync,
// rename, fsync of the directory.
//
// Left out: locking and appending. One writer per file is the callers' rule.
package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// WriteFile replaces path with data. When it returns nil, the new content and
// its name are on the disk. When it returns an error, path is as it was,
// except when flushing the directory failed: then either content may survive a
// power cut. A file that is so already is left alone: writing it again would
// wear the flash for nothing, and fail on a full disk.
func WriteFile(path string, data []byte, perm os.FileMode) (err error) {
	if st, err := os.Lstat(path); err == nil && st.Mode() == perm && st.Size() == int64(len(data)) {
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
			return nil
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp*")
	if err != nil {
		return fmt.Errorf("write file %q: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write file %q: %w", path, errors.Join(err, ignoreClosed(f.Close())))
			os.Remove(f.Name()) // gone already after a rename
		}
	}()
	if err := f.Chmod(perm); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in a directory durable: new, renamed and removed
// ones.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
