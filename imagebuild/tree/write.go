package tree

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/u-root/u-root/pkg/cpio"
)

// WriteTar writes the tree as a tar stream. Every entry belongs to root and
// carries the same time.
func (t *Tree) WriteTar(w io.Writer, at time.Time) error {
	tw := tar.NewWriter(w)
	for _, e := range t.Entries() {
		h := &tar.Header{
			Name: e.Path, Mode: int64(e.Mode.Perm()), ModTime: at.UTC().Truncate(time.Second),
			Format: tar.FormatPAX,
		}
		switch {
		case e.Mode.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, e.Path+"/"
		case e.Mode&fs.ModeSymlink != 0:
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.Link
		default:
			h.Typeflag = tar.TypeReg
		}
		if err := writeTarEntry(tw, h, e); err != nil {
			return fmt.Errorf("write %q from %s: %w", e.Path, e.From, err)
		}
	}
	return tw.Close()
}

func writeTarEntry(tw *tar.Writer, h *tar.Header, e Entry) error {
	if h.Typeflag != tar.TypeReg {
		return tw.WriteHeader(h)
	}
	r, size, err := e.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	h.Size = size
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(tw, r)
	return err
}

// WriteCpio writes the tree as a cpio archive of the kind that the kernel
// unpacks at boot. Inode numbers follow the order; times are zero.
func (t *Tree) WriteCpio(w io.Writer) error {
	format, err := cpio.Format("newc")
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	cw := format.Writer(&archive)
	flush := func() error {
		_, err := archive.WriteTo(w)
		return err
	}
	for i, e := range t.Entries() {
		var r cpio.Record
		perm := uint64(e.Mode.Perm())
		switch {
		case e.Mode.IsDir():
			r = cpio.Directory(e.Path, perm)
		case e.Mode&fs.ModeSymlink != 0:
			r = cpio.Symlink(e.Path, e.Link)
		default:
			content, err := e.Bytes()
			if err != nil {
				return fmt.Errorf("read %q from %s: %w", e.Path, e.From, err)
			}
			r = cpio.StaticFile(e.Path, string(content), perm)
		}
		r.Ino = uint64(i + 1)
		r.NLink = 1
		if err := cw.WriteRecord(r); err != nil {
			return fmt.Errorf("write %q from %s: %w", e.Path, e.From, err)
		}
		if err := flush(); err != nil {
			return err
		}
	}
	if err := cpio.WriteTrailer(cw); err != nil {
		return err
	}
	return flush()
}
