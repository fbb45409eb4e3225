package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"skerry.internal/skerry/agent/boot"
	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/boards"
)

const maxSize = 8_000_000

// parts is what boot.scr would take out of slot A of the image that
// `make image` has made; the initramfs has this tree's init in it.
type parts struct {
	image, kernel, initrd string
	args                  map[string]string
}

// load takes an image apart. Without one the test is skipped, in CI it fails.
func load(t *testing.T, tags ...string) parts {
	t.Helper()
	image := os.Getenv("SKERRY_IMAGE")
	if image == "" {
		image = "../../../build/rpi4/skerry-rpi4.img"
	}
	lack := t.Skipf
	if os.Getenv("CI") != "" {
		lack = t.Fatalf
	}
	if _, err := os.Stat(image); err != nil {
		lack("no image (run make image BOARD=rpi4, or set SKERRY_IMAGE): %v", err)
	}
	for _, tool := range []string{"qemu-system-aarch64", "mcopy"} {
		if _, err := exec.LookPath(tool); err != nil {
			lack("no %s (apt install qemu-system-arm mtools)", tool)
		}
	}
	dir := t.TempDir()
	p := parts{image: image, kernel: filepath.Join(dir, "Image.gz"), initrd: filepath.Join(dir, "initrd.img")}
	slotText := filepath.Join(dir, "slot.txt")
	for _, f := range []string{p.kernel, p.initrd, slotText} {
		from := fmt.Sprintf("%s@@%d", image, boards.SlotAStart)
		if out, err := exec.Command("mcopy", "-i", from, "::"+filepath.Base(f), f).CombinedOutput(); err != nil {
			t.Fatalf("take %s out of slot A: %v: %s", filepath.Base(f), err, out)
		}
	}
	data, err := os.ReadFile(slotText)
	if err != nil {
		t.Fatal(err)
	}
	m, err := slots.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	p.args = boot.ParseCommandLine(strings.Join(m.Args, " "))
	maps.Copy(p.args, map[string]string{"skerry.slot": "a", "skerry.part": "PARTUUID=534b5259-02", "skerry.board": "virt", "console": "ttyAMA0"})
	p.addInit(t, tags)
	return p
}

// addInit appends this tree's init to the initramfs: of two archives the
// kernel takes the later one's file.
func (p parts) addInit(t *testing.T, tags []string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "init")
	build := exec.Command("go", "build", "-trimpath", "-tags="+strings.Join(append(tags, "nethttpomithttp2"), ","), "-gcflags=all=-l", "-ldflags=-s -w", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=arm64", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build init: %v: %s", err, out)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > maxSize {
		t.Errorf("init has %d bytes, want at most %d", len(data), maxSize)
	}
	var archive bytes.Buffer
	w := cpio.Newc.Writer(&archive)
	if err := cpio.WriteRecords(w, []cpio.Record{cpio.StaticFile("init", string(data), 0o755)}); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(p.initrd)
	if err != nil {
		t.Fatal(err)
	}
	for len(old)%4 != 0 {
		old = append(old, 0)
	}
	if err := os.WriteFile(p.initrd, append(old, archive.Bytes()...), 0o644); err != nil {
		t.Fatal(err)
	}
}

// machine is a running QEMU whose disk forgets what was written.
type machine struct {
	t       *testing.T
	lines   chan string
	seen    []string
	monitor string
	in      io.Writer // of its serial line
	exited  chan error
}

