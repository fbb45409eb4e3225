//go:build full

package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"skerry.internal/skerry/agent/config"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/image"
)

// TestImages has skerry image inspect read the image of every board, as make image has made it: it must tell what the
// board's folder puts into it, and the slot must be the same for all boards of an architecture. The
// twin: it must not tell that of a board whose folder has something else.
func TestImages(t *testing.T) {
	reports := map[string]*image.Report{}
	slots := map[*boards.Arch]map[[sha256.Size]byte][]string{}
	for _, name := range boards.Names() {
		x := target{board: name}
		board, err := boards.ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		r, err := image.Inspect(t.Context(), x.image(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := describes(r, board); err != nil {
			t.Errorf("%s: %v\n%s", name, err, r)
		}
		reports[name] = r
		if slots[board.Arch] == nil {
			slots[board.Arch] = map[[sha256.Size]byte][]string{}
		}
		sum := sha256.Sum256(readSlotA(t, x.image(t)))
		slots[board.Arch][sum] = append(slots[board.Arch][sum], name)
	}
	for arch, sums := range slots {
		if len(sums) != 1 {
			t.Errorf("%s: the boards have different slots: %v", arch.Name, sums)
		}
	}
	for name, other := range map[string]string{"rpi4": "pine64-plus", "pine64-plus": "rpi4", "rpi2": "bananapi-m2-ultra", "bananapi-m2-ultra": "pine64-plus"} {
		board, err := boards.ByName(other)
		if err != nil {
			t.Fatal(err)
		}
		if err := describes(reports[name], board); err == nil {
			t.Errorf("what is said of %s fits %s too:\n%s", name, other, reports[name])
		}
	}
}

// describes says in what a report differs from what a board's folder has.
func describes(r *image.Report, board *boards.Board) error {
	var errs []error
	if d := r.Damage(); len(d) > 0 {
		errs = append(errs, fmt.Errorf("damage: %q", d))
	}
	firmware := []string{boards.BootScriptFile, boards.UBootEnvFile, config.FileName}
	for _, f := range board.Firmware {
		firmware = append(firmware, f.Name)
	}
	if board.ConfigTxt != "" {
		firmware = append(firmware, boards.ConfigTxtFile)
	}
	slices.Sort(firmware)
	if have := slices.Sorted(slices.Values(r.Firmware)); !slices.Equal(have, firmware) {
		errs = append(errs, fmt.Errorf("FIRMWARE has %q, want %q", have, firmware))
	}
	var loaders, places []int64
	for _, l := range r.Loaders {
		loaders = append(loaders, l.Start)
	}
	for _, l := range board.Loaders {
		places = append(places, l.At)
	}
	if slices.Sort(places); !slices.Equal(loaders, places) {
		errs = append(errs, fmt.Errorf("loaders at %d, want them at %d", loaders, places))
	}
	a, b := r.Slots[0], r.Slots[1]
	if !a.Written || a.Arch != board.Arch.Name || a.Version == "" || a.RootHash == "" || a.RootSize == 0 || b.Written {
		errs = append(errs, fmt.Errorf("slot a %+v, slot b %+v; want the first for %s, and the second empty", a, b, board.Arch.Name))
	}
	files := []string{board.Arch.Kernel.File, "initrd.img"}
	for _, d := range board.Arch.DTBs {
		files = append(files, "dtb/"+d.Name+".dtb")
	}
	var have []string
	for _, f := range a.Files {
		have = append(have, f.Name)
	}
	if slices.Sort(files); !slices.Equal(slices.Sorted(slices.Values(have)), files) {
		errs = append(errs, fmt.Errorf("slot a has %q, want %q", have, files))
	}
	text := r.String()
	for _, part := range slices.Concat(firmware, files, []string{a.Version, a.RootHash, "all of it is whole"}) {
		if !strings.Contains(text, part) {
			errs = append(errs, fmt.Errorf("the text does not tell %q", part))
		}
	}
	return errors.Join(errs...)
}
