package flash

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// fakeHost writes files and symbolic links (-> target) below a root.
func fakeHost(t *testing.T, files map[string]string) Host {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, link := strings.CutPrefix(text, "-> "); link {
			err = os.Symlink(filepath.Join(root, target), path)
		} else {
			err = os.WriteFile(path, []byte(text+"\n"), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return Host{Sys: filepath.Join(root, "sys"), Mounts: filepath.Join(root, "mountinfo"), Swaps: filepath.Join(root, "swaps"), Udev: filepath.Join(root, "udev")}
}

func TestDisks(t *testing.T) {
	const (
		pci  = "sys/devices/pci0000:00/"
		sda  = pci + "0000:00:14.0/usb1/1-1/host0/block/sda"
		sdb  = pci + "0000:00:14.0/usb1/1-2/host1/block/sdb"
		nvme = pci + "0000:01:00.0/nvme/nvme0/nvme0n1"
		mmc  = "sys/devices/platform/soc/mmc_host/mmc0/mmc0:aaaa/block/mmcblk0"
		vda  = pci + "0000:00:03.0/virtio2/block/vda"
		sdc  = pci + "0000:00:17.0/ata1/host2/block/sdc"
		sdd  = pci + "0000:00:17.0/ata2/host3/block/sdd"
	)
	h := fakeHost(t, map[string]string{
		"sys/block/sda": "-> " + sda, "sys/block/sdb": "-> " + sdb, "sys/block/nvme0n1": "-> " + nvme, "sys/block/mmcblk0": "-> " + mmc,
		"sys/block/vda": "-> " + vda, "sys/block/sdc": "-> " + sdc, "sys/block/sdd": "-> " + sdd,
		"sys/block/mmcblk0boot0": "-> " + mmc + "/mmcblk0boot0", "sys/block/loop0": "-> sys/devices/virtual/block/loop0",
		"sys/block/dm-0": "-> sys/devices/virtual/block/dm-0", "sys/block/dm-1": "-> sys/devices/virtual/block/dm-1",

		// A card in a reader on USB.
		sda + "/dev": "8:0", sda + "/size": "62333952", sda + "/removable": "1", sda + "/ro": "0", sda + "/device/vendor": "Generic ", sda + "/device/model": "STORAGE DEVICE  ",
		sda + "/sda1/partition": "1", sda + "/sda1/dev": "8:1", "udev/b8:1": "S:disk/by-label/x\nE:ID_FS_LABEL=FIRMWARE",
		// A reader without a card.
		sdb + "/dev": "8:16", sdb + "/size": "0", sdb + "/removable": "1", sdb + "/device/vendor": "Generic", sdb + "/device/model": "Reader",
		// The system: LVM on an encrypted partition.
		nvme + "/dev": "259:0", nvme + "/size": "1000215216", nvme + "/removable": "0", nvme + "/device/model": "Samsung SSD 980",
		nvme + "/nvme0n1p1/partition": "1", nvme + "/nvme0n1p1/dev": "259:1",
		nvme + "/nvme0n1p2/partition": "2", nvme + "/nvme0n1p2/dev": "259:2", nvme + "/nvme0n1p2/holders/dm-0": "-> sys/devices/virtual/block/dm-0",
		"sys/devices/virtual/block/dm-0/dev": "253:0", "sys/devices/virtual/block/dm-0/holders/dm-1": "-> sys/devices/virtual/block/dm-1",
		"sys/devices/virtual/block/dm-1/dev": "253:1", "sys/devices/virtual/block/loop0/dev": "7:0",
		// A card in a slot of its own, with the switch at its side on lock.
		mmc + "/dev": "179:0", mmc + "/size": "31116288", mmc + "/removable": "0", mmc + "/ro": "1", mmc + "/device/type": "SD", mmc + "/device/name": "SC16G",
		mmc + "/mmcblk0boot0/dev": "179:8", mmc + "/mmcblk0boot0/device/type": "SD",
		// Swap, too small, and a mounted partition.
		vda + "/dev": "252:0", vda + "/size": "41943040", vda + "/device/vendor": "0x1af4", vda + "/vda1/partition": "1", vda + "/vda1/dev": "252:1",
		sdc + "/dev": "8:32", sdc + "/size": "204800", sdc + "/device/vendor": "ATA", sdc + "/device/model": "Tiny",
		sdd + "/dev": "8:48", sdd + "/size": "41943040", sdd + "/device/model": "Disk", sdd + "/sdd1/partition": "1", sdd + "/sdd1/dev": "8:49",

		"mountinfo": "22 1 253:1 / / rw - ext4 /dev/mapper/vg-root rw\n23 22 259:1 / /boot rw - ext4 /dev/nvme0n1p1 rw\n24 22 0:55 / /srv rw - btrfs /dev/sdd1 rw\n25 22 0:20 / /sys rw - sysfs sysfs rw",
		"swaps":     "Filename Type Size Used Priority\n/dev/vda1 partition 1 0 -2",
	})
	got, err := h.Disks()
	if err != nil {
		t.Fatal(err)
	}
	want := []Disk{
		{Device: "/dev/mmcblk0", Size: 31116288 * 512, Model: "SC16G", Transport: "sd", Refused: "it is write-protected"},
		{Device: "/dev/nvme0n1", Size: 1000215216 * 512, Model: "Samsung SSD 980", Transport: "nvme", Mounted: []string{"/boot", "/"}, Refused: "this machine runs from it"},
		{Device: "/dev/sda", Size: 62333952 * 512, Model: "Generic STORAGE DEVICE", Labels: []string{"FIRMWARE"}, Transport: "usb", Removable: true},
		{Device: "/dev/sdb", Model: "Generic Reader", Transport: "usb", Removable: true, Refused: "no card is in it"},
		{Device: "/dev/sdc", Size: 204800 * 512, Model: "ATA Tiny", Transport: "sata", Refused: "it holds 100 MiB, want at least 864 MiB"},
		{Device: "/dev/sdd", Size: 41943040 * 512, Model: "Disk", Transport: "sata", Mounted: []string{"/srv"}, Refused: "/dev/sdd1 is mounted at /srv; unmount it first, if it is the right disk"},
		{Device: "/dev/vda", Size: 41943040 * 512, Transport: "virtio", Refused: "/dev/vda1 is this machine's swap"},
	}
	if len(got) != len(want) {
		t.Errorf("Disks() = %d disks; want %d", len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("Disks()[%d] = %+v\nwant %+v", i, got[i], want[i])
		}
	}
}

// The machine that this runs on: its own disk is refused, if it is seen at all.
func TestDisksHere(t *testing.T) {
	disks, err := ThisHost.Disks()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range disks {
		t.Logf("%+v", d)
		if len(d.Mounted) > 0 && d.Refused == "" {
			t.Errorf("%s is mounted at %v and not refused", d.Device, d.Mounted)
		}
	}
}
