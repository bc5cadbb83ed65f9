package access

import (
	"time"
)

// askSoon has e asked as soon as there is a slot. Gate.mu is held.
func (g *Gate) askSoon(e *entry) {
	if e.asking || e.queued {
		return
	}
	e.askAt = never
	g.enqueue(e)
	g.schedule(e)
}

// askLater has e asked at a time, and publishes that time. Gate.mu is held.
func (g *Gate) askLater(e *entry, at int64) {
	e.askAt = at
	a := *e.answer.Load()
	if a.next != at {
		a.next = at
		g.publish(e, &a)
	}
	g.schedule(e)
}

// publish replaces what is known of e, and tells if that makes a difference to anybody.
// Gate.mu is held.
func (g *Gate) publish(e *entry, a *answer) {
	old := e.set(a)
	g.archived(e, old, a)
	if old.state != a.state || old.reason != a.reason || old.digest != a.digest || (old.stale == 0) != (a.stale == 0) {
		g.metrics.moved(old, a)
		g.audit.verdict(e, a)
		g.notify()
	}
}

// land brings a flight's answers in. Gate.mu is held.
func (g *Gate) land(f *flight) {
	e, now := f.entry, g.now()
	e.asking = false
	if g.ctx.Err() != nil {
		return // the questions were cut off: they say nothing
	}
	g.learn(f, now)
	a := e.answer.Load()
	if a.removed {
		// The Secret went, or nobody cares any more: the answer is to nobody's question. Who
		// asks anew has another entry.
		return
	}
	last := f.tried[len(f.tried)-1]
	if last.postponed {
		f.queue.spent -= int64(time.Second) / int64(g.config.Budget) // it cost nobody anything
		g.letAskFirst(f, now)
		return
	}
	standing := a.state == Allowed
	if standing && f.question == confirming && a.checked > f.started {
		f.question = renewal // a yes came meanwhile, of the tag: doubt that one anew
	}
	if standing && f.question != firstSight && confirms(f.tried[0]) && f.question == confirming {
		// The candidate that earned the yes is refused: it ends, whatever the others say.
		e.endYes()
		standing = false
		if last.result != granted {
			tried := f.tried[:1]
			g.publish(e, &answer{state: Denied, reason: tried[0].reason, digest: a.digest, checked: now, tried: &tried, asked: 1})
		}
	}
	switch {
	case last.result == granted:
		g.allow(e, last, countOf(f.tried), f.started)
	case standing:
		g.notRenewed(f, a, now)
	case someUnanswered(f.tried):
		g.unanswered(f, now)
	default:
		g.deny(f, now)
	}
	if !e.pinned() {
		g.notify() // somebody may wait for a tag to have been asked again
	}
}

// countOf returns how many candidates were asked, or their accounts known.
func countOf(tried []try) uint8 {
	return uint8(min(len(tried), 255))
}

func someUnanswered(tried []try) bool {
	for _, t := range tried {
		if t.result == noAnswer {
			return true
		}
	}
	return false
}

// allow notes a yes, earned by t's candidate as of when it was asked.
func (g *Gate) allow(e *entry, t try, asked uint8, started int64) {
	old := e.answer.Load()
	a := &answer{state: Allowed, digest: t.digest, checked: started, candidate: t.candidate, asked: asked}
	if old.state == Allowed && old.candidate != t.candidate {
		e.endYes()
	}
	e.attempt, e.strikes, e.refused, e.suspect = 0, 0, 0, false
	e.askAt = started + jittered(g.config.Recheck, 0.1)
	if !e.pinned() {
		// Only whoever wants a younger resolution has a tag asked again.
		e.askAt = never
		target := g.seed(e, t, started)
		if target == nil {
			a.state, a.reason = Unknown, reasonTooMany
			e.askAt = g.now() + int64(minIdle)
			a.next = e.askAt
		}
		a.target = target
	} else {
		a.next = e.askAt
	}
	g.publish(e, a)
	g.schedule(e)
}

// seed makes a tag's yes that of the digest it named, at no request. It returns the
// entry of the digest; nil if there may be no more entries.
func (g *Gate) seed(tag *entry, t try, started int64) *entry {
	image := tag.image().At(t.digest)
	e := g.table.find(image, tag.who.credentials, tag.who.trust)
	if e == nil {
		tag.heat().touch(g.now()) // so that room is not made at its own cost
		if !g.makeRoom(tag.owner) {
			return nil
		}
		e = g.insert(image, tag.who, tag.owner, g.now())
	}
	e.heat().touch(g.now())
	a := e.answer.Load()
	if a.state == Allowed && a.candidate != t.candidate || a.checked > started {
		return e // it has a yes of its own, or was asked later than the tag
	}
	e.queued = false
	g.allow(e, t, 1, started)
	return e
}

// notRenewed notes that a standing yes got no yes this time. It goes on for those who
// hold it.
func (g *Gate) notRenewed(f *flight, old *answer, now int64) {
	e := f.entry
	t := f.tried[0]
	if f.question == firstSight {
		// The yes came from elsewhere while this question, older than it, was under way.
		for _, t = range f.tried {
			if t.candidate == old.candidate {
				break
			}
		}
		if t.candidate != old.candidate || t.result != refused {
			g.schedule(e)
			return
		}
	}
	a := *old
	tried := f.tried
	a.tried, a.asked = &tried, countOf(tried)
	if !e.pinned() && t.result == refused && t.reason == reasonNotFound && t.fromRegistry {
		g.tagGone(f, &a)
		return
	}
	if t.result == refused && !e.suspect {
		e.suspect, e.attempt = true, 0
		e.askAt = now + int64(g.config.ConfirmAfter) + jittered(g.config.ConfirmAfter*5/2, 1)
		if !e.pinned() {
			g.hurry(a.target)
		}
	} else {
		if g.worthRetrying(e, f.tried) && a.stale == 0 {
			g.retry(e, f.tried, now)
			return
		}
		e.askAt = g.later(e, f.tried, now)
	}
	a.next = e.askAt
	if a.stale == 0 {
		a.stale = now
	}
	g.publish(e, &a)
	g.schedule(e)
}

