package plugin_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
)

func TestAttaches(t *testing.T) {
	t.Parallel()
	workload := plugin.Node{Namespace: "edge", Labels: map[string]string{"app": "gw", "tier": "edge"}}
	gateway := plugin.Node{Namespace: "edge", Gateway: "main", Labels: map[string]string{"app": "gw"}}
	labelled := plugin.Node{Namespace: "edge", Labels: map[string]string{
		"gateway.networking.k8s.io/gateway-name": "main", "gateway.networking.k8s.io/gateway-class-name": "stile"}}
	waypoint := plugin.Node{Namespace: "edge", Gateway: "way", Services: []string{"reviews"}, ServiceEntries: []string{"db"}}
	rootNode := plugin.Node{Namespace: "root", Gateway: "main"}
	old := func(w *v1alpha1.WasmPlugin) {
		w.Spec.TargetRef = &v1alpha1.TargetReference{Group: "gateway.networking.k8s.io", Kind: "Gateway", Name: "main"}
	}
	for _, tc := range []struct {
		name   string
		node   plugin.Node
		plugin *v1alpha1.WasmPlugin
		want   string // the reason of the skip; empty if it attaches
	}{
		{"no selector takes the whole namespace", workload, wasm("a"), ""},
		{"another namespace", workload, wasm("a", in("team-b")), "NamespaceMismatch"},
		{"the root namespace applies everywhere", workload, wasm("a", in("root")), ""},
		{"the root namespace with a selector", workload, wasm("a", in("root"), selector("app", "gw")), ""},
		{"selector on one label", workload, wasm("a", selector("app", "gw")), ""},
		{"selector on all labels", workload, wasm("a", selector("app", "gw", "tier", "edge")), ""},
		{"selector on a label that is absent", workload, wasm("a", selector("app", "gw", "x", "y")), "SelectorMismatch"},
		{"selector on another value", workload, wasm("a", selector("app", "other")), "SelectorMismatch"},
		{"selector that wants the empty value of an absent label", workload, wasm("a", selector("x", "")), "SelectorMismatch"},
		{"empty selector", workload, wasm("a", selector()), ""},
		{"selector works on a gateway too", gateway, wasm("a", selector("app", "gw")), ""},
		{"target on no gateway", workload, wasm("a", target("Gateway", "main")), "TargetMismatch"},
		{"target", gateway, wasm("a", target("Gateway", "main")), ""},
		{"target by label", labelled, wasm("a", target("Gateway", "main")), ""},
		{"other gateway", gateway, wasm("a", target("Gateway", "other")), "TargetMismatch"},
		{"one of several targets", gateway, wasm("a", target("Gateway", "other"), target("Gateway", "main")), ""},
		{"old target", gateway, wasm("a", old), ""},
		{"old target counts only alone", gateway, wasm("a", old, target("Gateway", "other")), "TargetMismatch"},
		{"gateway of the same name elsewhere", gateway, wasm("a", in("root"), target("Gateway", "main")), "TargetMismatch"},
		{"gateway in the root namespace", rootNode, wasm("a", in("root"), target("Gateway", "main")), ""},
		{"class from the root namespace", labelled, wasm("a", in("root"), target("GatewayClass", "stile")), ""},
		{"class from elsewhere", labelled, wasm("a", target("GatewayClass", "stile")), "TargetMismatch"},
		{"class that is not known", gateway, wasm("a", in("root"), target("GatewayClass", "stile")), "TargetMismatch"},
		{"service on a gateway", gateway, wasm("a", target("Service", "reviews")), "TargetMismatch"},
		{"service on its waypoint", waypoint, wasm("a", target("Service", "reviews")), ""},
		{"service entry on its waypoint", waypoint, wasm("a", target("ServiceEntry", "db")), ""},
		{"waypoint as a gateway", waypoint, wasm("a", target("Gateway", "way")), ""},
		{"waypoints take no selectors", waypoint, wasm("a"), "TargetMismatch"},
		{"nor from the root namespace", waypoint, wasm("a", in("root")), "TargetMismatch"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got := plugin.Attaches("root", tc.plugin, &tc.node)
			if got.Reason != tc.want || (got.Message == "") != (tc.want == "") {
				t.Errorf("got %+v, want reason %q and, if any, a message", got, tc.want)
			}
			if plugin.Concerns("root", tc.plugin, &tc.node) != (tc.want == "") {
				t.Error("Concerns says otherwise")
			}
			keys := plugin.Attached(plugin.Inputs{RootNamespace: "root", Node: tc.node, Plugins: []*v1alpha1.WasmPlugin{tc.plugin}})
			if attached := len(keys) == 1; attached != (tc.want == "") {
				t.Errorf("Attached says %v", keys)
			}
		})
	}
}

