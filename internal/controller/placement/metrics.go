package placement

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stileproject/stile/internal/placement"
)

// metrics are what is told of held pods.
type metrics struct {
	gated   prometheus.Gauge
	oldest  atomic.Int64 // creation of the oldest held pod, Unix seconds; 0 = none is held
	went    *prometheus.CounterVec
	held    prometheus.Histogram
	patches *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		gated: prometheus.NewGauge(prometheus.GaugeOpts{Name: "stile_placement_gated_pods",
			Help: "Pods that carry the scheduling gate now."}),
		went: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "stile_placement_let_go_total",
			Help: "Pods that were let go, by what was decided about them."}, []string{"outcome"}),
		held: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "stile_placement_held_seconds",
			Help:    "Time from a pod's creation, which the API server keeps in whole seconds, until it was let go.",
			Buckets: []float64{.25, .5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800}}),
		patches: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "stile_placement_patches_total",
			Help: "Patches of pods by what became of them; stale ones were not sent."}, []string{"result"}),
	}
	for _, o := range []placement.Outcome{placement.Placed, placement.NotConstrained, placement.NoCommonPlatform, placement.FellBack,
		placement.NotInspected, placement.NotAllowed, placement.LeftAlone} {
		m.went.WithLabelValues(string(o))
	}
	for _, result := range []string{"ok", "stale", "gone", "conflict", "refused", "failed"} {
		m.patches.WithLabelValues(result)
	}
	if r == nil {
		return m, nil
	}
	return m, errors.Join(r.Register(m.gated), r.Register(m.went), r.Register(m.held), r.Register(m.patches),
		r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "stile_placement_oldest_held_seconds",
			Help: "Age of the oldest pod that is held now; 0 if none is."}, m.age)))
}

func (m *metrics) age() float64 {
	at := m.oldest.Load()
	if at == 0 {
		return 0
	}
	return max(0, time.Since(time.Unix(at, 0)).Seconds())
}

func (m *metrics) holds(n int, oldest time.Time) {
	m.gated.Set(float64(n))
	if n == 0 {
		m.oldest.Store(0)
		return
	}
	m.oldest.Store(oldest.Unix())
}

func (m *metrics) letGo(o placement.Outcome, held time.Duration) {
	m.went.WithLabelValues(string(o)).Inc()
	m.held.Observe(max(0, held.Seconds()))
}

func (m *metrics) patched(result string) { m.patches.WithLabelValues(result).Inc() }
