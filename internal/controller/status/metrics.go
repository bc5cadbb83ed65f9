package status

import "github.com/prometheus/client_golang/prometheus"

// metrics are the room's collectors.
type metrics struct {
	writes *prometheus.CounterVec
	events *prometheus.CounterVec
	behind prometheus.Gauge
}

// The results of writes and events.
const (
	resultWritten  = "written"
	resultConflict = "conflict" // somebody else wrote first: read again and retried
	resultGone     = "gone"     // the plugin was deleted
	resultFailed   = "failed"   // tried again later
	resultDropped  = "dropped"  // an event that nobody will see
)

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stile_status_writes_total", Help: "Writes of a plugin's status to Kubernetes, by the result.",
		}, []string{"result"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stile_status_events_total", Help: "Events told to Kubernetes, by the result.",
		}, []string{"result"}),
		behind: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "stile_status_queue", Help: "Plugins whose status is to be looked at.",
		}),
	}
	for _, result := range []string{resultWritten, resultConflict, resultGone, resultFailed} {
		m.writes.WithLabelValues(result)
	}
	for _, result := range []string{resultWritten, resultFailed, resultDropped} {
		m.events.WithLabelValues(result)
	}
	if r != nil {
		r.MustRegister(m.writes, m.events, m.behind)
	}
	return m
}
