package access

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/stileproject/stile/internal/oci"
)

// result is what one candidate got for an answer.
type result uint8

const (
	noAnswer result = iota // nobody answered, or nobody that counts
	refused                // the registry said no
	granted                // the registry said yes
)

// try is one candidate's answer.
type try struct {
	candidate    uint8
	result       result
	reason       reasonCode
	status       int           // HTTP, 0 = none
	sent         bool          // false: not asked, for what is remembered of the account
	fromRegistry bool          // it looks like a registry's own answer
	account      bool          // it is the account that was refused, not the image
	postponed    bool          // not asked: another asks first for the account
	retryAfter   time.Duration // the registry asked to be left alone
	digest       string        // of a yes
	detail       string        // what went wrong, where no status says it
}

// question says what is at stake in a flight.
type question uint8

const (
	firstSight question = iota // no yes stands: every candidate in turn
	renewal                    // a yes stands: the candidate that earned it
	confirming                 // that was refused: once more, with a fresh token and by GET; then the others
)

// step is one candidate to be asked.
type step struct {
	candidate uint8
	options   oci.CheckOptions
	answer    *try // known without asking; nil = ask
}

// flight is one question to a registry about one entry, with all its candidates.
type flight struct {
	entry    *entry
	queue    *queue
	question question
	started  int64
	steps    []step
	tried    []try
}

// newFlight decides whom to ask what. Gate.mu is held.
func (g *Gate) newFlight(e *entry, q *queue) *flight {
	a := e.answer.Load()
	f := &flight{entry: e, queue: q, started: g.now()}
	candidates := e.who.count()
	if a.state != Allowed {
		for at := range candidates {
			if at < 8 && e.refused&(1<<at) != 0 {
				continue
			}
			f.add(g, at, oci.CheckOptions{})
		}
		return f
	}
	winner := a.candidate
	if !e.suspect {
		f.question = renewal
		f.add(g, winner, oci.CheckOptions{})
		known := f.steps[0].answer
		if known == nil || known.result != refused {
			return f
		}
		// The account itself was refused, and that was confirmed: nothing to ask.
	}
	f.question = confirming
	if f.steps == nil {
		// Neither back-off nor memory decides this one.
		f.steps = append(f.steps, step{candidate: winner, options: oci.CheckOptions{Get: true, FreshToken: true}})
	}
	for at := range candidates {
		if at != winner {
			f.add(g, at, oci.CheckOptions{})
		}
	}
	return f
}

// add appends a step, unless what is known of the account answers it.
func (f *flight) add(g *Gate, candidate uint8, options oci.CheckOptions) {
	f.steps = append(f.steps, step{
		candidate: candidate,
		options:   options,
		answer:    g.knownOfAccount(f.entry, candidate, f.question, f.started),
	})
}

// fly asks, and brings the answers in.
func (g *Gate) fly(f *flight) {
	for i, s := range f.steps {
		var t try
		if s.answer != nil {
			t = *s.answer
		} else {
			t = g.ask(f.entry, s)
		}
		t.candidate = s.candidate
		f.tried = append(f.tried, t)
		if t.result == granted || t.postponed {
			break
		}
		if i == 0 && f.question == confirming && !confirms(t) {
			break // the yes still stands, so the others are not its business
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.land(f)
	g.done(f.entry.who.host, f.queue)
}

// confirms reports whether an answer ends a yes that was refused before.
func confirms(t try) bool { return t.result == refused && (t.fromRegistry || !t.sent) }

// ask asks one candidate, a second time by GET where the first answer says too little.
func (g *Gate) ask(e *entry, s step) try {
	t := g.askOnce(e, s)
	if t.result == refused && !s.options.Get && saysTooLittle(t) {
		s.options.Get = true
		t = g.askOnce(e, s)
		if t.reason == reasonNotFound && !t.fromRegistry {
			// The page of an ingress or a proxy: the registry was not asked.
			t.result, t.reason = noAnswer, reasonUnreachable
		}
	}
	return t
}

// saysTooLittle reports whether a refusal may be one of the method, or of somebody
// before the registry.
func saysTooLittle(t try) bool {
	return t.reason == reasonInvalid || t.reason == reasonNotFound && !t.fromRegistry
}

func (g *Gate) askOnce(e *entry, s step) try {
	ctx, cancel := context.WithTimeout(g.ctx, g.config.Timeout)
	defer cancel()
	start := time.Now()
	found, err := g.registry.Check(ctx, e.image(), e.who.candidate(s.candidate), e.who.trust, s.options)
	t := classify(err)
	switch {
	case t.result != granted:
	case !isDigest(found.Digest):
		t = try{sent: true, reason: reasonUnreachable, detail: "the registry's answer has no digest"}
	case e.pinned() && found.Digest != e.image().Digest():
		t = try{sent: true, reason: reasonMismatch, detail: "the registry answers with the digest " + found.Digest}
	default:
		t.digest = found.Digest
	}
	g.metrics.asked(t.result, time.Since(start))
	return t
}

// isDigest reports whether s is sha256: and 64 lower-case hexadecimal digits.
func isDigest(s string) bool {
	digits, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(digits) == 64 && strings.Trim(digits, "0123456789abcdef") == ""
}

// classify is the table of answers: what an error of the registry client means.
func classify(err error) try {
	if err == nil {
		return try{sent: true, result: granted, fromRegistry: true}
	}
	t := try{sent: true, reason: reasonUnreachable, detail: err.Error()}
	e, ok := errors.AsType[*oci.Error](err)
	if !ok {
		return t
	}
	t.status, t.fromRegistry, t.retryAfter = e.Status, e.FromRegistry, e.RetryAfter
	switch e.Status {
	case http.StatusUnauthorized:
		t.account = e.Account
		fallthrough
	case http.StatusForbidden, http.StatusPreconditionFailed, http.StatusUnavailableForLegalReasons:
		t.result, t.reason = refused, reasonUnauthorized
	case http.StatusNotFound, http.StatusGone:
		t.result, t.reason = refused, reasonNotFound
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusUnsupportedMediaType:
		t.result, t.reason = refused, reasonInvalid
	default:
		switch e.Kind {
		case oci.Blocked:
			// Our own no, which a retry does not change. It ends no yes: it is not the
			// registry's.
			t.result, t.reason = refused, reasonNotAllowed
		case oci.Mismatch:
			t.reason = reasonMismatch
		}
	}
	return t
}

// reasonCode is a Reason in one byte.
type reasonCode uint8

const (
	reasonNone reasonCode = iota
	reasonUnauthorized
	reasonNotFound
	reasonInvalid
	reasonUnreachable
	reasonNotAllowed
	reasonTooMany
	reasonTagGone
	reasonMismatch
)

var reasons = [...]Reason{NoReason, Unauthorized, ImageNotFound, Invalid, RegistryUnreachable, SourceNotAllowed, TooManyProofs, TagGone, DigestMismatch}

func (c reasonCode) reason() Reason { return reasons[c] }
