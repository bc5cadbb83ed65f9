package access

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stileproject/stile/internal/oci"
)

// TestHammer does everything at once, for the race detector, and then looks whether the
// books are right.
func TestHammer(t *testing.T) {
	t.Parallel()
	w := newWorld()
	for i := range 4 {
		w.says(fmt.Sprint("user-", i), "", func(asked) (string, error) {
			switch rand.IntN(6) {
			case 0:
				return "", status(403)
			case 1:
				return "", ingress(503)
			case 2:
				return "", accountRefused()
			default:
				return digest(1), nil
			}
		})
	}
	g := New(w, Config{
		Recheck: 5 * time.Millisecond, Forget: 20 * time.Millisecond, DeniedFirst: time.Millisecond, DeniedMax: 3 * time.Millisecond, ConfirmAfter: time.Millisecond,
		UnauthorizedFirst: time.Millisecond, UnauthorizedMax: 2 * time.Millisecond, Attempts: 1, MaxPerNamespace: 40, MaxProofs: 100, Budget: 1 << 20,
		Grace: 30 * time.Millisecond, GraceWhileAnswering: 10 * time.Millisecond,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- g.Run(ctx) }()
	end := time.Now().Add(400 * time.Millisecond)
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(worker), 7))
			for time.Now().Before(end) {
				user := fmt.Sprint("user-", rnd.IntN(4))
				r := plugin(t, fmt.Sprint("team-", rnd.IntN(4)), fmt.Sprintf("host-%d.example/p%d@%s", rnd.IntN(2), rnd.IntN(12), digest(1)), as(user))
				r.Holder.Name = fmt.Sprint("p", rnd.IntN(10))
				switch rnd.IntN(12) {
				case 0:
					g.Release(r.Holder)
				case 1:
					g.Forget(r.Credentials.Fingerprint(), r.Holder)
				case 2:
					if _, err := g.Recheck(r.Image); err != nil && !errors.Is(err, ErrTooSoon) {
						t.Error(err)
					}
				case 3:
					g.List()
				case 4:
					short, stop := context.WithTimeout(ctx, time.Millisecond)
					_, _, _ = g.Prove(short, r) // whatever comes of it
					stop()
				case 5, 6:
					r.Image = ref(t, r.Image.Source()+":v1")
					r.NotBefore = time.Now().Add(-time.Duration(rnd.IntN(20)) * time.Millisecond)
					g.Check(r)
				case 7, 8, 9:
					g.Check(r)
				default:
					if p, v := g.Hold(r); p != (Proof{}) && (p.Credential().Origin() != user || v.State != Allowed) {
						t.Errorf("%s was lent the right of %s", user, p.Credential().Origin())
					}
				}
			}
		})
	}
	group.Wait()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.busy != 0 {
		t.Errorf("%d questions under way after Run", g.busy)
	}
	g.balance(t)
}

// balance checks that what the Gate counts is what there is. Gate.mu is held.
func (g *Gate) balance(t *testing.T) {
	t.Helper()
	asking := 0
	g.table.each(func(e *entry) {
		if e.asking {
			asking++
		}
	})
	if asking > g.busy { // there may be more, of entries that were dropped
		t.Errorf("%d questions under way, counted %d", asking, g.busy)
	}
	byHost, byNamespace, held := map[*host]int{}, map[*namespace]int{}, map[*entry]int32{}
	n := 0
	g.table.each(func(e *entry) {
		n++
		byHost[e.who.host]++
		byNamespace[e.owner]++
		if e.index < 0 || g.agenda[e.index].entry != e {
			t.Errorf("%v is not on the agenda", e.image())
		}
		if e.answer.Load().removed {
			t.Errorf("%v was removed and is there", e.image())
		}
	})
	if n != g.table.count || n != len(g.agenda) {
		t.Errorf("%d entries, counted %d, on the agenda %d", n, g.table.count, len(g.agenda))
	}
	for _, c := range g.claims {
		if c.entry != nil {
			held[c.entry]++
		}
		for _, h := range c.holds {
			if h.stands.Load() && (!h.linked() || h.entry.answer.Load().state != Allowed) {
				t.Errorf("a proof of %v stands, and the yes does not", h.entry.image())
			}
		}
	}
	g.table.each(func(e *entry) {
		if e.held != held[e] {
			t.Errorf("%v is held %d times, counted %d", e.image(), held[e], e.held)
		}
	})
	for name, h := range g.hosts {
		if h.name != name || h.busy > g.busy || h.entries != byHost[h] {
			t.Errorf("registry %s: %d under way, %d entries, counted %d", name, h.busy, byHost[h], h.entries)
		}
		for _, q := range h.queues {
			if q.busy > h.busy {
				t.Errorf("registry %s: %d under way for %s", name, q.busy, q.ns.name)
			}
		}
	}
	for name, ns := range g.namespaces {
		if ns.busy > g.busy || ns.entries != byNamespace[ns] || ns.entries > g.config.MaxPerNamespace {
			t.Errorf("namespace %s: %d under way, %d entries, counted %d", name, ns.busy, byNamespace[ns], ns.entries)
		}
	}
	if n > g.config.MaxProofs {
		t.Errorf("%d under way, %d entries", g.busy, n)
	}
	for _, p := range g.principals {
		for e := p.first; e != nil; e = e.next {
			n--
		}
	}
	if n != 0 {
		t.Errorf("%d entries are in no principal's list", n)
	}
}

var _ Registry = (*oci.Client)(nil)
