package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"syscall"
	"time"
)

// File is an open module. It stays readable when the module is evicted meanwhile.
type File struct {
	file
	// Size is the module's size in bytes.
	Size int64
}

// SyscallConn lets the system send the file without its bytes passing through this
// program. An error says that this file cannot be sent so.
func (f *File) SyscallConn() (syscall.RawConn, error) {
	if c, ok := f.file.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// Open opens a module and verifies it: its bytes are hashed unless they were since
// the file was last changed. ErrNotFound if it is not there; ErrCorrupt, and the
// module is gone, if its bytes are not those of its name. Touches the disk.
func (s *Store) Open(digest string) (*File, error) {
	m := s.pin(digest)
	if m == nil {
		return nil, fmt.Errorf("%w: module %s", ErrNotFound, digest)
	}
	defer s.unpin(m)
	f, err := s.files.Open(path.Join(dirModules, digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.lost(m, "its file is gone")
	}
	if err != nil {
		return nil, fmt.Errorf("store: open module %s: %w", digest, err)
	}
	if err := s.verify(m, f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, errors.Join(fmt.Errorf("store: open module %s: %w", digest, err), f.Close())
	}
	return &File{file: f, Size: m.size}, nil
}

// Read returns the bytes of a module, which are what was hashed: for modules that are
// small enough to hold. Errors are those of Open. Touches the disk.
func (s *Store) Read(digest string) ([]byte, error) {
	m := s.pin(digest)
	if m == nil {
		return nil, fmt.Errorf("%w: module %s", ErrNotFound, digest)
	}
	defer s.unpin(m)
	f, err := s.files.Open(path.Join(dirModules, digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.lost(m, "its file is gone")
	}
	if err != nil {
		return nil, fmt.Errorf("store: open module %s: %w", digest, err)
	}
	if _, err := f.Identity(); err != nil { // it is a regular file
		return nil, errors.Join(fmt.Errorf("store: open module %s: %w", digest, err), f.Close())
	}
	b := make([]byte, m.size) // the file's own size when it was written or found
	n, err := io.ReadFull(f, b)
	short := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	if err == nil || short {
		err = f.Close()
	} else {
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("store: read module %s: %w", digest, err)
	}
	if sum := sha256.Sum256(b[:n]); hex.EncodeToString(sum[:]) != digest {
		return nil, s.lost(m, "its bytes were altered")
	}
	return b[:n], nil
}

func (s *Store) pin(digest string) *module {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.modules[digest]
	if m != nil {
		m.pins++
		m.used = time.Now()
	}
	return m
}

func (s *Store) unpin(m *module) {
	s.mu.Lock()
	m.pins--
	s.mu.Unlock()
}

// verify returns nil once the file's bytes were hashed and are the module's. Callers
// that come while it is hashed wait for that one hashing.
func (s *Store) verify(m *module, f file) error {
	identity, err := f.Identity()
	if err != nil {
		return fmt.Errorf("store: open module %s: %w", m.sha256, err)
	}
	for {
		s.mu.Lock()
		if m.verified == identity {
			s.mu.Unlock()
			return nil
		}
		wait := m.verifying
		if wait == nil {
			m.verifying = make(chan struct{})
			s.mu.Unlock()
			break
		}
		s.mu.Unlock()
		<-wait
	}
	identity, ok, err := hashStill(f, m.sha256)
	s.mu.Lock()
	if err == nil && ok {
		m.verified = identity
	}
	close(m.verifying)
	m.verifying = nil
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("store: read module %s: %w", m.sha256, err)
	}
	if !ok {
		return s.lost(m, "its bytes were altered")
	}
	return nil
}

// hashStill hashes the file until it did not change meanwhile, and returns the
// identity of what was hashed. (Losing its name to a successor is such a change too.)
func hashStill(f file, digest string) (identity string, ok bool, err error) {
	const tries = 5
	for range tries {
		if identity, err = f.Identity(); err != nil {
			return "", false, err
		}
		if ok, err = hashes(f, digest); err != nil || !ok {
			return "", ok, err
		}
		after, err := f.Identity()
		if err != nil {
			return "", false, err
		}
		if after == identity {
			return identity, true, nil
		}
	}
	return "", false, errors.New("it changes while it is read")
}

func hashes(f file, digest string) (bool, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	h := sha256.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, 64<<10)); err != nil {
		return false, err
	}
	return hex.EncodeToString(h.Sum(nil)) == digest, nil
}

// lost forgets a module whose file is not what it should be, and removes that.
func (s *Store) lost(m *module, why string) error {
	s.log.Warn("store: module is corrupt and removed; it is fetched again when it is next asked for", "sha256", m.sha256, "why", why)
	s.metrics.corrupt.Inc()
	s.mu.Lock()
	gone := s.modules[m.sha256] == m
	s.drop(m)
	s.mu.Unlock()
	if gone {
		s.remove([]*module{m})
	}
	return fmt.Errorf("%w: module %s: %s", ErrCorrupt, m.sha256, why)
}
