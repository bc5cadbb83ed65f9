package cli

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/stileproject/stile/internal/engine"
	"github.com/stileproject/stile/internal/xds"
)

func TestServiceMetricsCountPluginsAndTheirProxies(t *testing.T) {
	t.Parallel()
	plugin := func(resolved, programmed string, proxies xds.Counts) engine.PluginStatus {
		return engine.PluginStatus{Proxies: proxies, Conditions: []engine.Condition{
			{Type: "Accepted", Reason: "Accepted"}, {Type: "ResolvedRefs", Reason: resolved}, {Type: "Programmed", Reason: programmed},
		}}
	}
	m := newServiceMetrics(func() []engine.PluginStatus {
		return []engine.PluginStatus{
			plugin("Resolved", "Programmed", xds.Counts{Matched: 3, Sent: 3, Accepted: 3}),
			plugin("Unauthorized", "ServingLastGood", xds.Counts{Matched: 2, Sent: 2, Accepted: 1, Rejected: 1}),
			plugin("SomethingNew", "Pending", xds.Counts{Matched: 1}),
		}
	}, 4<<30)
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(m)
	if err := testutil.GatherAndCompare(r, strings.NewReader(`
# HELP stile_plugin_proxies Pairs of a plugin and a proxy that it concerns, by what the proxy said of it; matched is all of them. Every replica counts all.
# TYPE stile_plugin_proxies gauge
stile_plugin_proxies{state="accepted"} 4
stile_plugin_proxies{state="matched"} 6
stile_plugin_proxies{state="rejected"} 1
stile_plugin_proxies{state="sent"} 5
stile_plugin_proxies{state="unproven"} 0
# HELP stile_plugins Plugins, by the reason of their condition Programmed. Every replica counts all.
# TYPE stile_plugins gauge
stile_plugins{programmed="NoMatchingProxies"} 0
stile_plugins{programmed="PartiallyProgrammed"} 0
stile_plugins{programmed="Pending"} 1
stile_plugins{programmed="Programmed"} 1
stile_plugins{programmed="ProxyLacksExtension"} 0
stile_plugins{programmed="ServingLastGood"} 1
# HELP stile_store_max_bytes The cap of stile_store_bytes.
# TYPE stile_store_max_bytes gauge
stile_store_max_bytes 4.294967296e+09
`), "stile_plugins", "stile_plugin_proxies", "stile_store_max_bytes"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(r, "stile_plugins_resolved"); err != nil || n != len(resolvedReasons)+1 {
		t.Errorf("want each known reason and other, got %d (%v)", n, err)
	}
	if problems, err := testutil.GatherAndLint(r); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}
