package store

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	bytes, modules prometheus.Gauge
	evictions      *prometheus.CounterVec
	corrupt        prometheus.Counter
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		bytes:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "stile_store_bytes", Help: "Bytes of the modules in the store."}),
		modules: prometheus.NewGauge(prometheus.GaugeOpts{Name: "stile_store_modules", Help: "Modules in the store."}),
		evictions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stile_store_evictions_total",
			Help: "Files that left the store, by reason: size, namespace, orphan, sweep.",
		}, []string{"reason"}),
		corrupt: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stile_store_corrupt_total", Help: "Modules whose bytes on disk were not what was written.",
		}),
	}
	for _, reason := range []string{"size", "namespace", "orphan", "sweep"} {
		m.evictions.WithLabelValues(reason)
	}
	if r != nil {
		r.MustRegister(m.bytes, m.modules, m.evictions, m.corrupt)
	}
	return m
}

func (m metrics) set(u Usage) {
	m.bytes.Set(float64(u.Size))
	m.modules.Set(float64(u.Modules))
}
