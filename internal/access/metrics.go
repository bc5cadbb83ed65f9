package access

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the room's collectors. A label is a state or a result, never a name.
type metrics struct {
	checks   *prometheus.CounterVec
	proofs   *prometheus.GaugeVec
	duration prometheus.Histogram
	evicts   prometheus.Counter
	refusals prometheus.Counter
}

func newMetrics(g *Gate, r prometheus.Registerer) *metrics {
	m := &metrics{
		checks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stile_access_checks_total", Help: "Questions to registries whether an image may be read, by the result.",
		}, []string{"result"}),
		proofs: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "stile_access_proofs", Help: "What is known of rights now, by state; a yes that could not be renewed is Stale.",
		}, []string{"state"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "stile_access_check_duration_seconds", Help: "How long registries took to answer whether an image may be read.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2.5, 10),
		}),
		evicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stile_access_evictions_total", Help: "Entries dropped to make room for others.",
		}),
		refusals: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stile_access_refusals_total", Help: "Requests that got no entry because of a cap (TooManyProofs).",
		}),
	}
	for _, result := range resultNames {
		m.checks.WithLabelValues(result)
	}
	for _, state := range append([]string{stale}, stateNames[:]...) {
		m.proofs.WithLabelValues(state)
	}
	if r != nil {
		r.MustRegister(m.checks, m.proofs, m.duration, m.evicts, m.refusals)
		r.MustRegister(g.gauges()...)
	}
	return m
}

// gauges are what is read from the Gate when somebody asks.
func (g *Gate) gauges() []prometheus.Collector {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	locked := func(value func() int) func() float64 {
		return func() float64 {
			g.mu.Lock()
			defer g.mu.Unlock()
			return float64(value())
		}
	}
	return []prometheus.Collector{
		gauge("stile_access_age_seconds", "Age of the oldest yes that stands: well above the re-check interval, checks are late or registries do not answer.", func() float64 { return g.oldest().Seconds() }),
		gauge("stile_access_asking", "Questions to registries under way.", locked(func() int { return g.busy })),
		gauge("stile_access_waiting", "Questions that wait for a slot or a budget.", locked(g.waiting)),
		gauge("stile_access_max_proofs", "The cap of stile_access_proofs over all states.", func() float64 { return float64(g.config.MaxProofs) }),
		gauge("stile_access_max_proofs_per_namespace", "The cap for one namespace.", func() float64 { return float64(g.config.MaxPerNamespace) }),
		gauge("stile_access_largest_namespace", "Entries of the namespace that has most.", locked(g.largest)),
	}
}

// oldest returns the age of the oldest yes of a digest that stands. It takes no lock.
func (g *Gate) oldest() time.Duration {
	now := g.now()
	oldest := now
	g.table.each(func(e *entry) {
		if a := e.answer.Load(); a.state == Allowed && e.pinned() {
			oldest = min(oldest, a.checked)
		}
	})
	return time.Duration(now - oldest)
}

func (g *Gate) waiting() int {
	n := 0
	for _, h := range g.hosts {
		for _, q := range h.order {
			n += len(q.waiting)
		}
	}
	return n
}

func (g *Gate) largest() int {
	n := 0
	for _, ns := range g.namespaces {
		n = max(n, ns.entries)
	}
	return n
}

const stale = "Stale"

var resultNames = [...]string{noAnswer: "unknown", refused: "denied", granted: "allowed"}

func (m *metrics) asked(r result, took time.Duration) {
	m.checks.WithLabelValues(resultNames[r]).Inc()
	m.duration.Observe(took.Seconds())
}

func (m *metrics) evicted() { m.evicts.Inc() }

func (m *metrics) refused() { m.refusals.Inc() }

// moved counts an entry under its new state instead of its old one; nil = it was not,
// or is no longer.
func (m *metrics) moved(old, now *answer) {
	if old != nil {
		m.proofs.WithLabelValues(old.label()).Dec()
	}
	if now != nil {
		m.proofs.WithLabelValues(now.label()).Inc()
	}
}

func (a *answer) label() string {
	if a.state == Allowed && a.stale != 0 {
		return stale
	}
	return a.state.String()
}
