package access

import (
	"time"

	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
)

// accountKey is one candidate at one registry, spoken to in one way.
type accountKey struct{ cred, via secret.Fingerprint }

// account is what a registry said about a candidate whatever the image: wait, or that
// it is refused altogether. Gate.mu guards it.
type account struct {
	waitUntil int64               // the registry asked to be left alone until then
	refused   int64               // since when it is refused; 0 = it is not
	retryAt   int64               // when one image may try it again
	strikes   uint8               // refusals in a row
	confirmed bool                // refused more than once
	by, also  *entry              // the first image it was refused for, and the first in another repository; nil = none
	doubted   *entry              // it was refused for this image, and then accepted for another
	perImage  bool                // the registry refuses accounts for one image and not for another
	trying    *entry              // the image that tries it now, for all
	waiting   map[*entry]struct{} // denied for its sake, to be asked when it is accepted
	asked     bool                // it was asked before, whatever came of it
	behind    map[*entry]struct{} // those that let the first one ask before them
}

func (g *Gate) account(e *entry, candidate uint8, create bool) *account {
	key := accountKey{e.who.candidate(candidate).Fingerprint(), e.who.via}
	h := e.who.host
	a := h.accounts[key]
	if a == nil && create {
		if h.accounts == nil {
			h.accounts = map[accountKey]*account{}
		}
		const many = 1024
		if len(h.accounts) >= many {
			h.forgetAccounts(g.now())
		}
		a = &account{}
		h.accounts[key] = a
	}
	return a
}

// forgetAccounts drops what is over.
func (h *host) forgetAccounts(now int64) {
	for key, a := range h.accounts {
		if a.trying == nil && a.waitUntil <= now && (a.refused == 0 || a.retryAt <= now) {
			delete(h.accounts, key)
		}
	}
}

// knownOfAccount returns the answer that e's candidate would get, if what the registry
// said of the account decides it; nil = ask. Gate.mu is held.
func (g *Gate) knownOfAccount(e *entry, candidate uint8, q question, now int64) *try {
	a := g.account(e, candidate, false)
	if (a == nil || !a.asked) && q != confirming && !e.who.candidate(candidate).Anonymous() {
		// One asks first, so that a wrong password is tried once and not by all at once.
		a = g.account(e, candidate, true)
		if a.trying == nil {
			a.trying = e
		}
		if a.trying != e {
			return &try{postponed: true}
		}
	}
	if a == nil {
		return nil
	}
	if now < a.waitUntil {
		return &try{
			reason:     reasonUnreachable,
			retryAfter: time.Duration(a.waitUntil - now),
			detail:     "the registry asked to be left alone for now",
		}
	}
	if a.refused == 0 || e.forced {
		return nil
	}
	if q == renewal && (!a.confirmed || a.also == nil) {
		return nil // this yes has to be refused itself, unless that happened to two already
	}
	if q != renewal && now >= a.retryAt && a.trying == nil {
		a.trying = e
		return nil
	}
	return &try{result: refused, reason: reasonUnauthorized, status: 401, account: true}
}

// learn notes what the answers of a flight say about accounts. Gate.mu is held.
func (g *Gate) learn(f *flight, now int64) {
	e := f.entry
	for at := range e.who.count() {
		if acct := g.account(e, at, false); acct != nil {
			delete(acct.waiting, e)
		}
	}
	for i := range f.tried {
		t := &f.tried[i]
		if t.result == granted || t.result == refused && t.sent && t.fromRegistry {
			e.who.host.answered = now
		}
		acct := g.account(e, t.candidate, t.retryAfter > 0 && t.sent || t.account && t.sent)
		if acct == nil {
			continue
		}
		acct.asked = acct.asked || t.sent
		if t.account && t.sent && acct.onlyOf(e) {
			t.account = false
		}
		switch {
		case !t.sent:
			if t.account && f.question == firstSight {
				if acct.waiting == nil {
					acct.waiting = map[*entry]struct{}{}
				}
				acct.waiting[e] = struct{}{}
			}
		case t.retryAfter > 0:
			acct.waitUntil = max(acct.waitUntil, now+int64(min(t.retryAfter, oci.MaxRetryAfter)))
		case t.account:
			if acct.refused == 0 {
				acct.refused, acct.by = now, e
			} else {
				if acct.also == nil && acct.by != nil && acct.by.image().Repository() != e.image().Repository() {
					acct.also = e
				}
				acct.strikes = min(acct.strikes+1, 32)
				acct.confirmed = true
			}
			acct.retryAt = now + jittered(doubled(g.config.UnauthorizedFirst, g.config.UnauthorizedMax, acct.strikes), 0.1)
		case t.result == granted || t.result == refused && t.fromRegistry:
			g.accepted(acct, e)
		}
	}
	e.forced = false
	g.leaveAccounts(e)
}

// onlyOf reports whether a refusal of the account for e is one of the image after all:
// there are registries that answer 401 for what the account may not read. It shows when
// the account was accepted for another image and is refused for this one as before.
func (a *account) onlyOf(e *entry) bool {
	if a.doubted == e {
		a.perImage = true
	}
	return a.perImage
}

// accepted notes that the account is good for e, and so for others: those that waited
// for it are asked now.
func (g *Gate) accepted(acct *account, e *entry) {
	if acct.refused != 0 && acct.by != e {
		acct.doubted = acct.by
	}
	if acct.doubted == e {
		acct.doubted = nil
	}
	acct.by, acct.also = nil, nil
	acct.refused, acct.strikes, acct.confirmed = 0, 0, false
	for e := range acct.waiting {
		if !e.answer.Load().removed {
			g.askSoon(e)
		}
	}
	acct.waiting = nil
}

// letAskFirst has e wait for the one that asks before it.
func (g *Gate) letAskFirst(f *flight, now int64) {
	e := f.entry
	acct := g.account(e, f.tried[len(f.tried)-1].candidate, false)
	if acct == nil || acct.trying == nil {
		g.askSoon(e) // that one is back already
		return
	}
	if acct.behind == nil {
		acct.behind = map[*entry]struct{}{}
	}
	acct.behind[e] = struct{}{}
	e.askAt = now + int64(g.config.Timeout) + int64(time.Second)
	g.schedule(e)
}

// leaveAccounts ends that e asks for any account, and lets those go who waited for
// that. Gate.mu is held.
func (g *Gate) leaveAccounts(e *entry) {
	if len(e.who.host.accounts) == 0 {
		return
	}
	for at := range e.who.count() {
		if acct := g.account(e, at, false); acct != nil {
			delete(acct.behind, e)
			if acct.trying != e {
				continue
			}
			acct.trying = nil
			behind := acct.behind
			acct.behind = nil
			for other := range behind {
				if !other.answer.Load().removed {
					g.askSoon(other)
				}
			}
		}
	}
}

// accountRetry returns when an entry whose candidates' accounts were all refused is
// worth asking: when the first of them may be tried again. 0 = some were asked.
func (g *Gate) accountRetry(f *flight, now int64) int64 {
	at := int64(never)
	for _, t := range f.tried {
		if !t.account {
			return 0
		}
		if acct := g.account(f.entry, t.candidate, false); acct != nil {
			at = min(at, max(acct.retryAt, now+int64(g.config.DeniedFirst)))
		}
	}
	if at == never {
		return 0
	}
	return at
}
