package store

import (
	"fmt"
	"path"
	"slices"
	"sync"
)

// The functions of this file that take no lock are called with mu held. They change
// what is known and return the modules whose files must go; the caller gives mu back
// and hands those to remove. Between the two nobody finds the module any more.

func (s *Store) adopt(m *module) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.modules[m.sha256] = m
	s.size += m.size
}

// index files the record, and takes a record of the same key from its old module.
func (s *Store) index(r *Record) {
	k := r.key()
	s.unindex(k)
	s.records[k] = r
	if m := s.modules[r.Module]; m != nil {
		m.records[k] = true
	} else {
		s.facts++
	}
}

func (s *Store) unindex(k recordKey) {
	old := s.records[k]
	if old == nil {
		return
	}
	if m := s.modules[old.Module]; m != nil {
		delete(m.records, k)
	} else {
		s.facts--
	}
	delete(s.records, k)
}

func (s *Store) share(namespace string) *share {
	sh := s.shares[namespace]
	if sh == nil {
		sh = &share{}
		s.shares[namespace] = sh
	}
	return sh
}

func (s *Store) charge(m *module, namespace string) {
	if namespace != "" && !m.namespaces[namespace] {
		m.namespaces[namespace] = true
		s.share(namespace).used += m.size
	}
}

func (s *Store) discharge(m *module, namespace string) {
	if m.namespaces[namespace] {
		delete(m.namespaces, namespace)
		s.share(namespace).used -= m.size
	}
}

// drop takes the module out of everything that is known.
func (s *Store) drop(m *module) {
	if s.modules[m.sha256] != m {
		return
	}
	for ns := range m.namespaces {
		s.discharge(m, ns)
	}
	delete(s.modules, m.sha256)
	s.size -= m.size
	for k := range m.records {
		delete(s.records, k)
	}
}

// idle returns the modules that may give way, least recently used first.
func (s *Store) idle(of func(*module) bool) []*module {
	var idle []*module
	for _, m := range s.modules {
		if !s.leased[m.sha256] && m.pins == 0 && of(m) {
			idle = append(idle, m)
		}
	}
	slices.SortFunc(idle, func(a, b *module) int {
		if c := a.used.Compare(b.used); c != 0 {
			return c
		}
		if a.sha256 < b.sha256 {
			return -1
		}
		return 1
	})
	return idle
}

// makeRoom lets unused modules give way until the namespace may be charged for share
// more bytes and the store may hold size more. A namespace over its share gives up
// its own modules alone; a module that others use too stays for them. Where giving way
// would not suffice, nothing does.
func (s *Store) makeRoom(namespace string, shareBytes, size int64) ([]*module, error) {
	var victims []*module
	if namespace != "" && shareBytes > 0 {
		sh := s.share(namespace)
		if over := sh.used + sh.reserved + shareBytes - s.options.MaxPerNamespace; over > 0 {
			idle := s.idle(func(m *module) bool { return m.namespaces[namespace] })
			if total(idle) < over {
				return nil, fmt.Errorf("%w: %s uses %d of %d bytes; raise store.maxPerNamespace or remove plugins",
					ErrNamespaceFull, namespace, sh.used, s.options.MaxPerNamespace)
			}
			for _, m := range enough(idle, over) {
				s.discharge(m, namespace)
				if len(m.namespaces) == 0 {
					s.drop(m)
					s.metrics.evictions.WithLabelValues("namespace").Inc()
					victims = append(victims, m)
				}
			}
		}
	}
	if over := s.size + s.reserved + size - s.options.MaxSize; over > 0 {
		idle := s.idle(func(*module) bool { return true })
		if total(idle) < over {
			return victims, fmt.Errorf("%w: %d of %d bytes are in use; raise store.maxSize", ErrFull, s.size+s.reserved, s.options.MaxSize)
		}
		for _, m := range enough(idle, over) {
			s.drop(m)
			s.metrics.evictions.WithLabelValues("size").Inc()
			victims = append(victims, m)
		}
	}
	return victims, nil
}

func total(modules []*module) int64 {
	var n int64
	for _, m := range modules {
		n += m.size
	}
	return n
}

// enough returns the first modules that have n bytes together.
func enough(modules []*module, n int64) []*module {
	for i, m := range modules {
		if n -= m.size; n <= 0 {
			return modules[:i+1]
		}
	}
	return modules
}

// trimFacts forgets the oldest records of facts alone beyond their bound.
func (s *Store) trimFacts() []recordKey {
	if s.facts <= maxFacts {
		return nil
	}
	var all []*Record
	for _, r := range s.records {
		if r.Module == "" {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b *Record) int { return a.At.Compare(b.At) })
	var gone []recordKey
	for _, r := range all[:len(all)-maxFacts*9/10] { // some more, so that this is rare
		s.unindex(r.key())
		gone = append(gone, r.key())
	}
	return gone
}

// remove deletes the files of modules that were dropped: the records first, so that a
// crash in between leaves a module that the sweep takes, never a record without one.
// A module or record that was written again meanwhile stays.
func (s *Store) remove(victims []*module) {
	if len(victims) == 0 || s.options.ReadOnly {
		return
	}
	for _, m := range victims {
		s.log.Info("store: module removed", "sha256", m.sha256, "size", m.size)
		unlock := s.claims.lock(m.sha256)
		for k := range m.records {
			s.removeRecord(k)
		}
		if !s.Has(m.sha256) {
			if err := ignoreMissing(s.files.Remove(path.Join(dirModules, m.sha256))); err != nil {
				s.log.Warn("store: file cannot be removed", "module", m.sha256, "error", err)
			}
		}
		unlock()
	}
	s.metrics.set(s.Usage())
}

func (s *Store) removeRecord(k recordKey) {
	defer s.claims.lock(k.file())()
	if _, again := s.Get(k.source, k.name); again {
		return
	}
	if err := ignoreMissing(s.files.Remove(path.Join(dirRecords, k.file()))); err != nil {
		s.log.Warn("store: file cannot be removed", "record", k.file(), "error", err)
	}
}

// keyed is one lock for each name. Whoever holds two took the module's first.
type keyed struct {
	mu   sync.Mutex // guards held
	held map[string]*waiters
}

type waiters struct {
	mu sync.Mutex
	n  int
}

// lock waits for the name and returns the function that gives it back.
func (k *keyed) lock(name string) func() {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*waiters{}
	}
	w := k.held[name]
	if w == nil {
		w = &waiters{}
		k.held[name] = w
	}
	w.n++
	k.mu.Unlock()
	w.mu.Lock()
	return func() {
		w.mu.Unlock()
		k.mu.Lock()
		if w.n--; w.n == 0 {
			delete(k.held, name)
		}
		k.mu.Unlock()
	}
}
