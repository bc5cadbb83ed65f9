package cli

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/engine"
)

// serviceMetrics are what alerts need that no single room knows: how plugins and their
// proxies stand. They are read when somebody asks. A label is a reason or a state, never a name.
type serviceMetrics struct {
	plugins func() []engine.PluginStatus
	limit   float64

	programmed, resolved, proxies, maxBytes *prometheus.Desc
}

// newServiceMetrics returns the collector; storeMax is the store's cap in bytes.
func newServiceMetrics(plugins func() []engine.PluginStatus, storeMax int64) *serviceMetrics {
	return &serviceMetrics{
		plugins: plugins, limit: float64(storeMax),
		programmed: prometheus.NewDesc("stile_plugins", "Plugins, by the reason of their condition Programmed. Every replica counts all.", []string{"programmed"}, nil),
		resolved:   prometheus.NewDesc("stile_plugins_resolved", "Plugins, by the reason of their condition ResolvedRefs. Every replica counts all.", []string{"reason"}, nil),
		proxies:    prometheus.NewDesc("stile_plugin_proxies", "Pairs of a plugin and a proxy that it concerns, by what the proxy said of it; matched is all of them. Every replica counts all.", []string{"state"}, nil),
		maxBytes:   prometheus.NewDesc("stile_store_max_bytes", "The cap of stile_store_bytes.", nil, nil),
	}
}

// The reasons that the metrics know, so that each is there before it first occurs.
var (
	programmedReasons = []string{
		v1alpha1.ReasonProgrammed, v1alpha1.ReasonServingLastGood, v1alpha1.ReasonPending, v1alpha1.ReasonPartiallyProgrammed,
		v1alpha1.ReasonProxyLacksExtension, v1alpha1.ReasonNoMatchingProxies,
	}
	resolvedReasons = []string{
		v1alpha1.ReasonResolved, v1alpha1.ReasonPending, v1alpha1.ReasonPullSecretNotFound, v1alpha1.ReasonPullSecretInvalid,
		v1alpha1.ReasonUnauthorized, v1alpha1.ReasonImageNotFound, v1alpha1.ReasonTagGone, v1alpha1.ReasonSourceNotAllowed,
		v1alpha1.ReasonRegistryUnreachable, v1alpha1.ReasonTooManyProofs, v1alpha1.ReasonDigestMismatch, v1alpha1.ReasonModuleInvalid,
		v1alpha1.ReasonModuleTooLarge, v1alpha1.ReasonModuleRejectedConfig, v1alpha1.ReasonSignatureInvalid, v1alpha1.ReasonNotVerifiable,
		v1alpha1.ReasonStoreFull,
	}
)

// otherReason counts what the lists above lack, so that labels stay closed.
const otherReason = "other"

// Describe implements prometheus.Collector.
func (m *serviceMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.programmed, m.resolved, m.proxies, m.maxBytes} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (m *serviceMetrics) Collect(to chan<- prometheus.Metric) {
	programmed, resolved := zeroes(programmedReasons), zeroes(resolvedReasons)
	states := zeroes([]string{"matched", "sent", "accepted", "rejected", "unproven"})
	for _, p := range m.plugins() {
		for _, c := range p.Conditions {
			switch c.Type {
			case v1alpha1.ConditionProgrammed:
				tally(programmed, c.Reason)
			case v1alpha1.ConditionResolvedRefs:
				tally(resolved, c.Reason)
			}
		}
		states["matched"] += p.Proxies.Matched
		states["sent"] += p.Proxies.Sent
		states["accepted"] += p.Proxies.Accepted
		states["rejected"] += p.Proxies.Rejected
		states["unproven"] += p.Proxies.Unproven
	}
	for d, counts := range map[*prometheus.Desc]map[string]int{m.programmed: programmed, m.resolved: resolved, m.proxies: states} {
		for label, n := range counts {
			if label != otherReason || n > 0 {
				to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), label)
			}
		}
	}
	to <- prometheus.MustNewConstMetric(m.maxBytes, prometheus.GaugeValue, m.limit)
}

// zeroes returns counts in which each label is there.
func zeroes(labels []string) map[string]int {
	counts := make(map[string]int, len(labels)+1)
	for _, l := range labels {
		counts[l] = 0
	}
	return counts
}

// tally counts one of a label, or of other.
func tally(counts map[string]int, label string) {
	if _, known := counts[label]; !known {
		label = otherReason
	}
	counts[label]++
}
