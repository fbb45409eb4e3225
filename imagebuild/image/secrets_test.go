package image

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/fat"
	"skerry.internal/skerry/imagebuild/plan"
	"skerry.internal/skerry/imagebuild/secrets"
	"skerry.internal/skerry/imagebuild/tree"
)

// scanImage looks for secrets in every byte of an image, and in every file of
// its root file system.
func scanImage(t *testing.T, s smallImages, image string, root *tree.Tree) []secrets.Finding {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found, err := secrets.Scan(f, "image")
	if err != nil {
		t.Fatal(err)
	}
	// The FATs' files, which may be packed.
	for _, at := range []int64{boards.FirmwareStart, boards.SlotAStart} {
		files, err := fat.Read(io.NewSectionReader(f, at, boards.SlotBootSize), boards.SlotBootSize)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			in, err := secrets.Scan(bytes.NewReader(file.Data), file.Name)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, in...)
		}
	}
	// The root file system as it lies in the image, unpacked by its own tool.
	dir := filepath.Join(t.TempDir(), "root")
	part := filepath.Join(t.TempDir(), "part")
	b := make([]byte, s.build.rootFS.size)
	if _, err := f.ReadAt(b, boards.SlotAStart+boards.SlotBootSize); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(part, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := s.build.tools.Command(t.Context(), "unsquashfs", "-no-progress", "-quiet", "-d", dir, part).CombinedOutput(); err != nil {
		t.Fatalf("unsquashfs: %v\n%s", err, out)
	}
	var files int
	err = filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		files++
		in, err := os.Open(p)
		if err != nil {
			return err
		}
		defer in.Close()
		more, err := secrets.Scan(in, strings.TrimPrefix(p, dir))
		found = append(found, more...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var want int
	for _, e := range root.Entries() {
		if e.Mode.IsRegular() {
			want++
		}
	}
	if files != want {
		t.Errorf("looked into %d files of the root file system; want %d", files, want)
	}
	return found
}

func TestNoSecrets(t *testing.T) {
	s := built(t)
	for _, f := range scanImage(t, s, s.a, &s.build.root) {
		t.Errorf("the image holds %v", f)
	}
	// What is not found when it is there proves nothing.
	f, err := os.OpenFile(flip(t, s.a, boards.SlotBStart), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(plantedKey), boards.StateStart+12345); err != nil {
		t.Fatal(err)
	}
	if found := scanImage(t, s, f.Name(), &s.build.root); len(found) != 1 {
		t.Errorf("a key in STATE: found %v; want it", found)
	}
}

func TestNoSecretsInPackedFiles(t *testing.T) {
	s := built(t)
	planted := *s.build
	planted.work = t.TempDir()
	planted.store.dir = t.TempDir()
	planted.root, planted.slot = tree.Tree{}, slotBlob{}
	for _, e := range append(s.build.root.Entries(), tree.File("etc/oops.pem", 0o600, []byte(plantedKey))) {
		if err := planted.root.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	p := &plan.Progress{}
	if err := errors.Join(planted.packRoot(t.Context(), p), planted.makeVerity(t.Context(), p), planted.makeSlot(t.Context(), p),
		planted.makeFirmware(t.Context(), p), planted.writeImage(t.Context(), p)); err != nil {
		t.Fatal(err)
	}
	found := scanImage(t, smallImages{build: &planted}, planted.image, &planted.root)
	if len(found) != 1 || !strings.Contains(found[0].Where, "etc/oops.pem") {
		t.Errorf("a key in a packed file: found %v; want it", found)
	}
}
