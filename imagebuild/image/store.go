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

// dirOnce returns the folder of this name; where there is none, fill fills it.
func (s store) dirOnce(name string, fill func(dir string) error) (string, error) {
	path := filepath.Join(s.dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return "", err
	}
	temp, err := os.MkdirTemp(s.dir, ".new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	fresh := filepath.Join(temp, "dir")
	if err := os.Mkdir(fresh, 0o755); err != nil {
		return "", err
	}
	if err := fill(fresh); err != nil {
		return "", err
	}
	if err := os.Rename(fresh, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return path, nil
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
