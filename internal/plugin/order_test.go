package plugin_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
)

// ran returns namespace/name of what a plan's first chain runs, NETWORK first.
func ran(plan plugin.Plan) []string {
	var out []string
	for _, p := range append(slices.Clone(plan.Chains[0].Network), plan.Chains[0].HTTP...) {
		out = append(out, p.Plugin.String())
	}
	return out
}

func TestOrderWithinAPhase(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		plugins []*v1alpha1.WasmPlugin
		want    []string
	}{
		"the higher priority first": {
			[]*v1alpha1.WasmPlugin{wasm("low", priority(10)), wasm("high", priority(1000))}, []string{"edge/high", "edge/low"}},
		"unset is 0, as documented, above -5": {
			[]*v1alpha1.WasmPlugin{wasm("minus", priority(-5)), wasm("unset"), wasm("plus", priority(1))}, []string{"edge/plus", "edge/unset", "edge/minus"}},
		"the extremes of int32": {
			[]*v1alpha1.WasmPlugin{wasm("min", priority(-2147483648)), wasm("max", priority(2147483647))}, []string{"edge/max", "edge/min"}},
		"own namespace before root": {
			[]*v1alpha1.WasmPlugin{wasm("a", in("root")), wasm("b")}, []string{"edge/b", "root/a"}},
		"both of one name run": {
			[]*v1alpha1.WasmPlugin{wasm("a", in("root")), wasm("a")}, []string{"edge/a", "root/a"}},
		"priority counts more than namespace": {
			[]*v1alpha1.WasmPlugin{wasm("b"), wasm("a", in("root"), priority(1))}, []string{"root/a", "edge/b"}},
		"earlier creation first": {
			[]*v1alpha1.WasmPlugin{wasm("a", created(20)), wasm("b", created(10))}, []string{"edge/b", "edge/a"}},
		"name last": {
			[]*v1alpha1.WasmPlugin{wasm("b"), wasm("a")}, []string{"edge/a", "edge/b"}},
		"unspecified before ASM_ROUTER": {
			[]*v1alpha1.WasmPlugin{wasm("r", phase(v1alpha1.PhaseRouter), priority(100)), wasm("u")}, []string{"edge/u", "edge/r"}},
		"network before HTTP, in phase order": {
			[]*v1alpha1.WasmPlugin{wasm("h", phase(v1alpha1.PhaseAuthN)), wasm("n2", network), wasm("n1", network, phase(v1alpha1.PhaseStats))},
			[]string{"edge/n1", "edge/n2", "edge/h"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := []plugin.Listener{listener(httpChain(router))}
			for range 2 {
				plan, problems := plugin.Build(inputs(l, tc.plugins...))
				if d := cmp.Diff(tc.want, ran(plan)); d != "" || len(problems) > 0 {
					t.Errorf("order (-want +got):\n%s%+v", d, problems)
				}
				slices.Reverse(tc.plugins)
			}
		})
	}
}

func TestEveryChainOfAListenerGetsThem(t *testing.T) {
	t.Parallel()
	l := listener(
		httpChain(jwt, router),
		plugin.Chain{Type: plugin.ChainTCP, Network: filters(netRBAC, tcpProxy)},
		plugin.Chain{Type: plugin.ChainTCP, Network: filters(tcpProxy)},
	)
	l.Chains = append(l.Chains, plugin.Chain{Index: -1, Type: plugin.ChainHTTP, Network: filters("limit", hcm), HTTP: filters(router),
		Upgrades: []plugin.Upgrade{{Type: "websocket", Filters: filters(jwt, router)}, {Type: "CONNECT"}}})
	plan, problems := plugin.Build(inputs([]plugin.Listener{l}, wasm("h", phase(v1alpha1.PhaseAuthN)), wasm("n", network, phase(v1alpha1.PhaseAuthZ))))
	var got []string
	for i, c := range plan.Chains {
		got = append(got, fmt.Sprint(c.FilterChain, chainOf(l.Chains[i].Network, c.Network, c.DropNetwork), chainOf(l.Chains[i].HTTP, c.HTTP, c.Drop)))
		for j, u := range c.Upgrades {
			got = append(got, fmt.Sprint(u.Type, chainOf(l.Chains[i].Upgrades[j].Filters, u.HTTP, u.Drop)))
		}
	}
	want := []string{
		"0 [[n] hcm] [[h] jwt router]",
		"1 [[n] net_rbac tcp_proxy] []",
		"2 [[n] tcp_proxy] []",
		"-1 [limit [n] hcm] [[h] router]",
		"websocket[[h] jwt router]",
		"CONNECT[]",
	}
	if d := cmp.Diff(want, got); d != "" || len(problems) > 0 {
		t.Errorf("chains (-want +got):\n%s%+v", d, problems)
	}
	if d := cmp.Diff([]plugin.Key{{Namespace: "edge", Name: "h"}, {Namespace: "edge", Name: "n"}}, plan.Plugins()); d != "" {
		t.Errorf("Plugins (-want +got):\n%s", d)
	}
}

