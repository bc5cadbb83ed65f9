package plugin_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
)

// The types that the tests build chains of.
const (
	jwt       = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"
	oauth     = "type.googleapis.com/envoy.extensions.filters.http.oauth2.v3.OAuth2"
	rbac      = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
	extAuthz  = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"
	stats     = "type.googleapis.com/stats.PluginConfig"
	grpcStats = "type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig"
	metadata  = "type.googleapis.com/io.istio.http.peer_metadata.Config"
	cors      = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"
	router    = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
	hcm       = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
	tcpProxy  = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
	netRBAC   = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC"
	wasmHTTP  = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"
)

var names = map[string]string{
	jwt: "jwt", oauth: "oauth", rbac: "rbac", extAuthz: "ext_authz", stats: "stats", grpcStats: "grpc_stats",
	metadata: "metadata", cors: "cors", router: "router", hcm: "hcm", tcpProxy: "tcp_proxy", netRBAC: "net_rbac",
}

// filters makes a list of filters: a type URL becomes a filter of that type, anything else a
// filter of that name.
func filters(of ...string) []plugin.Filter {
	var out []plugin.Filter
	for _, s := range of {
		if name, ok := names[s]; ok {
			out = append(out, plugin.Filter{Name: name, TypeURLs: []string{s}})
		} else {
			out = append(out, plugin.Filter{Name: s})
		}
	}
	return out
}

func httpChain(of ...string) plugin.Chain {
	return plugin.Chain{Type: plugin.ChainHTTP, Network: filters(hcm), HTTP: filters(of...)}
}

func listener(chains ...plugin.Chain) plugin.Listener {
	for i := range chains {
		chains[i].Index = i
	}
	return plugin.Listener{Name: "http", Port: 8080, Mode: "CLIENT", Chains: chains}
}

type option func(*v1alpha1.WasmPlugin)

// wasm makes a plugin in namespace edge, the tests' proxy's own.
func wasm(name string, options ...option) *v1alpha1.WasmPlugin {
	p := &v1alpha1.WasmPlugin{}
	p.Namespace, p.Name = "edge", name
	p.Spec.URL = "oci://registry.example/" + name + ":v1"
	for _, o := range options {
		o(p)
	}
	return p
}

func phase(p v1alpha1.PluginPhase) option { return func(w *v1alpha1.WasmPlugin) { w.Spec.Phase = p } }
func priority(n int32) option             { return func(w *v1alpha1.WasmPlugin) { w.Spec.Priority = &n } }
func in(namespace string) option          { return func(w *v1alpha1.WasmPlugin) { w.Namespace = namespace } }
func network(w *v1alpha1.WasmPlugin)      { w.Spec.Type = v1alpha1.TypeNetwork }
func created(sec int64) option {
	return func(w *v1alpha1.WasmPlugin) { w.CreationTimestamp = metav1.NewTime(time.Unix(sec, 0)) }
}

func selector(labels ...string) option {
	return func(w *v1alpha1.WasmPlugin) {
		w.Spec.Selector = &v1alpha1.WorkloadSelector{MatchLabels: map[string]v1alpha1.LabelValue{}}
		for i := 0; i < len(labels); i += 2 {
			w.Spec.Selector.MatchLabels[labels[i]] = v1alpha1.LabelValue(labels[i+1])
		}
	}
}

func target(kind, name string) option {
	return func(w *v1alpha1.WasmPlugin) {
		w.Spec.TargetRefs = append(w.Spec.TargetRefs, v1alpha1.TargetReference{Group: "gateway.networking.k8s.io", Kind: kind, Name: name})
	}
}

func match(mode v1alpha1.WorkloadMode, ports ...int32) option {
	return func(w *v1alpha1.WasmPlugin) {
		m := v1alpha1.TrafficSelector{Mode: mode}
		for _, p := range ports {
			m.Ports = append(m.Ports, v1alpha1.PortSelector{Number: p})
		}
		w.Spec.Match = append(w.Spec.Match, m)
	}
}

func inputs(l []plugin.Listener, plugins ...*v1alpha1.WasmPlugin) plugin.Inputs {
	return plugin.Inputs{RootNamespace: "root", Plugins: plugins, Listeners: l,
		Node: plugin.Node{ID: "gw-0", Cluster: "edge", Namespace: "edge", Labels: map[string]string{"app": "gw", "tier": "edge"}}}
}

// chainOf returns the names of what data meets in a list of filters: the operator's
// filters, and in brackets the plugins.
func chainOf(list []plugin.Filter, placed []plugin.Placement, drop []int) []string {
	dropped := map[int]bool{}
	for _, i := range drop {
		dropped[i] = true
	}
	var out []string
	for i := 0; i <= len(list); i++ {
		replaced := false
		for _, p := range placed {
			if p.At == i {
				out = append(out, "["+p.Plugin.Name+"]")
				replaced = replaced || p.Replace
			}
		}
		if i < len(list) && !dropped[i] && !replaced {
			out = append(out, list[i].Name)
		}
	}
	return out
}

