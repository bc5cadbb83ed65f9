package plugin

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/stileproject/stile/api/v1alpha1"
)

// The reasons of Problems beside those of Skip.
const (
	ProblemAnchorOrder = "AnchorOrder" // the operator's own filters are in an order that the phases contradict
	ProblemPlaceholder = "Placeholder" // a placeholder filter does not say what it should
	ProblemDuplicate   = "Duplicate"   // two plugins of one name
	ProblemNotInPlan   = "NotInPlan"   // the operator's filter names a plugin that is not in that chain
	ProblemInvalid     = SkipInvalid   // a plugin is wrong; its place, if it has one, is a stand-in's
)

// Plugins returns the plugins that are placed somewhere: sorted, each once.
func (p Plan) Plugins() []Key {
	var keys []Key
	add := func(ps []Placement) {
		for _, pl := range ps {
			keys = append(keys, pl.Plugin)
		}
	}
	for _, c := range p.Chains {
		add(c.Network)
		add(c.HTTP)
		for _, u := range c.Upgrades {
			add(u.HTTP)
		}
	}
	slices.SortFunc(keys, compareKeys)
	return slices.Compact(keys)
}

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// Attached returns the plugins that attach to the node whatever its listeners are, for
// proxies that keep listeners of their own: sorted, each once.
func Attached(in Inputs) []Key {
	var keys []Key
	for _, p := range in.Plugins {
		if attaches(in.RootNamespace, p, &in.Node, false).Reason == "" && misplaced(in.Invalid[KeyOf(p)]) == nil {
			keys = append(keys, KeyOf(p))
		}
	}
	slices.SortFunc(keys, compareKeys)
	return slices.Compact(keys)
}

// candidate is a plugin with what Build has found out about it.
type candidate struct {
	*v1alpha1.WasmPlugin
	key     Key
	kind    v1alpha1.PluginType
	rank    int
	detach  Skip // why it does not attach to the node; zero Reason if it does
	lacking bool // the node has no extension to run it
}

// Build plans what the node runs. It is total: whatever is wrong becomes a Problem, and
// the rest of the plan stands. No plugin's place depends on another plugin but by their
// order.
func Build(in Inputs) (Plan, []Problem) {
	b := builder{in: &in}
	b.collect()
	var plan Plan
	for i := range in.Listeners {
		l := &in.Listeners[i]
		for j := range l.Chains {
			plan.Chains = append(plan.Chains, b.chain(l, &l.Chains[j]))
		}
	}
	return plan, b.problems
}

type builder struct {
	in         *Inputs
	candidates []candidate // in the order in which they run
	byKey      []int       // the indexes of candidates, sorted by key
	problems   []Problem
}

// collect finds out which plugins attach and orders them. Those that do not are kept only
// to be explained.
func (b *builder) collect() {
	in := b.in
	var plugins []*v1alpha1.WasmPlugin
	detached := make(map[*v1alpha1.WasmPlugin]Skip)
	for _, p := range in.Plugins {
		skip := attaches(in.RootNamespace, p, &in.Node, !in.OmitSkipped)
		if skip.Reason != SkipNamespaceMismatch {
			if f := misplaced(in.Invalid[KeyOf(p)]); f != nil {
				skip = Skip{Plugin: KeyOf(p), Reason: SkipInvalid, Message: f.Field + ": " + f.Message}
			}
		}
		if in.OmitSkipped && skip.Reason != "" && skip.Reason != SkipInvalid {
			continue
		}
		plugins = append(plugins, p)
		if skip.Reason != "" {
			detached[p] = skip
		}
	}
	slices.SortFunc(plugins, func(x, y *v1alpha1.WasmPlugin) int {
		return cmp.Or(compareBool(detached[x].Reason != "", detached[y].Reason != ""), compare(x, y, in.Node.Namespace))
	})
	seen := make(map[Key]bool, len(plugins))
	lacksHTTP, lacksNetwork := in.Node.lacks(httpWasm), in.Node.lacks(networkWasm)
	b.candidates = make([]candidate, 0, len(plugins))
	for _, p := range plugins {
		c := candidate{WasmPlugin: p, key: KeyOf(p), kind: p.Spec.EffectiveType(), rank: rank(p.Spec.Phase), detach: detached[p]}
		if seen[c.key] {
			b.problems = append(b.problems, Problem{Plugin: c.key, Severity: v1alpha1.SeverityError, Reason: ProblemDuplicate,
				Message: "there are two plugins of this name: one alone counts, remove the other"})
			continue
		}
		seen[c.key] = true
		c.lacking = lacksHTTP && c.kind == v1alpha1.TypeHTTP || lacksNetwork && c.kind == v1alpha1.TypeNetwork
		b.candidates = append(b.candidates, c)
	}
	b.byKey = make([]int, len(b.candidates))
	for i := range b.byKey {
		b.byKey[i] = i
	}
	slices.SortFunc(b.byKey, func(x, y int) int { return compareKeys(b.candidates[x].key, b.candidates[y].key) })
	for _, i := range b.byKey {
		c := &b.candidates[i]
		if c.detach.Reason != "" && c.detach.Reason != SkipInvalid {
			continue
		}
		if errs := errorsOf(in.Invalid[c.key]); errs != "" {
			b.problems = append(b.problems, Problem{Plugin: c.key, Severity: v1alpha1.SeverityError, Reason: ProblemInvalid, Message: errs})
		}
	}
}

