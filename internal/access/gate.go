package access

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
)

// Gate answers whether credentials may read an image. It keeps what it learned, asks
// again by itself, and lends nothing from one key to another. All methods are safe
// for concurrent use, and none but Prove and Run waits for anything.
//
// What is warm is read without a lock. The mutex guards everything else and is never
// held across I/O.
type Gate struct {
	registry Registry
	config   Config
	base     time.Time // what times in entries count from
	metrics  *metrics
	audit    *audit
	changes  chan struct{}
	wake     chan struct{}
	flights  sync.WaitGroup

	table table        // read without the lock
	tick  atomic.Int64 // the time, lately: what a warm check goes by
	lag   time.Duration

	_          [64]byte // who reads the above is not disturbed by who takes the lock
	mu         sync.Mutex
	running    bool
	ended      bool
	ctx        context.Context // Run's, for flights
	agenda     agenda
	principals map[principalKey]*principal
	hosts      map[string]*host
	namespaces map[string]*namespace
	claims     map[Holder]*claim
	waiters    map[*entry]map[Holder]struct{} // whose claim.waits is the entry
	busy       int
	fullUntil  int64                   // when it is worth looking again for something to evict anywhere
	blocked    []*host                 // registries that wait for a limit not their own
	throttled  []*host                 // registries at which a namespace is over its budget
	changed    chan struct{}           // closed at the next change
	rechecks   map[oci.Reference]int64 // when Recheck was last told
}

type principalKey struct {
	cred, via secret.Fingerprint
	host      string
}

// New returns a Gate that asks r. It answers at once, and asks as soon as Run runs.
func New(r Registry, c Config) *Gate {
	c = c.withDefaults()
	g := &Gate{
		registry: r,
		config:   c,
		lag:      min(maxLag, c.Forget/16),
		// A second ago, so that no time is 0, which means none.
		base:       time.Now().Add(-time.Second),
		audit:      newAudit(c.Audit, c.Log),
		changes:    make(chan struct{}, 1),
		wake:       make(chan struct{}, 1),
		principals: map[principalKey]*principal{},
		hosts:      map[string]*host{},
		namespaces: map[string]*namespace{},
		claims:     map[Holder]*claim{},
		waiters:    map[*entry]map[Holder]struct{}{},
		changed:    make(chan struct{}),
		rechecks:   map[oci.Reference]int64{},
	}
	g.metrics = newMetrics(g, c.Registerer)
	g.table.init()
	return g
}

// Run asks what is to be asked until ctx ends, and returns when every question under
// way has ended. It may be called once.
func (g *Gate) Run(ctx context.Context) error {
	g.mu.Lock()
	if g.ctx != nil {
		g.mu.Unlock()
		return errors.New("run the gate: it was run before")
	}
	g.ctx, g.running = ctx, true
	for _, h := range g.hosts {
		g.start(h)
	}
	g.mu.Unlock()

	var owned sync.WaitGroup
	over := make(chan struct{})
	owned.Go(func() { g.audit.write(over) })
	owned.Go(func() { g.config.Archive.write(over) })
	g.keepTime(ctx)

	g.mu.Lock()
	g.running, g.ended = false, true
	g.notify()
	g.mu.Unlock()
	g.flights.Wait()
	close(over)
	owned.Wait()
	return nil
}

// now returns the time as entries count it.
func (g *Gate) now() int64 {
	now := int64(time.Since(g.base))
	if now-g.tick.Load() >= int64(g.lag/10) {
		g.tick.Store(now)
	}
	return now
}

// maxLag is how far Gate.tick may be behind while only warm checks are made; else it is
// a tenth of that. A warm check reads no clock: that takes as long as all the rest of
// it, and waits for every read before it.
const maxLag = 10 * time.Second

// at returns a time of an entry as the world counts it.
func (g *Gate) at(t int64) time.Time {
	if t == 0 || t == never {
		return time.Time{}
	}
	return g.base.Add(time.Duration(t))
}

// Changes returns a channel of capacity 1 that receives when a verdict changed, or a
// tag was asked again, since it was last received from. It is for one receiver; others
// have Changed.
func (g *Gate) Changes() <-chan struct{} { return g.changes }

