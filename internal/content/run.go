package content

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/store"
	"github.com/stileproject/stile/internal/wasm"
)

// Backoff of the tries in the background: for what a registry may mend by itself in a
// moment, and for what takes somebody to act.
const (
	retryFirst = time.Second
	retrySlow  = 30 * time.Second
	retryMax   = 5 * time.Minute
	// pruneEvery is how often items are forgotten that nobody needs; they come back from
	// the store when they are asked for.
	pruneEvery   = time.Minute
	itemInterest = time.Hour
)

// Run fetches what is asked for until ctx ends, and owns every goroutine that does.
// It returns nil once all have ended. It runs once.
func (c *Contents) Run(ctx context.Context) error {
	c.mu.Lock()
	c.running = true
	c.mu.Unlock()
	var flights sync.WaitGroup
	defer flights.Wait()
	defer c.stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		c.mu.Lock()
		next := c.enqueueDue(time.Now())
		for {
			e := c.queue.next()
			if e == nil {
				break
			}
			flights.Go(func() {
				c.try(ctx, e.it, e.namespace)
				c.mu.Lock()
				c.queue.done(e)
				c.mu.Unlock()
				signal(c.wake)
			})
		}
		c.mu.Unlock()
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		case <-timer.C:
		}
	}
}

// stop gives what waits back to those who wait: Fetch does its own work from now on.
func (c *Contents) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = false
	for _, it := range c.queue.drain() {
		close(it.flight)
		it.flight = nil
	}
}

// enqueue has the item brought, for the namespace. Called with mu held.
func (c *Contents) enqueue(it *item, namespace string) {
	if it.flight != nil {
		return
	}
	it.flight = make(chan struct{})
	c.queue.push(it, namespace)
	signal(c.wake)
}

// enqueueDue queues the items whose next try is due, forgets those that nobody needs,
// and returns when to look again. Called with mu held.
func (c *Contents) enqueueDue(now time.Time) time.Time {
	if now.Before(c.nextLook) {
		return c.nextLook
	}
	next := now.Add(pruneEvery)
	for k, it := range c.items {
		if it.flight != nil {
			continue
		}
		if !it.wanted(now) {
			delete(c.items, k)
			continue
		}
		switch {
		case it.due.IsZero():
		case it.due.After(now):
			if it.due.Before(next) {
				next = it.due
			}
		case it.url != nil && now.Sub(it.lastAsked) > urlInterest:
			it.due = time.Time{}
			signal(c.changed) // whoever still wants it asks again
		default:
			c.enqueue(it, it.namespace())
		}
	}
	c.nextLook = next
	return next
}

// wanted reports whether anybody may still ask for the item.
func (it *item) wanted(now time.Time) bool {
	if it.url != nil {
		return now.Sub(it.lastAsked) < itemInterest
	}
	return slices.ContainsFunc(it.askers, access.Proof.Stands)
}

// namespace is to whom a try in the background is charged.
func (it *item) namespace() string {
	if it.url != nil {
		return it.url.Namespace
	}
	if i := slices.IndexFunc(it.askers, access.Proof.Stands); i >= 0 {
		return it.askers[i].Namespace()
	}
	return ""
}

// try makes one try to bring the item, and ends its flight.
func (c *Contents) try(ctx context.Context, it *item, namespace string) {
	start := time.Now()
	limited, cancel := context.WithTimeout(ctx, c.config.Timeout)
	defer cancel()
	err := c.bring(limited, it, namespace)
	c.mu.Lock()
	defer c.mu.Unlock()
	close(it.flight)
	it.flight = nil
	switch problem, bad := errors.AsType[*Problem](err); {
	case err == nil:
		c.metrics.resolved.WithLabelValues("ok").Inc()
		if it.invalid() == nil {
			it.failures, it.due = 0, time.Time{}
		}
		delete(it.refused, namespace)
	case ctx.Err() != nil: // the caller gave up, or Run ends: nothing was learned
		return
	case errors.Is(err, errNobody): // no right stands any more
		it.problem, it.due = nil, time.Time{}
	case bad:
		c.metrics.resolved.WithLabelValues(problem.Reason).Inc()
		c.fail(it, problem, retryAfter(err))
		if errors.Is(err, store.ErrNamespaceFull) {
			// It concerns this namespace alone; the others are still to be answered.
			if it.refused == nil {
				it.refused = map[string]*Problem{}
			}
			it.refused[namespace], it.problem = problem, nil
		}
	default: // bring returns nothing else; were it to, it is a fault that a retry may mend
		c.fail(it, &Problem{Reason: ReasonRegistryUnreachable, Message: err.Error(), Retry: true}, 0)
	}
	c.metrics.duration.Observe(time.Since(start).Seconds())
	signal(c.changed)
}

// fail notes the problem and when to try again. Called with mu held.
func (c *Contents) fail(it *item, p *Problem, atLeast time.Duration) {
	it.failures++
	p.Retry = p.Retry || it.url != nil || it.mendable() // a digest is for ever; what a URL delivers may be mended
	if p.Retry {
		p.NextTry = time.Now().Add(max(backoff(p.Reason, it.failures), atLeast))
		it.due = p.NextTry
		if it.due.Before(c.nextLook) {
			c.nextLook = it.due
		}
		signal(c.wake)
	} else {
		it.due = time.Time{}
	}
	c.log.Info("content: not had", "source", c.printable(it), "name", it.key.name, "reason", p.Reason, "message", p.Message, "nextTry", p.NextTry)
	it.problem = p
}

// backoff doubles with each failure and is spread by a fifth to either side.
func backoff(reason string, failures int) time.Duration {
	d := retrySlow
	if reason == ReasonRegistryUnreachable {
		d = retryFirst
	}
	for i := 1; i < failures && d < retryMax; i++ {
		d *= 2
	}
	d = min(d, retryMax)
	return d - d/5 + rand.N(2*d/5) //nolint:gosec // spreads load, keeps no secret
}

func retryAfter(err error) time.Duration {
	if e, ok := errors.AsType[*oci.Error](err); ok {
		return e.RetryAfter
	}
	return 0
}

// invalidModule is the Problem of a module with findings that are errors.
func invalidModule(findings []wasm.Finding) *Problem {
	message := ""
	for _, f := range findings {
		if f.Severity != wasm.SeverityError {
			continue
		}
		if message != "" {
			message += "; "
		}
		message += f.Message + " (" + f.Fix + ")"
	}
	return &Problem{Reason: ReasonModuleInvalid, Message: message}
}
