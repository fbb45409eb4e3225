package flash

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"skerry.internal/skerry/boards"
)

// Host is where a machine says what disks it has and what it does with them.
type Host struct {
	Sys    string // sysfs
	Mounts string // proc(5), mountinfo
	Swaps  string
	Udev   string // udev's notes, which know labels; optional
}

// ThisHost is the machine this runs on.
var ThisHost = Host{Sys: "/sys", Mounts: "/proc/self/mountinfo", Swaps: "/proc/swaps", Udev: "/run/udev/data"}

// Disk is a whole disk.
type Disk struct {
	Device    string   `json:"device"`
	Size      int64    `json:"size"` // bytes; 0: a reader without a card
	Model     string   `json:"model,omitempty"`
	Labels    []string `json:"labels,omitempty"`    // of its file systems
	Transport string   `json:"transport,omitempty"` // usb, sd, mmc, nvme, sata, virtio
	Removable bool     `json:"removable"`
	Mounted   []string `json:"mounted,omitempty"` // where, also through LVM and the like
	Refused   string   `json:"refused,omitempty"` // why it can't be flashed; empty: it can
}

// part of an eMMC that is a disk of its own to the kernel, and no place for an image.
var hardwarePart = regexp.MustCompile(`^mmcblk\d+(boot\d+|rpmb|gp\d+)$`)

// Disks lists the disks there are, by name: no RAM disks, loops, and what is
// made of other disks.
func (h Host) Disks() ([]Disk, error) {
	entries, err := os.ReadDir(filepath.Join(h.Sys, "block"))
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	mounts, swaps, err := h.uses()
	if err != nil {
		return nil, err
	}
	disks := []Disk{} // an empty list in JSON, not null
	for _, e := range entries {
		dir, err := filepath.EvalSymlinks(filepath.Join(h.Sys, "block", e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // pulled out just now
		}
		if err != nil {
			return nil, fmt.Errorf("list disks: %w", err)
		}
		if !exists(filepath.Join(dir, "device")) || hardwarePart.MatchString(e.Name()) || value(dir, "hidden") == "1" || strings.HasPrefix(e.Name(), "sr") {
			continue
		}
		disks = append(disks, h.disk(e.Name(), dir, mounts, swaps))
	}
	return disks, nil
}

func (h Host) uses() (mounts, swaps string, err error) {
	m, err := os.ReadFile(h.Mounts)
	if err != nil {
		return "", "", fmt.Errorf("read mounts: %w", err)
	}
	s, err := os.ReadFile(h.Swaps)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", fmt.Errorf("read swaps: %w", err)
	}
	return string(m), string(s), nil
}

func (h Host) disk(name, dir, mounts, swaps string) Disk {
	sectors, _ := strconv.ParseInt(value(dir, "size"), 10, 64) // always of 512 bytes
	d := Disk{Device: "/dev/" + name, Size: sectors * 512, Transport: transport(dir), Removable: value(dir, "removable") == "1"}
	d.Model = strings.TrimSpace(value(dir, "device/vendor") + " " + value(dir, "device/model"))
	if d.Model == "" || strings.HasPrefix(d.Model, "0x") { // virtio and SD cards have numbers for vendors
		d.Model = value(dir, "device/name")
	}
	family := members(dir)
	for _, m := range family {
		if label := h.label(value(m, "dev")); label != "" && !slices.Contains(d.Labels, label) {
			d.Labels = append(d.Labels, label)
		}
		for _, at := range mountPoints(m, mounts) {
			if !slices.Contains(d.Mounted, at) {
				d.Mounted = append(d.Mounted, at)
			}
		}
	}
	switch err := inUse(d.Device, dir, mounts, swaps); {
	case slices.Contains(d.Mounted, "/"):
		d.Refused = "this machine runs from it"
	case err != nil:
		d.Refused = err.Error()
	case d.Size == 0:
		d.Refused = "no card is in it"
	case value(dir, "ro") == "1":
		d.Refused = "it is write-protected"
	case d.Size < boards.ImageSize:
		d.Refused = fmt.Sprintf("it holds %d MiB, want at least %d MiB", d.Size/boards.MiB, int64(boards.ImageSize/boards.MiB))
	}
	return d
}

// members are the folders of a disk, of its partitions, and of what is made of them.
func members(dir string) []string {
	all := []string{dir}
	if parts, err := filepath.Glob(filepath.Join(dir, "*", "partition")); err == nil {
		for _, p := range parts {
			all = append(all, filepath.Dir(p))
		}
	}
	for i := 0; i < len(all); i++ { // grows: LVM on LUKS on a partition
		holders, err := os.ReadDir(filepath.Join(all[i], "holders"))
		if err != nil {
			continue
		}
		for _, h := range holders {
			if at, err := filepath.EvalSymlinks(filepath.Join(all[i], "holders", h.Name())); err == nil && !slices.Contains(all, at) {
				all = append(all, at)
			}
		}
	}
	return all
}

// mountPoints says where a disk or partition is mounted: by its number or, for
// file systems with numbers of their own, by its name.
func mountPoints(dir, mounts string) (points []string) {
	number, name := value(dir, "dev"), "/dev/"+filepath.Base(dir)
	for _, line := range strings.Split(mounts, "\n") {
		// proc(5): ID, parent, major:minor, root, mount point, …
		if f := strings.Fields(line); len(f) > 4 && (f[2] == number || slices.Contains(f[5:], name)) {
			points = append(points, f[4])
		}
	}
	return points
}

func transport(dir string) string {
	for _, t := range []struct{ in, name string }{{"/usb", "usb"}, {"/nvme", "nvme"}, {"/ata", "sata"}, {"/virtio", "virtio"}} {
		if strings.Contains(dir, t.in) {
			return t.name
		}
	}
	if strings.Contains(dir, "/mmc") {
		return strings.ToLower(value(dir, "device/type")) // SD or MMC
	}
	return ""
}

// label is that of the file system on the disk or partition with this number.
func (h Host) label(number string) string {
	data, err := os.ReadFile(filepath.Join(h.Udev, "b"+number))
	if err != nil {
		return ""
	}
	for s := bufio.NewScanner(strings.NewReader(string(data))); s.Scan(); {
		if label, ok := strings.CutPrefix(s.Text(), "E:ID_FS_LABEL="); ok {
			return label
		}
	}
	return ""
}

// value is the text of a file of sysfs, empty without it.
func value(dir, name string) string {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