// Changed returns a channel that is closed at the next of these changes after the call.
// Any number of readers may wait for it: take it first, then Check, then wait.
func (g *Gate) Changed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

// notify tells of a change. Gate.mu is held.
func (g *Gate) notify() {
	select {
	case g.changes <- struct{}{}:
	default:
	}
	close(g.changed)
	g.changed = make(chan struct{})
}

// Check answers from memory and never waits. A first sight is Pending and is asked in
// the background; Changes tells when the answer is there. A tag is resolved:
// Verdict.Digest says to what, and its yes is also that of repository@digest.
func (g *Gate) Check(r Request) (v Verdict) {
	s := g.table.look(r.Image, r.Credentials, r.Trust)
	if s == nil {
		return g.checkFirst(r)
	}
	now := g.tick.Load()
	s.hot.touch(now)
	if g.plainly(&s.hot, r.Credentials, &v) {
		v.Digest = r.Image.Digest()
		return v
	}
	e := s.entry.Load()
	if e == nil { // it went since it was found
		return g.checkFirst(r)
	}
	if a := e.answer.Load(); a.target != nil && a.state == Allowed && a.stale == 0 && !a.removed && g.fresh(a, r.NotBefore) {
		target := a.target.heat()
		if g.plainly(target, r.Credentials, &v) {
			target.touch(now)
			g.named(e, a, &v)
			return v
		}
	}
	return g.checkSlowly(r, e)
}

// plainly writes the verdict of h but for its digest, if it is a plain yes. It writes
// into v, field by field: this is the way of every warm check.
func (g *Gate) plainly(h *hot, credentials oci.Credentials, v *Verdict) bool {
	checked, next, candidate, asked, ok := h.plain.load()
	if !ok {
		return false
	}
	v.State = Allowed
	if !credentials.Anonymous() {
		v.Credential = credentials.Candidates()[candidate].Fingerprint()
	}
	v.Tried = int(asked)
	v.CheckedAt = g.at(checked)
	v.NextCheck = g.at(next)
	return true
}

// named makes the verdict on what a tag names one on the tag.
func (g *Gate) named(e *entry, tag *answer, v *Verdict) {
	v.Digest, v.Reason = tag.digest, tag.reason.reason()
	v.CheckedAt = g.at(tag.checked)
	if tag.reason != 0 {
		v.Message = tagGone(e.image())
	}
}

// fresh reports whether a tag's resolution is as young as the caller asks. A time in
// the future, of a clock that is ahead, is met by what is less than a minute old.
func (g *Gate) fresh(a *answer, notBefore time.Time) bool {
	if notBefore.IsZero() || !g.at(a.checked).Before(notBefore) {
		return true
	}
	now := g.now()
	return g.at(now).Before(notBefore) && now-a.checked < int64(time.Minute)
}

