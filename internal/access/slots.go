package access

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"
)

// host is one registry: its slots and what it said to whom. Gate.mu guards it.
type host struct {
	name     string
	limit    int // questions under way
	busy     int
	grace    time.Duration
	answered int64 // when it last gave anybody an answer that counts
	entries  int
	queues   map[*namespace]*queue
	order    []*queue // those with something in them, in turn
	turn     int
	blocked  bool  // it is in Gate.blocked: it stopped because of a limit not its own
	resume   int64 // when a queue that is over its budget may go on; never = none is
	accounts map[accountKey]*account
}

// namespace is one tenant's share. Gate.mu guards it.
type namespace struct {
	name    string
	entries int
	busy    int
	fifo    []*entry // its entries, oldest first; some may have been removed
	// fullUntil is when it is worth looking again for something to evict.
	fullUntil int64
}

// queue is what one namespace wants of one registry.
type queue struct {
	ns      *namespace
	waiting []*entry
	busy    int
	spent   int64 // up to when the budget is spent, if spent evenly
}

// burst is how far ahead of its budget a queue may be.
const burst = 10 * time.Second

// overBudget returns how long q has to wait for its next question; 0 = it need not.
func (q *queue) overBudget(now int64) time.Duration {
	return max(0, time.Duration(q.spent-now)-burst)
}

// spend charges one question to q.
func (q *queue) spend(now int64, perSecond int) {
	q.spent = max(q.spent, now) + int64(time.Second)/int64(perSecond)
}

func (g *Gate) hostOf(name string) *host {
	h := g.hosts[name]
	if h == nil {
		own := g.config.Registries[name]
		h = &host{name: name, limit: own.MaxInFlight, grace: own.Grace, answered: math.MinInt64, resume: never, queues: map[*namespace]*queue{}}
		if h.limit <= 0 {
			h.limit = DefaultPerRegistry
		}
		if h.grace <= 0 {
			h.grace = g.config.Grace
		}
		g.hosts[name] = h
	}
	return h
}

func (g *Gate) namespaceOf(name string) *namespace {
	ns := g.namespaces[name]
	if ns == nil {
		ns = &namespace{name: name}
		g.namespaces[name] = ns
	}
	return ns
}

// share is how many of n slots one tenant may have at a time: three quarters, so that
// requests that hang never take them all.
func share(n int) int { return max(1, n-n/4) }

// enqueue lets e wait for a slot of its registry, in the queue of each namespace that
// holds it: a shared entry is as early as the quietest of its tenants.
func (g *Gate) enqueue(e *entry) {
	e.queued = true
	h := e.who.host
	const enough = 16
	n := 0
	for held := e.holds; held != nil && n < enough; held = held.next {
		if held.current {
			h.push(g.namespaceOf(held.holder.Namespace), e)
			n++
		}
	}
	if n == 0 {
		h.push(e.owner, e)
	}
	g.start(h)
}

func (h *host) push(ns *namespace, e *entry) {
	q := h.queues[ns]
	if q == nil {
		q = &queue{ns: ns}
		h.queues[ns] = q
	}
	if len(q.waiting) > 0 && q.waiting[len(q.waiting)-1] == e {
		return
	}
	if len(q.waiting) == 0 {
		h.order = append(h.order, q)
	}
	q.waiting = append(q.waiting, e)
}

// pop returns the next entry, namespace by namespace in turn, or nil if none may
// start now. foreign reports that a limit other than the registry's own is the reason.
func (g *Gate) pop(h *host) (e *entry, q *queue, foreign bool) {
	now := g.now()
	for tries := len(h.order); tries > 0; tries-- {
		if len(h.order) == 0 {
			break
		}
		if h.turn >= len(h.order) {
			h.turn = 0
		}
		q := h.order[h.turn]
		if q.busy >= share(h.limit) {
			h.turn++
			continue
		}
		if wait := q.overBudget(now); wait > 0 {
			g.resumeAt(h, now+int64(wait))
			h.turn++
			continue
		}
		if q.ns.busy >= max(1, share(g.config.MaxInFlight)/2) {
			foreign = true
			h.turn++
			continue
		}
		for len(q.waiting) > 0 {
			e := q.waiting[0]
			q.waiting[0] = nil
			q.waiting = q.waiting[1:]
			if len(q.waiting) == 0 {
				q.waiting = nil
			}
			if e.queued {
				if q.waiting == nil {
					h.order = append(h.order[:h.turn], h.order[h.turn+1:]...)
				} else {
					h.turn++
				}
				return e, q, false
			}
		}
		h.order = append(h.order[:h.turn], h.order[h.turn+1:]...)
	}
	return nil, nil, foreign
}

