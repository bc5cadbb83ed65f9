// Package access answers from memory whether some credentials may read an image.
// Its one rule: a yes is for the reference, the effective credentials and the trust
// settings that earned it, and for nobody else.
package access

import (
	"context"
	"errors"
	"time"

	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
)

// State is what is known of a right.
type State uint8

// The states. Only a registry's own answer makes a right Allowed or Denied.
const (
	Pending State = iota // not answered yet; it is being asked
	Allowed              // the registry said yes, and the yes still stands
	Denied               // the registry said no
	Unknown              // the registry could not be asked, or gave no answer that counts
)

var stateNames = [...]string{"Pending", "Allowed", "Denied", "Unknown"}

// String returns the state in one word.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "Invalid"
}

// MarshalText returns String; JSON and YAML encoders use it.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Reason says in one word why a verdict is what it is. The reasons are those of the
// condition ResolvedRefs, and no other is ever given.
type Reason string

// The reasons. The empty one goes with a plain yes and with a first question.
const (
	NoReason            Reason = ""
	Unauthorized        Reason = "Unauthorized"        // the registry refuses these credentials
	ImageNotFound       Reason = "ImageNotFound"       // the registry has no such image for them
	Invalid             Reason = "Invalid"             // the registry cannot make sense of the request
	RegistryUnreachable Reason = "RegistryUnreachable" // nobody answered, or nobody that counts
	SourceNotAllowed    Reason = "SourceNotAllowed"    // stile itself refuses to ask this host
	TooManyProofs       Reason = "TooManyProofs"       // the cap of the namespace, or of all, is reached
	TagGone             Reason = "TagGone"             // the tag was deleted; what it named still may be read
	DigestMismatch      Reason = "DigestMismatch"      // the registry answered with another digest than was asked for
)

// Verdict is what the Gate knows of one Request.
type Verdict struct {
	State   State
	Reason  Reason
	Message string // for people: which candidates got which answer; never a credential
	// Digest is what the image resolves to. A tag keeps it while it is asked again and
	// when it is gone.
	Digest string
	// Credential is the candidate that earned the yes; zero = anonymous, or no yes.
	Credential secret.Fingerprint
	// Tried counts the candidates that were asked for the last verdict.
	Tried int
	// CheckedAt is when the registry last gave an answer that counts; zero = never.
	CheckedAt time.Time
	// NextCheck is when it will be asked again; zero = when somebody next uses it.
	NextCheck time.Time
	// StaleSince is when a standing yes could first not be renewed; zero = it is fresh.
	// A stale yes serves those who hold it and takes in nobody new.
	StaleSince time.Time
}

// Holder is who uses a proof: a plugin. Namespaces matter for fairness only, never
// for what is allowed. The zero Holder is nobody: the command line.
type Holder struct {
	Namespace, Name string
	// LastGood tells apart the second proof of a plugin, the one of the version that
	// still runs while its wanted one cannot be had.
	LastGood bool
}

// String returns namespace/name.
func (h Holder) String() string { return h.Namespace + "/" + h.Name }

// Request is one question: may these credentials, under this trust, read this image?
type Request struct {
	Image       oci.Reference
	Credentials oci.Credentials
	Trust       oci.Trust
	Holder      Holder
	// NotBefore asks a tag again if its resolution is older; zero = any age will do.
	NotBefore time.Time
}

// Registry is what the Gate needs of a registry client; *oci.Client is one.
type Registry interface {
	// Check asks once whether the credential may read the image.
	Check(context.Context, oci.Reference, oci.Credential, oci.Trust, oci.CheckOptions) (oci.Descriptor, error)
	// Forget drops the tokens and connections of a credential.
	Forget(secret.Fingerprint)
}

// ErrTooSoon is what Recheck returns for an image that was asked for in the last 10 s.
var ErrTooSoon = errors.New("asked again less than 10 s ago: wait, then try again")

// ErrNotRunning is what Prove returns when the Gate's Run has ended.
var ErrNotRunning = errors.New("prove: the gate is no longer running")

// Entry is one proof as /api/v1/proofs shows it.
type Entry struct {
	Image      string             `json:"image"`
	Credential secret.Fingerprint `json:"credential"` // of the effective credentials
	State      State              `json:"state"`
	Reason     Reason             `json:"reason"`
	Digest     string             `json:"digest"`
	CheckedAt  *time.Time         `json:"checkedAt"`
	NextCheck  *time.Time         `json:"nextCheck"`
	StaleSince *time.Time         `json:"staleSince"`
	LastUsed   *time.Time         `json:"lastUsed"`
	// Users are namespace/name of those who hold a digest; of a tag, those who last met
	// something else than a plain yes there and were not released since. Sorted.
	Users []string `json:"users"`
}
