package access

import (
	"math/bits"
	"sync/atomic"

	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/reference"
	"github.com/stileproject/stile/internal/secret"
)

// entry is one key and what is known of it. A warm check of a digest does not read it,
// but its slot in the table alone.
type entry struct {
	name reference.ID // of its image
	who  *principal
	hot  atomic.Pointer[hot] // in its slot of the table, as long as it is there

	answer atomic.Pointer[answer] // never nil

	// All below is guarded by Gate.mu.
	owner      *namespace // to whom the entry is charged
	holds      *hold      // those given out, a list
	prev, next *entry     // the principal's other entries
	askAt      int64      // when it is to be asked; never if not
	held       int32      // holders that hold it now
	index      int32      // place in the heap; -1 = none
	refused    uint8      // of the first eight candidates, those that said no in this round, a bit each
	attempt    uint8      // questions without an answer in this round
	strikes    uint8      // rounds since the last yes, for the delay to the next
	asking     bool       // a question is under way
	queued     bool       // it waits for a slot
	suspect    bool       // its yes was refused once and is to be confirmed
	restored   bool       // its yes is from the archive
	forced     bool       // somebody asked for a re-check: back-off of accounts is ignored once
}

func (e *entry) image() oci.Reference { return e.name.Reference() }

// set replaces the answer. Gate.mu is held.
func (e *entry) set(a *answer) (old *answer) {
	h := e.heat()
	h.plain.clear()
	old = e.answer.Swap(a)
	if a.state == Allowed && a.stale == 0 && !a.removed && e.pinned() {
		h.plain.set(a)
	}
	return old
}

// hot is what every use of an entry reads and writes.
type hot struct {
	used  atomic.Int64 // when somebody last asked for it
	plain plainYes     // what answer says, if that is a plain yes
}

// heat returns what is hot of e; never nil.
func (e *entry) heat() *hot {
	h := e.hot.Load()
	if h == nil { // not in the table yet: nobody else knows it
		h = new(hot)
		e.hot.Store(h)
	}
	return h
}

// touch notes a use. It stores only what is new: many callers share entries.
func (h *hot) touch(now int64) {
	if h.used.Load() < now {
		h.used.Store(now)
	}
}

// move takes e's hot part to another place. Gate.mu is held; who is just reading the
// old place reads what was so when it began.
func (e *entry) move(to *hot) {
	from := e.heat()
	to.used.Store(from.used.Load())
	to.plain.checked.Store(from.plain.checked.Load())
	to.plain.next.Store(from.plain.next.Load())
	to.plain.word.Store(from.plain.word.Load())
	e.hot.Store(to)
}

// plainYes is a fresh yes for a digest, without the way to its answer: entries and
// answers of a hundred thousand proofs are in no cache. It is read without a lock, and
// counts only if its first word was the same before and after the others were read.
type plainYes struct {
	word          atomic.Uint64 // version, asked, candidate, and 1 if there is one
	checked, next atomic.Int64
}

const (
	isPlain        = 1
	candidateShift = 8
	askedShift     = 16
	versionShift   = 24
)

func (p *plainYes) clear() {
	p.word.Store(p.word.Load() &^ isPlain)
}

func (p *plainYes) set(a *answer) {
	version := p.word.Load()>>versionShift + 1
	p.checked.Store(a.checked)
	p.next.Store(a.next)
	p.word.Store(version<<versionShift | uint64(a.asked)<<askedShift | uint64(a.candidate)<<candidateShift | isPlain)
}

// load returns the yes; ok is false if there is none, or it is being replaced.
func (p *plainYes) load() (checked, next int64, candidate, asked uint8, ok bool) {
	word := p.word.Load()
	checked, next = p.checked.Load(), p.next.Load()
	ok = word&isPlain != 0 && p.word.Load() == word
	return checked, next, uint8(word >> candidateShift), uint8(word >> askedShift), ok //nolint:gosec // the low bits
}

// pinned reports whether the entry is of a digest: a right. The others are of tags:
// a resolution.
func (e *entry) pinned() bool { return e.image().Digest() != "" }

// answer is what is known of an entry at one time. Answers are immutable. Times are
// nanoseconds since Gate.base, 0 = none.
type answer struct {
	digest    string
	checked   int64
	next      int64
	stale     int64
	target    *entry // of a resolved tag: the entry of its digest
	tried     *[]try // what each candidate got, unless it was a yes; nil = none asked
	state     State
	reason    reasonCode
	candidate uint8 // who earned the yes
	asked     uint8 // how many were asked
	removed   bool  // the entry left the table
}

