package image

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// store keeps results by a key made of all that they depend on. Whether a kept
// result is still whole is checked when it is used.
type store struct {
	dir    string
	notice func(string)
}

// kept is how many results of one kind stay: enough to go back and forth
// between two versions of the project.
const kept = 4

// key makes a key of parts.
func key(parts ...string) string {
	sum := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(sum, "%d:%s\n", len(p), p)
	}
	return hex.EncodeToString(sum.Sum(nil))[:32]
}

// file returns the result of kind with this key; where there is none, make
// writes it to the path that it is given.
func (s store) file(kind, key string, make func(path string) error) (made, error) {
	path := filepath.Join(s.dir, kind+"-"+key)
	if sum, err := os.ReadFile(path + ".sha256"); err == nil {
		m, err := describe(path)
		if err == nil && m.sha256 == string(sum) {
			now := time.Now()
			return m, errors.Join(os.Chtimes(path, now, now))
		}
		s.notice(fmt.Sprintf("kept %s is damaged, it is made again", kind))
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return made{}, err
	}
	temp, err := os.MkdirTemp(s.dir, ".new-")
	if err != nil {
		return made{}, err
	}
	defer os.RemoveAll(temp)
	fresh := filepath.Join(temp, kind)
	if err := make(fresh); err != nil {
		return made{}, err
	}
	m, err := describe(fresh)
	if err != nil {
		return made{}, err
	}
	if err := os.WriteFile(fresh+".sha256", []byte(m.sha256), 0o644); err != nil {
		return made{}, err
	}
	// The sum goes last: a file without one counts for nothing.
	if err := errors.Join(remove(path+".sha256"), os.Rename(fresh, path), os.Rename(fresh+".sha256", path+".sha256")); err != nil {
		return made{}, err
	}
	m.path = path
	return m, s.prune(kind)
}

// folder is file for a result of many files: fill writes them below the folder
// that it is given.
func (s store) folder(kind, key string, fill func(dir string) error) (string, error) {
	// Files and sum are in one folder, so that one rename brings both.
	const files, sumFile = "files", "sha256"
	path := filepath.Join(s.dir, kind+"-files-"+key)
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return "", err
	}
	temp, err := os.MkdirTemp(s.dir, ".new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	if _, err := os.Stat(path); err == nil {
		want, err := os.ReadFile(filepath.Join(path, sumFile))
		if err == nil {
			var got string
			if got, err = sumFolder(filepath.Join(path, files)); err == nil && got == string(want) {
				return filepath.Join(path, files), nil
			}
		}
		s.notice(fmt.Sprintf("kept %s is damaged, it is made again", kind))
		if err := os.Rename(path, filepath.Join(temp, "damaged")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	fresh := filepath.Join(temp, "fresh")
	if err := os.MkdirAll(filepath.Join(fresh, files), 0o755); err != nil {
		return "", err
	}
	if err := fill(filepath.Join(fresh, files)); err != nil {
		return "", err
	}
	sum, err := sumFolder(filepath.Join(fresh, files))
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(fresh, sumFile), []byte(sum), 0o644); err != nil {
		return "", err
	}
	// Where it is there now, another process was faster.
	if err := os.Rename(fresh, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return filepath.Join(path, files), nil
}

// sumFolder is a digest of all names, modes, links and contents below dir.
func sumFolder(dir string) (string, error) {
	sum := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var content string
		switch {
		case info.Mode().IsRegular():
			var m made
			m, err = describe(path)
			content = m.sha256
		case info.Mode()&fs.ModeSymlink != 0:
			content, err = os.Readlink(path)
		}
		fmt.Fprintf(sum, "%q %v %q\n", path[len(dir):], info.Mode(), content)
		return err
	})
	return hex.EncodeToString(sum.Sum(nil)), err
}

// prune removes the least recently used results of a kind.
func (s store) prune(kind string) error {
	paths, err := filepath.Glob(filepath.Join(s.dir, kind+"-*"))
	if err != nil {
		return err
	}
	used := map[string]time.Time{}
	var files []string
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil && !strings.HasSuffix(p, ".sha256") {
			used[p] = info.ModTime()
			files = append(files, p)
		}
	}
	slices.SortFunc(files, func(a, b string) int { return used[b].Compare(used[a]) })
	for _, p := range files[min(kept, len(files)):] {
		if err := errors.Join(remove(p+".sha256"), remove(p)); err != nil {
			return err
		}
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// describe reads a file's size and digest.
func describe(path string) (made, error) {
	f, err := os.Open(path)
	if err != nil {
		return made{}, err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	return made{path, hex.EncodeToString(sum.Sum(nil)), n}, err
}
