package access

import (
	"encoding/binary"
	"hash/maphash"
	"sync/atomic"

	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
)

// entry is one key and what is known of it. The key is compared in parts (image,
// credentials, trust), so that the warm path computes no HMAC.
type entry struct {
	image  oci.Reference
	who    *principal
	answer atomic.Pointer[answer] // never nil
	used   atomic.Int64           // when somebody last asked for it

	// All below is guarded by Gate.mu.
	owner      *namespace // to whom the entry is charged
	holds      *hold      // those given out, a list
	prev, next *entry     // the principal's other entries
	due        int64      // when the scheduler looks at it again
	askAt      int64      // when it is to be asked; never if not
	refused    uint64     // candidates that said no in this round of attempts, a bit each
	held       int32      // holders that hold it now
	index      int32      // place in the heap; -1 = none
	generation uint32     // an answer to a question of another generation is discarded
	attempt    uint8      // questions without an answer in this round
	strikes    uint8      // rounds since the last yes, for the delay to the next
	asking     bool       // a question is under way
	queued     bool       // it waits for a slot
	suspect    bool       // its yes was refused once and is to be confirmed
	forced     bool       // somebody asked for a re-check: back-off of accounts is ignored once
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

// table finds entries without any lock. Writers hold Gate.mu.
type table struct {
	seed    maphash.Seed
	buckets atomic.Pointer[[]bucket] // a power of two of them
	count   int
}

type bucket = atomic.Pointer[node]

type node struct {
	hash  uint64
	entry *entry
	next  atomic.Pointer[node]
}

const minBuckets = 64

func (t *table) init() {
	t.seed = maphash.MakeSeed()
	b := make([]bucket, minBuckets)
	t.buckets.Store(&b)
}

func (t *table) hash(image oci.Reference, cred, trust secret.Fingerprint) uint64 {
	const odd = 0x9e3779b97f4a7c15
	h := maphash.String(t.seed, image.Repository())
	name := image.Digest()
	if name == "" {
		name = image.Tag()
	}
	h = h*odd ^ maphash.String(t.seed, name)
	h = h*odd ^ maphash.String(t.seed, image.Host())
	// Fingerprints are keyed digests: any eight bytes are as good as a hash of them.
	h = h*odd ^ binary.LittleEndian.Uint64(cred[:])
	h = h*odd ^ binary.LittleEndian.Uint64(trust[:])
	return h ^ h>>32
}

// find returns the entry of a key, or nil.
func (t *table) find(image oci.Reference, cred, trust secret.Fingerprint) *entry {
	h := t.hash(image, cred, trust)
	b := *t.buckets.Load()
	for n := b[h&uint64(len(b)-1)].Load(); n != nil; n = n.next.Load() {
		if n.hash == h {
			e := n.entry
			if e.image == image && e.who.cred == cred && e.who.via == trust {
				return e
			}
		}
	}
	return nil
}

// insert adds an entry that is not there.
func (t *table) insert(e *entry) {
	b := *t.buckets.Load()
	if t.count >= len(b) {
		b = t.resize(2 * len(b))
	}
	t.count++
	add(b, &node{hash: t.hash(e.image, e.who.cred, e.who.via), entry: e})
}

func add(b []bucket, n *node) {
	at := &b[n.hash&uint64(len(b)-1)]
	n.next.Store(at.Load())
	at.Store(n)
}

// resize makes a new table beside the old one, which readers may still walk.
func (t *table) resize(size int) []bucket {
	old, b := *t.buckets.Load(), make([]bucket, size)
	for i := range old {
		for n := old[i].Load(); n != nil; n = n.next.Load() {
			add(b, &node{hash: n.hash, entry: n.entry})
		}
	}
	t.buckets.Store(&b)
	return b
}

// remove takes an entry out.
func (t *table) remove(e *entry) {
	h := t.hash(e.image, e.who.cred, e.who.via)
	b := *t.buckets.Load()
	at := &b[h&uint64(len(b)-1)]
	for n := at.Load(); n != nil; n = at.Load() {
		if n.entry == e {
			at.Store(n.next.Load())
			t.count--
			break
		}
		at = &n.next
	}
	if len(b) > minBuckets && t.count < len(b)/8 {
		t.resize(len(b) / 2)
	}
}

// each calls f with every entry; those that come or go meanwhile may be missed.
func (t *table) each(f func(*entry)) {
	b := *t.buckets.Load()
	for i := range b {
		for n := b[i].Load(); n != nil; n = n.next.Load() {
			f(n.entry)
		}
	}
}