// errorsOf joins the errors among findings; "" if there is none.
func errorsOf(found []v1alpha1.Finding) string {
	var parts []string
	for _, f := range found {
		if f.Severity == v1alpha1.SeverityError {
			parts = append(parts, strings.TrimPrefix(f.Field+": "+f.Message, ": "))
		}
	}
	return strings.Join(parts, "; ")
}

// compare orders plugins as data meets them: phase, then priority, higher first; ties by
// namespace, the proxy's before all others, by creation, earlier first, by name, by namespace. It is total:
// plugins that compare equal are equal in all that is written in them.
func compare(a, b *v1alpha1.WasmPlugin, home string) int {
	away := func(p *v1alpha1.WasmPlugin) int {
		if p.Namespace == home {
			return 0
		}
		return 1
	}
	if c := cmp.Or(
		cmp.Compare(rank(a.Spec.Phase), rank(b.Spec.Phase)),
		cmp.Compare(b.Spec.EffectivePriority(), a.Spec.EffectivePriority()),
		cmp.Compare(away(a), away(b)),
		a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time),
		cmp.Compare(a.Name, b.Name),
		cmp.Compare(a.Namespace, b.Namespace),
	); c != 0 || a == b {
		return c
	}
	// Two documents of one name: which of them counts must not depend on their order.
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return bytes.Compare(x, y)
}

// The extensions that run plugins: type, then name.
var (
	httpWasm    = []string{"envoy.extensions.filters.http.wasm.v3.Wasm", "envoy.filters.http.wasm"}
	networkWasm = []string{"envoy.extensions.filters.network.wasm.v3.Wasm", "envoy.filters.network.wasm"}
)

// lacks reports whether n says which extensions it has, and none of these is among them.
func (n *Node) lacks(extension []string) bool {
	return len(n.Extensions) > 0 && !slices.ContainsFunc(n.Extensions, func(e string) bool {
		return slices.Contains(extension, bareType(e))
	})
}

// chain plans one filter chain.
func (b *builder) chain(l *Listener, c *Chain) ChainPlan {
	ports := l.Ports
	switch {
	case c.Port != 0:
		ports = []uint32{c.Port}
	case len(ports) == 0:
		ports = []uint32{l.Port}
	}
	// What is shown is what match was compared with.
	plan := ChainPlan{Listener: l.Name, Port: ports[0], Mode: cmp.Or(l.Mode, string(v1alpha1.ModeClient)), FilterChain: c.Index}

	network := b.level(l, c, c.Network, anchors{networkAnchors, b.in.ExtraAnchors, networkRBAC})
	http := b.level(l, c, c.HTTP, anchors{httpAnchors, b.in.ExtraAnchors, httpRBAC})
	upgrades := make([]level, len(c.Upgrades))
	for i, u := range c.Upgrades {
		upgrades[i] = b.level(l, c, u.Filters, anchors{httpAnchors, b.in.ExtraAnchors, httpRBAC})
	}
	here := make([]bool, len(b.candidates))
	for _, i := range b.byKey {
		cand := &b.candidates[i]
		skip := b.skip(cand, l, c, &plan, ports, network, http)
		if skip.Reason != "" {
			if !b.in.OmitSkipped {
				plan.Skipped = append(plan.Skipped, skip)
			}
			if skip.Reason == SkipNotOnQUIC {
				b.problems = append(b.problems, Problem{Plugin: cand.key, Listener: l.Name, FilterChain: c.Index,
					Severity: v1alpha1.SeverityWarning, Reason: SkipNotOnQUIC, Message: skip.Message})
			}
			continue
		}
		here[i] = true
	}
	for i := range b.candidates {
		cand := &b.candidates[i]
		switch {
		case !here[i]:
		case cand.kind == v1alpha1.TypeNetwork:
			network.place(cand)
		default:
			http.place(cand)
			for j := range upgrades {
				upgrades[j].place(cand)
			}
		}
	}
	plan.Network, plan.DropNetwork = network.done(b, l, c)
	plan.HTTP, plan.Drop = http.done(b, l, c)
	for i := range upgrades {
		u := UpgradePlan{Index: i, Type: c.Upgrades[i].Type}
		u.HTTP, u.Drop = upgrades[i].done(b, l, c)
		plan.Upgrades = append(plan.Upgrades, u)
	}
	return plan
}

