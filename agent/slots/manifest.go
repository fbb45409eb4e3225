// Package slots is the contract between the image builder, U-Boot's boot.scr,
// init and the updater: the boot state and slot.txt, as types, as bytes, and the
// boot state's transitions. It does no input or output of its own beyond
// reading what it is handed, and it doesn't know where on a disk things lie
// (package boards does): so all four sides, and the tests that hold them
// against each other, can use it.
//
// A slot starts with a FAT that holds slot.txt, slot.crc and the files that
// slot.txt names. slot.crc holds length and CRC-32 of slot.txt, slot.txt those
// of each boot file; boot.scr loads slot.crc first and goes down that chain.
// A CRC finds decay and torn writes. Who tampers with the card is found later, by
// dm-verity, or not at all: stock U-Boot checks no signatures.
package slots

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"maps"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// Names of the files at the root of a slot's FAT.
const (
	ManifestFile = "slot.txt"
	ChecksumFile = "slot.crc"
)

// Limits that boot.scr relies on.
const (
	maxManifest = 16 << 10
	maxArgs     = 1536 // arm64 Linux takes 2048 in all; boot.scr adds slot, board and consoles
)

// BootFile is a file that boot.scr loads and checks.
type BootFile struct {
	Name   string // path in the slot's FAT, with /
	Length uint32
	CRC32  uint32
}

// NewBootFile describes data under name.
func NewBootFile(name string, data []byte) BootFile {
	return BootFile{Name: name, Length: uint32(len(data)), CRC32: crc32.ChecksumIEEE(data)}
}

// Manifest is slot.txt.
type Manifest struct {
	Version  string
	Arch     string
	RootHash string // of the root file system's verity tree, 64 hexadecimal digits
	Args     []string
	Kernel   BootFile
	Initrd   BootFile
	// DTBs are the device trees for boards whose firmware brings none, by the
	// names that boot.scr looks them up by. They begin with dtb_.
	DTBs map[string]BootFile
}

// Arg returns the value of the kernel argument name=value.
func (m *Manifest) Arg(name string) (string, bool) {
	for _, arg := range m.Args {
		if n, v, _ := strings.Cut(arg, "="); n == name {
			return v, true
		}
	}
	return "", false
}

