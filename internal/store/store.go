// Package store keeps content on disk by digest: modules, and beside them which
// source delivered what. Its one rule: what it hands out is what its name says, or
// an error; never less, never something else, whenever the machine stopped.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stileproject/stile/internal/secret"
)

// Options are the limits and the surroundings of a Store. The zero value has the
// default limits, writes no log and no metrics.
type Options struct {
	// MaxSize bounds the bytes of all modules together; 0 is 4 GiB.
	MaxSize int64
	// MaxPerNamespace bounds the bytes of the modules that one namespace uses, each
	// counted in full for each namespace; 0 is 1 GiB.
	MaxPerNamespace int64
	// Keys authenticate the records, the first for writing and all for reading: a
	// record altered by whoever lacks them is dropped. None: a checksum alone.
	Keys []secret.Key
	// ReadOnly opens a store that another process may be serving from: nothing is
	// written, removed or locked.
	ReadOnly   bool
	Log        *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil registers nothing

	files files // tests put a disk that crashes here
}

// Default limits in bytes.
const (
	DefaultMaxSize         = 4 << 30
	DefaultMaxPerNamespace = 1 << 30
)

var (
	// ErrNotFound says that the store has no such module.
	ErrNotFound = errors.New("store: not found")
	// ErrCorrupt says that a module's bytes on disk are not what was written. The module
	// and its records are gone when it is returned: fetching again heals.
	ErrCorrupt = errors.New("store: corrupt on disk, removed")
	// ErrFull says that MaxSize is reached by modules in use, or the disk is full.
	ErrFull = errors.New("store: full")
	// ErrNamespaceFull says that a namespace has reached MaxPerNamespace with modules in use.
	ErrNamespaceFull = errors.New("store: namespace is over its share")
	// ErrInUse says that another process has the store open for writing.
	ErrInUse = errors.New("store: in use by another process")
	// ErrReadOnly is the answer of a store opened ReadOnly to whoever writes.
	ErrReadOnly = errors.New("store: opened read-only")
)

// Record says that Source delivered Name, and what that led to. It is what makes a
// module reachable: a module without a record is swept away.
type Record struct {
	Source string `json:"source"` // who delivered: host/repository, or a keyed hash of a URL
	Name   string `json:"name"`   // what was asked for and verified: a digest, or what the owner of the records likes
	// Module is the sha256, 64 hexadecimal digits, of the stored module that Name led
	// to; empty for a record of facts alone.
	Module    string          `json:"module,omitempty"`
	Namespace string          `json:"namespace,omitempty"` // for whom it was fetched
	At        time.Time       `json:"at"`
	Data      json.RawMessage `json:"data,omitempty"` // the facts; opaque here
}

// Store is content on disk. All methods may be called concurrently; those that touch
// the disk say so, the others answer from memory.
type Store struct {
	options Options
	files   files
	log     *slog.Logger
	metrics metrics

	claims keyed // serialises changes of one file on disk; held across I/O, never with mu

	mu       sync.Mutex // guards what is below; never held across I/O
	modules  map[string]*module
	records  map[recordKey]*Record
	facts    int // records without a module
	size     int64
	reserved int64 // bytes of modules being written
	shares   map[string]*share
	leased   map[string]bool
	closed   bool
}

// module is one file and what is known of it.
type module struct {
	sha256     string
	size       int64
	used       time.Time
	stamped    time.Time       // what the time of its file says of used
	namespaces map[string]bool // who is charged for it
	records    map[recordKey]bool
	pins       int           // openings and commits under way
	verified   string        // identity of the file when its bytes were last hashed
	verifying  chan struct{} // closed when the hashing under way is over
}

// share is what a namespace has of the store.
type share struct{ used, reserved int64 }

type recordKey struct{ source, name string }

func (r *Record) key() recordKey { return recordKey{r.Source, r.Name} }

// folder is the store's own folder in the directory that is given to Open: other rooms
// keep their files beside it, and what is swept must be ours.
const folder = "content"