func TestClassed(t *testing.T) {
	t.Parallel()
	classes := map[plugin.Key]string{{Namespace: "edge", Name: "main"}: "stile", {Namespace: "other", Name: "main"}: "x"}
	byClass := wasm("a", in("root"), target("GatewayClass", "stile"))
	for _, tc := range []struct {
		name string
		node plugin.Node
		want bool
	}{
		{"by its Gateway", plugin.Node{Namespace: "edge", Gateway: "main"}, true},
		{"by the Gateway that a label names", plugin.Node{Namespace: "edge", Labels: map[string]string{"gateway.networking.k8s.io/gateway-name": "main"}}, true},
		{"what the node says itself counts", plugin.Node{Namespace: "edge", Gateway: "main", GatewayClass: "other"}, false},
		{"a Gateway that is not known", plugin.Node{Namespace: "edge", Gateway: "unknown"}, false},
		{"a Gateway of another namespace", plugin.Node{Namespace: "other", Gateway: "main"}, false},
		{"no Gateway", plugin.Node{Namespace: "edge"}, false},
	} {
		n := tc.node.Classed(classes)
		if got := plugin.Concerns("root", byClass, &n); got != tc.want {
			t.Errorf("%s: attaches %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestMatch(t *testing.T) {
	t.Parallel()
	type chain struct {
		mode      string
		port      uint32
		ports     []uint32
		chainPort uint32
	}
	client, server := chain{mode: "CLIENT", port: 8080}, chain{mode: "SERVER", port: 8080}
	for _, tc := range []struct {
		name   string
		chain  chain
		plugin *v1alpha1.WasmPlugin
		want   bool
	}{
		{"none takes all", client, wasm("a"), true},
		{"an entry without conditions takes all", client, wasm("a", match("")), true},
		{"mode", client, wasm("a", match("CLIENT")), true},
		{"other mode", client, wasm("a", match("SERVER")), false},
		{"no direction is CLIENT", chain{port: 8080}, wasm("a", match("CLIENT")), true},
		{"server", server, wasm("a", match("SERVER")), true},
		{"undefined is both", server, wasm("a", match("UNDEFINED")), true},
		{"client and server is both", server, wasm("a", match("CLIENT_AND_SERVER")), true},
		{"port", client, wasm("a", match("", 8080)), true},
		{"one of the ports", client, wasm("a", match("", 80, 8080)), true},
		{"other port", client, wasm("a", match("", 80)), false},
		{"mode and port are both needed", client, wasm("a", match("SERVER", 8080)), false},
		{"entries are alternatives", client, wasm("a", match("SERVER"), match("CLIENT", 80), match("CLIENT", 8080)), true},
		{"additional address", chain{mode: "CLIENT", port: 80, ports: []uint32{80, 8443}}, wasm("a", match("", 8443)), true},
		{"the chain's own port wins", chain{mode: "CLIENT", port: 80, ports: []uint32{80}, chainPort: 9000}, wasm("a", match("", 9000)), true},
		{"so the listener's does not count", chain{mode: "CLIENT", port: 80, chainPort: 9000}, wasm("a", match("", 80)), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := httpChain(router)
			c.Port = tc.chain.chainPort
			l := plugin.Listener{Name: "l", Port: tc.chain.port, Ports: tc.chain.ports, Mode: tc.chain.mode, Chains: []plugin.Chain{c}}
			plan, _ := plugin.Build(inputs([]plugin.Listener{l}, tc.plugin))
			if got := len(plan.Chains[0].HTTP) == 1; got != tc.want {
				t.Errorf("in the chain: %v, want %v; skipped %+v", got, tc.want, plan.Chains[0].Skipped)
			}
			if s := plan.Chains[0].Skipped; !tc.want && (len(s) != 1 || s[0].Reason != plugin.SkipMatchMismatch) {
				t.Errorf("skipped: %+v, want MatchMismatch", s)
			}
		})
	}
}

// TestEveryPluginIsInTheChainOrSkippedWithAReason covers the reasons beside attachment and match.
func TestEveryPluginIsInTheChainOrSkippedWithAReason(t *testing.T) {
	t.Parallel()
	tcp := plugin.Chain{Type: plugin.ChainTCP, Network: filters(tcpProxy)}
	quic := listener(httpChain(router))
	quic.QUIC = true
	skipped := listener(httpChain("stile.dev/phase/AUTHN", router))
	skipped.Skip = true
	for _, tc := range []struct {
		name     string
		listener plugin.Listener
		node     func(*plugin.Node)
		invalid  []v1alpha1.Finding
		http     string // the reason for the HTTP plugin; empty: it is in the chain
		network  string
	}{
		{name: "HTTP chain", listener: listener(httpChain(router))},
		{name: "TCP chain", listener: listener(tcp), http: "WrongChainType"},
		{name: "QUIC", listener: quic, network: "NotOnQUIC"},
		{name: "skipped listener", listener: skipped, http: "ListenerSkipped", network: "ListenerSkipped"},
		{name: "empty chain", listener: listener(plugin.Chain{Type: plugin.ChainTCP}), http: "EmptyChain", network: "EmptyChain"},
		{name: "no HTTP filters", listener: listener(plugin.Chain{Type: plugin.ChainHTTP, Network: filters(hcm)}), http: "EmptyChain"},
		{name: "nothing but placeholders", listener: listener(httpChain("stile.dev/phase/AUTHN")), http: "EmptyChain"},
		{name: "extensions unknown", listener: listener(httpChain(router)), node: func(n *plugin.Node) { n.Extensions = nil }},
		{name: "extensions without Wasm", listener: listener(httpChain(router)), node: func(n *plugin.Node) { n.Extensions = []string{"envoy.filters.http.router"} },
			http: "ProxyLacksExtension", network: "ProxyLacksExtension"},
		{name: "extensions by type", listener: listener(httpChain(router)), node: func(n *plugin.Node) { n.Extensions = []string{wasmHTTP} }, network: "ProxyLacksExtension"},
		{name: "extensions by name", listener: listener(httpChain(router)), node: func(n *plugin.Node) { n.Extensions = []string{"envoy.filters.network.wasm"} }, http: "ProxyLacksExtension"},
		{name: "invalid where its place is not known", listener: listener(httpChain(router)),
			invalid: []v1alpha1.Finding{{Field: "spec.selectr", Severity: "error", Message: "is not a field"}}, http: "Invalid", network: "Invalid"},
		{name: "invalid where its place is known", listener: listener(httpChain(router)),
			invalid: []v1alpha1.Finding{{Field: "spec.vmConfig.env[0].name", Severity: "error", Message: "x"}, {Field: "spec.url", Severity: "error", Message: "y"}}},
		{name: "warnings are not errors", listener: listener(httpChain(router)),
			invalid: []v1alpha1.Finding{{Field: "spec.selector", Severity: "warning", Message: "x"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			in := inputs([]plugin.Listener{tc.listener}, wasm("h"), wasm("n", network))
			in.Invalid = map[plugin.Key][]v1alpha1.Finding{{Namespace: "edge", Name: "h"}: tc.invalid, {Namespace: "edge", Name: "n"}: tc.invalid}
			if tc.node != nil {
				tc.node(&in.Node)
			}
			plan, problems := plugin.Build(in)
			c := plan.Chains[0]
			got := map[string]string{}
			for _, p := range append(c.HTTP, c.Network...) {
				got[p.Plugin.Name] = ""
			}
			for _, s := range c.Skipped {
				got[s.Plugin.Name] = s.Reason
				if s.Message == "" {
					t.Errorf("%s: no message", s.Plugin)
				}
			}
			if d := cmp.Diff(map[string]string{"h": tc.http, "n": tc.network}, got); d != "" {
				t.Errorf("reasons (-want +got):\n%s", d)
			}
			if strings.HasPrefix(tc.name, "invalid") && len(problems) != 2 {
				t.Errorf("problems: %+v, want one for each invalid plugin", problems)
			}
		})
	}
}

func TestSkippedListenerLosesItsPlaceholdersAllTheSame(t *testing.T) {
	t.Parallel()
	l := listener(httpChain("stile.dev/phase/AUTHN", router))
	l.Skip = true
	plan, _ := plugin.Build(inputs([]plugin.Listener{l}))
	if d := cmp.Diff([]int{0}, plan.Chains[0].Drop); d != "" {
		t.Errorf("a placeholder that Envoy does not know stays:\n%s", d)
	}
}
