package xds

import "github.com/prometheus/client_golang/prometheus"

// serverMetrics are the numbers of a Server.
type serverMetrics struct {
	pushes, nacks *prometheus.CounterVec
}

func newServerMetrics(reg prometheus.Registerer, connected func() float64) *serverMetrics {
	m := &serverMetrics{
		pushes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stile_xds_pushes_total", Help: "Responses sent to proxies, by the type of their resources.",
		}, []string{"type"}),
		nacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stile_xds_nacks_total", Help: "Responses that proxies rejected, by the type of their resources.",
		}, []string{"type"}),
	}
	for kind := range servedTypes {
		m.pushes.WithLabelValues(shortType(kind))
		m.nacks.WithLabelValues(shortType(kind))
	}
	if reg != nil {
		reg.MustRegister(m.pushes, m.nacks, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "stile_xds_connected_nodes", Help: "Proxies that are connected.",
		}, connected))
	}
	return m
}

func (m *serverMetrics) pushed(kind int)  { m.pushes.WithLabelValues(shortType(kind)).Inc() }
func (m *serverMetrics) refused(kind int) { m.nacks.WithLabelValues(shortType(kind)).Inc() }

// shortType is the name of a type in metrics and logs.
func shortType(kind int) string {
	switch kind {
	case listeners:
		return "listener"
	case routes:
		return "route"
	case clusters:
		return "cluster"
	default:
		return "extension"
	}
}
