package placement

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/secret"
)

// errFetching says that the facts are on their way.
var errFetching = errors.New("facts: being fetched")

// Limits of fetching facts: in all, at one registry, for one namespace, and for one
// namespace at one registry, so that somebody else's turn comes at once; then how long one
// fetch may take, and after how long one that failed is tried again.
const (
	fetchers      = 128
	perRegistry   = 8
	perNamespace  = 32
	perBoth       = perRegistry / 2
	fetchTimeout  = time.Minute
	againFirst    = time.Second
	againMax      = time.Minute
	maxRemembered = 10_000
	maxUnkept     = 1000
)

// factsKey is one flight: what one source delivers under a digest.
type factsKey struct{ source, digest string }

// fetch is one flight, or what came of the last one if that was no good.
type fetch struct {
	flying   bool
	err      error
	by       secret.Fingerprint // whose right it was made with
	failures int
	again    time.Time
}

// facts brings what images say, for those who have a proof: one flight per source and
// digest, registry by registry so that one that hangs holds back its own alone.
type facts struct {
	contents Contents
	log      *slog.Logger
	wake     func()
	owned    *sync.WaitGroup

	mu         sync.Mutex
	ctx        context.Context
	flights    map[factsKey]*fetch
	registries map[string]*registry
	namespaces map[string]int // flights under way
	busy       int
	landed     bool
	unkept     map[factsKey]content.Facts // what the store had no room for
}

// registry is the flights to one host. facts.mu guards it.
type registry struct {
	busy       int
	namespaces map[string]int
	waiting    turns[access.Proof]
}

func newFacts(contents Contents, log *slog.Logger, wake func()) *facts {
	return &facts{contents: contents, log: log, wake: wake, flights: map[factsKey]*fetch{}, unkept: map[factsKey]content.Facts{}, registries: map[string]*registry{}, namespaces: map[string]int{}}
}

func (f *facts) start(ctx context.Context, owned *sync.WaitGroup) {
	f.mu.Lock()
	f.ctx, f.owned = ctx, owned
	f.mu.Unlock()
}

// of returns what the proof's image says if it is here. Else it is being fetched, or the
// last try failed: the error says which.
func (f *facts) of(p access.Proof, now time.Time) (content.Facts, error) {
	if known, ok := f.contents.KnownFacts(p); ok {
		return known, nil
	}
	key := factsKey{p.Source(), p.Digest()}
	f.mu.Lock()
	defer f.mu.Unlock()
	if known, ok := f.unkept[key]; ok && p.Stands() {
		return known, nil
	}
	t := f.flights[key]
	if t == nil {
		f.tidy(now)
		t = &fetch{}
		f.flights[key] = t
	}
	if t.flying {
		return content.Facts{}, errFetching
	}
	if own := t.by == p.Credential().Fingerprint(); t.err != nil && (own || !aboutRight(t.err)) && now.Before(t.again) {
		return content.Facts{}, t.err
	}
	t.flying = true
	host := p.Image().Host()
	r := f.registries[host]
	if r == nil {
		r = &registry{namespaces: map[string]int{}}
		f.registries[host] = r
	}
	r.waiting.push(p.Namespace(), p)
	f.launch(host, r)
	if t.err != nil && t.by == p.Credential().Fingerprint() {
		return content.Facts{}, t.err // while it is tried again, the last answer is the better one
	}
	return content.Facts{}, errFetching
}

// aboutRight reports an error that another credential may not meet.
func aboutRight(err error) bool {
	p, ok := errors.AsType[*content.Problem](err)
	return ok && (p.Reason == content.ReasonUnauthorized || p.Reason == content.ReasonImageNotFound || p.Reason == content.ReasonStoreFull)
}

// tidy forgets failures that are over, when there are many. facts.mu is held.
func (f *facts) tidy(now time.Time) {
	if len(f.flights) < maxRemembered {
		return
	}
	for key, t := range f.flights {
		if !t.flying && now.After(t.again) {
			delete(f.flights, key)
		}
	}
}

// launch starts what may start at a registry. facts.mu is held.
func (f *facts) launch(host string, r *registry) {
	for r.busy < perRegistry && f.busy < fetchers && f.ctx != nil && f.ctx.Err() == nil {
		p, ok := r.waiting.pop(func(ns string) bool { return f.namespaces[ns] < perNamespace && r.namespaces[ns] < perBoth })
		if !ok {
			break
		}
		r.busy++
		f.busy++
		r.namespaces[p.Namespace()]++
		f.namespaces[p.Namespace()]++
		f.owned.Go(func() { f.fly(host, r, p) })
	}
}

func (f *facts) fly(host string, r *registry, p access.Proof) {
	key := factsKey{p.Source(), p.Digest()}
	ctx, cancel := context.WithTimeout(f.ctx, fetchTimeout)
	got, err := f.contents.Facts(ctx, p)
	cancel()
	_, kept := f.contents.KnownFacts(p)
	if err != nil {
		f.log.Debug("placement: facts could not be fetched", "image", p.Image().String(), "error", err)
	}
	f.mu.Lock()
	f.land(key, p, err)
	if err == nil && !kept {
		if len(f.unkept) >= maxUnkept {
			clear(f.unkept)
		}
		f.unkept[key] = got
	}
	r.busy--
	if r.namespaces[p.Namespace()]--; r.namespaces[p.Namespace()] == 0 {
		delete(r.namespaces, p.Namespace())
	}
	f.busy--
	if f.namespaces[p.Namespace()]--; f.namespaces[p.Namespace()] == 0 {
		delete(f.namespaces, p.Namespace())
	}
	f.launch(host, r)
	if r.busy == 0 && r.waiting.empty() {
		delete(f.registries, host)
	}
	for other, waiting := range f.registries {
		if f.busy >= fetchers {
			break
		}
		f.launch(other, waiting)
	}
	f.mu.Unlock()
	f.wake()
}

// land notes what came of a flight. facts.mu is held.
func (f *facts) land(key factsKey, p access.Proof, err error) {
	f.landed = true
	t := f.flights[key]
	if err == nil {
		delete(f.flights, key)
		return
	}
	t.flying = false
	if errors.Is(err, content.ErrNotProven) {
		t.err = nil // the pod went, or its Secret changed: the next one who may asks
		return
	}
	t.err, t.by = err, p.Credential().Fingerprint()
	delay := min(againMax, againFirst<<min(t.failures, 10))
	t.failures++
	t.again = time.Now().Add(delay)
}

// moved reports whether a flight has landed since it was last asked, or one that failed
// may be tried again.
func (f *facts) moved() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	landed := f.landed
	f.landed = false
	return landed
}
