package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// files is the disk as the store uses it: names are relative, and nothing is certain
// to survive a crash before it was synced: a file's bytes by its Sync, its name by
// SyncDir of its folder.
type files interface {
	Create(name string) (file, error) // fails if there is one
	Open(name string) (file, error)
	Rename(from, to string) error // replaces to
	Remove(name string) error
	Mkdir(name string) error // succeeds if there is one
	SyncDir(name string) error
	ReadDir(name string) ([]entry, error)
	// Stamp sets the time of the last change of a file; it need not last.
	Stamp(name string, at time.Time) error
	Close() error
}

// file is one open file.
type file interface {
	io.Reader
	io.ReaderAt
	io.Seeker
	io.Writer
	io.Closer
	Sync() error
	// Identity differs once the file's bytes may have changed.
	Identity() (string, error)
}

// entry is one name in a folder.
type entry struct {
	name    string
	size    int64
	regular bool
	unix    int64 // time of the last change, in seconds
}

// disk is a folder of the operating system. Links in it cannot lead out of it.
type disk struct {
	root *os.Root
	lock *os.File
}

func openDisk(dir string, readOnly bool) (*disk, error) {
	if !readOnly {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	d := &disk{root: root}
	if readOnly {
		return d, nil
	}
	d.lock, err = root.OpenFile(fileLock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("folder is not writable: %w", err), root.Close())
	}
	if err := syscall.Flock(int(d.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(ErrInUse, d.Close())
	}
	return d, nil
}

func (d *disk) Close() error {
	err := d.root.Close()
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

func (d *disk) Create(name string) (file, error) {
	f, err := d.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return diskFile{f}, nil
}

func (d *disk) Open(name string) (file, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	return diskFile{f}, nil
}

func (d *disk) Rename(from, to string) error { return d.root.Rename(from, to) }
func (d *disk) Remove(name string) error     { return d.root.Remove(name) }

func (d *disk) Mkdir(name string) error {
	err := d.root.Mkdir(name, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func (d *disk) SyncDir(name string) error {
	f, err := d.root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d *disk) Stamp(name string, at time.Time) error { return d.root.Chtimes(name, at, at) }

func (d *disk) ReadDir(name string) ([]entry, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	infos, err := f.Readdir(-1)
	err = errors.Join(err, f.Close())
	if err != nil {
		return nil, err
	}
	entries := make([]entry, len(infos))
	for i, info := range infos {
		entries[i] = entry{name: info.Name(), size: info.Size(), regular: info.Mode().IsRegular(), unix: info.ModTime().Unix()}
	}
	return entries, nil
}

type diskFile struct{ *os.File }

// Identity is the file's number, size and times. The time of change of the inode
// cannot be set back by an ordinary program.
func (f diskFile) Identity() (string, error) {
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no regular file", info.Name())
	}
	id := fmt.Sprintf("%d/%d", info.Size(), info.ModTime().UnixNano())
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		id += fmt.Sprintf("/%d/%d/%d.%d", st.Dev, st.Ino, st.Ctim.Sec, st.Ctim.Nsec)
	}
	return id, nil
}
