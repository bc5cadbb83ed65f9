package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// What the tests of the outside need of the inside.
const (
	Folder     = folder
	DirModules = dirModules
	DirRecords = dirRecords
	DirTemp    = dirTemp
	FileFormat = fileFormat
)

// RecordFile is the name of a record's file.
func RecordFile(source, name string) string { return recordKey{source, name}.file() }

// ErrCrash is every operation's answer once the machine has stopped.
var ErrCrash = errors.New("the machine has stopped")

// Forgetful is a disk that remembers for sure only what was synced: of a file its
// bytes at the last Sync, of a folder its names at the last SyncDir. What was done
// since may survive a crash or not, each thing by itself.
type Forgetful struct {
	mu    sync.Mutex
	dirs  map[string]*folderState
	clock int64
	// operations counts those that change something; the machine stops before the one
	// with the number stopAt.
	operations, stopAt int
	full               bool // writing fails for want of room
}

type folderState struct{ now, synced map[string]*inode }

type inode struct {
	now, synced []byte
	version     int64
}

// NewForgetful returns an empty disk that does not stop.
func NewForgetful() *Forgetful {
	return &Forgetful{dirs: map[string]*folderState{".": newFolder()}, stopAt: -1}
}

// Options puts the disk under a store.
func (d *Forgetful) Options(o Options) Options {
	o.files = d
	return o
}

// StopAt stops the machine before the n-th operation from now that changes something.
func (d *Forgetful) StopAt(n int) { d.operations, d.stopAt = 0, n }

// Fill takes the disk's room away, or gives it back.
func (d *Forgetful) Fill(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

// Files is how many files a folder has.
func (d *Forgetful) Files(folder string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.dirs[folder].now)
}

// Operations is how many there were since StopAt.
func (d *Forgetful) Operations() int { return d.operations }

// Crash returns what is found on the disk after the machine stopped: what was synced,
// and of the rest what the dice say.
func (d *Forgetful) Crash(dice *rand.Rand) *Forgetful {
	d.mu.Lock()
	defer d.mu.Unlock()
	after := NewForgetful()
	content := map[*inode]*inode{}
	survivor := func(n *inode) *inode {
		if content[n] == nil {
			b := n.synced
			switch dice.IntN(3) {
			case 0:
				b = n.now
			case 1: // some of what was written since, in any length
				b = append([]byte(nil), n.now[:dice.IntN(len(n.now)+1)]...)
				if len(b) < len(n.synced) {
					b = n.synced
				}
			}
			content[n] = &inode{now: b, synced: b, version: 1}
		}
		return content[n]
	}
	for name, dir := range d.dirs {
		if name != "." && d.dirs["."].synced[name] == nil && dice.IntN(2) == 0 {
			continue // the folder itself was not synced
		}
		f := newFolder()
		names := map[string]bool{}
		for n := range dir.now {
			names[n] = true
		}
		for n := range dir.synced {
			names[n] = true
		}
		for n := range names {
			is := dir.synced[n]
			if dir.now[n] != is && dice.IntN(2) == 0 {
				is = dir.now[n]
			}
			if is != nil {
				f.now[n], f.synced[n] = survivor(is), survivor(is)
			}
		}
		after.dirs[name] = f
	}
	root := after.dirs["."]
	for name := range after.dirs {
		if name != "." {
			root.now[name], root.synced[name] = &inode{}, &inode{}
		}
	}
	for n := range root.now {
		if d.dirs[n] != nil && after.dirs[n] == nil {
			delete(root.now, n)
			delete(root.synced, n)
		}
	}
	return after
}

func newFolder() *folderState {
	return &folderState{now: map[string]*inode{}, synced: map[string]*inode{}}
}

// change counts an operation; it fails once the machine has stopped. Called with mu.
func (d *Forgetful) change() error {
	if d.stopAt >= 0 && d.operations >= d.stopAt {
		return ErrCrash
	}
	d.operations++
	d.clock++
	return nil
}

