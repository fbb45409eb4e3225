// Package ociimage makes container images from files, without a container engine
// and without a registry. The same files and configuration give the same image,
// byte for byte.
//
// Left out: base images and instructions. What we ship is a static program and
// sometimes a few files beside it.
package ociimage

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// File is one file of an image. Its content is Data, or what the file Source
// holds.
type File struct {
	Path   string // "/pause"
	Mode   int64  // permissions; 0 means 0644
	Data   []byte
	Source string
}

// Config says how a container of the image starts.
type Config struct {
	Arch       string // GOARCH
	Entrypoint []string
	User       string // "uid:gid"; empty is root
	Env        []string
	WorkDir    string
	Labels     map[string]string
	Created    time.Time // zero is 1970: the same for every build
}

// Build makes an image of one layer.
func Build(files []File, c Config) (v1.Image, error) {
	layer, err := layerTar(files, c.Created)
	if err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil })
	if err != nil {
		return nil, fmt.Errorf("make image layer: %w", err)
	}
	img, err := mutate.Append(empty.Image, mutate.Addendum{Layer: l, History: v1.History{Created: v1.Time{Time: epoch(c.Created)}, CreatedBy: "skerry"}})
	if err != nil {
		return nil, fmt.Errorf("make image: %w", err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("make image: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Created = "linux", c.Arch, v1.Time{Time: epoch(c.Created)}
	if c.Arch == "arm" {
		file.Variant = "v7"
	}
	if c.Arch == "arm64" {
		file.Variant = "v8"
	}
	file.Config = v1.Config{Entrypoint: c.Entrypoint, User: c.User, Env: c.Env, WorkingDir: c.WorkDir, Labels: c.Labels}
	if img, err = mutate.ConfigFile(img, file); err != nil {
		return nil, fmt.Errorf("make image: %w", err)
	}
	return img, nil
}

func epoch(t time.Time) time.Time {
	if t.IsZero() {
		return time.Unix(0, 0).UTC()
	}
	return t.UTC()
}

func layerTar(files []File, at time.Time) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	files = slices.Clone(files)
	for i := range files {
		files[i].Path = path.Clean("/" + files[i].Path)
	}
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	made := map[string]bool{"/": true, ".": true}
	for _, f := range files {
		p := f.Path
		content := f.Data
		if f.Source != "" {
			var err error
			if content, err = os.ReadFile(f.Source); err != nil {
				return nil, fmt.Errorf("add %q to image: %w", p, err)
			}
		}
		if err := addDirs(w, path.Dir(p), made, at); err != nil {
			return nil, err
		}
		mode := f.Mode
		if mode == 0 {
			mode = 0o644
		}
		h := &tar.Header{Name: strings.TrimPrefix(p, "/"), Mode: mode, Size: int64(len(content)), ModTime: epoch(at), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("add %q to image: %w", p, err)
		}
		if _, err := w.Write(content); err != nil {
			return nil, fmt.Errorf("add %q to image: %w", p, err)
		}
	}
	return buf.Bytes(), w.Close()
}

func addDirs(w *tar.Writer, dir string, made map[string]bool, at time.Time) error {
	if made[dir] {
		return nil
	}
	made[dir] = true
	return errors.Join(addDirs(w, path.Dir(dir), made, at), w.WriteHeader(&tar.Header{
		Name: strings.TrimPrefix(dir, "/") + "/", Mode: 0o755, ModTime: epoch(at), Typeflag: tar.TypeDir, Format: tar.FormatPAX}))
}

// WriteArchive writes images into one archive that containerd imports.
func WriteArchive(w io.Writer, images map[string]v1.Image) error {
	refs := map[name.Reference]v1.Image{}
	for tag, img := range images {
		ref, err := name.NewTag(tag, name.StrictValidation)
		if err != nil {
			return fmt.Errorf("parse image name: %w", err)
		}
		refs[ref] = img
	}
	if err := tarball.MultiRefWrite(refs, w); err != nil {
		return fmt.Errorf("write image archive: %w", err)
	}
	return nil
}
