package xds_test

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
)

const (
	typePrefix = "type.googleapis.com/envoy.extensions.filters."
	routerType = typePrefix + "http.router.v3.Router"
	tcpType    = typePrefix + "network.tcp_proxy.v3.TcpProxy"
	hcm        = typePrefix + "network.http_connection_manager.v3.HttpConnectionManager"
)

func edge(t testing.TB) *xds.EnvoyFile {
	t.Helper()
	data, err := os.ReadFile("testdata/envoy/edge.yaml")
	if err != nil {
		t.Fatal(err)
	}
	f, problems := xds.ParseEnvoy("edge.yaml", data)
	if f == nil || len(problems) > 0 {
		t.Fatalf("edge.yaml: %v", problems)
	}
	return f
}

func TestParseEnvoy_SeesWhatAPlanNeeds(t *testing.T) {
	t.Parallel()
	want := []plugin.Listener{{
		Name: "http", Port: 8080, Ports: []uint32{8080}, Mode: "CLIENT",
		Chains: []plugin.Chain{{
			Index: 0, Type: plugin.ChainHTTP,
			Network: []plugin.Filter{{Name: "envoy.filters.network.http_connection_manager", TypeURLs: []string{hcm}}},
			HTTP: []plugin.Filter{
				{Name: "envoy.filters.http.cors", TypeURLs: []string{typePrefix + "http.cors.v3.Cors"}},
				{Name: "envoy.filters.http.jwt_authn", TypeURLs: []string{typePrefix + "http.jwt_authn.v3.JwtAuthentication"}},
				{Name: "envoy.filters.http.rbac", TypeURLs: []string{typePrefix + "http.rbac.v3.RBAC"}},
				{Name: "envoy.filters.http.router", TypeURLs: []string{routerType}},
			},
			Upgrades: []plugin.Upgrade{{Type: "websocket", Filters: []plugin.Filter{{Name: "envoy.filters.http.router", TypeURLs: []string{routerType}}}}},
		}},
	}, {
		Name: "tcp", Port: 9001, Ports: []uint32{9001, 9002}, Mode: "SERVER",
		Chains: []plugin.Chain{
			{Index: 0, Type: plugin.ChainTCP, Network: []plugin.Filter{{Name: "tcp", TypeURLs: []string{tcpType}}}},
			{Index: -1, Type: plugin.ChainTCP, Network: []plugin.Filter{
				{Name: "limits", TypeURLs: []string{typePrefix + "network.connection_limit.v3.ConnectionLimit"}},
				{Name: "tcp", TypeURLs: []string{tcpType}},
			}},
		},
	}}
	if d := cmp.Diff(want, edge(t).Listeners()); d != "" {
		t.Errorf("listeners (-want +got):\n%s", d)
	}
}

// chainOf wraps network filters, in YAML flow style, in a listener.
func chainOf(filters string) string {
	return `listeners: [{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 80}}, filter_chains: [{filters: [` + filters + `]}]}]`
}

// managerWith wraps HTTP filters in a connection manager.
func managerWith(filters string) string {
	return `{name: m, typed_config: {"@type": ` + hcm + `, stat_prefix: s, route_config: {}, http_filters: [` + filters + `]}}`
}

const routerFilter = `{name: r, typed_config: {"@type": ` + routerType + `}}`

