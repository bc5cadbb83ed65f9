package xds_test

import (
	"slices"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
)

// covered is what becomes of the operator's listeners with one HTTP plugin "h" and one NETWORK plugin "n".
func covered(t *testing.T, yaml string) (map[string]*listenerv3.Listener, []plugin.Problem, *xds.EnvoyFile) {
	t.Helper()
	f, problems := xds.ParseEnvoy("x.yaml", []byte(yaml))
	if f == nil {
		t.Fatal(problems)
	}
	plugins := []*v1alpha1.WasmPlugin{wasmPlugin("h", nil), wasmPlugin("n", func(s *v1alpha1.WasmPluginSpec) { s.Type = v1alpha1.TypeNetwork })}
	node := plugin.Node{ID: "gw-0", Cluster: "edge", Namespace: "team-a"}
	plan, planned := plugin.Build(plugin.Inputs{Plugins: plugins, Node: node, Listeners: f.Listeners()})
	in := xds.Input{Plan: plan, File: f, Node: node, Plugins: map[plugin.Key]*v1alpha1.WasmPlugin{}, Deliver: func(plugin.Key) xds.Delivery { return inline() }}
	for _, p := range plugins {
		in.Plugins[plugin.KeyOf(p)] = p
	}
	out := map[string]*listenerv3.Listener{}
	for _, r := range translate(t, in).Resources(xds.ListenerType) {
		l := &listenerv3.Listener{}
		if err := r.Any.UnmarshalTo(l); err != nil {
			t.Fatal(err)
		}
		out[r.Name] = l
	}
	return out, planned, f
}

// chainNames are the names of what data meets in a filter chain, HTTP filters in brackets behind their manager, and those of upgrades.
func chainNames(t *testing.T, c *listenerv3.FilterChain) string {
	t.Helper()
	short := func(name string) string { return strings.TrimPrefix(name, "extensions.istio.io/wasmplugin/team-a.") }
	var out []string
	for _, f := range c.GetFilters() {
		name := short(f.GetName())
		m := &hcmv3.HttpConnectionManager{}
		if f.GetTypedConfig().MessageIs(m) {
			if err := f.GetTypedConfig().UnmarshalTo(m); err != nil {
				t.Fatal(err)
			}
			list := func(filters []*hcmv3.HttpFilter) string {
				var names []string
				for _, h := range filters {
					names = append(names, short(h.GetName()))
				}
				return "[" + strings.Join(names, " ") + "]"
			}
			name += list(m.GetHttpFilters())
			for _, u := range m.GetUpgradeConfigs() {
				if len(u.GetFilters()) > 0 {
					name += u.GetUpgradeType() + list(u.GetFilters())
				}
			}
		}
		out = append(out, name)
	}
	return strings.Join(out, " ")
}

