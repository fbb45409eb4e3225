package boards

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
	"text/template"
)

// Names on FIRMWARE.
const (
	BootScriptFile = "boot.scr"
	UBootEnvFile   = "uboot.env"
	ConfigTxtFile  = "config.txt"
	OverlaysFile   = "overlays.env" // which overlays boot.scr applies
	OverlaysDir    = "overlays"     // where it finds them
)

// BootScript is the text of boot.scr, the same for every board of an
// architecture: it finds out by itself where it runs. ScriptImage makes the file of it.
func (b *Board) BootScript() (string, error) {
	tmpl, err := template.New("boot.scr.tmpl").
		Funcs(template.FuncMap{"hex": func(n uint64) string { return fmt.Sprintf("0x%x", n) }, "trees": Load.trees, "dtbKey": DTBKey}).
		ParseFS(files, "boot.scr.tmpl")
	if err != nil {
		return "", fmt.Errorf("parse boot script: %w", err)
	}
	var text strings.Builder
	err = tmpl.Execute(&text, map[string]any{
		"Machines":  b.Arch.Machines,
		"Start":     b.Arch.Kernel.Start,
		"Packed":    b.Arch.Kernel.Packed(),
		"State0":    uint64(BootState0 / SectorSize),
		"State1":    uint64(BootState1 / SectorSize),
		"Firmware":  PartFirmware,
		"Overlays":  OverlaysFile,
		"Folder":    OverlaysDir,
		"TreeRoom":  uint64(TreeRoom),
		"PartA":     PartSlotA,
		"PartB":     PartSlotB,
		"Signature": fmt.Sprintf("%08x", uint32(DiskSignature)),
		"Pauses":    []int{5, 10, 20, 40, 80, 160},
	})
	if err != nil {
		return "", fmt.Errorf("write boot script: %w", err)
	}
	return text.String(), nil
}

// DTBKey is the name in slot.txt of the device tree for a machine of boot.scr.
func DTBKey(machine string) string { return "dtb_" + strings.ReplaceAll(machine, "-", "_") }

// OverlaysEnv is the content of OverlaysFile: one sector with a checksum, as
// "env import -c" reads it, so that a torn one costs the overlays and not the boot.
func OverlaysEnv(names []string) ([]byte, error) {
	return Env{Size: SectorSize, Vars: map[string]string{"overlays": strings.Join(names, " ")}}.Bytes()
}

// ScriptImage wraps a script in U-Boot's legacy image header, as
// "mkimage -T script" does, with the time zero.
func ScriptImage(text string) []byte {
	// The payload is a list of lengths, ended by a zero, and the one file.
	var data []byte
	data = binary.BigEndian.AppendUint32(data, uint32(len(text)))
	data = binary.BigEndian.AppendUint32(data, 0)
	data = append(data, text...)

	const (
		magic      = 0x27051956
		osLinux    = 5
		archPPC    = 7 // mkimage's default; U-Boot doesn't look at a script's
		typeScript = 6
	)
	header := make([]byte, 64)
	binary.BigEndian.PutUint32(header[0:], magic)
	binary.BigEndian.PutUint32(header[12:], uint32(len(data)))
	binary.BigEndian.PutUint32(header[24:], crc32.ChecksumIEEE(data))
	copy(header[28:], []byte{osLinux, archPPC, typeScript, 0})
	copy(header[32:], "Skerry boot script")
	binary.BigEndian.PutUint32(header[4:], crc32.ChecksumIEEE(header))
	return append(header, data...)
}

// Bytes is the environment as U-Boot's "saveenv" writes it without a second
// copy: CRC-32 of the rest, low byte first, then name=value, each ended by a zero, one more zero, and zeros.
func (e Env) Bytes() ([]byte, error) {
	var text bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(e.Vars)) {
		fmt.Fprintf(&text, "%s=%s\x00", name, e.Vars[name])
	}
	if got, most := text.Len()+1, e.Size-4; got > most {
		return nil, fmt.Errorf("write U-Boot environment: got %d bytes, want at most %d", got, most)
	}
	env := make([]byte, e.Size)
	copy(env[4:], text.Bytes())
	binary.LittleEndian.PutUint32(env, crc32.ChecksumIEEE(env[4:]))
	return env, nil
}

// UBootEnv is uboot.env.
func (b *Board) UBootEnv() ([]byte, error) { return b.Env.Bytes() }
