package file

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// MaxFile is the size in bytes of the largest file that is read. The Kubernetes API takes
// objects of 1.5 MiB; a file holds many.
const MaxFile = 32 << 20

// extensions are the names' ends of files that hold documents.
var extensions = []string{".yaml", ".yml", ".json"}

// List returns the files beneath root that hold documents, by path, and the folders
// that were read, root included. A root that is a file is returned as it is. Symbolic links
// are followed, also to folders; names that begin with "." or "#" are passed over, which
// are editors' temporary files and the folders behind a mounted ConfigMap.
func List(root string) (files, folders []string, err error) {
	info, err := os.Stat(root)
	if err != nil {
		return nil, nil, err
	}
	if !info.IsDir() {
		return []string{root}, nil, nil
	}
	files, folders, err = list(root, nil)
	slices.Sort(files)
	return files, folders, err
}

// listFolder is List of a root that must be a folder.
func listFolder(root string) (files, folders []string, err error) {
	files, folders, err = List(root)
	if err == nil && len(folders) == 0 {
		return nil, nil, errNoFolder
	}
	return files, folders, err
}

var errNoFolder = errors.New("is a file, not a folder")

// list reads one folder; above are the folders that led to it, so that a link to one
// of them is not followed for ever.
func list(folder string, above []fs.FileInfo) (files, folders []string, err error) {
	self, err := os.Stat(folder)
	if err != nil {
		return nil, nil, err
	}
	if slices.ContainsFunc(above, func(a fs.FileInfo) bool { return os.SameFile(a, self) }) {
		return nil, nil, nil
	}
	above = append(above[:len(above):len(above)], self)
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, nil, err
	}
	folders = []string{folder}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") {
			continue
		}
		path, kind := filepath.Join(folder, name), e.Type()
		if kind&fs.ModeSymlink != 0 {
			switch info, err := os.Stat(path); {
			case errors.Is(err, fs.ErrNotExist):
				continue // a link to nothing
			case err != nil:
				kind = 0 // a file that cannot be read: whoever reads it says so
			default:
				kind = info.Mode().Type()
			}
		}
		switch {
		case kind.IsDir():
			f, d, err := list(path, above)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, nil, err
			}
			files, folders = append(files, f...), append(folders, d...)
		case kind.IsRegular() && slices.Contains(extensions, strings.ToLower(filepath.Ext(name))):
			files = append(files, path)
		}
	}
	return files, folders, nil
}

// stamp tells whether a file may have changed since it was read.
type stamp struct {
	info fs.FileInfo
	read time.Time
}

// racy is how young a file's time may be, when the file is read, for the time to tell
// later changes apart: file systems count time in ticks.
const racy = 2 * time.Second

// same reports whether a file with this info is certainly the one that was read.
func (s stamp) same(now fs.FileInfo) bool {
	return s.info != nil && os.SameFile(s.info, now) && s.info.Size() == now.Size() &&
		s.info.ModTime().Equal(now.ModTime()) && s.read.Sub(s.info.ModTime()) > racy
}

// errTooLarge is why a file is not read.
var errTooLarge = fmt.Errorf("is larger than %d MiB: split it", MaxFile>>20)

// Read returns the content of a file of at most MaxFile bytes.
func Read(path string) ([]byte, error) {
	data, _, err := read(path)
	return data, err
}

func read(path string) ([]byte, stamp, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, stamp{}, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, stamp{}, err
	}
	now := time.Now()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	switch {
	case err != nil:
		return nil, stamp{}, err
	case len(data) > MaxFile:
		return nil, stamp{}, fmt.Errorf("%s: %w", path, errTooLarge)
	}
	return data, stamp{info: info, read: now}, nil
}