// onePerPhase is one HTTP plugin for each phase, in no helpful order.
func onePerPhase() []*v1alpha1.WasmPlugin {
	return []*v1alpha1.WasmPlugin{
		wasm("S", phase(v1alpha1.PhaseStats)), wasm("R", phase(v1alpha1.PhaseRouter)), wasm("N", phase(v1alpha1.PhaseAuthN)),
		wasm("U"), wasm("Z", phase(v1alpha1.PhaseAuthZ)),
	}
}

func TestBuild_PutsEachPhaseAtItsAnchor(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ chain, want []string }{
		"a gateway with everything": {
			[]string{metadata, cors, jwt, rbac, stats, router},
			[]string{"metadata", "cors", "[N]", "jwt", "[Z]", "rbac", "[S]", "stats", "[U]", "[R]", "router"}},
		"only a router": {[]string{router}, []string{"[N]", "[Z]", "[S]", "[U]", "[R]", "router"}},
		"authentication alone": {
			[]string{cors, jwt, router}, []string{"cors", "[N]", "jwt", "[Z]", "[S]", "[U]", "[R]", "router"}},
		"authorization alone takes the phase before it along": {
			[]string{cors, rbac, router}, []string{"cors", "[N]", "[Z]", "rbac", "[S]", "[U]", "[R]", "router"}},
		"stats alone takes all before it along": {
			[]string{cors, grpcStats, router}, []string{"cors", "[N]", "[Z]", "[S]", "grpc_stats", "[U]", "[R]", "router"}},
		"several authentication filters": {
			[]string{oauth, cors, jwt, cors, router}, []string{"[N]", "oauth", "cors", "jwt", "[Z]", "[S]", "cors", "[U]", "[R]", "router"}},
		"custom external authorization before authentication stays where it is": {
			[]string{extAuthz, jwt, rbac, router}, []string{"ext_authz", "[N]", "jwt", "[Z]", "rbac", "[S]", "[U]", "[R]", "router"}},
		"external authorization before authentication and none after": {
			[]string{extAuthz, jwt, cors, router}, []string{"ext_authz", "[N]", "jwt", "[Z]", "[S]", "cors", "[U]", "[R]", "router"}},
		"several authorization filters": {
			[]string{jwt, rbac, extAuthz, stats, router}, []string{"[N]", "jwt", "[Z]", "rbac", "ext_authz", "[S]", "stats", "[U]", "[R]", "router"}},
		"stats before authorization is not the anchor": {
			[]string{jwt, stats, rbac, router}, []string{"[N]", "jwt", "stats", "[Z]", "rbac", "[S]", "[U]", "[R]", "router"}},
		"what must come first is not parted from its place": {
			[]string{jwt, metadata, cors, router}, []string{"[N]", "jwt", "metadata", "[Z]", "[S]", "cors", "[U]", "[R]", "router"}},
		"the last filter is terminal whatever it is": {
			[]string{jwt, rbac}, []string{"[N]", "jwt", "[Z]", "[S]", "[U]", "[R]", "rbac"}},
		"a placeholder says the place outright": {
			[]string{jwt, "stile.dev/phase/UNSPECIFIED_PHASE", cors, "stile.dev/phase/AUTHN", router},
			[]string{"jwt", "[Z]", "[S]", "[U]", "cors", "[N]", "[R]", "router"}},
		"of two placeholders the first counts": {
			[]string{"stile.dev/phase/STATS", cors, "stile.dev/phase/STATS", router},
			[]string{"[N]", "[Z]", "[S]", "cors", "[U]", "[R]", "router"}},
		"a placeholder of no phase is dropped": {
			[]string{"stile.dev/phase/NONE", router}, []string{"[N]", "[Z]", "[S]", "[U]", "[R]", "router"}},
		"a placeholder behind the router does not count": {
			[]string{jwt, router, "stile.dev/phase/STATS"}, []string{"[N]", "jwt", "[Z]", "[S]", "[U]", "[R]", "router"}},
		"a filter that carries the plugin's name is its place": {
			[]string{"extensions.istio.io/wasmplugin/edge.U", jwt, router},
			[]string{"[U]", "[N]", "jwt", "[Z]", "[S]", "[R]", "router"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := httpChain(tc.chain...)
			plan, _ := plugin.Build(inputs([]plugin.Listener{listener(c)}, onePerPhase()...))
			got := chainOf(c.HTTP, plan.Chains[0].HTTP, plan.Chains[0].Drop)
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("chain (-want +got):\n%s", d)
			}
		})
	}
}

func TestP10_OrderDoesNotDependOnTheInput(t *testing.T) {
	t.Parallel()
	plugins := append(onePerPhase(), wasm("a", priority(1)), wasm("b", priority(1)), wasm("a", in("root"), priority(1)),
		wasm("c", created(5)), wasm("d", created(4)), wasm("low", priority(-6)), wasm("net", network), wasm("net2", network, phase(v1alpha1.PhaseStats)))
	l := []plugin.Listener{listener(httpChain(jwt, rbac, stats, router), plugin.Chain{Type: plugin.ChainTCP, Network: filters(netRBAC, tcpProxy)})}
	want, _ := plugin.Build(inputs(l, plugins...))
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		r.Shuffle(len(plugins), func(i, j int) { plugins[i], plugins[j] = plugins[j], plugins[i] })
		got, _ := plugin.Build(inputs(l, plugins...))
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("plan depends on the order of its input:\n%s", d)
		}
	}
}
