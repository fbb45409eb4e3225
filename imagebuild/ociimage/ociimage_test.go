package ociimage

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

var files = []File{{Path: "/usr/bin/b", Data: []byte("program"), Mode: 0o755}, {Path: "/usr/bin/a", Data: []byte("a")}, {Path: "etc/passwd", Data: []byte("root")}}

func build(t *testing.T, fs []File) v1.Image {
	t.Helper()
	img, err := Build(fs, Config{Arch: "arm64", Entrypoint: []string{"/usr/bin/b"}, User: "65534:65534"})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestBuild(t *testing.T) {
	img := build(t, files)
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c.Architecture != "arm64" || c.OS != "linux" || c.Config.User != "65534:65534" || !slices.Equal(c.Config.Entrypoint, []string{"/usr/bin/b"}) {
		t.Errorf("Build() made the configuration %+v", c)
	}
	layers, _ := img.Layers()
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if want := []string{"etc/", "etc/passwd", "usr/", "usr/bin/", "usr/bin/a", "usr/bin/b"}; !slices.Equal(names, want) {
		t.Errorf("the layer holds %q; want %q", names, want)
	}
}

func TestSameInputsSameImage(t *testing.T) {
	other := slices.Clone(files)
	slices.Reverse(other)
	a, err := build(t, files).Digest()
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := build(t, other).Digest(); a != b {
		t.Errorf("the same files in another order give %s; want %s", b, a)
	}
	other[0].Data = []byte("other")
	if b, _ := build(t, other).Digest(); a == b {
		t.Error("another file gives the same digest")
	}
	if _, err := Build([]File{{Path: "a", Source: "/nonexistent"}}, Config{}); err == nil {
		t.Error("Build() from a file that is not there = nil; want an error")
	}
}

func TestArchiveAndRegistry(t *testing.T) {
	img := build(t, files)
	want, _ := img.Digest()
	var a, b bytes.Buffer
	for _, w := range []io.Writer{&a, &b} {
		if err := WriteArchive(w, map[string]v1.Image{"skerry.internal/pause:1": img}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("WriteArchive() twice gives different bytes")
	}
	file := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(file, a.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	tag, _ := name.NewTag("skerry.internal/pause:1")
	back, err := tarball.ImageFromPath(file, &tag)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := back.ConfigName(); got == (v1.Hash{}) {
		t.Error("the archive holds no configuration")
	}
	if err := WriteArchive(io.Discard, map[string]v1.Image{"no tag": img}); err == nil {
		t.Error("WriteArchive() under a bad name = nil; want an error")
	}

	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	ref, err := name.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/test:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	pulled, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(pulled); err != nil {
		t.Error(err)
	}
	if got, _ := pulled.Digest(); got != want {
		t.Errorf("the registry gives %s back; want %s", got, want)
	}
}
