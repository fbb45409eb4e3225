package deb

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"strings"

	"pault.ag/go/debian/deb"
)

// File is one entry of a package.
type File struct {
	// Path has no slash in front and none at the end. It is the path on a
	// system whose bin, sbin, lib and lib64 are links into usr, wherever the
	// package itself puts it.
	Path string
	// Mode has the type (regular file, directory or symbolic link) and the
	// permissions. Owners are dropped: everything belongs to root.
	Mode fs.FileMode
	// Link is a symbolic link's target, as it is.
	Link string
	// Hard is set for a further name of an earlier regular file: its Path.
	Hard string
	// Size of a regular file, 0 for others and where Hard is set.
	Size int64
	// Content of a regular file, to be read before the loop goes on.
	Content io.Reader
}

// Unpack walks through the files of the .deb at name in the order in which
// they are stored (a directory before what is in it). The loop gets an error
// once, last. Nothing is written; a caller that wants one file may stop early.
func Unpack(name string) iter.Seq2[File, error] {
	return func(yield func(File, error) bool) {
		more := true
		err := openData(name, func(plain io.Reader) error {
			return walk(plain, func(f File) bool {
				more = yield(f, nil)
				return more
			})
		})
		if err != nil && more {
			yield(File{}, fmt.Errorf("unpack %q: %w", name, err))
		}
	}
}

// openData finds a package's tar archive and hands it over, uncompressed.
func openData(name string, use func(plain io.Reader) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	ar, err := deb.LoadAr(f)
	if err != nil {
		return fmt.Errorf("read its outer archive: %w", err)
	}
	for {
		member, err := ar.Next()
		if err != nil {
			return fmt.Errorf("find its data.tar: %w", noEOF(err))
		}
		if !strings.HasPrefix(member.Name, "data.tar") {
			continue
		}
		plain, err := deb.DecompressorFor(path.Ext(member.Name))(bufio.NewReaderSize(member.Data, 1<<20))
		if err == nil {
			err = errors.Join(use(plain), plain.Close())
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", member.Name, noEOF(err))
		}
		return nil
	}
}

func walk(plain io.Reader, use func(File) bool) error {
	for t := tar.NewReader(plain); ; {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return noEOF(err)
		}
		file, err := fileOf(h, t)
		if err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
		if file.Path == "." {
			continue
		}
		if !use(file) {
			return nil
		}
	}
}

// noEOF keeps a file that ends too early from looking like one that ended.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func fileOf(h *tar.Header, content io.Reader) (File, error) {
	name, err := mergedPath(h.Name)
	if err != nil {
		return File{}, err
	}
	f := File{Path: name, Mode: h.FileInfo().Mode()}
	switch h.Typeflag {
	case tar.TypeReg:
		f.Size, f.Content = h.Size, content
	case tar.TypeDir:
	case tar.TypeSymlink:
		f.Link = h.Linkname
	case tar.TypeLink:
		if f.Hard, err = mergedPath(h.Linkname); err != nil {
			return File{}, err
		}
	default:
		return File{}, fmt.Errorf("type %q is neither file, directory nor link", h.Typeflag)
	}
	return f, nil
}

// mergedPath cleans a path of a tar archive and moves it into usr where the
// system has a link.
func mergedPath(name string) (string, error) {
	p := path.Clean(strings.TrimPrefix(name, "/"))
	if !filepath.IsLocal(p) {
		return "", errors.New("it leads outside the package")
	}
	first, rest, _ := strings.Cut(p, "/")
	switch first {
	case "bin", "sbin", "lib", "lib64":
		p = path.Join("usr", first, rest)
	}
	return p, nil
}

// UnpackTo writes the files of the .deb at name below dir, which exists.
// A path that leads through a symbolic link out of dir is refused.
func UnpackTo(dir, name string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for f, err := range Unpack(name) {
		if err != nil {
			return err
		}
		if err := writeFile(root, f); err != nil {
			return fmt.Errorf("unpack %q: write %q: %w", name, f.Path, err)
		}
	}
	return nil
}

func writeFile(root *os.Root, f File) error {
	if err := root.MkdirAll(path.Dir(f.Path), 0o755); err != nil {
		return err
	}
	switch {
	case f.Mode.IsDir():
		return root.MkdirAll(f.Path, 0o755)
	case f.Mode&fs.ModeSymlink != 0:
		return root.Symlink(f.Link, f.Path)
	case f.Hard != "":
		return root.Link(f.Hard, f.Path)
	}
	// Without setuid bits: these files run as whoever unpacked them.
	out, err := root.OpenFile(f.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.Mode.Perm()|0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, f.Content)
	return errors.Join(err, out.Close())
}
