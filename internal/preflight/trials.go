package preflight

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config is how Trials behave. The zero value of every field is its default.
type Config struct {
	Limits Limits
	// Parallel is how many modules are tried at a time, one of a namespace while others
	// wait. 0 = 2.
	Parallel int
	// Keep is how many verdicts are remembered. 0 = 10,000.
	Keep       int
	Log        *slog.Logger          // nil = nothing is logged
	Registerer prometheus.Registerer // nil = no metrics
}

const (
	retryFirst = time.Second // for what could not even be opened
	retryMax   = time.Minute
	forgetIdle = time.Hour // for what could not be tried and nobody asks for
)

// Trials remember verdicts and have them made, in the background, for those who ask and
// do not wait. Methods may be called concurrently, before Run and after it.
type Trials struct {
	config  Config
	log     *slog.Logger
	tried   *prometheus.CounterVec
	changed chan struct{}
	wake    chan struct{}
	try     func(context.Context, Subject, Limits) (Verdict, error)

	mu      sync.Mutex
	entries map[key]*entry
	waiting []*entry             // in the order of asking
	running map[string]int       // by namespace
	served  map[string]time.Time // when a namespace last had its turn
	flights int
}

// key is what a verdict is about: a module and all that it was given.
type key struct {
	module string
	given  [sha256.Size]byte
}

type entry struct {
	key      key
	subject  Subject
	done     bool
	verdict  Verdict
	queued   bool
	failures int
	due      time.Time // of the next try, after one that could not be made
	asked    time.Time
}

// New returns Trials that know nothing. Run makes verdicts.
func New(c Config) *Trials {
	if c.Parallel <= 0 {
		c.Parallel = 2
	}
	if c.Keep <= 0 {
		c.Keep = 10_000
	}
	c.Limits = c.Limits.withDefaults()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	t := &Trials{
		config: c, log: c.Log, try: Try,
		changed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		entries: map[key]*entry{}, running: map[string]int{}, served: map[string]time.Time{},
		tried: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stile_preflights_total", Help: "Modules tried before they ship, by outcome; error is a try that could not be made.",
		}, []string{"outcome"}),
	}
	if c.Registerer != nil {
		c.Registerer.MustRegister(t.tried)
	}
	return t
}

// Changes receives when there are verdicts that were not there before. Its capacity is
// 1: look at all that matters after each receive.
func (t *Trials) Changes() <-chan struct{} { return t.changed }

// Verdict returns what the trial of the subject showed. It answers from memory and
// never waits: ErrPending says that the trial is on its way. The same module with the
// same configuration is tried once.
func (t *Trials) Verdict(s Subject) (Verdict, error) {
	k := keyOf(s)
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[k]
	if e == nil {
		t.forget()
		e = &entry{key: k}
		t.entries[k] = e
	}
	e.asked = time.Now()
	if e.done {
		return e.verdict, nil
	}
	e.subject = s // its right to open the module is the latest
	if !e.queued && e.due.IsZero() {
		t.enqueue(e)
	}
	return Verdict{}, ErrPending
}

func keyOf(s Subject) key {
	given, _ := json.Marshal(struct { // a map's keys come sorted
		Config []byte
		Env    map[string]string
	}{s.Config, s.Env})
	return key{module: s.SHA256, given: sha256.Sum256(given)}
}

// enqueue is called with mu held.
func (t *Trials) enqueue(e *entry) {
	e.queued, e.due = true, time.Time{}
	t.waiting = append(t.waiting, e)
	signal(t.wake)
}

// forget makes room for one more: what was not asked for longest goes first. Called with
// mu held.
func (t *Trials) forget() {
	if len(t.entries) < t.config.Keep {
		return
	}
	var oldest *entry
	for _, e := range t.entries {
		if !e.queued && (oldest == nil || e.asked.Before(oldest.asked)) {
			oldest = e
		}
	}
	if oldest != nil {
		delete(t.entries, oldest.key)
	}
}

// Run tries what is asked for until ctx ends, and owns every goroutine and process that
// does. It returns nil once all have ended. It runs once.
func (t *Trials) Run(ctx context.Context) error {
	var flights sync.WaitGroup
	defer flights.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		t.mu.Lock()
		next := t.enqueueDue(time.Now())
		for e := t.next(); e != nil; e = t.next() {
			flights.Go(func() { t.fly(ctx, e) })
		}
		t.mu.Unlock()
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
			return nil
		case <-t.wake:
		case <-timer.C:
		}
	}
}

// enqueueDue queues what is to be tried again, forgets what nobody asks for any more, and
// returns when to look again. Called with mu held.
func (t *Trials) enqueueDue(now time.Time) time.Time {
	next := now.Add(forgetIdle)
	for k, e := range t.entries {
		switch {
		case e.queued || e.due.IsZero():
		case now.Sub(e.asked) > forgetIdle:
			delete(t.entries, k)
		case e.due.After(now):
			if e.due.Before(next) {
				next = e.due
			}
		default:
			t.enqueue(e)
		}
	}
	return next
}

// next takes from what waits: of the namespaces with the fewest trials under way, the
// one whose turn was longest ago. Called with mu held.
func (t *Trials) next() *entry {
	if t.flights == t.config.Parallel || len(t.waiting) == 0 {
		return nil
	}
	best := 0
	for i, e := range t.waiting {
		a, b := e.subject.Namespace, t.waiting[best].subject.Namespace
		if t.running[a] < t.running[b] || t.running[a] == t.running[b] && t.served[a].Before(t.served[b]) {
			best = i
		}
	}
	e := t.waiting[best]
	t.waiting = append(t.waiting[:best], t.waiting[best+1:]...)
	t.flights++
	t.running[e.subject.Namespace]++
	if len(t.waiting) == 0 {
		clear(t.served) // nobody waits: nobody is to be preferred
	}
	t.served[e.subject.Namespace] = time.Now()
	return e
}

// fly makes one trial.
func (t *Trials) fly(ctx context.Context, e *entry) {
	t.mu.Lock()
	s := e.subject
	t.mu.Unlock()
	v, err := t.try(ctx, s, t.config.Limits)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.flights--
	if t.running[s.Namespace]--; t.running[s.Namespace] == 0 {
		delete(t.running, s.Namespace)
	}
	e.queued = false
	switch {
	case err == nil:
		e.verdict, e.done, e.subject = v, true, Subject{}
		t.tried.WithLabelValues(v.Outcome.String()).Inc()
		t.log.Info("preflight: tried", "namespace", s.Namespace, "module", s.SHA256, "outcome", v.Outcome.String(), "message", v.Message)
	case errors.Is(err, context.Canceled) && ctx.Err() != nil: // Run ends: nothing was learned
		return
	default:
		e.failures++
		e.due = time.Now().Add(backoff(e.failures))
		t.tried.WithLabelValues("error").Inc()
		t.log.Warn("preflight: not tried", "namespace", s.Namespace, "module", s.SHA256, "error", err, "nextTry", e.due)
	}
	signal(t.wake)
	signal(t.changed)
}

func backoff(failures int) time.Duration {
	d := retryFirst
	for i := 1; i < failures && d < retryMax; i++ {
		d *= 2
	}
	d = min(d, retryMax)
	return d - d/5 + rand.N(2*d/5) //nolint:gosec // spreads load, keeps no secret
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