// TestCover_EveryKindOfListener has a row for each kind of chain and listener that the rule of docs/spec/wasmplugin.md and of Envoy knows.
func TestCover_EveryKindOfListener(t *testing.T) {
	t.Parallel()
	const (
		tcp = `{name: t, typed_config: {"@type": ` + tcpType + `, stat_prefix: s, cluster: c}}`
		in  = `{name: m, typed_config: {"@type": ` + hcm + `, stat_prefix: s, route_config: {}, `
	)
	own := `{name: extensions.istio.io/wasmplugin/team-a.h, config_discovery: {config_source: {ads: {}}, type_urls: [` + typePrefix + `http.wasm.v3.Wasm]}}`
	cors := `{name: cors, typed_config: {"@type": ` + typePrefix + `http.cors.v3.Cors}}`
	quic := `address: {socket_address: {protocol: UDP, address: 127.0.0.1, port_value: 1}}, udp_listener_config: {quic_options: {}}, `
	for _, test := range []struct {
		name, listener string
		chains         []string // the default one last
		problem        string
	}{
		{"HTTP", `filter_chains: [{filters: [` + in + `http_filters: [` + routerFilter + `]}}]}]`, []string{"n m[h r]"}, ""},
		{"TCP", `filter_chains: [{filters: [` + tcp + `]}]`, []string{"n t"}, ""},
		{"several chains and the default one", `filter_chains: [{filters: [` + tcp + `]}, {filters: [` + in + `http_filters: [` + routerFilter + `]}}]}], default_filter_chain: {filters: [` + in + `http_filters: [` + cors + `, ` + routerFilter + `]}}]}`,
			[]string{"n t", "n m[h r]", "n m[cors h r]"}, ""},
		{"a default chain alone", `default_filter_chain: {filters: [` + in + `http_filters: [` + routerFilter + `]}}]}`, []string{"n m[h r]"}, ""},
		{"an empty chain", `filter_chains: [{filters: []}]`, []string{""}, ""},
		{"a manager without filters", `filter_chains: [{filters: [` + in + `http_filters: []}}]}]`, []string{"n m[]"}, ""},
		{"QUIC", quic + `filter_chains: [{filters: [` + in + `http_filters: [` + routerFilter + `]}}]}]`, []string{"m[h r]"}, plugin.SkipNotOnQUIC},
		{"UDP without chains", `address: {socket_address: {protocol: UDP, address: 127.0.0.1, port_value: 1}}, listener_filters: [{name: udp, typed_config: {"@type": ` + typePrefix + `udp.udp_proxy.v3.UdpProxyConfig, stat_prefix: s, cluster: c}}]`, nil, ""},
		{"upgrades with filters of their own, and without", `filter_chains: [{filters: [` + in + `upgrade_configs: [{upgrade_type: a}, {upgrade_type: b, filters: [` + cors + `, ` + routerFilter + `]}, {upgrade_type: c}, {upgrade_type: d, filters: [` + routerFilter + `]}], http_filters: [` + routerFilter + `]}}]}]`,
			[]string{"n m[h r]b[cors h r]d[h r]"}, ""},
		{"a filter of our name has its place", `filter_chains: [{filters: [` + in + `http_filters: [` + own + `, ` + cors + `, ` + routerFilter + `]}}]}]`, []string{"n m[h cors r]"}, ""},
		{"placeholders on both levels", `filter_chains: [{filters: [{name: stile.dev/phase/UNSPECIFIED_PHASE}, {name: other, typed_config: {"@type": ` + typePrefix + `network.connection_limit.v3.ConnectionLimit, stat_prefix: s, max_connections: 1}}, ` + in + `http_filters: [{name: stile.dev/phase/UNSPECIFIED_PHASE}, ` + cors + `, {name: stile.dev/phase/STATS}, ` + routerFilter + `]}}]}]`,
			[]string{"n other m[h cors r]"}, ""},
		{"a second placeholder is dropped, and said", `filter_chains: [{filters: [` + in + `http_filters: [{name: stile.dev/phase/AUTHN}, {name: stile.dev/phase/AUTHN}, ` + routerFilter + `]}}]}]`, []string{"n m[h r]"}, plugin.ProblemPlaceholder},
		{"a listener that is skipped keeps no placeholder", `metadata: {filter_metadata: {stile.dev: {skip: true}}}, filter_chains: [{filters: [` + in + `http_filters: [{name: stile.dev/phase/AUTHN}, ` + routerFilter + `]}}]}]`, []string{"m[r]"}, ""},
		{"filters for upstreams and of listeners are not ours", `listener_filters: [{name: sni, typed_config: {"@type": ` + typePrefix + `listener.tls_inspector.v3.TlsInspector}}], filter_chains: [{filters: [` + in + `http_filters: [{name: r, typed_config: {"@type": ` + routerType + `, upstream_http_filters: [{name: codec, typed_config: {"@type": ` + typePrefix + `http.upstream_codec.v3.UpstreamCodec}}]}}]}}]}]`, []string{"n m[h r]"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			text := test.listener
			if !strings.Contains(text, "address:") {
				text = "address: {socket_address: {address: 127.0.0.1, port_value: 1}}, " + text
			}
			out, problems, f := covered(t, "listeners: [{name: l, "+text+"}]")
			l := out["l"]
			var got []string
			for _, c := range append(slices.Clone(l.GetFilterChains()), l.GetDefaultFilterChain()) {
				if c != nil {
					got = append(got, chainNames(t, c))
				}
			}
			if d := cmp.Diff(test.chains, got); d != "" {
				t.Errorf("chains (-want +got):\n%s", d)
			}
			if err := l.ValidateAll(); err != nil {
				t.Error(err)
			}
			reasons := ""
			for _, p := range problems {
				reasons = p.Reason
			}
			if reasons != test.problem {
				t.Errorf("problems %v, want %q", problems, test.problem)
			}
			if test.problem == plugin.SkipNotOnQUIC && !f.Listeners()[0].QUIC {
				t.Error("QUIC is not seen")
			}
			for _, lf := range l.GetListenerFilters() {
				if strings.HasPrefix(lf.GetName(), xds.ResourcePrefix) {
					t.Error("a plugin is a listener filter")
				}
			}
		})
	}
}

