package access

import (
	"cmp"
	"slices"
	"time"

	"github.com/stileproject/stile/internal/oci"
)

// List returns what the Gate knows, sorted by image and credential.
func (g *Gate) List() []Entry {
	var all []*entry
	g.table.each(func(e *entry) { all = append(all, e) })
	list := make([]Entry, 0, len(all))
	for len(all) > 0 {
		// In pieces, so that a long list keeps nobody waiting.
		n := min(batch, len(all))
		g.mu.Lock()
		for _, e := range all[:n] {
			if a := e.answer.Load(); !a.removed {
				list = append(list, g.show(e, a))
			}
		}
		g.mu.Unlock()
		all = all[n:]
	}
	slices.SortFunc(list, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Image, b.Image), slices.Compare(a.Credential[:], b.Credential[:]))
	})
	return list
}

// show returns e as the API shows it. Gate.mu is held.
func (g *Gate) show(e *entry, a *answer) Entry {
	shown := Entry{
		Image:      e.image().String(),
		Credential: e.who.cred,
		State:      a.state,
		Reason:     a.reason.reason(),
		Digest:     a.digest,
		CheckedAt:  g.shownTime(a.checked),
		NextCheck:  g.shownTime(a.next),
		StaleSince: g.shownTime(a.stale),
		LastUsed:   g.shownTime(e.heat().used.Load()),
		Users:      []string{},
	}
	for h := e.holds; h != nil; h = h.next {
		if h.current {
			shown.Users = append(shown.Users, h.holder.String())
		}
	}
	for holder := range g.waiters[e] {
		shown.Users = append(shown.Users, holder.String())
	}
	slices.Sort(shown.Users)
	shown.Users = slices.Compact(shown.Users)
	return shown
}

func (g *Gate) shownTime(t int64) *time.Time {
	if t == 0 {
		return nil
	}
	return new(g.at(t).UTC().Round(0))
}

// recheckEvery is how often Recheck asks for one image.
const recheckEvery = int64(10 * time.Second)

// Recheck has an image asked again now, for everybody who uses it; of a tag, also the
// digest that it names. It returns how many entries that are, and ErrTooSoon if it was
// called for the image in the last 10 s.
func (g *Gate) Recheck(image oci.Reference) (int, error) {
	var found []*entry
	g.table.each(func(e *entry) {
		if e.name == image.ID() {
			found = append(found, e)
		}
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	if last, ok := g.rechecks[image]; ok && now-last < recheckEvery {
		return 0, ErrTooSoon
	}
	if len(found) == 0 {
		return 0, nil
	}
	for image, last := range g.rechecks {
		if now-last >= recheckEvery {
			delete(g.rechecks, image)
		}
	}
	g.rechecks[image] = now
	n := 0
	for _, e := range found {
		n += g.askAgain(e)
		if t := e.answer.Load().target; t != nil {
			n += g.askAgain(t)
		}
	}
	return n, nil
}

// askAgain has e asked now, whatever its schedule and the back-off of its account; a
// registry that asked to be left alone is. It returns 1, or 0 if e is gone.
func (g *Gate) askAgain(e *entry) int {
	if e.answer.Load().removed {
		return 0
	}
	if e.suspect {
		return 1 // it is about to be confirmed, and not sooner than that is worth
	}
	e.forced = true
	e.attempt, e.strikes, e.refused = 0, 0, 0
	g.askSoon(e)
	return 1
}