// Open opens the store in dir, which is made if there is none, and sweeps it: what is
// whole is adopted, what is not is removed. It touches the disk in proportion to the
// number of modules, not to their sizes: bytes are verified when they are opened.
func Open(dir string, o Options) (*Store, error) {
	if o.MaxSize <= 0 {
		o.MaxSize = DefaultMaxSize
	}
	if o.MaxPerNamespace <= 0 {
		o.MaxPerNamespace = DefaultMaxPerNamespace
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		options: o, files: o.files, log: o.Log, metrics: newMetrics(o.Registerer),
		modules: map[string]*module{}, records: map[recordKey]*Record{},
		shares: map[string]*share{}, leased: map[string]bool{},
	}
	if s.files == nil {
		disk, err := openDisk(filepath.Join(dir, folder), o.ReadOnly)
		if err != nil {
			return nil, fmt.Errorf("open store %s: %w", dir, err)
		}
		s.files = disk
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", dir, err), s.files.Close())
	}
	return s, nil
}

// Close gives the folder free for another process. Files that are open stay readable.
func (s *Store) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	if closed {
		return nil
	}
	s.keepTimes()
	return s.files.Close()
}

// keepTimes keeps when modules were last used beyond this process, in the times of their
// files: else a restart would take for idle what was merely fetched long ago.
func (s *Store) keepTimes() {
	if s.options.ReadOnly {
		return
	}
	s.mu.Lock()
	used := map[string]time.Time{}
	now := time.Now()
	for digest, m := range s.modules {
		if s.leased[digest] {
			m.used = now // it is still
		}
		if m.used.Sub(m.stamped) > time.Minute {
			used[digest] = m.used
		}
	}
	s.mu.Unlock()
	for digest, at := range used {
		if err := s.files.Stamp(path.Join(dirModules, digest), at); err != nil {
			s.log.Debug("store: when a module was used cannot be kept", "sha256", digest, "error", err)
		}
	}
}

// Get returns the record of what source delivered under name. From memory.
func (s *Store) Get(source, name string) (Record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.records[recordKey{source, name}]
	if r == nil {
		return Record{}, false
	}
	return *r, true
}

// Has reports whether the store has the module. From memory.
func (s *Store) Has(sha256 string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.modules[sha256] != nil
}

// Retain sets the leases: exactly these modules are in use and are never evicted.
// From memory.
func (s *Store) Retain(sha256s []string) {
	leased := make(map[string]bool, len(sha256s))
	for _, d := range sha256s {
		leased[d] = true
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for d := range s.leased {
		if m := s.modules[d]; m != nil && !leased[d] {
			m.used = now // until now it was in use
		}
	}
	s.leased = leased
}

// Touch counts as a use of the module and reports whether it is there, and whether
// the namespace is charged for it already (see Use). From memory.
func (s *Store) Touch(sha256, namespace string) (there, charged bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.modules[sha256]
	if m == nil {
		return false, false
	}
	m.used = time.Now()
	return true, namespace == "" || m.namespaces[namespace]
}

// Use charges the namespace for the module and counts as a use of it. It is
// ErrNotFound for a module that is not there and ErrNamespaceFull if the namespace
// has no room, even after its unused modules have given way. From memory, except for
// what must give way.
func (s *Store) Use(sha256, namespace string) error {
	s.mu.Lock()
	m := s.modules[sha256]
	if m == nil {
		s.mu.Unlock()
		return fmt.Errorf("%w: module %s", ErrNotFound, sha256)
	}
	m.used = time.Now()
	if namespace == "" || m.namespaces[namespace] {
		s.mu.Unlock()
		return nil
	}
	m.pins++ // it must not give way to itself
	victims, err := s.makeRoom(namespace, m.size, 0)
	if err == nil {
		s.charge(m, namespace)
	}
	m.pins--
	s.mu.Unlock()
	s.remove(victims)
	return err
}

// Usage is how full a store is.
type Usage struct {
	Modules, Records int
	Size, MaxSize    int64
	Namespaces       map[string]int64 // bytes charged
}

// Usage returns how full the store is. From memory.
func (s *Store) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := Usage{Modules: len(s.modules), Records: len(s.records), Size: s.size, MaxSize: s.options.MaxSize, Namespaces: map[string]int64{}}
	for ns, sh := range s.shares {
		if sh.used > 0 {
			u.Namespaces[ns] = sh.used
		}
	}
	return u
}
