package access

import (
	"math/bits"
	"sync/atomic"

	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
)

// entry is one key and what is known of it. Its first cache line is all that a warm
// check of a digest reads.
type entry struct {
	image oci.Reference
	who   *principal
	used  atomic.Int64 // when somebody last asked for it
	plain plainYes     // what answer says, if that is a plain yes

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

// is reports whether e's key is this one.
func (e *entry) is(image oci.Reference, credentials oci.Credentials, trust oci.Trust) bool {
	return e.image.Is(image) && e.who.trust == trust && e.who.credentials.Equal(credentials)
}

// set replaces the answer. Gate.mu is held.
func (e *entry) set(a *answer) (old *answer) {
	e.plain.clear()
	old = e.answer.Swap(a)
	if a.state == Allowed && a.stale == 0 && !a.removed && e.pinned() {
		e.plain.set(a)
	}
	return old
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
func (e *entry) pinned() bool { return e.image.Digest() != "" }

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

// table finds entries without any lock: open addressing, with the hash beside the
// pointer, so that a hit costs one line of the table and the entry. Writers hold
// Gate.mu.
type table struct {
	slots atomic.Pointer[[]slot] // a power of two of them
	count int                    // entries
	used  int                    // slots that are not empty: entries and tombstones
}

// slot holds an entry and its hash. The hash is written after the entry and taken away
// before it, and whoever finds it compares the whole key.
type slot struct {
	hash  atomic.Uint64 // 0 = empty, 1 = removed
	entry atomic.Pointer[entry]
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

// find returns the entry of a key, or nil.
func (t *table) find(image oci.Reference, credentials oci.Credentials, trust oci.Trust) *entry {
	h := hash(image, credentials)
	s := *t.slots.Load()
	mask := uint64(len(s) - 1) //nolint:gosec // a table has slots
	for i := h & mask; ; i = (i + 1) & mask {
		switch s[i].hash.Load() {
		case emptySlot:
			return nil
		case h:
			e := s[i].entry.Load()
			if e != nil && e.is(image, credentials, trust) {
				return e
			}
		}
	}
}

// insert adds an entry that is not there.
func (t *table) insert(e *entry) {
	if s := *t.slots.Load(); 5*(t.used+1) > 4*len(s) {
		t.resize()
	}
	if add(*t.slots.Load(), hash(e.image, e.who.credentials), e) == emptySlot {
		t.used++
	}
	t.count++
}

// add puts e into the first free slot and returns what that was.
func add(s []slot, h uint64, e *entry) uint64 {
	mask := uint64(len(s) - 1) //nolint:gosec // a table has slots
	i := h & mask
	for s[i].hash.Load() > removedSlot {
		i = (i + 1) & mask
	}
	was := s[i].hash.Load()
	s[i].entry.Store(e)
	s[i].hash.Store(h)
	return was
}

// resize makes new slots, at most half full, beside the old ones, which readers may
// still look at.
func (t *table) resize() {
	old, size := *t.slots.Load(), minSlots
	for 10*size < 13*(t.count+1) {
		size *= 2
	}
	s := make([]slot, size)
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
	h := hash(e.image, e.who.credentials)
	s := *t.slots.Load()
	mask := uint64(len(s) - 1) //nolint:gosec // a table has slots
	for i := h & mask; s[i].hash.Load() != emptySlot; i = (i + 1) & mask {
		if s[i].entry.Load() == e {
			s[i].hash.Store(removedSlot)
			s[i].entry.Store(nil)
			t.count--
			break
		}
	}
	if len(s) > minSlots && 8*t.count < len(s) {
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
