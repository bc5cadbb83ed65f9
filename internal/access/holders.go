package access

import (
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
)

// claim is what one holder has: the entry it holds now, and every yes it was given
// that may still stand. Gate.mu guards it.
type claim struct {
	entry *entry
	holds []*hold
	waits *entry // the tag that it was last told something else of than a plain yes
}

// met notes that a holder was told something else than a plain yes of a tag: it is
// shown as its user. Gate.mu is held.
func (g *Gate) met(holder Holder, e *entry) {
	if e.pinned() || holder == (Holder{}) {
		return
	}
	c := g.claimOf(holder)
	if c.waits == e {
		return
	}
	g.waitsNoMore(holder, c)
	c.waits = e
	if g.waiters[e] == nil {
		g.waiters[e] = map[Holder]struct{}{}
	}
	g.waiters[e][holder] = struct{}{}
}

// waitsNoMore ends what met noted. Gate.mu is held.
func (g *Gate) waitsNoMore(holder Holder, c *claim) {
	if c.waits == nil {
		return
	}
	delete(g.waiters[c.waits], holder)
	if len(g.waiters[c.waits]) == 0 {
		delete(g.waiters, c.waits)
	}
	c.waits = nil
}

// claimOf returns what the holder has. Gate.mu is held.
func (g *Gate) claimOf(holder Holder) *claim {
	c := g.claims[holder]
	if c == nil {
		c = &claim{}
		g.claims[holder] = c
	}
	return c
}

// Hold is Check for a pinned image (repository@digest), and from now on r.Holder holds
// it, whatever the verdict: it is asked as long as it is held, and is not evicted. A
// holder holds one image; holding another moves it. The Proof stands iff the verdict
// is Allowed; those given before stand as long as their own yes does.
func (g *Gate) Hold(r Request) (Proof, Verdict) {
	if r.Image.Digest() == "" {
		return Proof{}, Verdict{State: Unknown, Reason: Invalid, Message: "hold " + r.Image.String() + ": the image must be pinned to a digest"}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.obtain(r)
	if e == nil {
		return Proof{}, g.tooMany(r)
	}
	v := g.judge(r, e)
	return Proof{g.claim(r.Holder, e, v.State == Allowed)}, v
}

// claim makes holder hold e, and returns its hold on e's yes if it has a right to one.
// Gate.mu is held.
func (g *Gate) claim(holder Holder, e *entry, allowed bool) *hold {
	if holder == (Holder{}) {
		// Nobody in particular: a handle on the yes, which keeps nothing alive.
		switch h := e.holds; {
		case !allowed:
			return nil
		case h != nil && h.holder == holder && h.stands.Load():
			return h
		default:
			return g.give(e, holder)
		}
	}
	c := g.claimOf(holder)
	own := c.on(e)
	if allowed && (c.entry != e || own == nil || !own.stands.Load()) {
		g.archiveHolder(holder, e)
	}
	if c.entry != e {
		g.letGo(c)
		c.entry = e
		e.held++
		g.audit.holder(eventJoined, e, holder)
		g.schedule(e) // it is no longer to be forgotten
	}
	if own == nil || allowed && !own.stands.Load() {
		if own != nil {
			e.unlink(own)
		}
		if allowed {
			own = g.give(e, holder)
		} else {
			own = &hold{holder: holder, entry: e}
			e.link(own)
		}
		c.remember(own)
	}
	own.current = true
	if !allowed {
		return nil
	}
	if c.waits != nil && c.waits.answer.Load().target != e {
		g.waitsNoMore(holder, c) // it wants something else now, and has it
	}
	return own
}

// give makes a hold on e's yes.
func (g *Gate) give(e *entry, holder Holder) *hold {
	h := &hold{holder: holder, entry: e, candidate: e.answer.Load().candidate}
	h.stands.Store(true)
	e.link(h)
	return h
}

// on returns the claim's latest hold on e, or nil.
func (c *claim) on(e *entry) *hold {
	for _, h := range c.holds {
		if h.entry == e && h.linked() {
			return h
		}
	}
	return nil
}

// remember adds h and forgets what has ended.
func (c *claim) remember(h *hold) {
	kept := c.holds[:0]
	for _, old := range c.holds {
		if old.linked() && old != h {
			kept = append(kept, old)
		}
	}
	clear(c.holds[len(kept):])
	c.holds = append(kept, h)
}

// letGo ends that c holds its entry now; a yes it was given stands on. Gate.mu is held.
func (g *Gate) letGo(c *claim) {
	e := c.entry
	if e == nil {
		return
	}
	c.entry = nil
	e.held--
	if h := c.on(e); h != nil {
		h.current = false
		g.audit.holder(eventLeft, e, h.holder)
		if !h.stands.Load() {
			e.unlink(h)
		}
	}
	g.roomMade(e.owner)
	e.heat().touch(g.now())
	g.schedule(e)
}

// Release is told that the holder is gone or wants nothing any more: its Proofs stand
// no longer. The entries stay until they are forgotten.
func (g *Gate) Release(holder Holder) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.claims[holder]
	if c == nil {
		return
	}
	g.waitsNoMore(holder, c)
	delete(g.claims, holder)
	g.archiveHolder(holder, nil)
	g.letGo(c)
	for _, h := range c.holds {
		h.stands.Store(false)
		h.entry.unlink(h)
	}
}

