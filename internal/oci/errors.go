package oci

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Kind says what a caller can do about an error. A Kind is itself an error, for
// errors.Is(err, oci.NotFound).
type Kind uint8

// The kinds of errors. The zero Kind is no kind.
const (
	_            Kind = iota
	Unauthorized      // the registry refuses this credential: 401, 403, 412, 451
	NotFound          // the registry has no such thing: 404, 410
	Unavailable       // no answer that means anything: a retry may help
	TooLarge          // more bytes than the limit
	Mismatch          // bytes that are not what their digest or size says
	Invalid           // the request or the answer makes no sense: a retry will not help
	Blocked           // stile refuses to ask: allow-list, dial guard, credential rules
)

var kindNames = [...]string{"error", "unauthorized", "not found", "unavailable", "too large", "mismatch", "invalid", "blocked"}

// Error returns the kind in words.
func (k Kind) Error() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return kindNames[0]
}

// Error is what every operation of this package fails with. Its text never holds
// a credential, anything that a registry wrote beyond the error codes that the
// distribution specification lists, or a URL with a query.
type Error struct {
	Op   string // check, manifest, blob, download, push, trust, pull secret
	Ref  string // the image, host or URL, fit for printing
	Kind Kind
	// Status is the HTTP status that was answered, or 0 if none was.
	Status int
	// FromRegistry reports that the answer looks like a registry's own, and not like
	// the page of an ingress or a proxy before it.
	FromRegistry bool
	// TokenEndpoint reports that the answer is that of the registry's token endpoint:
	// it judged the account, not the image.
	TokenEndpoint bool
	// Account reports that the registry refused the account itself (a 401 of the token
	// endpoint, or one answered to a user name and password), so that asking for its
	// other images is likely in vain and may lock it out. Never set for the anonymous.
	Account bool
	// RetryAfter is how long the registry asked to be left alone, clamped to
	// MaxRetryAfter; 0 = it did not ask.
	RetryAfter time.Duration
	// Err is the cause; nil if Kind and Status say it all.
	Err error
}

// Error returns "operation object: kind (status): cause".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Ref != "" {
		b.WriteString(" " + e.Ref)
	}
	b.WriteString(": " + e.Kind.Error())
	if e.Status != 0 {
		fmt.Fprintf(&b, " (%d)", e.Status)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is e's Kind.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && k == e.Kind
}

// KindOf returns the Kind of the first *Error in err's chain, or 0.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return 0
}
