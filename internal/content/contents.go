package content

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/store"
	"github.com/stileproject/stile/internal/wasm"
)

// Contents answer from memory what a proof opens, and fetch in the background what
// is not here. All methods may be called concurrently.
type Contents struct {
	store   *store.Store
	fetcher Fetcher
	config  Config
	log     *slog.Logger
	metrics metrics
	process secret.Key // hides URLs where the configuration has no key
	changed chan struct{}
	wake    chan struct{} // something is due: Run looks
	read    readFacts

	mu      sync.Mutex // guards what is below; never held across I/O
	items   map[itemKey]*item
	inline  map[string]*inlined // by sha256
	queue   queue
	running bool // Run runs
	// nextLook is when the items are next gone through for tries that are due.
	nextLook time.Time
}

// itemKey is what one fetch is for: what a source delivered under a name.
type itemKey struct{ source, name string }

// item is what is known of one thing that was asked for, and who asks.
type item struct {
	key    itemKey
	url    *URLRequest    // set for http(s): as it is asked for now
	askers []access.Proof // whose right a fetch may use, the latest last; none for http(s)

	verifier *verifier // set for signatures: nothing but whether there is one is brought
	signed   bool

	module  *Module // without Inline; nil = not here
	at      time.Time
	problem *Problem            // of the last try; nil = none yet, or it went well
	refused map[string]*Problem // by namespace: it has no room for the module

	flight    chan struct{} // closed when the try that waits or is under way is over; nil = none
	failures  int
	due       time.Time // of the next try in the background; zero = none
	lastAsked time.Time
}

// inlined are the bytes of a small module in use.
type inlined struct {
	bytes []byte
	asked bool // since the last Retain
}

const (
	// maxAskers bounds the proofs that are remembered for one item. What differs between
	// them is the credential; one suffices.
	maxAskers = 16
	// urlInterest is how long a URL that failed is tried again without being asked for.
	urlInterest = 10 * time.Minute
)

