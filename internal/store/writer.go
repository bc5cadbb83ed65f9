package store

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"syscall"
	"time"
)

// Writer takes one new module. It is for one goroutine, and ends with Commit or
// Abort; until Commit has returned nobody sees anything of it.
type Writer struct {
	s         *Store
	namespace string
	temp      string
	f         file
	hash      *hasher
	size      int64
	reserved  int64
	done      bool
}

// Create begins a module that is fetched for the namespace. Touches the disk.
func (s *Store) Create(namespace string) (*Writer, error) {
	if s.options.ReadOnly {
		return nil, ErrReadOnly
	}
	temp := path.Join(dirTemp, rand.Text())
	f, err := s.files.Create(temp)
	if err != nil {
		return nil, fmt.Errorf("store: begin module: %w", diskError(err))
	}
	return &Writer{s: s, namespace: namespace, temp: temp, f: f, hash: newHasher()}, nil
}

// Write adds bytes. It fails with ErrFull or ErrNamespaceFull as soon as what is
// there and what is being written would not fit.
func (w *Writer) Write(b []byte) (int, error) {
	if need := w.size + int64(len(b)) - w.reserved; need > 0 {
		if err := w.reserve(need); err != nil {
			return 0, err
		}
	}
	n, err := w.f.Write(b)
	w.hash.write(b[:n])
	w.size += int64(n)
	if err != nil {
		return n, fmt.Errorf("store: write module: %w", diskError(err))
	}
	return n, nil
}

func (w *Writer) reserve(n int64) error {
	s := w.s
	s.mu.Lock()
	victims, err := s.makeRoom(w.namespace, n, n)
	if err == nil {
		w.reserved += n
		s.reserved += n
		s.share(w.namespace).reserved += n
	}
	s.mu.Unlock()
	s.remove(victims)
	return err
}

// Size returns the number of bytes written.
func (w *Writer) Size() int64 { return w.size }

// SHA256 returns the sha256 of what was written so far, 64 hexadecimal digits.
func (w *Writer) SHA256() string { return hex.EncodeToString(w.hash.sum()) }

// Reader returns what was written so far, from its beginning. It is valid until
// Commit or Abort.
func (w *Writer) Reader() io.ReadSeeker { return io.NewSectionReader(w.f, 0, w.size) }

// Commit makes the module and the records that lead to it durable and visible, in
// this order: the module's bytes, its name, each record. The records' Module and
// Namespace are filled in. On an error nothing is visible. Touches the disk.
func (w *Writer) Commit(records ...Record) (string, error) {
	if w.done {
		return "", errors.New("store: commit: the module was committed or aborted before")
	}
	digest := w.SHA256()
	err := w.f.Sync()
	err = errors.Join(err, w.f.Close())
	if err != nil {
		w.f = nil
		w.Abort()
		return "", fmt.Errorf("store: write module: %w", diskError(err))
	}
	w.f = nil
	s := w.s
	unlock := s.claims.lock(digest)
	defer unlock()
	// An older file of the same name is replaced: if it was damaged, this heals it.
	err = s.files.Rename(w.temp, path.Join(dirModules, digest))
	if err == nil {
		w.temp = ""
		err = s.files.SyncDir(dirModules)
	}
	if err != nil {
		w.Abort()
		return "", fmt.Errorf("store: name module: %w", diskError(err))
	}
	s.mu.Lock()
	w.release()
	m := s.modules[digest]
	known := m != nil
	if !known {
		m = &module{sha256: digest, size: w.size, namespaces: map[string]bool{}, records: map[recordKey]bool{}}
		s.modules[digest] = m
		s.size += w.size
	}
	m.used = time.Now()
	m.stamped = m.used
	m.verified = "" // another file
	m.pins++
	s.charge(m, w.namespace)
	s.mu.Unlock()
	for _, r := range records {
		r.Module, r.Namespace = digest, w.namespace
		if err = s.putRecord(r); err != nil {
			break
		}
	}
	s.mu.Lock()
	m.pins--
	var victims []*module
	if err != nil && len(m.records) == 0 {
		s.drop(m)
		victims = append(victims, m)
	}
	s.mu.Unlock()
	if len(victims) > 0 {
		err = errors.Join(err, ignoreMissing(s.files.Remove(path.Join(dirModules, digest))))
	}
	s.metrics.set(s.Usage())
	if err != nil {
		return "", err
	}
	return digest, nil
}

// Abort gives up the module; after Commit it does nothing, so that it can be
// deferred. Touches the disk.
func (w *Writer) Abort() {
	w.hash.stop()
	if w.done {
		return
	}
	s := w.s
	s.mu.Lock()
	w.release()
	s.mu.Unlock()
	var err error
	if w.f != nil {
		err = w.f.Close()
	}
	if w.temp != "" {
		err = errors.Join(err, ignoreMissing(s.files.Remove(w.temp)))
	}
	if err != nil {
		s.log.Warn("store: temporary file cannot be removed", "file", w.temp, "error", err)
	}
}

// release gives back what was reserved; it is called with the store's mu held.
func (w *Writer) release() {
	w.done = true
	w.s.reserved -= w.reserved
	w.s.share(w.namespace).reserved -= w.reserved
	w.reserved = 0
}

// Put writes a record, durably, in the place of one with the same source and name.
// Its module, if it names one, must be there. Touches the disk.
func (s *Store) Put(r Record) error {
	if s.options.ReadOnly {
		return ErrReadOnly
	}
	if r.Module != "" {
		defer s.claims.lock(r.Module)()
		if !s.Has(r.Module) {
			return fmt.Errorf("%w: module %s", ErrNotFound, r.Module)
		}
	}
	return s.putRecord(r)
}

// putRecord is called with the claim of the record's module.
func (s *Store) putRecord(r Record) error {
	if r.At.IsZero() {
		r.At = time.Now()
	}
	r.At = r.At.UTC().Truncate(time.Microsecond)
	b, err := s.encodeRecord(&r)
	if err != nil {
		return fmt.Errorf("store: encode record: %w", err)
	}
	if len(b) > maxRecord {
		return fmt.Errorf("store: write record: its facts are larger than %d bytes", maxRecord)
	}
	unlock := s.claims.lock(r.file())
	err = s.writeFile(path.Join(dirTemp, rand.Text()), path.Join(dirRecords, r.file()), b)
	if err != nil {
		unlock()
		return fmt.Errorf("store: write record: %w", diskError(err))
	}
	s.mu.Lock()
	s.index(&r)
	if m := s.modules[r.Module]; m != nil {
		s.charge(m, r.Namespace)
	}
	gone := s.trimFacts()
	s.mu.Unlock()
	unlock()
	for _, k := range gone {
		s.removeRecord(k)
	}
	return nil
}

// diskError marks the errors that mean a full disk as ErrFull.
func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: the disk: %w; make room or lower store.maxSize", ErrFull, err)
	}
	return err
}
