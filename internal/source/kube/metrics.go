package kube

import (
	"github.com/prometheus/client_golang/prometheus"
)

type counter interface{ Inc() }

type metrics struct {
	failures *prometheus.CounterVec
	worlds   prometheus.Counter
	plugins  prometheus.Gauge
	secrets  *prometheus.GaugeVec
}

// The states of a Secret that a plugin names.
const (
	secretPresent    = "present"
	secretAbsent     = "absent"
	secretUnreadable = "unreadable"
)

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stile_kube_watch_failures_total", Help: "Lists and watches that failed, by resource."}, []string{"resource"}),
		worlds: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stile_kube_worlds_total", Help: "Changes of the resources that were handed on."}),
		plugins: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "stile_kube_plugins", Help: "WasmPlugins that are watched."}),
		secrets: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "stile_kube_secrets", Help: "Pull secrets that WasmPlugins name, by whether there is one and it can be read."}, []string{"state"}),
	}
	if r != nil {
		r.MustRegister(m.failures, m.worlds, m.plugins, m.secrets)
	}
	return m
}
