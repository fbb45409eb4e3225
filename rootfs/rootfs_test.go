package rootfs

import (
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func TestFiles(t *testing.T) {
	all, err := Files()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, f := range all {
		if seen[f.Path] || path.Clean(f.Path) != f.Path || strings.HasPrefix(f.Path, "/") {
			t.Errorf("%q is in the table twice or not clean", f.Path)
		}
		seen[f.Path] = true
		switch {
		case f.Mode.IsRegular() && len(f.Content) == 0:
			t.Errorf("%s is empty", f.Path)
		case f.Mode.IsRegular() && f.Mode.Perm() != 0o644, f.Mode.IsDir() && f.Mode.Perm()&0o022 != 0:
			t.Errorf("%s has mode %v", f.Path, f.Mode)
		case f.Mode&fs.ModeSymlink != 0 && f.Link == "":
			t.Errorf("%s leads nowhere", f.Path)
		}
	}
	// Every embedded file has its line in the table.
	err = fs.WalkDir(files, "files", func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && !seen[strings.TrimPrefix(p, "files/")] {
			t.Errorf("%s is in no line of the table", p)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, p := range []string{"proc", "sys", "dev", "run", "tmp", "var", "boot/firmware", "mnt"} {
		if !seen[p] {
			t.Errorf("the mount point %s is missing", p)
		}
	}
}

func TestListsFitTogether(t *testing.T) {
	text, err := List("packages-image.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var list struct{ Packages []string }
	if err := yaml.Unmarshal(text, &list); err != nil {
		t.Fatal(err)
	}
	contents, err := Contents("x-y-z")
	if err != nil {
		t.Fatal(err)
	}
	for pkg, globs := range contents {
		if !slices.Contains(list.Packages, pkg) {
			t.Errorf("contents.yaml takes files of %s, which packages-image.yaml does not list", pkg)
		}
		for _, g := range globs {
			if _, err := path.Match(g, ""); err != nil || !regexp.MustCompile(`^(usr|etc)/[^*$]*\*?$`).MatchString(g) {
				t.Errorf("%s: %q is no good glob", pkg, g)
			}
		}
	}
	for arch, own := range map[string]string{"arm64": "arch/arm64/crypto/", "armv7": "arch/arm/crypto/"} {
		modules, err := Modules(arch)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []string{"overlay", "br_netfilter", "vxlan", "veth", "dm-verity", "squashfs", "virtio_blk", own} {
			if !slices.Contains(modules, m) {
				t.Errorf("modules.txt lacks %s for %s", m, arch)
			}
		}
		for _, m := range modules {
			if strings.ContainsAny(m, " []") || m == "arch/arm64/crypto/" && arch != "arm64" {
				t.Errorf("modules.txt has %q for %s", m, arch)
			}
		}
	}
}