func TestProblems(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		chain  []string
		reason string
	}{
		"in order":                      {[]string{extAuthz, jwt, rbac, router}, ""},
		"authorization before":          {[]string{rbac, jwt, router}, plugin.ProblemAnchorOrder},
		"unknown placeholder":           {[]string{"stile.dev/phase/X", router}, plugin.ProblemPlaceholder},
		"second placeholder":            {[]string{"stile.dev/phase/AUTHN", "stile.dev/phase/AUTHN", router}, plugin.ProblemPlaceholder},
		"placeholder behind the router": {[]string{router, "stile.dev/phase/AUTHN"}, plugin.ProblemPlaceholder},
		"a plugin that is not there":    {[]string{"extensions.istio.io/wasmplugin/edge.nobody", router}, plugin.ProblemNotInPlan},
		"a plugin that is there":        {[]string{"extensions.istio.io/wasmplugin/edge.a", router}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, problems := plugin.Build(inputs([]plugin.Listener{listener(httpChain(tc.chain...))}, wasm("a")))
			if tc.reason == "" && len(problems) > 0 || tc.reason != "" && (len(problems) != 1 || problems[0].Reason != tc.reason || problems[0].Listener != "http") {
				t.Errorf("problems: %+v, want reason %q", problems, tc.reason)
			}
		})
	}
}

func TestExtraAnchors(t *testing.T) {
	t.Parallel()
	in := inputs([]plugin.Listener{listener(httpChain(cors, router))}, wasm("z", phase(v1alpha1.PhaseAuthZ)))
	in.ExtraAnchors.AuthN = []string{"envoy.extensions.filters.http.cors.v3.Cors"}
	plan, _ := plugin.Build(in)
	if got := plan.Chains[0].HTTP[0].At; got != 1 {
		t.Errorf("AUTHZ plugin at %d, want 1: right after what was named an authentication filter", got)
	}
}

func TestConfigDiscoveryIsAnAnchorByItsTypes(t *testing.T) {
	t.Parallel()
	c := httpChain(router)
	c.HTTP = append([]plugin.Filter{{Name: "their-auth", TypeURLs: []string{cors, jwt}}}, c.HTTP...)
	plan, _ := plugin.Build(inputs([]plugin.Listener{listener(c)}, wasm("n", phase(v1alpha1.PhaseAuthN))))
	if got := plan.Chains[0].HTTP[0].Before; got != "their-auth" {
		t.Errorf("AUTHN plugin before %q, want before their-auth", got)
	}
}

// world makes random plugins and listeners.
func world(r *rand.Rand) plugin.Inputs {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	var plugins []*v1alpha1.WasmPlugin
	for i := range 1 + r.IntN(12) {
		p := wasm(fmt.Sprintf("p%d", i), in(pick("edge", "edge", "root", "team-b")), phase(v1alpha1.PluginPhase(pick("", "AUTHN", "AUTHZ", "STATS", "ASM_ROUTER", "UNSPECIFIED_PHASE"))))
		if r.IntN(2) == 0 {
			priority(int32(r.IntN(5) - 2))(p)
		}
		if r.IntN(3) == 0 {
			network(p)
		}
		if r.IntN(4) == 0 {
			selector("app", pick("gw", "other"))(p)
		}
		if r.IntN(4) == 0 {
			match(v1alpha1.WorkloadMode(pick("", "CLIENT", "SERVER")), int32(r.IntN(2)+8080))(p)
		}
		if r.IntN(3) == 0 {
			created(int64(r.IntN(3)))(p)
		}
		plugins = append(plugins, p)
	}
	chain := func() []string {
		var out []string
		for range r.IntN(7) {
			out = append(out, pick(jwt, oauth, rbac, extAuthz, stats, metadata, cors, router, netRBAC, "x", "stile.dev/phase/AUTHN", "stile.dev/phase/STATS",
				"extensions.istio.io/wasmplugin/edge.p1"))
		}
		return out
	}
	var listeners []plugin.Listener
	for range 1 + r.IntN(3) {
		l := listener(plugin.Chain{Type: pick(plugin.ChainHTTP, plugin.ChainTCP), Network: filters(chain()...), HTTP: filters(chain()...),
			Upgrades: []plugin.Upgrade{{Type: "u", Filters: filters(chain()...)}}})
		l.QUIC, l.Skip = r.IntN(5) == 0, r.IntN(5) == 0
		listeners = append(listeners, l)
	}
	return inputs(listeners, plugins...)
}

// without returns a plan without what concerns one plugin.
func without(plan plugin.Plan, key plugin.Key) plugin.Plan {
	keep := func(ps []plugin.Placement) []plugin.Placement {
		return slices.DeleteFunc(slices.Clone(ps), func(p plugin.Placement) bool { return p.Plugin == key })
	}
	var out plugin.Plan
	for _, c := range plan.Chains {
		c.Network, c.HTTP = keep(c.Network), keep(c.HTTP)
		c.Skipped = slices.DeleteFunc(slices.Clone(c.Skipped), func(s plugin.Skip) bool { return s.Plugin == key })
		c.Upgrades = slices.Clone(c.Upgrades)
		for i := range c.Upgrades {
			c.Upgrades[i].HTTP = keep(c.Upgrades[i].HTTP)
		}
		out.Chains = append(out.Chains, c)
	}
	return out
}

