// Package snapshots keeps whole copies of the node's database on STATE, puts
// one in the database's place when an operator asks for it, and offers both over
// HTTP: to skerryd's neighbours on a socket, to operators through the status API.
//
// Left out: SQLite. Whoever has the database open makes the copies (package
// store); here they are files, so that init can serve them while skerryd is dead.
package snapshots

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/api"
)

const timeFormat = "20060102T150405Z"

// A name has a number, by which snapshots are ordered since clocks jump, the
// time, and the reason.
var name = regexp.MustCompile(`^([0-9]{6,18})-([0-9]{8}T[0-9]{6}Z)-([a-z0-9]+(?:-[a-z0-9]+)*)\.db$`)

func parse(s string) (number int64, taken time.Time, reason string, ok bool) {
	m := name.FindStringSubmatch(s)
	if m == nil {
		return 0, time.Time{}, "", false
	}
	number, err := strconv.ParseInt(m[1], 10, 64)
	taken, terr := time.Parse(timeFormat, m[2])
	return number, taken, m[3], err == nil && terr == nil
}

// List returns the snapshots in dir, the newest first. No folder: none.
func List(dir string) ([]api.Snapshot, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	list := []api.Snapshot{}
	for _, e := range entries {
		_, taken, reason, ok := parse(e.Name())
		if info, err := e.Info(); ok && err == nil && info.Mode().IsRegular() {
			list = append(list, api.Snapshot{Name: e.Name(), Time: taken, Reason: reason, Bytes: info.Size()})
		}
	}
	sort.Slice(list, func(i, j int) bool { return number(list[i]) > number(list[j]) })
	return list, nil
}

func number(s api.Snapshot) int64 {
	n, _, _, _ := parse(s.Name)
	return n
}

// file is the path of the snapshot with that name, which comes from outside.
func file(dir, s string) (string, error) {
	if _, _, _, ok := parse(s); !ok {
		return "", fmt.Errorf("snapshot %q: %w: it is no snapshot's name", s, fs.ErrNotExist)
	}
	path := filepath.Join(dir, s)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("snapshot %q: %w", s, fs.ErrNotExist)
	}
	return path, nil
}

const (
	keepNewest = 3
	elderAge   = 14 * 24 * time.Hour
)

// surplus picks from list, the newest first, what need not be kept: the newest
// three stay, and one older, for what is noticed late only. That one is replaced
// when it is two weeks old. More go, the oldest first, until the rest fits into
// limit bytes; the newest always stays.
func surplus(list []api.Snapshot, now time.Time, limit int64) (drop []api.Snapshot) {
	if len(list) == 0 {
		return nil
	}
	keep := slices.Clone(list[:min(len(list), keepNewest)])
	if rest := list[len(keep):]; len(rest) > 0 {
		elder := rest[0]
		for _, s := range rest {
			if now.Sub(s.Time).Abs() < elderAge {
				elder = s
			}
		}
		keep = append(keep, elder)
	}
	var bytes int64
	for i, s := range keep {
		if bytes += s.Bytes; i > 0 && bytes > limit {
			keep = keep[:i]
			break
		}
	}
	for _, s := range list {
		if !slices.ContainsFunc(keep, func(k api.Snapshot) bool { return k.Name == s.Name }) {
			drop = append(drop, s)
		}
	}
	return drop
}

// space returns the size of the file system with path, and what is free there
// for programs without privileges.
func space(path string) (size, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("ask for free space: %w", err)
	}
	return int64(st.Blocks) * int64(st.Bsize), int64(st.Bavail) * int64(st.Bsize), nil
}
