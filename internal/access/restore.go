package access

import "time"

func (e *entry) id() rowID { return rowID{image: e.image(), cred: e.who.cred, via: e.who.via} }

// formerID is what id was before the last rotation of the root key.
func (e *entry) formerID() rowID {
	return rowID{image: e.image(), cred: e.who.credentials.Previous(), via: e.who.trust.Previous(), former: true}
}

// archived brings what changed of e into the archive. Gate.mu is held.
func (g *Gate) archived(e *entry, old, a *answer) {
	if g.config.Archive == nil {
		return
	}
	switch {
	case a.state == Allowed && (old.state != Allowed || old.checked != a.checked || old.stale != a.stale || old.reason != a.reason || old.candidate != a.candidate):
		g.archive(e, a)
	case old.state == Allowed && a.state != Allowed:
		g.config.Archive.keep(e.id(), nil)
	}
}

// archive has e's yes written.
func (g *Gate) archive(e *entry, a *answer) {
	r := &row{
		candidate: e.who.candidate(a.candidate).Fingerprint(),
		digest:    rawDigest(a.digest),
		checked:   g.unix(a.checked),
		stale:     g.unix(a.stale),
		written:   time.Now().UnixNano(),
	}
	if a.reason == reasonTagGone {
		r.flags |= flagTagGone
	}
	g.config.Archive.keep(e.id(), r)
}

// unix returns a time of an entry as the archive counts it; 0 stays 0.
func (g *Gate) unix(t int64) int64 {
	if t == 0 {
		return 0
	}
	return g.at(t).UnixNano()
}

// offset is the reverse of unix.
func (g *Gate) offset(unix int64) int64 {
	if unix == 0 {
		return 0
	}
	return unix - g.base.UnixNano()
}

// restore takes up what was known of e before the process began, with no request. It
// reports whether anything was. Gate.mu is held.
func (g *Gate) restore(e *entry, now int64) bool {
	if g.config.Archive == nil {
		return false
	}
	r, ok := g.config.Archive.take(e.id(), e.formerID())
	if !ok {
		return false
	}
	a, ok := g.revive(e, r, now)
	if !ok {
		g.config.Archive.keep(e.id(), nil)
		return false
	}
	e.restored = true
	switch {
	case !e.pinned():
	case a.stale != 0:
		e.askAt = now
	default:
		e.askAt = a.checked + jittered(g.config.Recheck, 0.1)
		if e.askAt <= now {
			// It should have been renewed while nobody ran: until it is, it is for those
			// who held it. What is due after a long sleep is spread a little.
			a.stale = now
			e.askAt = now + jittered(min(time.Second, g.config.Recheck/100), 1)
		}
		a.next = e.askAt
	}
	old := e.set(a)
	g.metrics.moved(old, a)
	g.audit.verdict(e, a)
	g.notify()
	g.schedule(e)
	if r.former {
		g.archive(e, a)
	}
	return true
}

// revive makes an answer of a row, unless it is too old or not e's.
func (g *Gate) revive(e *entry, r row, now int64) (*answer, bool) {
	a := &answer{state: Allowed, digest: textDigest(r.digest), checked: g.offset(r.checked), stale: g.offset(r.stale), asked: 1}
	found := false
	for i, c := range e.who.credentials.Candidates() {
		if !r.former && c.Fingerprint() == r.candidate || r.former && c.Previous() == r.candidate {
			a.candidate, found = uint8(i), true
			break
		}
	}
	if !found || g.at(a.checked).After(time.Now().Add(time.Minute)) {
		return nil, false
	}
	if e.pinned() {
		if a.digest != e.image().Digest() || now-a.checked >= int64(e.who.host.grace) {
			return nil, false
		}
		a.digest = e.image().Digest()
		return a, true
	}
	if now-g.offset(r.written) > 3*int64(g.config.Forget) {
		return nil, false
	}
	image := e.image().At(a.digest)
	target := g.table.find(image, e.who.credentials, e.who.trust)
	if target == nil {
		if !g.makeRoom(e.owner) {
			return nil, false
		}
		target = g.insert(image, e.who, e.owner, now)
		if !g.restore(target, now) {
			g.askSoon(target)
		}
	}
	if r.flags&flagTagGone != 0 {
		a.reason = reasonTagGone
	}
	a.target, a.digest = target, image.Digest()
	return a, true
}

// heldBefore reports whether the holder held e's yes when the last process ended, and
// the yes is still that one. Who has not come back for it within a re-check interval
// has to wait as everybody new does. Gate.mu is held.
func (g *Gate) heldBefore(holder Holder, e *entry) bool {
	return e.restored && g.now() < int64(g.config.Recheck) && g.config.Archive.heldBefore(holder, e.id(), e.formerID())
}

// archiveHolder has it written that the holder holds e; nil = nothing. Gate.mu is held.
func (g *Gate) archiveHolder(holder Holder, e *entry) {
	if g.config.Archive == nil {
		return
	}
	if e == nil {
		g.config.Archive.keepHolder(holder, nil)
		return
	}
	g.config.Archive.keepHolder(holder, new(e.id()))
}
