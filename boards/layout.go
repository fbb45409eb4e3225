package boards

// Layout of every Skerry disk, in bytes. It is one for all boards, so that an
// update payload fits each board of its architecture. The master boot record
// is used because a Raspberry Pi 3 can't start from GPT; the first partition
// starts at 16 MiB so that the loaders of boards that expect them at fixed
// sectors fit before it.
const (
	SectorSize = 512
	MiB        = 1 << 20

	// DiskSignature is the MBR's disk signature. Linux and U-Boot name
	// partition N of such a disk by PARTUUID 534b5259-0N.
	DiskSignature = 0x534b5259

	// The two copies of the boot state, one sector each.
	BootState0 = 4 * MiB
	BootState1 = 14 * MiB
	// ResetMark is one sector that asks the next boot to make STATE anew.
	ResetMark = BootState0 + 64<<10
	// StateMark is one sector that says that STATE was made: so it is never
	// formatted again, even when its own beginning is lost.
	StateMark = BootState0 + 128<<10

	FirmwareStart = 16 * MiB
	FirmwareSize  = 64 * MiB
	SlotAStart    = FirmwareStart + FirmwareSize
	SlotSize      = 384 * MiB
	SlotBStart    = SlotAStart + SlotSize
	StateStart    = SlotBStart + SlotSize
	// StateSize is what the image file holds of STATE: zeros. First boot
	// grows the partition to the end of the disk and makes its file system.
	StateSize = 16 * MiB
	ImageSize = StateStart + StateSize

	// SlotBootSize is the FAT with kernel, initramfs and device trees at the
	// start of a slot; the root file system follows it.
	SlotBootSize = 64 * MiB
)

// LoaderRoom is how much room there is for a loader that begins at a place, in bytes: up to
// the next thing on the disk, or to the next of the board's loaders; 0 or less where none may begin.
func LoaderRoom(at int64, loaders []Loader) int64 {
	if at < SectorSize {
		return 0
	}
	room := int64(0)
	for _, area := range []struct{ from, to int64 }{{BootState0, StateMark + SectorSize}, {BootState1, BootState1 + SectorSize}, {FirmwareStart, ImageSize}} {
		if at < area.to {
			room = area.from - at
			break
		}
	}
	for _, l := range loaders {
		if l.At > at {
			room = min(room, l.At-at)
		}
	}
	return room
}

// MBR partition types.
const (
	TypeFirmware = 0x0c // FAT32, LBA
	TypeSlot     = 0xda // non-file-system data: nothing mounts or repairs it unasked
	TypeState    = 0x83
)

// Partition numbers.
const (
	PartFirmware = 1 + iota
	PartSlotA
	PartSlotB
	PartState
)