// start lets go what may start at h. Gate.mu is held.
func (g *Gate) start(h *host) {
	for g.running && h.busy < h.limit {
		if g.busy >= g.config.MaxInFlight {
			g.block(h)
			return
		}
		e, q, foreign := g.pop(h)
		if e == nil {
			if foreign {
				g.block(h)
			}
			return
		}
		e.queued, e.asking = false, true
		q.spend(g.now(), g.config.Budget)
		q.busy++
		q.ns.busy++
		h.busy++
		g.busy++
		f := g.newFlight(e, q)
		g.flights.Go(func() { g.fly(f) })
	}
}

// resumeAt has h started again at a time, when a budget allows more. Gate.mu is held.
func (g *Gate) resumeAt(h *host, at int64) {
	if h.resume == never {
		g.throttled = append(g.throttled, h)
	}
	if at < h.resume {
		h.resume = at
		g.poke()
	}
}

// resume starts what was over its budget and no longer is, and returns when the next
// may be. Gate.mu is held.
func (g *Gate) resume(now int64) (next int64) {
	throttled := g.throttled
	g.throttled = nil
	for _, h := range throttled {
		if h.resume > now {
			g.throttled = append(g.throttled, h)
			continue
		}
		h.resume = never
		g.start(h)
	}
	next = never
	for _, h := range g.throttled {
		next = min(next, h.resume)
	}
	return next
}

// forgetQueues drops the queues with nothing in them and nothing spent.
func (h *host) forgetQueues(now int64) {
	for ns, q := range h.queues {
		if q.busy == 0 && q.waiting == nil && q.spent <= now {
			delete(h.queues, ns)
		}
	}
}

func (g *Gate) block(h *host) {
	if !h.blocked {
		h.blocked = true
		g.blocked = append(g.blocked, h)
	}
}

// done gives a slot back and starts what waited for it. Gate.mu is held.
func (g *Gate) done(h *host, q *queue) {
	q.busy--
	q.ns.busy--
	h.busy--
	g.busy--
	if len(h.queues) > 2*len(h.order)+16 {
		h.forgetQueues(g.now())
	}
	g.start(h)
	waiting := g.blocked
	g.blocked = nil
	for _, other := range waiting {
		other.blocked = false
	}
	for _, other := range waiting {
		g.start(other)
	}
	g.tidy(h, q.ns)
}

// tidy forgets a registry and a namespace that nothing refers to any more.
func (g *Gate) tidy(h *host, ns *namespace) {
	if h.entries == 0 && h.busy == 0 && len(h.order) == 0 && g.hosts[h.name] == h {
		delete(g.hosts, h.name)
	}
	if ns.entries == 0 && ns.busy == 0 && g.namespaces[ns.name] == ns {
		delete(g.namespaces, ns.name)
	}
}

// minIdle is how long an entry must have been unused to be evicted. It keeps a tenant
// over its cap from swapping its own entries in and out.
const minIdle = time.Minute

// makeRoom reports whether ns may have one more entry, evicting an idle one if need be.
func (g *Gate) makeRoom(ns *namespace) bool {
	if ns.entries >= g.config.MaxPerNamespace && !g.evict(ns) {
		return false
	}
	if g.table.count < g.config.MaxProofs {
		return true
	}
	if g.evict(ns) {
		return true
	}
	if now := g.now(); now < g.fullUntil {
		return false
	}
	// The largest tenants give first.
	others := slices.SortedFunc(maps.Values(g.namespaces), func(a, b *namespace) int {
		return cmp.Or(cmp.Compare(b.entries, a.entries), cmp.Compare(a.name, b.name))
	})
	if slices.ContainsFunc(others, g.evict) {
		return true
	}
	g.fullUntil = g.now() + int64(minIdle)/4
	return false
}

// evict removes one of ns's entries that nobody holds or has lately used.
func (g *Gate) evict(ns *namespace) bool {
	now := g.now()
	if now < ns.fullUntil {
		return false
	}
	for range len(ns.fifo) {
		e := ns.fifo[0]
		ns.fifo = ns.fifo[1:]
		a := e.answer.Load()
		if a.removed || e.owner != ns {
			continue
		}
		if e.held > 0 || now-e.heat().used.Load() < int64(minIdle) || a.target != nil && a.target.held > 0 {
			ns.fifo = append(ns.fifo, e)
			continue
		}
		g.drop(e)
		g.metrics.evicted()
		return true
	}
	// Looked at every one: do not look again for each of ten thousand refused plugins.
	ns.fullUntil = now + int64(minIdle)/4
	return false
}

// remember puts e last in line for eviction, and drops from the line what was removed.
func (ns *namespace) remember(e *entry) {
	if len(ns.fifo) > 2*ns.entries+minSlots {
		kept := ns.fifo[:0]
		for _, old := range ns.fifo {
			if !old.answer.Load().removed {
				kept = append(kept, old)
			}
		}
		clear(ns.fifo[len(kept):])
		ns.fifo = kept
	}
	ns.fifo = append(ns.fifo, e)
}