// principal is who asks: effective credentials and trust, shared by entries.
type principal struct {
	credentials oci.Credentials
	trust       oci.Trust
	cred        secret.Fingerprint
	via         secret.Fingerprint
	host        *host
	first       *entry // list of its entries, guarded by Gate.mu
}

func (p *principal) candidate(i uint8) oci.Credential {
	return p.credentials.Candidates()[i]
}

// count returns how many candidates there are; none is asked beyond the 255th.
func (p *principal) count() uint8 {
	return uint8(min(len(p.credentials.Candidates()), 255))
}

// table finds entries without any lock: open addressing, a cache line for each slot,
// in which there is all that a warm check of a digest reads. Writers hold Gate.mu.
type table struct {
	slots atomic.Pointer[[]slot]
	count int // entries
	used  int // slots that are not empty: entries and tombstones
}

// slot holds an entry, its key and its hot part. A slot is used once: its image is
// written before the hash, and never after it. It is empty again in the next slots.
type slot struct {
	hash  atomic.Uint64 // 0 = empty, 1 = removed
	image reference.ID
	who   atomic.Pointer[principal]
	entry atomic.Pointer[entry]
	hot   hot
}

const (
	emptySlot   = 0
	removedSlot = 1
	minSlots    = 64
)

func (t *table) init() {
	s := make([]slot, minSlots)
	t.slots.Store(&s)
}

// hash joins two hashes that nobody outside can aim at. Trust settings are left out:
// there are hardly two for one host.
func hash(image oci.Reference, credentials oci.Credentials) uint64 {
	return max(image.Hash()^bits.RotateLeft64(credentials.Hash(), 17), removedSlot+1)
}

// first returns the slot at which to begin to look for a hash.
func first(s []slot, h uint64) int {
	i, _ := bits.Mul64(h, uint64(len(s)))
	return int(i) //nolint:gosec // less than the length
}

// next returns the slot after i.
func next(s []slot, i int) int {
	if i++; i < len(s) {
		return i
	}
	return 0
}

// find returns the entry of a key, or nil.
func (t *table) find(image oci.Reference, credentials oci.Credentials, trust oci.Trust) *entry {
	if s := t.look(image, credentials, trust); s != nil {
		return s.entry.Load()
	}
	return nil
}

// look returns the slot of a key, or nil.
func (t *table) look(image oci.Reference, credentials oci.Credentials, trust oci.Trust) *slot {
	h, id := hash(image, credentials), image.ID()
	all := *t.slots.Load()
	for i := first(all, h); ; i = next(all, i) {
		s := &all[i]
		switch s.hash.Load() {
		case emptySlot:
			return nil
		case h:
			if s.image != id {
				continue
			}
			if who := s.who.Load(); who != nil && who.trust == trust && who.credentials.Equal(credentials) {
				return s
			}
		}
	}
}

// insert adds an entry that is not there.
func (t *table) insert(e *entry) {
	if s := *t.slots.Load(); 4*(t.used+1) > 3*len(s) {
		t.resize()
	}
	add(*t.slots.Load(), hash(e.image(), e.who.credentials), e)
	t.used++
	t.count++
}

// add puts e into the first empty slot.
func add(all []slot, h uint64, e *entry) {
	i := first(all, h)
	for all[i].hash.Load() != emptySlot {
		i = next(all, i)
	}
	s := &all[i]
	s.image = e.name
	s.who.Store(e.who)
	s.entry.Store(e)
	e.move(&s.hot)
	s.hash.Store(h)
}

// resize makes new slots, little more than half full, beside the old ones, which
// readers may still look at.
func (t *table) resize() {
	old := *t.slots.Load()
	s := make([]slot, max(minSlots, 8*(t.count+1)/5))
	for i := range old {
		if h := old[i].hash.Load(); h > removedSlot {
			add(s, h, old[i].entry.Load())
		}
	}
	t.used = t.count
	t.slots.Store(&s)
}

// remove takes an entry out.
func (t *table) remove(e *entry) {
	h := hash(e.image(), e.who.credentials)
	all := *t.slots.Load()
	for i := first(all, h); all[i].hash.Load() != emptySlot; i = next(all, i) {
		if s := &all[i]; s.entry.Load() == e {
			s.hash.Store(removedSlot)
			s.entry.Store(nil)
			s.who.Store(nil)
			e.move(new(hot)) // who keeps the entry does not keep the slots
			t.count--
			break
		}
	}
	if len(all) > minSlots && 8*t.count < len(all) {
		t.resize()
	}
}

// each calls f with every entry; those that come or go meanwhile may be missed.
func (t *table) each(f func(*entry)) {
	s := *t.slots.Load()
	for i := range s {
		if e := s[i].entry.Load(); e != nil {
			f(e)
		}
	}
}