// The values go through U-Boot's shell, so what it could read as syntax is not allowed anywhere.
var (
	wordPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]*$`)
	hashPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
	argPattern  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.,:/@%+=-]*$`)
	pathPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$`)
	hexPattern  = regexp.MustCompile(`^[0-9a-f]{1,8}$`)
	dtbPattern  = regexp.MustCompile(`^dtb_[a-z0-9_]+$`)
)

type namedFile struct {
	key  string
	file BootFile
}

func (m *Manifest) files() []namedFile {
	files := []namedFile{{"kernel", m.Kernel}, {"initrd", m.Initrd}}
	for _, key := range slices.Sorted(maps.Keys(m.DTBs)) {
		files = append(files, namedFile{key, m.DTBs[key]})
	}
	return files
}

func (m *Manifest) check() error {
	for _, c := range []struct {
		name, value string
		pattern     *regexp.Regexp
	}{{"version", m.Version, wordPattern}, {"arch", m.Arch, wordPattern}, {"roothash", m.RootHash, hashPattern}} {
		if !c.pattern.MatchString(c.value) {
			return fmt.Errorf("%s: got %q, want %s", c.name, c.value, c.pattern)
		}
	}
	for _, arg := range m.Args {
		if !argPattern.MatchString(arg) {
			return fmt.Errorf("args: got %q, want %s", arg, argPattern)
		}
	}
	if n := len(strings.Join(m.Args, " ")); n == 0 || n > maxArgs {
		return fmt.Errorf("args: got %d bytes, want 1 to %d", n, maxArgs)
	}
	for _, f := range m.files() {
		if f.key != "kernel" && f.key != "initrd" && !dtbPattern.MatchString(f.key) {
			return fmt.Errorf("device tree's name: got %q, want %s", f.key, dtbPattern)
		}
		if !pathPattern.MatchString(f.file.Name) {
			return fmt.Errorf("%s: got %q, want %s", f.key, f.file.Name, pathPattern)
		}
		if f.file.Length == 0 {
			return fmt.Errorf("%s: got an empty %s, want content", f.key, f.file.Name)
		}
	}
	return nil
}

// Format writes slot.txt, the same bytes for the same manifest.
func (m *Manifest) Format() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("format %s: %w", ManifestFile, err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "version=%s\narch=%s\nroothash=%s\nargs=%s\n", m.Version, m.Arch, m.RootHash, strings.Join(m.Args, " "))
	for _, f := range m.files() {
		fmt.Fprintf(&b, "%s=%s\n%s_length=%x\n%s_crc32=%08x\n", f.key, f.file.Name, f.key, f.file.Length, f.key, f.file.CRC32)
	}
	if b.Len() > maxManifest {
		return nil, fmt.Errorf("format %s: got %d bytes, want at most %d", ManifestFile, b.Len(), maxManifest)
	}
	return b.Bytes(), nil
}

// Parse reads slot.txt. Names it doesn't know are passed over, like Decode's.
func Parse(text []byte) (*Manifest, error) {
	values, err := parseEnv(text)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", ManifestFile, err)
	}
	m := &Manifest{
		Version: values["version"], Arch: values["arch"], RootHash: values["roothash"],
		Args: strings.Fields(values["args"]),
	}
	for key := range values {
		if key != "kernel" && key != "initrd" && (!strings.HasPrefix(key, "dtb_") || strings.HasSuffix(key, "_length") || strings.HasSuffix(key, "_crc32")) {
			continue
		}
		f := BootFile{Name: values[key]}
		if f.Length, err = parseHex(values, key+"_length"); err != nil {
			return nil, fmt.Errorf("parse %s: %w", ManifestFile, err)
		}
		if f.CRC32, err = parseHex(values, key+"_crc32"); err != nil {
			return nil, fmt.Errorf("parse %s: %w", ManifestFile, err)
		}
		switch key {
		case "kernel":
			m.Kernel = f
		case "initrd":
			m.Initrd = f
		default:
			if m.DTBs == nil {
				m.DTBs = map[string]BootFile{}
			}
			m.DTBs[key] = f
		}
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("parse %s: %w", ManifestFile, err)
	}
	return m, nil
}

// FormatChecksum writes slot.crc for the given slot.txt.
func FormatChecksum(manifest []byte) []byte {
	return fmt.Appendf(nil, "slot_length=%x\nslot_crc32=%08x\n", len(manifest), crc32.ChecksumIEEE(manifest))
}

// CheckChecksum compares slot.txt with slot.crc as boot.scr does.
func CheckChecksum(manifest, checksum []byte) error {
	values, err := parseEnv(checksum)
	if err != nil {
		return fmt.Errorf("parse %s: %w", ChecksumFile, err)
	}
	want := BootFile{Name: ManifestFile}
	if want.Length, err = parseHex(values, "slot_length"); err != nil {
		return fmt.Errorf("parse %s: %w", ChecksumFile, err)
	}
	if want.CRC32, err = parseHex(values, "slot_crc32"); err != nil {
		return fmt.Errorf("parse %s: %w", ChecksumFile, err)
	}
	return want.Check(manifest)
}

// Check compares data with what f says of it.
func (f BootFile) Check(data []byte) error {
	if len(data) != int(f.Length) {
		return fmt.Errorf("check %s: length: got %d, want %d", f.Name, len(data), f.Length)
	}
	if got := crc32.ChecksumIEEE(data); got != f.CRC32 {
		return fmt.Errorf("check %s: CRC: got %08x, want %08x", f.Name, got, f.CRC32)
	}
	return nil
}

func parseEnv(text []byte) (map[string]string, error) {
	if len(text) > maxManifest {
		return nil, fmt.Errorf("got %d bytes, want at most %d", len(text), maxManifest)
	}
	if len(text) == 0 || text[len(text)-1] != '\n' {
		return nil, fmt.Errorf("got no newline at the end of %d bytes, want one", len(text))
	}
	values := map[string]string{}
	for i, line := range strings.Split(string(text[:len(text)-1]), "\n") {
		name, value, ok := strings.Cut(line, "=")
		if !ok || name == "" || value == "" {
			return nil, fmt.Errorf("line %d: got %q, want name=value", i+1, line)
		}
		if strings.IndexFunc(line, func(r rune) bool { return r < ' ' || r > '~' || r == '\\' }) >= 0 {
			return nil, fmt.Errorf("line %d: got %q, want printable ASCII without backslash", i+1, line)
		}
		if _, twice := values[name]; twice {
			return nil, fmt.Errorf("line %d: got %s a second time, want each name once", i+1, name)
		}
		values[name] = value
	}
	return values, nil
}

func parseHex(values map[string]string, name string) (uint32, error) {
	value := values[name]
	if !hexPattern.MatchString(value) {
		return 0, fmt.Errorf("%s: got %q, want hexadecimal, at most 8 lower-case digits", name, value)
	}
	n, err := strconv.ParseUint(value, 16, 32)
	return uint32(n), err
}

// Files lists every file the manifest covers, by name.
func (m *Manifest) Files() []BootFile {
	var list []BootFile
	for _, f := range m.files() {
		list = append(list, f.file)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}