func TestParseEnvoy_NamesEveryFaultWithItsPath(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, yaml string
		want       []string // path: reason
	}{
		{"syntax", "listeners: [", []string{": Syntax"}},
		{"empty", "", []string{": Empty"}},
		{"only a comment", "# later\n", []string{": Empty"}},
		{"a key twice", "clusters: []\nclusters: []\n", []string{": Syntax"}},
		{"two documents", "clusters: []\n---\nroutes: []\n", []string{": Syntax"}},
		{"a bootstrap", "static_resources: {}", []string{"static_resources: UnknownField"}},
		{"not a list", "clusters: {}", []string{"clusters: Invalid"}},
		{"null element", "clusters: [null]", []string{"clusters[0]: Invalid"}},
		{"no name", "clusters: [{connect_timeout: 1s}]", []string{"clusters[0].name: Invalid"}},
		{"one name twice", "clusters: [{name: a}, {name: a}]", []string{"clusters[1].name: Invalid"}},
		{"unknown fields, all of them", "clusters: [{name: a, conect_timeout: 1s, foo: 1}]",
			[]string{"clusters[0].conect_timeout: UnknownField", "clusters[0].foo: UnknownField"}},
		{"wrong kinds", "clusters: [{name: 1, connect_timeout: 1s}, {name: b, lb_policy: BEST}]",
			[]string{"clusters[0].name: Invalid", "clusters[1].lb_policy: Invalid"}},
		{"unknown field within Any", chainOf(managerWith(`{name: r, typed_config: {"@type": ` + routerType + `, start_child_spam: true}}`)),
			[]string{"listeners[0].filter_chains[0].filters[0].typed_config.http_filters[0].typed_config.start_child_spam: UnknownField"}},
		{"a rule broken within Any", chainOf(`{name: t, typed_config: {"@type": ` + tcpType + `, cluster: c}}`),
			[]string{"listeners[0].filter_chains[0].filters[0].typed_config.stat_prefix: Invalid"}},
		{"a rule broken within Any within Any", chainOf(managerWith(`{name: c, typed_config: {"@type": ` + typePrefix + `http.cdn_loop.v3.CdnLoopConfig}}, ` + routerFilter)),
			[]string{"listeners[0].filter_chains[0].filters[0].typed_config.http_filters[0].typed_config.cdn_id: Invalid"}},
		{"a rule broken within TypedStruct", chainOf(`{name: t, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: ` + tcpType + `, value: {cluster: c}}}`),
			[]string{"listeners[0].filter_chains[0].filters[0].typed_config.value.stat_prefix: Invalid"}},
		{"unknown field within TypedStruct", chainOf(`{name: t, typed_config: {"@type": type.googleapis.com/xds.type.v3.TypedStruct, type_url: ` + tcpType + `, value: {klaster: c}}}`),
			[]string{"listeners[0].filter_chains[0].filters[0].typed_config.value.klaster: UnknownField"}},
		{"unknown type", chainOf(`{name: t, typed_config: {"@type": type.googleapis.com/acme.Filter}}`),
			[]string{"listeners[0].filter_chains[0].filters[0].typed_config.@type: UnknownType"}},
		{"no type", chainOf(`{name: t, typed_config: {stat_prefix: x}}`),
			[]string{"listeners[0].filter_chains[0].filters[0].typed_config.@type: Invalid"}},
		{"two of one oneof", "clusters: [{name: a, type: STATIC, cluster_type: {name: x}}]", []string{"clusters[0].type: Invalid"}},
		{"bad duration", "clusters: [{name: a, connect_timeout: soon}]", []string{"clusters[0].connect_timeout: Invalid"}},
		{"a number in milliseconds", "clusters: [{name: a, connect_timeout: 250}, {name: b, connect_timeout: 0.25s, per_connection_buffer_limit_bytes: much}]",
			[]string{"clusters[0].connect_timeout: Invalid", "clusters[1]: Invalid"}},
		{"metadata of ours", `listeners: [{name: l, metadata: {filter_metadata: {stile.dev: {mode: BOTH}}}}]`,
			[]string{`listeners[0].metadata.filter_metadata["stile.dev"].mode: Invalid`}},
		{"metadata of ours that is no boolean", `listeners: [{name: l, metadata: {filter_metadata: {stile.dev: {skip: "true"}}}}]`,
			[]string{`listeners[0].metadata.filter_metadata["stile.dev"].skip: Invalid`}},
		{"endpoints by ADS", "clusters: [{name: a, type: EDS, eds_cluster_config: {eds_config: {ads: {}}}}]",
			[]string{"clusters[0].eds_cluster_config.eds_config: NotServed"}},
		{"secrets by ADS", `clusters: [{name: a, transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {tls_certificate_sds_secret_configs: [{name: s, sds_config: {ads: {}}}]}}}}]`,
			[]string{"clusters[0].transport_socket.typed_config.common_tls_context.tls_certificate_sds_secret_configs[0].sds_config: NotServed"}},
		{"a route that is not there", chainOf(`{name: m, typed_config: {"@type": ` + hcm + `, stat_prefix: s, rds: {route_config_name: r, config_source: {ads: {}}}, http_filters: [` + routerFilter + `]}}`),
			[]string{"listeners[0]: RouteMissing"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f, problems := xds.ParseEnvoy("x.yaml", []byte(test.yaml))
			var got []string
			failed := false
			for _, p := range problems {
				got = append(got, p.Path+": "+p.Reason)
				failed = failed || p.Severity == xds.SeverityError
				if p.File != "x.yaml" || p.Message == "" {
					t.Errorf("problem %+v: want the file and a message", p)
				}
				if strings.Contains(p.Message, "proto:") || strings.Contains(p.Message, "(line 1:") {
					t.Errorf("message speaks of JSON that nobody wrote: %s", p.Message)
				}
			}
			if d := cmp.Diff(test.want, got); d != "" {
				t.Errorf("problems (-want +got):\n%s\n%v", d, problems)
			}
			if failed != (f == nil) {
				t.Errorf("file is nil: %v, want %v", f == nil, failed)
			}
		})
	}
}