func (p parts) start(t *testing.T, change map[string]string, devices ...string) *machine {
	t.Helper()
	args := maps.Clone(p.args)
	maps.Copy(args, change)
	var words []string
	for _, k := range slices.Sorted(maps.Keys(args)) {
		if args[k] != "" {
			k += "=" + args[k]
		}
		words = append(words, k)
	}
	board, err := boards.ByName("rpi4")
	if err != nil {
		t.Fatal(err)
	}
	virt, err := board.Machine("virt")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, lines: make(chan string, 10000), monitor: filepath.Join(t.TempDir(), "monitor"), exited: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "qemu-system-aarch64", append(slices.Concat(virt.Args, devices), "-smp", "2", "-m", "1024", "-nodefaults", "-display", "none",
		"-no-reboot", "-serial", "stdio", "-monitor", "unix:"+m.monitor+",server=on,wait=off", "-kernel", p.kernel, "-initrd", p.initrd,
		"-append", strings.Join(words, " "), "-drive", "if=none,id=disk,format=raw,snapshot=on,file="+p.image, "-device", "virtio-blk-device,drive=disk",
		"-netdev", "user,id=net", "-device", "virtio-net-device,netdev=net", "-device", "virtio-rng-device")...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if m.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for s := bufio.NewScanner(out); s.Scan(); {
			m.lines <- s.Text()
		}
		io.Copy(io.Discard, out)
		close(m.lines)
		m.exited <- cmd.Wait()
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return m
}

// expect waits for a line that holds text; none of the lines before may hold
// never.
func (m *machine) expect(text, never string) {
	m.t.Helper()
	deadline := time.After(4 * time.Minute)
	for {
		select {
		case line, ok := <-m.lines:
			if !ok {
				m.t.Fatalf("the machine ended before %q:\n%s", text, m.tail())
			}
			m.seen = append(m.seen, line)
			if strings.Contains(line, text) {
				return
			}
			if never != "" && strings.Contains(line, never) {
				m.t.Fatalf("console says %q before %q:\n%s", line, text, m.tail())
			}
		case <-deadline:
			m.t.Fatalf("no %q on the console:\n%s", text, m.tail())
		}
	}
}

// send types on the serial line.
func (m *machine) send(text string) {
	m.t.Helper()
	if _, err := io.WriteString(m.in, text); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) tail() string { return strings.Join(m.seen[max(0, len(m.seen)-40):], "\n") }

// ended waits for the end of QEMU.
func (m *machine) ended() {
	m.t.Helper()
	select {
	case err := <-m.exited:
		if err != nil {
			m.t.Errorf("QEMU: %v", err)
		}
	case <-time.After(time.Minute):
		m.t.Fatalf("the machine goes on:\n%s", m.tail())
	}
}

// A whole life: from the initramfs to containerd, and down by the power key.
func TestBootAndPowerOff(t *testing.T) {
	p := load(t)
	m := p.start(t, nil)
	for _, mark := range []string{"switch root done", "STATE formatted", "mount STATE done", "has address 10.0.2.15/24", "unit containerd ready"} {
		m.expect(mark, "skerry: error: slot")
	}
	conn, err := net.Dial("unix", m.monitor)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintln(conn, "system_powerdown")
	for _, mark := range []string{"going down: power off", "unit containerd stopped", "end processes done", "unmount STATE done", "reboot: Power down"} {
		m.expect(mark, "skerry: error: unmount")
	}
	m.ended()
}

// The same boot with one thing wrong: it must stop where that is, and say so.
func TestRefusals(t *testing.T) {
	p := load(t)
	digit := "0"
	if strings.HasPrefix(p.args["skerry.roothash"], digit) {
		digit = "1"
	}
	for i, tt := range []struct {
		name   string
		change map[string]string
		want   string
	}{
		{"wrong root hash", map[string]string{"skerry.roothash": digit + p.args["skerry.roothash"][1:]}, "skerry: error: slot a: root file system refused: mount "},
		{"no root hash", map[string]string{"skerry.roothash": ""}, "skerry: error: slot a: root file system refused: parse skerry.roothash"},
		{"a slot that was never written", map[string]string{"skerry.part": "PARTUUID=534b5259-03", "skerry.slot": "b"}, "skerry: error: slot b: root file system refused: open verity device: no verity superblock"},
		{"another disk", map[string]string{"skerry.part": "PARTUUID=11111111-02"}, "skerry: error: slot a: no slot: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := p.start(t, tt.change)
			m.expect(tt.want, "switch root done")
			if i == 0 { // each takes ten seconds
				m.expect("reboot: Restarting system", "switch root done")
				m.ended()
			}
		})
	}
}
