package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"skerry.internal/skerry/agent/provision"
	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/cluster"
	"skerry.internal/skerry/imagebuild/fat"
	"skerry.internal/skerry/imagebuild/secrets"
	"skerry.internal/skerry/qemu"
)

// newMachine prepares the named machine of a board over an image, with bundle
// on FIRMWARE if there is one.
func newMachine(t *testing.T, board, machine, image string, bundle []byte, change ...func(*qemu.Config)) *qemu.VM {
	t.Helper()
	b, err := boards.ByName(board)
	if err != nil {
		t.Fatal(err)
	}
	m, err := b.Machine(machine)
	if err != nil {
		t.Fatal(err)
	}
	qemu.Require(t, m)
	cfg := qemu.Config{Dir: filepath.Join(t.TempDir(), "vm"), Machine: m, Image: image, DiskSize: 3 << 30, Forwards: map[int]int{6443: 0}}
	if bundle != nil {
		cfg.Firmware = func(files map[string][]byte) error { files[provision.FileName] = bundle; return nil }
	}
	for _, c := range change {
		c(&cfg)
	}
	vm, err := qemu.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.Cut)
	return vm
}

// newBundle makes a cluster and the bundle of its first node.
func newBundle(t *testing.T) (*cluster.Cluster, []byte) {
	t.Helper()
	c, err := cluster.Create(t.TempDir(), "e2e", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := c.Bundle(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return c, bundle
}

func powerOn(t *testing.T, vm *qemu.VM) {
	t.Helper()
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// await waits for a line on a machine's console.
func await(t *testing.T, vm *qemu.VM, pattern string, limit time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if _, err := vm.Expect(ctx, pattern); err != nil {
		t.Fatal(err)
	}
}

// readSlotA returns slot A of an image file as far as anything is in it.
func readSlotA(t *testing.T, image string) []byte {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	slot, err := io.ReadAll(io.NewSectionReader(f, boards.SlotAStart, boards.SlotSize))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.TrimRight(slot, "\x00")
}

// bootFile returns the offset in the slot of the middle of one of its boot files.
func bootFile(t *testing.T, slot []byte, pick func(*slots.Manifest) slots.BootFile) int {
	t.Helper()
	// TrimRight may have cut the FAT's free end off; it reads as zeros.
	part := make([]byte, max(len(slot), boards.SlotBootSize))
	copy(part, slot)
	files, err := fat.Read(bytes.NewReader(part), boards.SlotBootSize)
	if err != nil {
		t.Fatal(err)
	}
	content := map[string][]byte{}
	for _, f := range files {
		if content[f.Name], err = f.Bytes(); err != nil {
			t.Fatal(err)
		}
	}
	m, err := slots.Parse(content[slots.ManifestFile])
	if err != nil {
		t.Fatal(err)
	}
	data := content[pick(m).Name]
	half := len(data) / 2 &^ 511
	sector := data[half : half+512]
	at := bytes.Index(slot, sector)
	if at < 0 || bytes.LastIndex(slot, sector) != at {
		t.Fatalf("a sector of %s: got none or several in the slot, want one", pick(m).Name)
	}
	return at
}

// frames unpacks, one after the other, the blocks of a squashfs, each of which
// is one zstd frame; what is stored as it is isn't among them.
func frames(t *testing.T, root []byte, each func(at int, data []byte)) {
	t.Helper()
	const magic, block = "\x28\xb5\x2f\xfd", 128 << 10
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	data := make([]byte, block)
	for at := 0; ; at += len(magic) {
		next := bytes.Index(root[at:], []byte(magic))
		if next < 0 {
			return
		}
		at += next
		// The reader is given more than the frame, so it ends with the block or with an error.
		if err := z.Reset(bytes.NewReader(root[at:min(at+2*block, len(root))])); err != nil {
			t.Fatal(err)
		}
		n, _ := io.ReadFull(z, data)
		each(at, data[:n])
	}
}

// packedWith returns the offset in the slot of a byte that only one file of the
// root uses: the one whose unpacked block holds text.
func packedWith(t *testing.T, slot []byte, text string) int {
	t.Helper()
	found := 0
	frames(t, slot[boards.SlotBootSize:], func(at int, data []byte) {
		if found == 0 && bytes.Contains(data, []byte(text)) {
			found = boards.SlotBootSize + at + verityBlock // the frame's first block holds the end of another file, too
		}
	})
	if found == 0 {
		t.Fatalf("unpack the root file system: no block holds %q", text)
	}
	return found
}

const (
	verityBlock = 4096
	lateBlock   = "root block that skerryd reads"
	pauseImage  = `"RepoTags":["skerry.internal/pause:1"]`
)

// Each case flips one bit of the image, in a throw-away overlay. Whole is the
// same machine with the same bytes written, none of them changed.
func TestTamper(t *testing.T) { testTamper(t, arm64) }

func testTamper(t *testing.T, x target) {
	board, _ := x.find(t)
	image := x.image(t)
	slot := readSlotA(t, image)
	_, bundle := newBundle(t)
	const noSlot = `skerry: no bootable slot: slots tried: a, slot a is ok, slot b is empty`
	block := func(at int) string {
		return fmt.Sprintf(`data block %d is corrupted`, (at-boards.SlotBootSize)/verityBlock)
	}
	kernel := bootFile(t, slot, func(m *slots.Manifest) slots.BootFile { return m.Kernel })
	initrd := bootFile(t, slot, func(m *slots.Manifest) slots.BootFile { return m.Initrd })
	super := boards.SlotBootSize
	program := packedWith(t, slot, "path\tskerry.internal/skerry/agent/cmd/init\n")
	tool := packedWith(t, slot, "Usage: %s [-c|-l filename] [-b block-size]") // of mkfs.ext4
	archive := packedWith(t, slot, pauseImage)
	for _, tt := range []struct {
		name  string
		at    []int
		flip  byte
		says  []string // on the console, in this order
		never []string // before the last of them
	}{
		{"whole", []int{kernel, initrd, super, program, tool, archive}, 0, []string{`skerry: STATE formatted`, `skerry: unit containerd ready`},
			[]string{"refused", "corrupted", "mismatch", "nput/output error"}},
		{"kernel", []int{kernel}, 0x10, []string{`skerry: slot a: kernel CRC mismatch in ` + regexp.QuoteMeta(board.Arch.Kernel.File) + `: got [0-9a-f]+, want [0-9a-f]+, refused`, noSlot},
			[]string{"slot a: starting", "slot b:", "Linux version"}},
		{"initramfs", []int{initrd}, 0x10, []string{`skerry: slot a: initrd CRC mismatch in initrd\.img: got [0-9a-f]+, want [0-9a-f]+, refused`, noSlot},
			[]string{"slot a: starting", "slot b:", "Linux version"}},
		{"superblock of the root", []int{super}, 0x10, []string{block(super), `skerry: error: slot a: root file system refused: mount `, `the boot has stopped at "mount root"`},
			[]string{"mount root done", "containerd"}},
		{"root block that is read at boot", []int{program}, 0x10, []string{block(program), `skerry: error: slot a: root file system refused: .*input/output error`, `the boot has stopped at "check init"`},
			[]string{"check init done", "containerd"}},
		// The only reader is init, once the root is mounted and it runs from there.
		{"root block that is read later", []int{tool}, 0x10, []string{`check init done`, block(tool), `skerry: error: .*mkfs\.ext4.*input/output error`},
			[]string{"STATE formatted", "refused"}},
		// The only reader is skerryd, after the control plane has come up.
		{lateBlock, []int{archive}, 0x10, []string{`unit containerd ready`, `skerry: registries ready`, block(archive), `skerry: error: import images: .*"/usr/share/skerry/images/pause\.tar": .*input/output error`,
			`! slot a: its root file system is damaged`},
			[]string{"images ready", "refused"}},
	} {
		if tt.name == lateBlock && !testAll() {
			continue // it is a boot to the control plane
		}
		t.Run(tt.name, func(t *testing.T) {
			vm := newMachine(t, x.board, x.machine, image, bundle)
			for _, at := range tt.at {
				writeByte(t, vm, boards.SlotAStart+at, slot[at]^tt.flip)
			}
			begin := time.Now()
			powerOn(t, vm)
			for _, pattern := range tt.says {
				await(t, vm, pattern, x.limit(bootTime))
			}
			t.Logf("said after %.0f s", time.Since(begin).Seconds())
			console := vm.Console()
			for _, never := range tt.never {
				if i := strings.Index(console, never); i >= 0 {
					t.Errorf("the console says %q, want never %q", strings.TrimSpace(console[max(0, i-80):min(len(console), i+80)]), never)
				}
			}
		})
	}
}

// writeByte changes a byte of the machine's overlay.
func writeByte(t *testing.T, vm *qemu.VM, at int, b byte) {
	t.Helper()
	write := fmt.Sprintf("write -q -P 0x%02x %d 1", b, at)
	if out, err := exec.Command("qemu-io", "-f", "qcow2", "-c", write, filepath.Join(vm.Dir(), qemu.OverlayFile)).CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("qemu-io %s: %v\n%s", write, err, out)
	}
}

// No private key and no token is in any byte of an image, nor in what is packed in it.
func TestImageHoldsNoSecret(t *testing.T) {
	for _, path := range []string{bootImage(t), pi3.image(t), armv7.image(t)} {
		t.Run(filepath.Base(path), func(t *testing.T) { holdsNoSecret(t, path) })
	}
}

func holdsNoSecret(t *testing.T, image string) {
	scan := func(r io.Reader, name string) {
		t.Helper()
		found, err := secrets.Scan(r, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			t.Errorf("the image holds %v", f)
		}
	}
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	scan(f, "image")
	for _, part := range []struct{ at, size int64 }{{boards.FirmwareStart, boards.FirmwareSize}, {boards.SlotAStart, boards.SlotBootSize}} {
		files, err := fat.Read(io.NewSectionReader(f, part.at, part.size), part.size)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			data, err := file.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			scan(bytes.NewReader(data), file.Name)
		}
	}
	// The blocks of a file follow each other, so nothing is torn where two meet.
	unpacked, read := io.Pipe()
	go func() {
		defer read.Close()
		frames(t, readSlotA(t, image)[boards.SlotBootSize:], func(_ int, data []byte) { read.Write(data) })
	}()
	counted := &counter{r: unpacked}
	scan(counted, "root file system")
	var programs int64
	for _, size := range description(t, image).Programs {
		programs += size
	}
	if counted.n < programs || programs < 100<<20 {
		t.Errorf("looked into %d unpacked bytes of the root file system, want more than the %d of our programs alone", counted.n, programs)
	}
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// A card is flashed as the README says. The bundle is taken off FIRMWARE at the first
// boot and leaves nothing there; the power button ends the machine in order and soon.
func TestFirstBootWipesBundle(t *testing.T) {
	card := filepath.Join(t.TempDir(), "card")
	if err := os.WriteFile(card, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SKERRY_HOME", t.TempDir())
	command := skerryCommand(t)
	if out, err := exec.Command(command, "cluster", "create", "barn").CombinedOutput(); err != nil {
		t.Fatalf("skerry cluster create: %v\n%s", err, out)
	}
	// script gives it a terminal, on which it shows how far it is.
	out, err := exec.Command("script", "-qec", "stty cols 100; "+strings.Join(quote([]string{command, "flash", bootImage(t) + ".zst", card, "--cluster", "barn"}), " "), "/dev/null").CombinedOutput()
	if err != nil {
		t.Fatalf("skerry flash: %v\n%s", err, out)
	}
	for _, want := range []string{`writing .*[1-9]\d*\.\d+% .*p/s .*left`, `verifying .*100\.00% .*p/s`, `is written and verified`} {
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("skerry flash on a terminal shows %q; want %q", out, want)
		}
	}
	if err := os.Truncate(card, 3<<30); err != nil { // the card is larger than the image
		t.Fatal(err)
	}
	flashed, err := qemu.ReadFirmware(card)
	if err != nil {
		t.Fatal(err)
	}
	bundle := flashed[provision.FileName]
	vm := newMachine(t, "rpi4", "virt", "", nil, func(c *qemu.Config) { c.RawDisk = card })
	before := firmwareOf(t, card)
	// What isn't found while it is there would prove nothing.
	if n := remains(t, before, bundle); n != len(secretPieces(t, bundle)) {
		t.Fatalf("found %d pieces of the key on FIRMWARE before the first boot, want all %d", n, len(secretPieces(t, bundle)))
	}
	if found := scanned(t, before); len(found) == 0 {
		t.Fatal("the scanner finds no key on FIRMWARE before the first boot, want the bundle's")
	}
	powerOn(t, vm)
	await(t, vm, `skerry: provisioning bundle taken from FIRMWARE`, bootTime)
	await(t, vm, `skerry: unit containerd ready`, bootTime)
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := vm.Powerdown(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("off %.0f s after the power button", time.Since(begin).Seconds())
	for _, want := range []string{"going down: power off", "unmount STATE done", "Power down"} {
		if !strings.Contains(vm.Console(), want) {
			t.Errorf("the console on the way down: got no %q, want it:\n%s", want, vm.Console())
		}
	}
	after := firmwareOf(t, card)
	if n := remains(t, after, bundle); n != 0 {
		t.Errorf("found %d pieces of the key on FIRMWARE after the first boot, want none", n)
	}
	for _, f := range scanned(t, after) {
		t.Errorf("FIRMWARE after the first boot holds %v", f)
	}
	files, err := fat.Read(bytes.NewReader(after), boards.FirmwareSize)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name == provision.FileName {
			t.Errorf("FIRMWARE after the first boot has %s, want it removed", f.Name)
		}
	}
}

// firmwareOf returns the bytes of FIRMWARE of a card.
func firmwareOf(t *testing.T, card string) []byte {
	t.Helper()
	f, err := os.Open(card)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, boards.FirmwareSize)
	if _, err := f.ReadAt(b, boards.FirmwareStart); err != nil {
		t.Fatal(err)
	}
	return b
}

func scanned(t *testing.T, firmware []byte) []secrets.Finding {
	t.Helper()
	found, err := secrets.Scan(bytes.NewReader(firmware), "FIRMWARE")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// secretPieces cuts the bundle's private key, as it is written there, into short pieces.
func secretPieces(t *testing.T, bundle []byte) (pieces [][]byte) {
	t.Helper()
	_, rest, ok := bytes.Cut(bundle, []byte(`"intermediateKey": `))
	if !ok {
		t.Fatalf("the bundle has no intermediateKey")
	}
	value, err := strconv.QuotedPrefix(string(rest))
	if err != nil {
		t.Fatal(err)
	}
	const header = 48 // the line that all keys begin with
	for key := value[1+header : len(value)-1]; len(key) >= 16; key = key[16:] {
		pieces = append(pieces, []byte(key[:16]))
	}
	return pieces
}

// remains counts the pieces of the bundle's key that are somewhere in b.
func remains(t *testing.T, b, bundle []byte) (n int) {
	t.Helper()
	for _, piece := range secretPieces(t, bundle) {
		if bytes.Contains(b, piece) {
			n++
		}
	}
	return n
}