// Forget is told that the Secret behind a credential went from this holder, or was
// edited so that it is another. The holder's claim ends at once, with or without
// LastGood. Proofs of others who have the same credential do not move; if nobody else
// has it, all that was learned with it is dropped, with its tokens and connections,
// and answers under way are discarded. cred is the fingerprint of the effective
// credentials or of one candidate.
func (g *Gate) Forget(cred secret.Fingerprint, holder Holder) {
	if cred.IsZero() {
		return // nobody's right ends because a Secret did
	}
	for _, unused := range g.forget(cred, holder) {
		g.registry.Forget(unused)
	}
}

// forget is Forget up to the registry client; it returns the credentials that nobody
// uses any more.
func (g *Gate) forget(cred secret.Fingerprint, holder Holder) []secret.Fingerprint {
	g.mu.Lock()
	defer g.mu.Unlock()
	var gone []oci.Credential
	for _, lastGood := range []bool{false, true} {
		holder.LastGood = lastGood
		c := g.claims[holder]
		if c == nil {
			continue
		}
		if c.waits != nil && c.waits.who.has(cred) {
			g.waitsNoMore(holder, c)
		}
		for _, h := range c.holds {
			if h.linked() && h.entry.who.has(cred) {
				h.stands.Store(false)
				if c.entry == h.entry {
					g.letGo(c)
					g.archiveHolder(holder, nil)
				}
				h.entry.unlink(h)
			}
		}
	}
	for key, p := range g.principals {
		if p.has(cred) && !p.inUse() {
			for p.first != nil {
				g.drop(p.first)
			}
			delete(g.principals, key)
			gone = append(gone, p.credentials.Candidates()...)
		}
	}
	var unused []secret.Fingerprint
	for _, c := range gone {
		if !c.Anonymous() && !g.anybodyHas(c.Fingerprint()) {
			unused = append(unused, c.Fingerprint())
		}
	}
	g.notify()
	return unused
}

func (g *Gate) anybodyHas(cred secret.Fingerprint) bool {
	for _, p := range g.principals {
		if p.has(cred) {
			return true
		}
	}
	return false
}

// has reports whether cred is the principal's effective credentials, or one of them.
func (p *principal) has(cred secret.Fingerprint) bool {
	if p.cred == cred {
		return true
	}
	for _, c := range p.credentials.Candidates() {
		if c.Fingerprint() == cred {
			return true
		}
	}
	return false
}

// inUse reports whether anybody holds one of the principal's entries.
func (p *principal) inUse() bool {
	for e := p.first; e != nil; e = e.next {
		if e.held > 0 {
			return true
		}
	}
	return false
}

// holdsYes reports whether the holder, under either of its two names, was given e's
// present yes. Gate.mu is held.
func (g *Gate) holdsYes(holder Holder, e *entry) bool {
	for _, lastGood := range []bool{false, true} {
		holder.LastGood = lastGood
		if c := g.claims[holder]; c != nil {
			if h := c.on(e); h != nil && h.stands.Load() {
				return true
			}
		}
		if g.heldBefore(holder, e) {
			return true
		}
	}
	return false
}