// New returns Contents over a store. Nothing is fetched until Run runs, or Fetch is
// called.
func New(s *store.Store, f Fetcher, c Config) *Contents {
	if c.InlineMax == 0 {
		c.InlineMax = DefaultInlineMax
	}
	if c.MaxModule <= 0 {
		c.MaxModule = wasm.MaxModule
	}
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	if c.MaxInFlight <= 0 {
		c.MaxInFlight = DefaultMaxInFlight
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Contents{
		store: s, fetcher: f, config: c, log: c.Log, metrics: newMetrics(c.Registerer),
		process: processKey(), changed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		items: map[itemKey]*item{}, inline: map[string]*inlined{}, read: readFacts{facts: map[itemKey]Facts{}},
		queue: newQueue(c.MaxInFlight),
	}
}

// Changes gives a value when something changed since it last did: a module came, a
// try failed. It is for one receiver.
func (c *Contents) Changes() <-chan struct{} { return c.changed }

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Module answers from memory and never waits: the module, ErrPending while it is
// fetched, ErrNotProven if the proof does not stand, or a *Problem. With a Problem
// ModuleInvalid comes the Module with its findings, without bytes.
func (c *Contents) Module(p access.Proof) (Module, error) {
	if !p.Stands() {
		return Module{}, ErrNotProven
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.itemOf(p)
	return c.answer(it, p.Namespace(), true)
}

// URL is Module for http(s) sources.
func (c *Contents) URL(r URLRequest) (Module, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it, err := c.itemOfURL(r)
	if err != nil {
		return Module{}, err
	}
	return c.answer(it, r.Namespace, true)
}

// itemOf returns the item of what the proof proves, with the proof among its askers.
func (c *Contents) itemOf(p access.Proof) *item {
	return c.ask(itemKey{p.Source(), moduleName(p.Digest())}, p)
}

// ask returns the item of the key, with the proof among its askers. Of many askers the
// first are remembered, for as long as they stand.
func (c *Contents) ask(k itemKey, p access.Proof) *item {
	it := c.item(k)
	if slices.Contains(it.askers, p) {
		return it
	}
	if len(it.askers) >= maxAskers {
		// A new slice: a try under way may be going through the old one.
		it.askers = slices.DeleteFunc(slices.Clone(it.askers), func(a access.Proof) bool { return !a.Stands() })
		if len(it.askers) >= maxAskers {
			return it
		}
	}
	known := slices.ContainsFunc(it.askers, func(a access.Proof) bool { return whose(a) == whose(p) })
	it.askers = append(it.askers, p)
	if it.problem != nil && !known && concernsRight(it.problem.Reason) {
		it.problem = nil // it was about the others: this right may do
		c.enqueue(it, p.Namespace())
	}
	return it
}

// concernsRight reports whether somebody else's credential or share may do where one
// failed for this reason.
func concernsRight(reason string) bool {
	return reason == ReasonUnauthorized || reason == ReasonImageNotFound || reason == ReasonStoreFull
}

// right is what tells one asker from another: the credential that is used, and the
// namespace that is charged.
type right struct {
	credential secret.Fingerprint
	namespace  string
}

func whose(p access.Proof) right { return right{p.Credential().Fingerprint(), p.Namespace()} }

func moduleName(digest string) string { return "module " + digest }

// item returns the item of the key, taken from the store where that knows it.
func (c *Contents) item(k itemKey) *item {
	it := c.items[k]
	if it == nil {
		it = &item{key: k}
		c.items[k] = it
		if r, ok := c.store.Get(k.source, k.name); ok {
			c.adopt(it, r)
		}
	}
	it.lastAsked = time.Now()
	return it
}

// facts is what a record of a module says besides its sha256.
type moduleFacts struct {
	Digest    string         `json:"digest,omitempty"`
	Size      int64          `json:"size"`
	Packaging string         `json:"packaging"`
	Info      wasm.Module    `json:"info"`
	Findings  []wasm.Finding `json:"findings,omitempty"`
	Tag       string         `json:"tag,omitempty"` // the version of what a URL delivers, in its server's words
}

// adopt takes what a record says. A record that cannot be read is as good as none.
func (c *Contents) adopt(it *item, r store.Record) bool {
	var f moduleFacts
	if r.Module == "" || json.Unmarshal(r.Data, &f) != nil {
		return false
	}
	failures := it.failures
	it.module = &Module{Digest: f.Digest, SHA256: r.Module, Size: f.Size, Packaging: f.Packaging, Info: f.Info, Findings: f.Findings}
	it.at = r.At
	it.problem, it.failures, it.due = nil, 0, time.Time{}
	if wasm.Invalid(f.Findings) {
		it.problem = invalidModule(f.Findings)
		if it.mendable() {
			it.failures = failures
			c.fail(it, it.problem, 0)
		}
	}
	return true
}

// mendable reports whether the source may deliver another module under the same name:
// a URL may, a digest never.
func (it *item) mendable() bool { return it.key.name == latest }

// invalid returns why the module that is here cannot be used; nil if it can.
func (it *item) invalid() *Problem {
	switch {
	case it.module == nil || !wasm.Invalid(it.module.Findings):
		return nil
	case it.problem != nil && it.problem.Reason == ReasonModuleInvalid:
		return it.problem
	}
	p := invalidModule(it.module.Findings) // it is what came last, whatever came of later tries
	if it.problem != nil {
		p.Retry, p.NextTry = it.problem.Retry, it.problem.NextTry
	}
	return p
}

// answer says what is known of the item and, if that is not enough and ask is set,
// has it brought.
func (c *Contents) answer(it *item, namespace string, ask bool) (Module, error) {
	current := it.module != nil && !it.stale()
	if p := it.invalid(); current && p != nil {
		if ask && p.Retry && it.due.IsZero() {
			c.enqueue(it, namespace)
		}
		return *it.module, p
	}
	if current {
		there, charged := c.store.Touch(it.module.SHA256, namespace)
		switch {
		case !there: // evicted, or found corrupt: bring it again
			it.module = nil
		case charged:
			m := *it.module
			if m.Size > c.config.InlineMax {
				return m, nil
			}
			if in := c.inline[m.SHA256]; in != nil {
				in.asked = true
				m.Inline = in.bytes
				return m, nil
			}
		}
	}
	if no := it.refused[namespace]; no != nil && time.Now().Before(no.NextTry) {
		return Module{}, no
	}
	if it.problem != nil && (!it.problem.Retry || time.Now().Before(it.problem.NextTry)) && it.flight == nil {
		return Module{}, it.problem
	}
	if ask {
		c.enqueue(it, namespace)
	}
	if it.problem != nil && it.module == nil {
		return Module{}, it.problem // while it is tried again, the last answer is the better one
	}
	return Module{}, ErrPending
}

// stale reports whether a URL is to be fetched again by its NotBefore.
func (it *item) stale() bool {
	return it.url != nil && it.url.stale(it.at)
}

// Fetch is Module for those who may wait, with or without Run: it returns when the
// module is here or cannot be had. A caller that gives up fails nobody else.
func (c *Contents) Fetch(ctx context.Context, p access.Proof) (Module, error) {
	return c.await(ctx, p.Namespace(), func() (*item, error) {
		if !p.Stands() {
			return nil, ErrNotProven
		}
		return c.itemOf(p), nil
	})
}

// FetchURL is URL for those who may wait; see Fetch.
func (c *Contents) FetchURL(ctx context.Context, r URLRequest) (Module, error) {
	return c.await(ctx, r.Namespace, func() (*item, error) { return c.itemOfURL(r) })
}

func (c *Contents) await(ctx context.Context, namespace string, find func() (*item, error)) (Module, error) {
	const most = 4 // joined tries that were for others; then the answer is what it is
	for tries := 0; ; tries++ {
		c.mu.Lock()
		it, err := find()
		if err != nil {
			c.mu.Unlock()
			return Module{}, err
		}
		m, err := c.answer(it, namespace, false)
		problem, bad := errors.AsType[*Problem](err)
		if err == nil || bad && (!problem.Retry || tries > 0) || tries == most {
			c.mu.Unlock()
			return m, err
		}
		if it.flight == nil {
			c.enqueue(it, namespace)
		}
		wait := it.flight
		mine := !c.running && c.queue.take(it)
		c.mu.Unlock()
		if mine { // nobody runs the queue: this caller does its own work
			c.try(ctx, it, namespace)
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return Module{}, fmt.Errorf("fetch: %w", ctx.Err())
		}
		if err := ctx.Err(); err != nil {
			return Module{}, fmt.Errorf("fetch: %w", err)
		}
	}
}

// Retain sets the leases: exactly these modules are referenced by live plugins. Their
// files are not evicted; the bytes of others that nobody asked for since the last
// Retain leave the memory.
func (c *Contents) Retain(sha256s []string) {
	c.store.Retain(sha256s)
	live := make(map[string]bool, len(sha256s))
	for _, d := range sha256s {
		live[d] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for d, in := range c.inline {
		if !live[d] && !in.asked {
			delete(c.inline, d)
		}
		in.asked = false
	}
}

var _ Fetcher = (*oci.Client)(nil)
