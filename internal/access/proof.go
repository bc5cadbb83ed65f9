package access

import (
	"sync/atomic"

	"github.com/stileproject/stile/internal/oci"
)

// Proof is a handle on one yes, given to one holder by the Gate alone. It is not a
// ticket: ask Stands at every use. Proofs are small, comparable and safe for
// concurrent use; the zero Proof never stands.
type Proof struct{ hold *hold }

// hold is what a holder has of an entry's yes. It is shared by all Proofs of that
// holder for that yes, and ends with the yes, with the entry or with the holder.
type hold struct {
	stands    atomic.Bool
	candidate uint8
	current   bool // the holder's present one on entry; Gate.mu
	holder    Holder
	entry     *entry

	prev, next *hold // others on entry; Gate.mu
}

// Stands reports whether the yes still stands. It is one atomic load.
func (p Proof) Stands() bool { return p.hold != nil && p.hold.stands.Load() }

// Image returns the image, pinned: repository@digest. It is zero for the zero Proof.
func (p Proof) Image() oci.Reference {
	if p.hold == nil {
		return oci.Reference{}
	}
	return p.hold.entry.image()
}

// Digest returns the digest that may be read.
func (p Proof) Digest() string { return p.Image().Digest() }

// Source returns host/repository: who delivers the bytes.
func (p Proof) Source() string {
	if p.hold == nil {
		return ""
	}
	return p.Image().Source()
}

// Credential returns the candidate that earned the yes: what the bytes are read with.
func (p Proof) Credential() oci.Credential {
	if p.hold == nil {
		return oci.Credential{}
	}
	return p.hold.entry.who.candidate(p.hold.candidate)
}

// Trust returns how the registry is spoken to.
func (p Proof) Trust() oci.Trust {
	if p.hold == nil {
		return oci.Trust{}
	}
	return p.hold.entry.who.trust
}

// Namespace returns the holder's namespace, to which the use is charged.
func (p Proof) Namespace() string {
	if p.hold == nil {
		return ""
	}
	return p.hold.holder.Namespace
}