// endYes ends every Proof of e's yes. Those who hold e still do, and are given another
// when there is one. Gate.mu is held.
func (e *entry) endYes() {
	e.restored = false
	for h := e.holds; h != nil; {
		next := h.next
		h.stands.Store(false)
		if !h.current {
			e.unlink(h)
		}
		h = next
	}
}

func (h *hold) linked() bool { return h.prev != nil || h.entry.holds == h }

func (e *entry) link(h *hold) {
	h.next = e.holds
	if h.next != nil {
		h.next.prev = h
	}
	e.holds = h
}

func (e *entry) unlink(h *hold) {
	if !h.linked() {
		return
	}
	if h.prev != nil {
		h.prev.next = h.next
	} else {
		e.holds = h.next
	}
	if h.next != nil {
		h.next.prev = h.prev
	}
	h.prev, h.next = nil, nil
}

// obtain returns the entry of r, making it and having it asked if there is none; nil
// if there may be no more entries. Gate.mu is held.
func (g *Gate) obtain(r Request) *entry {
	now := g.now()
	if e := g.table.find(r.Image, r.Credentials, r.Trust); e != nil {
		e.heat().touch(now)
		return e
	}
	ns := g.namespaceOf(r.Holder.Namespace)
	if !g.makeRoom(ns) {
		return nil
	}
	e := g.insert(r.Image, g.principalOf(r), ns, now)
	if !g.restore(e, now) {
		g.askSoon(e)
	}
	return e
}

// insert adds an entry that is not there, Pending and not to be asked. Gate.mu is held.
func (g *Gate) insert(image oci.Reference, p *principal, ns *namespace, now int64) *entry {
	e := &entry{name: image.ID(), who: p, owner: ns, index: -1, askAt: never}
	e.heat().used.Store(now)
	e.set(&answer{})
	if p.first != nil {
		p.first.prev = e
	}
	e.next, p.first = p.first, e
	p.host.entries++
	ns.entries++
	ns.remember(e)
	g.table.insert(e)
	g.metrics.moved(nil, e.answer.Load())
	g.schedule(e)
	return e
}

func (g *Gate) principalOf(r Request) *principal {
	key := principalKey{r.Credentials.Fingerprint(), r.Trust.Fingerprint(), r.Image.Host()}
	p := g.principals[key]
	if p == nil {
		p = &principal{credentials: r.Credentials, trust: r.Trust, cred: key.cred, via: key.via, host: g.hostOf(key.host)}
		g.principals[key] = p
	}
	return p
}

// drop takes e out: every Proof of it ends, and an answer under way is discarded.
// Gate.mu is held.
func (g *Gate) drop(e *entry) {
	for h := e.holds; h != nil; h = e.holds {
		h.stands.Store(false)
		if c := g.claims[h.holder]; c != nil && c.entry == e {
			c.entry = nil
			e.held--
			g.audit.holder(eventLeft, e, h.holder)
		}
		e.unlink(h)
	}
	for holder := range g.waiters[e] {
		c := g.claims[holder]
		g.waitsNoMore(holder, c)
		if c.entry == nil && len(c.holds) == 0 {
			delete(g.claims, holder)
		}
	}
	old := e.answer.Load()
	if old.state != Pending {
		g.audit.add(eventForgotten, e, old, "")
	}
	e.set(&answer{removed: true})
	g.archived(e, old, e.answer.Load())
	g.metrics.moved(old, nil)
	g.unschedule(e)
	g.leaveAccounts(e)
	for at := range e.who.count() {
		if acct := g.account(e, at, false); acct != nil {
			delete(acct.waiting, e)
		}
	}
	e.queued = false
	g.table.remove(e)
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		e.who.first = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	}
	e.prev, e.next = nil, nil
	if p := e.who; p.first == nil {
		delete(g.principals, principalKey{p.cred, p.via, p.host.name})
	}
	e.who.host.entries--
	e.owner.entries--
	g.roomMade(e.owner)
	g.tidy(e.who.host, e.owner)
}

// roomMade notes that something of ns may now be evicted or made. Gate.mu is held.
func (g *Gate) roomMade(ns *namespace) {
	if ns.fullUntil != 0 || g.fullUntil != 0 {
		ns.fullUntil, g.fullUntil = 0, 0
		g.notify()
	}
}