func TestParseEnvoy_OpensTypedStructsAndMatchers(t *testing.T) {
	t.Parallel()
	manager := `{name: m, typed_config: {"@type": type.googleapis.com/xds.type.v3.TypedStruct, type_url: ` + hcm + `, value: {stat_prefix: s, route_config: {}, http_filters: [
	  {name: own, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/stats.PluginConfig, value: {}}},
	  {name: matched, typed_config: {"@type": type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher, extension_config: {name: x, typed_config: {"@type": ` + typePrefix + `http.rbac.v3.RBAC}}}},
	  {name: nested, typed_config: {"@type": ` + typePrefix + `http.filter_chain.v3.FilterChainConfig, default_filter_chain: {filters: [
	    {name: x, typed_config: {"@type": ` + typePrefix + `http.cors.v3.Cors}},
	    {name: y, typed_config: {"@type": type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/stats.PluginConfig, value: {}}}]}}},
	  {name: found, config_discovery: {config_source: {ads: {}}, type_urls: [a.b/c.D, a.b/e.F]}},
	  ` + routerFilter + `]}}}`
	f, problems := xds.ParseEnvoy("x.yaml", []byte(chainOf(manager)))
	if f == nil {
		t.Fatal(problems)
	}
	want := []plugin.Filter{
		{Name: "own", TypeURLs: []string{"type.googleapis.com/stats.PluginConfig"}},
		{Name: "matched", TypeURLs: []string{typePrefix + "http.rbac.v3.RBAC"}},
		{Name: "nested", TypeURLs: []string{typePrefix + "http.filter_chain.v3.FilterChainConfig", typePrefix + "http.cors.v3.Cors", "type.googleapis.com/stats.PluginConfig"}},
		{Name: "found", TypeURLs: []string{"a.b/c.D", "a.b/e.F"}},
		{Name: "r", TypeURLs: []string{routerType}},
	}
	chain := f.Listeners()[0].Chains[0]
	if d := cmp.Diff(want, chain.HTTP); d != "" || chain.Type != plugin.ChainHTTP {
		t.Errorf("chain %s (-want +got):\n%s", chain.Type, d)
	}
}

func TestParseEnvoy_PortsOfTheMetadataWinOverThoseOfAChain(t *testing.T) {
	t.Parallel()
	chain := `{filter_chain_match: {destination_port: 9090}, filters: [{name: m, typed_config: {"@type": ` + hcm + `, stat_prefix: s, route_config: {}, http_filters: [` + routerFilter + `]}}]}`
	for text, want := range map[string]uint32{
		`listeners: [{name: l, filter_chains: [` + chain + `]}]`:                                                           9090,
		`listeners: [{name: l, metadata: {filter_metadata: {stile.dev: {mode: SERVER}}}, filter_chains: [` + chain + `]}]`: 9090,
		`listeners: [{name: l, metadata: {filter_metadata: {stile.dev: {ports: [80]}}}, filter_chains: [` + chain + `]}]`:  0,
	} {
		f, problems := xds.ParseEnvoy("x.yaml", []byte(text))
		if f == nil {
			t.Fatal(problems)
		}
		if got := f.Listeners()[0].Chains[0].Port; got != want {
			t.Errorf("%s: the chain's port is %d, want %d", text, got, want)
		}
	}
}

func TestParseEnvoy_TellsWhereRoutesSwitchPluginsOff(t *testing.T) {
	t.Parallel()
	off := func(name string) string {
		return `typed_per_filter_config: {` + name + `: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}}`
	}
	const a, b = "extensions.istio.io/wasmplugin/edge.a", "extensions.istio.io/wasmplugin/edge.b"
	routes := `{name: r, ` + off(a) + `, virtual_hosts: [{name: all, domains: ["*"], ` + off(b) + `, routes: [
	  {match: {prefix: /x}, direct_response: {status: 200}, ` + off("own") + `},
	  {match: {prefix: /y}, direct_response: {status: 200}, ` + off(a) + `},
	  {name: named, match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: c, weight: 1, ` + off(b) + `}]}}}]}]}`
	want := []plugin.Switch{{Filter: a, Where: "all routes"}, {Filter: b, Where: "virtual host all"}, {Filter: a, Where: "route all/1"}, {Filter: b, Where: "route all/named to cluster c"}}
	manager := func(routes string) string {
		return chainOf(`{name: m, typed_config: {"@type": ` + hcm + `, stat_prefix: s, ` + routes + `, http_filters: [` + routerFilter + `]}}`)
	}
	for name, text := range map[string]string{
		"its own routes":         manager("route_config: " + routes),
		"the routes of the file": manager("rds: {route_config_name: r, config_source: {ads: {}}}") + "\nroutes: [" + routes + "]\n",
	} {
		f, problems := xds.ParseEnvoy("x.yaml", []byte(text))
		if f == nil {
			t.Fatalf("%s: %v", name, problems)
		}
		if d := cmp.Diff(want, f.Listeners()[0].Chains[0].Switches); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}