// The clusters and routes of the operator go out as they are: no plugin is put into a cluster's filters.
func TestCover_ClustersAndRoutesAreLeftAlone(t *testing.T) {
	t.Parallel()
	const yaml = `clusters: [{name: c, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http_protocol_options: {}}, http_filters: [{name: codec, typed_config: {"@type": ` + typePrefix + `http.upstream_codec.v3.UpstreamCodec}}]}}}]
routes: [{name: r, virtual_hosts: [{name: v, domains: ["*"]}]}]
`
	alone, problems := xds.ParseEnvoy("x.yaml", []byte(yaml))
	if alone == nil {
		t.Fatal(problems)
	}
	with, problems := xds.ParseEnvoy("x.yaml", []byte(yaml+oneListener))
	if with == nil {
		t.Fatal(problems)
	}
	plugins := []*v1alpha1.WasmPlugin{wasmPlugin("h", nil)}
	node := plugin.Node{Cluster: "edge", Namespace: "team-a"}
	plan, _ := plugin.Build(plugin.Inputs{Plugins: plugins, Node: node, Listeners: with.Listeners()})
	a := translate(t, xds.Input{File: alone})
	b := translate(t, xds.Input{File: with, Plan: plan, Node: node, Plugins: map[plugin.Key]*v1alpha1.WasmPlugin{key("h"): plugins[0]}, Deliver: func(plugin.Key) xds.Delivery { return inline() }})
	for _, typeURL := range []string{xds.ClusterType, xds.RouteType} {
		for i, r := range a.Resources(typeURL) {
			if !proto.Equal(r.Any, b.Resources(typeURL)[i].Any) {
				t.Errorf("%s has changed", r.Name)
			}
		}
	}
}

func TestCover_DirectionAndPortsAreReadFromTheListener(t *testing.T) {
	t.Parallel()
	_, _, f := covered(t, `listeners:
- {name: in, traffic_direction: INBOUND, address: {socket_address: {address: 127.0.0.1, port_value: 1}}, additional_addresses: [{address: {socket_address: {address: 127.0.0.1, port_value: 2}}}], filter_chains: [{filter_chain_match: {destination_port: 3}, filters: []}]}
- {name: out, traffic_direction: OUTBOUND, address: {socket_address: {address: 127.0.0.1, port_value: 1}}}
- {name: unset, address: {pipe: {path: /x}}}
- {name: told, traffic_direction: INBOUND, metadata: {filter_metadata: {stile.dev: {mode: CLIENT, ports: [7, 8]}}}, address: {socket_address: {address: 127.0.0.1, port_value: 1}}}
`)
	type seen struct {
		Mode  string
		Ports []uint32
		Chain uint32
	}
	got := map[string]seen{}
	for _, l := range f.Listeners() {
		s := seen{Mode: l.Mode, Ports: l.Ports}
		if len(l.Chains) > 0 {
			s.Chain = l.Chains[0].Port
		}
		got[l.Name] = s
	}
	want := map[string]seen{"in": {"SERVER", []uint32{1, 2}, 3}, "out": {Mode: "CLIENT", Ports: []uint32{1}}, "unset": {Mode: "CLIENT"}, "told": {Mode: "CLIENT", Ports: []uint32{7, 8}}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// What a listener, a route or a cluster may ask of ADS that stile does not serve, each with advice: it would be waited for.
func TestTrap11_WhatIsNotServedIsAFinding(t *testing.T) {
	t.Parallel()
	manager := func(more string) string {
		return chainOf(`{name: m, typed_config: {"@type": ` + hcm + `, stat_prefix: s, ` + more + `}}`)
	}
	for name, yaml := range map[string]string{
		"EDS":                              "clusters: [{name: a, type: EDS, eds_cluster_config: {eds_config: {ads: {}}}}]",
		"SDS":                              `clusters: [{name: a, transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {validation_context_sds_secret_config: {name: s, sds_config: {ads: {}}}}}}}]`,
		"SDS of a listener":                `listeners: [{name: l, filter_chains: [{filters: [], transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {tls_certificate_sds_secret_configs: [{name: s, sds_config: {ads: {}}}]}}}}]}]`,
		"SRDS":                             manager(`scoped_routes: {name: s, scope_key_builder: {fragments: [{header_value_extractor: {name: x, index: 0}}]}, rds_config_source: {ads: {}}, scoped_rds: {scoped_rds_config_source: {ads: {}}}}, http_filters: [` + routerFilter + `]`),
		"VHDS":                             `routes: [{name: r, vhds: {config_source: {ads: {}}}}]`,
		"an HTTP extension of another's":   manager(`route_config: {}, http_filters: [{name: mine, config_discovery: {config_source: {ads: {}}, type_urls: [` + typePrefix + `http.cors.v3.Cors]}}, ` + routerFilter + `]`),
		"a NETWORK extension of another's": chainOf(`{name: mine, config_discovery: {config_source: {ads: {}}, type_urls: [` + tcpType + `]}}, {name: t, typed_config: {"@type": ` + tcpType + `, stat_prefix: s, cluster: c}}`),
		"an upgrade's extension":           manager(`route_config: {}, upgrade_configs: [{upgrade_type: a, filters: [{name: mine, config_discovery: {config_source: {self: {}}, type_urls: [` + typePrefix + `http.cors.v3.Cors]}}, ` + routerFilter + `]}], http_filters: [` + routerFilter + `]`),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, problems := xds.ParseEnvoy("x.yaml", []byte(yaml))
			if f == nil {
				t.Fatal(problems)
			}
			found := slices.ContainsFunc(problems, func(p xds.Problem) bool {
				return p.Reason == "NotServed" && p.Severity == xds.SeverityWarning && p.Path != "" && strings.Contains(p.Message, ";")
			})
			if !found {
				t.Errorf("problems %v, want NotServed with a place and advice", problems)
			}
		})
	}
	own := manager(`route_config: {}, http_filters: [{name: extensions.istio.io/wasmplugin/team-a.h, config_discovery: {config_source: {ads: {}}, type_urls: [` + typePrefix + `http.wasm.v3.Wasm]}}, {name: file, config_discovery: {config_source: {path_config_source: {path: /x}}, type_urls: [a.b/c.D]}}, ` + routerFilter + `]`)
	if f, problems := xds.ParseEnvoy("x.yaml", []byte(own)); f == nil || len(problems) > 0 {
		t.Errorf("a plugin's own name, and a file: %v", problems)
	}
}

