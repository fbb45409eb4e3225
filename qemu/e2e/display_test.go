//go:build full

package e2e

import (
	"image"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skerry.internal/skerry/qemu"
)

// TestPiDisplay takes pictures of a Pi's HDMI port: of the kernel's log, and of
// the screen that takes its place, which must say what the serial line says.
// The card has no cluster: nothing of Kubernetes is waited for.
func TestPiDisplay(t *testing.T) {
	vm := newMachine(t, "rpi3", "raspi3b", pi3.image(t), nil, func(c *qemu.Config) { c.DiskSize = 1 << 30 })
	powerOn(t, vm)
	await(t, vm, `skerry: start console done`, piTime)
	lit := 0
	for _, row := range picture(t, vm, "log.png") {
		lit += strings.Count(row, "x")
	}
	if lit < 200 {
		t.Errorf("during the boot %d characters are on the display; want the kernel's log", lit)
	}

	const rule = "--------------------"
	await(t, vm, "\n"+rule, piTime)
	await(t, vm, "\n"+rule, piTime)
	block := strings.Split(vm.Console()[strings.Index(vm.Console(), "\n"+rule):], "\n")[3:]
	rows := strings.Join(picture(t, vm, "screen.png"), "\n") + "\n"
	for _, line := range block[:2] { // who the node is and what runs; the lines below change by the second
		line = strings.TrimRight(line, "\r")
		shape := strings.Map(func(r rune) rune {
			if r == ' ' {
				return r
			}
			return 'x'
		}, line)
		if !strings.Contains(rows, shape+"\n") {
			t.Errorf("the display lacks %q; its characters:\n%s", line, rows)
		}
	}
}

// picture returns what is on the display, an x for each character that is not a
// space. With SKERRY_PICTURES=DIR the PNG is kept there.
func picture(t *testing.T, vm *qemu.VM, name string) (rows []string) {
	t.Helper()
	dir := os.Getenv("SKERRY_PICTURES")
	if dir == "" {
		dir = t.TempDir()
	}
	file := filepath.Join(dir, name)
	if err := vm.Screenshot(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	const width, height = 8, 16 // of the kernel's font
	b := img.Bounds()
	for y := b.Min.Y; y+height <= b.Max.Y; y += height {
		row := ""
		for x := b.Min.X; x+width <= b.Max.X; x += width {
			if dark(img, image.Rect(x, y, x+width, y+height)) {
				row += " "
			} else {
				row += "x"
			}
		}
		rows = append(rows, strings.TrimRight(row, " "))
	}
	return rows
}

// dark reports whether all of a part of a picture is black.
func dark(img image.Image, part image.Rectangle) bool {
	for y := part.Min.Y; y < part.Max.Y; y++ {
		for x := part.Min.X; x < part.Max.X; x++ {
			if r, g, b, _ := img.At(x, y).RGBA(); r|g|b != 0 {
				return false
			}
		}
	}
	return true
}