// skip returns why a plugin is not in a chain; a zero Reason means that it is.
func (b *builder) skip(cand *candidate, l *Listener, c *Chain, plan *ChainPlan, ports []uint32, network, http level) Skip {
	if cand.detach.Reason != "" {
		return cand.detach
	}
	skip := func(reason, format string, args ...any) Skip {
		if b.in.OmitSkipped && reason != SkipNotOnQUIC {
			return Skip{Plugin: cand.key, Reason: reason}
		}
		return Skip{Plugin: cand.key, Reason: reason, Message: fmt.Sprintf(format, args...)}
	}
	isNetwork := cand.kind == v1alpha1.TypeNetwork
	switch {
	case !matches(cand.Spec.Match, plan.Mode, ports):
		return skip(SkipMatchMismatch, "no entry of spec.match covers mode %s and port %s", plan.Mode, portList(ports))
	case !isNetwork && c.Type != ChainHTTP && network.terminal >= 0: // without filters a chain has no type
		return skip(SkipWrongChainType, "an HTTP plugin needs an HTTP connection manager, which this chain has not: use type NETWORK, or match other ports")
	case isNetwork && l.QUIC:
		return skip(SkipNotOnQUIC, "network filters see no data on QUIC: use type HTTP, or leave this listener out by match")
	case cand.lacking:
		return skip(SkipLacksExtension, "this proxy was built without the Wasm extension for type %s", cand.kind)
	case l.Skip:
		return skip(SkipListenerSkipped, "the operator's listener says stile.dev: {skip: true}")
	case network.terminal < 0:
		return skip(SkipEmptyChain, "the chain has no filters, so nothing can stand before them")
	case !isNetwork && http.terminal < 0:
		return skip(SkipEmptyChain, "the HTTP connection manager has no filters, so nothing can stand before them")
	}
	return Skip{}
}

func portList(ports []uint32) string {
	words := make([]string, len(ports))
	for i, p := range ports {
		words[i] = fmt.Sprint(p)
	}
	return strings.Join(words, ", ")
}

// level is one list of filters while plugins are placed into it.
type level struct {
	places
	filters []Filter
	placed  []Placement
}

// level finds the places of a list of filters and reports what is odd about them.
func (b *builder) level(l *Listener, c *Chain, filters []Filter, a anchors) level {
	v := level{places: a.find(filters), filters: filters}
	for _, p := range v.problems {
		b.problems = append(b.problems, Problem{Listener: l.Name, FilterChain: c.Index, Severity: p.severity, Reason: p.reason, Message: p.message})
	}
	return v
}

// place adds a plugin: where the operator's list already names it, else where its phase goes.
func (v *level) place(c *candidate) {
	if v.terminal < 0 {
		return
	}
	p := Placement{
		Plugin: c.key, Type: string(c.kind), Phase: string(phases[c.rank]), Priority: c.Spec.EffectivePriority(),
		At: v.at[c.rank],
	}
	name := c.ECDSName()
	if i := slices.IndexFunc(v.filters, func(f Filter) bool { return f.Name == name }); i >= 0 {
		p.At, p.Replace = i, true
		p.Before = next(v.filters, i+1)
	} else {
		p.Before = next(v.filters, p.At)
	}
	v.placed = append(v.placed, p)
}

// done returns the placements in the order in which data meets them, and the placeholders
// to remove; and reports filters that name plugins which are not there.
func (v *level) done(b *builder, l *Listener, c *Chain) ([]Placement, []int) {
	// What is inserted at an index stands before the filter of that index; within one index
	// the candidates' own order stands.
	slices.SortStableFunc(v.placed, func(x, y Placement) int {
		return cmp.Or(cmp.Compare(x.At, y.At), compareBool(x.Replace, y.Replace))
	})
	for _, f := range v.filters {
		name, ours := strings.CutPrefix(f.Name, v1alpha1.ECDSNamePrefix)
		if !ours {
			continue
		}
		if !slices.ContainsFunc(v.placed, func(p Placement) bool { return p.Plugin.Namespace+"."+p.Plugin.Name == name }) {
			b.problems = append(b.problems, Problem{Listener: l.Name, FilterChain: c.Index, Severity: v1alpha1.SeverityWarning, Reason: ProblemNotInPlan,
				Message: "filter " + f.Name + " names a plugin that does not run in this chain: it will run nothing"})
		}
	}
	return v.placed, v.drop
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}