// tagGone notes that a tag was deleted. That ends nothing: the right to what it named
// is asked by digest.
func (g *Gate) tagGone(f *flight, a *answer) {
	e := f.entry
	a.reason, a.stale, a.checked, a.next = reasonTagGone, 0, f.started, 0
	e.askAt, e.suspect, e.attempt = never, false, 0
	g.hurry(a.target)
	g.publish(e, a)
	g.schedule(e)
}

// hurry has a yes asked again at once: there is reason to doubt it.
func (g *Gate) hurry(e *entry) {
	if a := e.answer.Load(); a.state == Allowed && !e.suspect && !a.removed {
		g.askSoon(e)
	}
}

// unanswered notes that some candidate got no answer that counts, and none got a yes: a
// no stays a no, and what was not known still is not.
func (g *Gate) unanswered(f *flight, now int64) {
	e := f.entry
	for _, t := range f.tried {
		if t.result == refused && t.candidate < 8 {
			e.refused |= 1 << t.candidate // it has had its answer in this round
		}
	}
	if g.worthRetrying(e, f.tried) {
		g.retry(e, f.tried, now)
		return
	}
	a := *e.answer.Load()
	tried := f.tried
	a.tried, a.asked = &tried, countOf(tried)
	if a.state != Denied {
		a.state, a.reason = Unknown, reasonUnreachable
		for _, t := range f.tried {
			if t.result == noAnswer && t.reason != 0 {
				a.reason = t.reason
			}
		}
	}
	e.askAt = g.later(e, f.tried, now)
	a.next = g.unlessIdle(e, now)
	g.publish(e, &a)
	g.schedule(e)
}

// deny notes that every candidate was refused.
func (g *Gate) deny(f *flight, now int64) {
	e := f.entry
	old := e.answer.Load()
	tried := f.tried
	a := &answer{state: Denied, digest: old.digest, checked: now, tried: &tried, asked: countOf(tried)}
	a.reason = f.tried[0].reason
	for _, t := range f.tried[1:] {
		if t.reason != a.reason {
			a.reason = reasonUnauthorized
		}
	}
	e.suspect = false
	if at := g.accountRetry(f, now); at != 0 {
		e.askAt = at
		e.attempt, e.refused = 0, 0
	} else {
		e.askAt = g.later(e, f.tried, now)
	}
	a.next = g.unlessIdle(e, now)
	g.publish(e, a)
	g.schedule(e)
}

// endGrace ends a yes that could not be renewed for too long.
func (g *Gate) endGrace(e *entry, old *answer) {
	a := *old
	a.state, a.reason, a.stale = Unknown, reasonUnreachable, 0
	e.suspect = false
	e.endYes()
	g.config.Log.Warn("a proof ended: its registry could not be asked for too long", "image", e.image().String(), "credential", e.who.cred.String())
	g.publish(e, &a)
}

// patience is the longest that a round of attempts waits because a registry says so;
// beyond it the round is over, and those who wait for its end are told.
const patience = 10 * time.Second

// worthRetrying reports whether the round goes on after an attempt without an answer.
func (g *Gate) worthRetrying(e *entry, tried []try) bool {
	return int(e.attempt)+1 < g.config.Attempts && waitFor(tried) <= int64(patience)
}

// retry has e asked again within the round: 1 s after the first attempt, doubling.
func (g *Gate) retry(e *entry, tried []try, now int64) {
	delay := jittered(doubled(time.Second, time.Minute, e.attempt), 0.2)
	e.attempt++
	g.askLater(e, now+max(delay, waitFor(tried)))
}

// later ends a round and returns when the next begins: after 15 s, doubling to 5 min,
// or when the registry said.
func (g *Gate) later(e *entry, tried []try, now int64) int64 {
	delay := jittered(doubled(g.config.DeniedFirst, g.config.DeniedMax, e.strikes), 0.1)
	e.attempt, e.refused = 0, 0
	e.strikes = min(e.strikes+1, 64)
	return now + max(delay, waitFor(tried))
}

// waitFor returns how long the registry asked to be left alone: by all who were asked
// without an answer.
func waitFor(tried []try) int64 {
	wait := int64(0)
	for _, t := range tried {
		if t.retryAfter > 0 {
			wait = max(wait, int64(min(t.retryAfter, maxRetryAfter)))
		}
	}
	return wait
}

// unlessIdle lets e sleep until it is used, if nobody has been interested in it for
// longer than the wait before; it returns the time to publish. A plugin that is gone
// has nothing asked for a day.
func (g *Gate) unlessIdle(e *entry, now int64) int64 {
	idle := now - e.heat().used.Load()
	if e.held == 0 && idle > 2*int64(g.config.DeniedMax)+2*(e.askAt-now) {
		e.askAt = never
		return 0
	}
	return e.askAt
}
