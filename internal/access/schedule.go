package access

import (
	"container/heap"
	"context"
	"math"
	"math/rand/v2"
	"time"
)

// never is a time that does not come.
const never = math.MaxInt64

// batch bounds what the scheduler does under the lock at a time.
const batch = 128

// agenda is a heap of entries by due time: what is not due costs nothing.
type agenda []appointment

// appointment is when the scheduler looks at an entry again.
type appointment struct {
	due   int64
	entry *entry
}

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].due < a[j].due }
func (a agenda) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].entry.index, a[j].entry.index = int32(i), int32(j) //nolint:gosec // the caps are far lower
}

// Push is part of heap.Interface; it takes an *entry, and leaves its time to Fix.
func (a *agenda) Push(x any) {
	e := x.(*entry)
	e.index = int32(len(*a)) //nolint:gosec // the caps are far lower
	*a = append(*a, appointment{never, e})
}

// Pop is part of heap.Interface.
func (a *agenda) Pop() any {
	old := *a
	e := old[len(old)-1].entry
	old[len(old)-1] = appointment{}
	*a = old[:len(old)-1]
	e.index = -1
	return e
}

// schedule puts e on the agenda at its next moment: to be asked, to be forgotten,
// or the end of its grace. Gate.mu is held.
func (g *Gate) schedule(e *entry) {
	due := int64(never)
	if !e.asking && !e.queued {
		due = e.askAt
	}
	if e.held == 0 {
		due = min(due, e.heat().used.Load()+int64(g.config.Forget))
	}
	if a := e.answer.Load(); a.state == Allowed && a.stale != 0 && e.pinned() {
		due = min(due, g.graceEnd(e, a))
	}
	if e.index < 0 {
		heap.Push(&g.agenda, e) // last, and stays there
	}
	g.agenda[e.index].due = due
	heap.Fix(&g.agenda, int(e.index))
	if e.index == 0 {
		g.poke()
	}
}

// unschedule takes e off the agenda. Gate.mu is held.
func (g *Gate) unschedule(e *entry) {
	if e.index >= 0 {
		heap.Remove(&g.agenda, int(e.index))
	}
}

// poke wakes the scheduler.
func (g *Gate) poke() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// keepTime does what is due until ctx ends.
func (g *Gate) keepTime(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait := g.doDue()
		if wait == 0 {
			if ctx.Err() != nil {
				return
			}
			continue // more is due; others had their turn at the lock
		}
		timer.Reset(min(wait, g.lag))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-g.wake:
		}
	}
}

// doDue does a batch of what is due and returns how long to wait for the next; 0 = do
// not wait.
func (g *Gate) doDue() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	resume := g.resume(now)
	for range batch {
		if len(g.agenda) == 0 || g.agenda[0].due > now {
			next := min(resume, now+int64(time.Hour))
			if len(g.agenda) > 0 {
				next = min(next, g.agenda[0].due)
			}
			return time.Duration(next - now)
		}
		g.act(g.agenda[0].entry, now)
	}
	return 0
}

// act does what is due for e. Gate.mu is held.
func (g *Gate) act(e *entry, now int64) {
	a := e.answer.Load()
	switch {
	case e.held == 0 && now-e.heat().used.Load() >= int64(g.config.Forget) && !g.namesWhatIsHeld(e, a):
		g.drop(e)
		return
	case a.state == Allowed && a.stale != 0 && e.pinned() && now >= g.graceEnd(e, a):
		g.endGrace(e, a)
	case e.askAt <= now && !e.asking && !e.queued:
		e.askAt = never
		g.enqueue(e)
	}
	g.schedule(e)
}

// namesWhatIsHeld reports whether e is a tag whose digest is held: it is in use as long
// as that is, and then it is used now.
func (g *Gate) namesWhatIsHeld(e *entry, a *answer) bool {
	if a.target == nil || a.target.held == 0 {
		return false
	}
	e.heat().used.Store(g.now())
	if g.config.Archive != nil {
		g.archive(e, a) // so that it does not look forgotten
	}
	return true
}

// graceEnd returns when a stale yes ends: counted from the last real yes, long while
// the registry answers nobody, short once it has answered anyone. However short, a
// yes has a quarter of the re-check interval from its first failure on, so that one
// bad minute at the end of an interval ends nothing.
func (g *Gate) graceEnd(e *entry, a *answer) int64 {
	h := e.who.host
	end := a.checked + int64(h.grace)
	if h.answered >= a.stale {
		short := max(a.checked+int64(g.config.GraceWhileAnswering), a.stale+int64(g.config.Recheck/4))
		end = min(end, short)
	}
	return end
}

// jittered returns d ± part of it, part being 0.1 for 10 %.
func jittered(d time.Duration, part float64) int64 {
	return int64(float64(d) * (1 + part*(2*rand.Float64()-1))) //nolint:gosec // jitter is no secret
}

// doubled returns first · 2ⁿ, at most limit.
func doubled(first, limit time.Duration, n uint8) time.Duration {
	for range n {
		if first >= limit/2 {
			return limit
		}
		first *= 2
	}
	return min(first, limit)
}