// equalPlans compares plans; no list and an empty list are the same.
func equalPlans(a, b plugin.Plan) string {
	return cmp.Diff(a, b, cmp.Transformer("nil", func(p []plugin.Placement) map[int]plugin.Placement {
		m := map[int]plugin.Placement{}
		for i, e := range p {
			m[i] = e
		}
		return m
	}), cmp.Transformer("nilSkip", func(p []plugin.Skip) map[int]plugin.Skip {
		m := map[int]plugin.Skip{}
		for i, e := range p {
			m[i] = e
		}
		return m
	}))
}

func TestP7_RemovingOrBreakingOnePluginMovesNoOther(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 7))
		in := world(r)
		before, _ := plugin.Build(in)
		victim := r.IntN(len(in.Plugins))
		key := plugin.KeyOf(in.Plugins[victim])

		removed := in
		removed.Plugins = slices.Delete(slices.Clone(in.Plugins), victim, victim+1)
		after, _ := plugin.Build(removed)
		if d := equalPlans(without(before, key), after); d != "" {
			t.Fatalf("seed %d: removing %s changed others:\n%s", seed, key, d)
		}
		for _, field := range []string{"spec.url", "spec.phase", "spec.unheardOf"} {
			broken := in
			broken.Invalid = map[plugin.Key][]v1alpha1.Finding{key: {{Field: field, Severity: "error", Reason: "Invalid", Message: "x"}}}
			after, _ = plugin.Build(broken)
			if d := equalPlans(without(before, key), without(after, key)); d != "" {
				t.Fatalf("seed %d: breaking %s of %s changed others:\n%s", seed, field, key, d)
			}
		}
	}
}

func TestP10_AnyOrderOfInputGivesTheSamePlan(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 10))
		in := world(r)
		want, wantProblems := plugin.Build(in)
		r.Shuffle(len(in.Plugins), func(i, j int) { in.Plugins[i], in.Plugins[j] = in.Plugins[j], in.Plugins[i] })
		got, gotProblems := plugin.Build(in)
		if d := cmp.Diff(want, got) + cmp.Diff(wantProblems, gotProblems); d != "" {
			t.Fatalf("seed %d: another order, another plan:\n%s", seed, d)
		}
		in.OmitSkipped = true
		got, _ = plugin.Build(in)
		for i := range want.Chains {
			want.Chains[i].Skipped = nil
		}
		if d := equalPlans(want, got); d != "" {
			t.Fatalf("seed %d: without reasons, another plan:\n%s", seed, d)
		}
	}
}

func TestEachPhaseIsAtOrAfterTheOneBefore(t *testing.T) {
	t.Parallel()
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 3))
		var chain []string
		for range 1 + r.IntN(8) {
			chain = append(chain, []string{jwt, oauth, rbac, extAuthz, stats, grpcStats, metadata, cors, router}[r.IntN(9)])
		}
		plan, _ := plugin.Build(inputs([]plugin.Listener{listener(httpChain(chain...))}, onePerPhase()...))
		var order string
		for _, p := range plan.Chains[0].HTTP {
			order += p.Plugin.Name
		}
		if order != "NZSUR" {
			t.Fatalf("seed %d: %v gives order %s", seed, chain, order)
		}
	}
}

// BenchmarkBuild plans for 1,000 nodes in 100 groups, with 1,000 plugins in 100 namespaces.
// Nodes of one group differ in nothing that a plan depends on, so one plan is built for each.
func BenchmarkBuild(b *testing.B) {
	var plugins []*v1alpha1.WasmPlugin
	for i := range 1000 {
		plugins = append(plugins, wasm(fmt.Sprintf("p%d", i), in(fmt.Sprintf("ns-%d", i%100)), priority(int32(i%7)), selector("app", "gw")))
	}
	nodes := make([]plugin.Inputs, 1000)
	for n := range nodes {
		nodes[n] = inputs([]plugin.Listener{listener(httpChain(jwt, rbac, stats, router), httpChain(router))}, plugins...)
		nodes[n].Node.ID = fmt.Sprintf("node-%d", n)
		nodes[n].Node.Namespace = fmt.Sprintf("ns-%d", n%100)
		nodes[n].OmitSkipped = true
	}
	groups := nodes[:100]
	b.Run("plugins=1000/nodes=1000/alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for _, in := range nodes {
				plugin.Build(in)
			}
		}
	})
	b.Run("plugins=1000/nodes=1000/groups=100", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for _, in := range groups {
				plugin.Build(in)
			}
		}
	})
	b.Run("plugins=1000/nodes=1000/groups=100/changed=1", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			changed := plugins[42]
			for _, in := range groups {
				if plugin.Concerns(in.RootNamespace, changed, &in.Node) {
					plugin.Build(in)
				}
			}
		}
	})
	b.Run("explain", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			plugin.Explain(nodes[0])
		}
	})
}
