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
}

func newMetrics(_ *Gate, r prometheus.Registerer) *metrics {
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
	}
	for _, result := range resultNames {
		m.checks.WithLabelValues(result)
	}
	for _, state := range append([]string{stale}, stateNames[:]...) {
		m.proofs.WithLabelValues(state)
	}
	if r != nil {
		r.MustRegister(m.checks, m.proofs, m.duration, m.evicts)
	}
	return m
}

const stale = "Stale"

var resultNames = [...]string{noAnswer: "unknown", refused: "denied", granted: "allowed"}

func (m *metrics) asked(r result, took time.Duration) {
	m.checks.WithLabelValues(resultNames[r]).Inc()
	m.duration.Observe(took.Seconds())
}

func (m *metrics) evicted() { m.evicts.Inc() }

// moved counts an entry under its new state instead of its old one; nil = it was not,
// or is no longer.
func (m *metrics) moved(_ *entry, old, now *answer) {
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