// What is wrong with a secret is said without the secret: the log has every problem of a file.
func TestP3_ProblemsOfAFileSayNoSecret(t *testing.T) {
	t.Parallel()
	const canary = "CANARY-secret"
	tls := func(certificate string) string {
		return `clusters: [{name: a, transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {tls_certificates: [` + certificate + `]}}}}]`
	}
	basic := chainOf(`{name: m, typed_config: {"@type": ` + hcm + `, stat_prefix: s, route_config: {}, http_filters: [{name: b, typed_config: {"@type": ` + typePrefix + `http.basic_auth.v3.BasicAuth, users: {inline_string: ["` + canary + `"]}}}, ` + routerFilter + `]}}`)
	for name, yaml := range map[string]string{
		"bytes that are not base64":  tls(`{private_key: {inline_bytes: "` + canary + ` %%"}}`),
		"a text where an object is":  tls(`{private_key: "` + canary + `"}`),
		"a list where a text is":     basic,
		"a password of a wrong type": tls(`{password: {inline_string: {x: "` + canary + `"}}}`),
		"an unknown field beside it": tls(`{private_key: {inline_string: "` + canary + `", inlin: x}}`),
		"both of a choice":           tls(`{private_key: {inline_string: "` + canary + `", filename: x}}`),
		"not YAML":                   "clusters: [{name: a, key: '" + canary + "\n  : : [",
		"a duplicate key":            tls(`{private_key: {inline_string: "` + canary + `", inline_string: "` + canary + `"}}`),
		"a number for a text":        tls(`{private_key: {environment_variable: 7, inline_string: "` + canary + `"}}`),
		"a TypedStruct":              `clusters: [{name: b, transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, value: {common_tls_context: {tls_certificates: [{private_key: {inline_bytes: "` + canary + ` %%"}}]}}}}}]`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, problems := xds.ParseEnvoy("x.yaml", []byte(yaml))
			if len(problems) == 0 {
				t.Error("nothing is found wrong")
			}
			for _, p := range problems {
				if strings.Contains(p.Error(), "CANARY") {
					t.Errorf("the secret is said: %v", p)
				}
			}
		})
	}
}