// checkFirst makes the entry of a first sight, and has it asked.
func (g *Gate) checkFirst(r Request) Verdict {
	if r.Image.IsZero() {
		return Verdict{State: Unknown, Reason: Invalid, Message: "check: no image is named"}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.obtain(r)
	if e == nil {
		return g.tooMany(r)
	}
	g.met(r.Holder, e)
	return g.judge(r, e)
}

// checkSlowly is Check for all that is not simply warm.
func (g *Gate) checkSlowly(r Request, e *entry) Verdict {
	g.mu.Lock()
	defer g.mu.Unlock()
	if e.answer.Load().removed { // since it was found
		if e = g.obtain(r); e == nil {
			return g.tooMany(r)
		}
	}
	g.met(r.Holder, e)
	return g.judge(r, e)
}

// judge returns what r's holder is told of e, and has e asked if it ought to be.
// Gate.mu is held.
func (g *Gate) judge(r Request, e *entry) Verdict {
	a := e.answer.Load()
	if !e.pinned() && a.state == Allowed {
		return g.judgeTag(r, e, a)
	}
	if e.askAt == never && !e.asking && !e.queued && a.state != Allowed {
		g.askSoon(e) // it slept because nobody used it
	}
	if a.state == Denied && !e.pinned() && !g.fresh(a, r.NotBefore) {
		g.askSoon(e) // somebody changed something, and need not wait for the next time
	}
	v := g.verdict(e, a)
	if a.state == Allowed && a.stale != 0 && !g.holdsYes(r.Holder, e) {
		v.State, v.Reason = Unknown, staleReason(a)
		if a.tried == nil { // it is from before a restart, and is only now being asked
			v.State, v.Reason = Pending, NoReason
		}
		v.Credential = secret.Fingerprint{}
	}
	v.Message = message(r, e, a)
	return v
}

// judgeTag is judge for a tag that was resolved: the right is that of its digest.
func (g *Gate) judgeTag(r Request, e *entry, a *answer) Verdict {
	now := g.now()
	t := a.target
	if t.answer.Load().removed {
		// The digest was forgotten while the tag was not: take it up again.
		r.Image = e.image().At(a.digest)
		if t = g.obtain(r); t == nil {
			return g.tooMany(r)
		}
		b := *a
		b.target = t
		g.publish(e, &b)
		a = e.answer.Load()
	}
	t.heat().touch(now)
	right := t.answer.Load()
	if !g.fresh(a, r.NotBefore) || right.state == Denied && a.checked < right.checked {
		// Too old for this caller; or what it named may no longer be read, and it may
		// by now name something else.
		if !e.asking && !e.queued && e.askAt == never {
			g.askSoon(e)
		}
	}
	if !g.fresh(a, r.NotBefore) {
		v := g.verdict(e, a)
		v.Credential = secret.Fingerprint{}
		v.State, v.Message = Pending, message(r, e, a)
		if a.stale != 0 {
			v.State, v.Reason = Unknown, staleReason(a)
		}
		return v
	}
	target := r
	target.Image = t.image()
	v := g.judge(target, t)
	v.Digest = a.digest
	v.CheckedAt = g.at(a.checked)
	if v.State == Allowed && a.reason != 0 {
		v.Reason, v.Message = a.reason.reason(), message(r, e, a)
	}
	return v
}

// verdict returns what a says.
func (g *Gate) verdict(e *entry, a *answer) Verdict {
	v := Verdict{
		State:      a.state,
		Reason:     a.reason.reason(),
		Digest:     a.digest,
		Tried:      int(a.asked),
		CheckedAt:  g.at(a.checked),
		NextCheck:  g.at(a.next),
		StaleSince: g.at(a.stale),
	}
	if a.state == Allowed {
		v.Credential = e.who.credentials.Candidates()[a.candidate].Fingerprint()
	}
	return v
}

// staleReason says why a yes could not be renewed.
func staleReason(a *answer) Reason {
	if a.tried != nil {
		for _, t := range *a.tried {
			if t.reason != 0 {
				return t.reason.reason()
			}
		}
	}
	return RegistryUnreachable
}

func (g *Gate) tooMany(r Request) Verdict {
	g.metrics.refused()
	next := g.now() + int64(minIdle)
	return Verdict{State: Unknown, Reason: TooManyProofs, NextCheck: g.at(next), Message: fmt.Sprintf(
		"%s: namespace %q or stile as a whole has as many proofs as it may (access.maxPerNamespace, access.maxProofs): remove plugins, or raise the caps",
		r.Image, r.Holder.Namespace)}
}

// Prove is Check and Hold for callers that may wait: it returns with the first verdict
// that is not Pending. The Proof stands if that is Allowed. It fails only if ctx or the
// Gate's Run ends first.
func (g *Gate) Prove(ctx context.Context, r Request) (Proof, Verdict, error) {
	for {
		g.mu.Lock()
		changed, ended := g.changed, g.ended
		g.mu.Unlock()
		v := g.Check(r)
		if v.State == Allowed {
			pinned := r
			pinned.Image = r.Image.At(v.Digest)
			p, right := g.Hold(pinned)
			if right.State != Allowed {
				v = right // it changed between the two
			}
			if right.State != Pending {
				return p, v, nil
			}
		} else if v.State != Pending {
			return Proof{}, v, nil
		}
		if ended {
			return Proof{}, v, ErrNotRunning
		}
		select {
		case <-ctx.Done():
			return Proof{}, v, fmt.Errorf("prove %s: %w", r.Image, ctx.Err())
		case <-changed:
		}
	}
}