func (d *Forgetful) folder(name string) (*folderState, string, error) {
	f := d.dirs[path.Dir(name)]
	if f == nil {
		return nil, "", fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return f, path.Base(name), nil
}

func (d *Forgetful) Create(name string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.change(); err != nil {
		return nil, err
	}
	f, base, err := d.folder(name)
	if err != nil {
		return nil, err
	}
	if f.now[base] != nil {
		return nil, fs.ErrExist
	}
	n := &inode{version: d.clock}
	f.now[base] = n
	return &openInode{d: d, n: n}, nil
}

func (d *Forgetful) Open(name string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, base, err := d.folder(name)
	if err != nil {
		return nil, err
	}
	if f.now[base] == nil {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return &openInode{d: d, n: f.now[base]}, nil
}

func (d *Forgetful) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.change(); err != nil {
		return err
	}
	a, baseA, err := d.folder(from)
	if err != nil {
		return err
	}
	b, baseB, err := d.folder(to)
	if err != nil {
		return err
	}
	if a.now[baseA] == nil {
		return fs.ErrNotExist
	}
	b.now[baseB] = a.now[baseA]
	delete(a.now, baseA)
	return nil
}

func (d *Forgetful) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.change(); err != nil {
		return err
	}
	f, base, err := d.folder(name)
	if err != nil {
		return err
	}
	if f.now[base] == nil {
		return fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	delete(f.now, base)
	return nil
}

func (d *Forgetful) Mkdir(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dirs[name] != nil {
		return nil
	}
	if err := d.change(); err != nil {
		return err
	}
	d.dirs[name] = newFolder()
	d.dirs["."].now[name] = &inode{}
	return nil
}

func (d *Forgetful) SyncDir(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.change(); err != nil {
		return err
	}
	f := d.dirs[name]
	if f == nil {
		return fs.ErrNotExist
	}
	clear(f.synced)
	for n, i := range f.now {
		f.synced[n] = i
	}
	return nil
}

// Stamp does nothing: the times of this disk are its own.
func (d *Forgetful) Stamp(string, time.Time) error { return nil }

func (d *Forgetful) ReadDir(name string) ([]entry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.dirs[name]
	if f == nil {
		return nil, fs.ErrNotExist
	}
	var all []entry
	for n, i := range f.now {
		all = append(all, entry{name: n, size: int64(len(i.now)), regular: name != "." || d.dirs[n] == nil, unix: i.version})
	}
	return all, nil
}

func (d *Forgetful) Close() error { return nil }

type openInode struct {
	d  *Forgetful
	n  *inode
	at int64
}

func (f *openInode) ReadAt(b []byte, at int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if at >= int64(len(f.n.now)) {
		return 0, io.EOF
	}
	n := copy(b, f.n.now[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *openInode) Read(b []byte) (int, error) {
	n, err := f.ReadAt(b, f.at)
	f.at += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (f *openInode) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekStart {
		return 0, errors.New("not needed")
	}
	f.at = offset
	return offset, nil
}

func (f *openInode) Write(b []byte) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.change(); err != nil {
		return 0, err
	}
	if f.d.full {
		return 0, &fs.PathError{Op: "write", Err: syscall.ENOSPC}
	}
	f.n.now = append(f.n.now[:len(f.n.now):len(f.n.now)], b...)
	f.n.version = f.d.clock
	return len(b), nil
}

func (f *openInode) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.change(); err != nil {
		return err
	}
	f.n.synced = f.n.now
	return nil
}

func (f *openInode) Close() error { return nil }

func (f *openInode) Identity() (string, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return fmt.Sprintf("%p/%d", f.n, f.n.version), nil
}

// Plant puts a module and a record of it on the disk as a store would have, without
// the syncs that make it slow.
func Plant(t testing.TB, dir string, s *Store, source string, content []byte) {
	t.Helper()
	sum := sha256.Sum256(content)
	digest := hex.EncodeToString(sum[:])
	r := &Record{Source: source, Name: "module sha256:" + digest, Module: digest, At: time.Now(), Data: []byte(`{"size":1,"packaging":"artifact"}`)}
	b, err := s.encodeRecord(r)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, folder, dirModules, digest), content, 0o600)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, folder, dirRecords, r.file()), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
