package plugin

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stileproject/stile/api/v1alpha1"
)

// Explanation is what `stile explain -o json` prints.
type Explanation struct {
	APIVersion string              `json:"apiVersion"`
	Kind       string              `json:"kind"`
	Node       ExplainedNode       `json:"node"`
	Listeners  []ExplainedListener `json:"listeners"`
	// Problems are what an operator or author should know beside.
	Problems []ExplainedProblem `json:"problems,omitempty"`
}

// ExplainedNode is the proxy that is explained.
type ExplainedNode struct {
	ID        string `json:"id"`
	Cluster   string `json:"cluster"`
	Namespace string `json:"namespace"`
	// Gateway is the Gateway that it serves, if any.
	Gateway string `json:"gateway,omitempty"`
}

// ExplainedListener is one filter chain of a listener.
type ExplainedListener struct {
	Name string `json:"name"`
	// Port is the one that match was compared with.
	Port uint32 `json:"port"`
	Mode string `json:"mode"`
	// FilterChain is the index of the chain; -1 is the default chain.
	FilterChain int `json:"filterChain"`
	// Plugins are in the order in which data meets them, NETWORK first.
	Plugins []ExplainedPlugin `json:"plugins"`
	// Upgrades are the chains of upgraded connections that have filters of their own.
	Upgrades []ExplainedUpgrade `json:"upgrades,omitempty"`
	// Skipped are all other plugins, sorted by namespace and name.
	Skipped []ExplainedSkip `json:"skipped"`
}

// ExplainedUpgrade is the chain of one upgrade type.
type ExplainedUpgrade struct {
	Type    string            `json:"type"`
	Plugins []ExplainedPlugin `json:"plugins"`
}

// ExplainedPlugin is one plugin in a chain.
type ExplainedPlugin struct {
	Plugin   string `json:"plugin"`
	Type     string `json:"type"`
	Phase    string `json:"phase"`
	Priority int32  `json:"priority"`
	// Before is the name of the operator's next filter.
	Before string `json:"before"`
	// Selector and Match say in short why the plugin is here.
	Selector string `json:"selector"`
	Match    string `json:"match"`
	// DisabledFor are the virtual hosts and routes that switch it off.
	DisabledFor []string `json:"disabledFor,omitempty"`
}

// ExplainedSkip is one plugin that is not in a chain.
type ExplainedSkip struct {
	Plugin  string `json:"plugin"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// ExplainedProblem is one Problem.
type ExplainedProblem struct {
	Plugin      string `json:"plugin,omitempty"`
	Listener    string `json:"listener,omitempty"`
	FilterChain *int   `json:"filterChain,omitempty"`
	Severity    string `json:"severity"`
	Reason      string `json:"reason"`
	Message     string `json:"message"`
}

// Explain says which plugins run in each chain of the node, in which order, and why not the
// others. A plugin that is invalid runs nowhere, so it is among the others even where a
// stand-in takes its place: then the message says so.
func Explain(in Inputs) Explanation {
	in.OmitSkipped = false
	plan, problems := Build(in)
	specs := make(map[Key]*v1alpha1.WasmPluginSpec, len(in.Plugins))
	for _, p := range in.Plugins {
		specs[KeyOf(p)] = &p.Spec
	}
	gateway, _ := in.Node.gateway()
	e := Explanation{
		APIVersion: v1alpha1.ConfigAPIVersion, Kind: "Explanation",
		Node:      ExplainedNode{ID: in.Node.ID, Cluster: in.Node.Cluster, Namespace: in.Node.Namespace, Gateway: gateway},
		Listeners: []ExplainedListener{},
	}
	x := explainer{specs: specs, invalid: in.Invalid}
	i := 0
	for _, l := range in.Listeners {
		for _, c := range l.Chains {
			e.Listeners = append(e.Listeners, x.chain(plan.Chains[i], c.Switches))
			i++
		}
	}
	for _, p := range problems {
		if p.Reason == ProblemInvalid {
			continue // told with its listener above, and by whoever validated
		}
		ep := ExplainedProblem{Listener: p.Listener, Severity: p.Severity, Reason: p.Reason, Message: p.Message}
		if p.Plugin != (Key{}) {
			ep.Plugin = p.Plugin.String()
		}
		if p.Listener != "" {
			ep.FilterChain = &p.FilterChain
		}
		e.Problems = append(e.Problems, ep)
	}
	return e
}

type explainer struct {
	specs   map[Key]*v1alpha1.WasmPluginSpec
	invalid map[Key][]v1alpha1.Finding
}

func (x explainer) chain(c ChainPlan, switches []Switch) ExplainedListener {
	l := ExplainedListener{Name: c.Listener, Port: c.Port, Mode: c.Mode, FilterChain: c.FilterChain,
		Plugins: []ExplainedPlugin{}, Skipped: []ExplainedSkip{}}
	for _, s := range c.Skipped {
		l.Skipped = append(l.Skipped, ExplainedSkip{s.Plugin.String(), s.Reason, s.Message})
	}
	for _, p := range slices.Concat(c.Network, c.HTTP) {
		errs := errorsOf(x.invalid[p.Plugin])
		if errs == "" {
			l.Plugins = append(l.Plugins, x.plugin(p, switches))
			continue
		}
		l.Skipped = append(l.Skipped, ExplainedSkip{p.Plugin.String(), SkipInvalid,
			fmt.Sprintf("%s; until that is mended, its %s stands in before %s", errs, x.specs[p.Plugin].EffectiveFailStrategy(), cmp.Or(p.Before, "the end"))})
	}
	slices.SortStableFunc(l.Skipped, func(a, b ExplainedSkip) int {
		return slices.Compare(strings.SplitN(a.Plugin, "/", 2), strings.SplitN(b.Plugin, "/", 2))
	})
	for _, u := range c.Upgrades {
		eu := ExplainedUpgrade{Type: u.Type, Plugins: []ExplainedPlugin{}}
		for _, p := range u.HTTP {
			if errorsOf(x.invalid[p.Plugin]) == "" {
				eu.Plugins = append(eu.Plugins, x.plugin(p, switches))
			}
		}
		l.Upgrades = append(l.Upgrades, eu)
	}
	return l
}

func (x explainer) plugin(p Placement, switches []Switch) ExplainedPlugin {
	spec := x.specs[p.Plugin]
	var off []string
	for _, s := range switches {
		if s.Filter == v1alpha1.ECDSNamePrefix+p.Plugin.Namespace+"."+p.Plugin.Name {
			off = append(off, s.Where)
		}
	}
	return ExplainedPlugin{DisabledFor: off,
		Plugin: p.Plugin.String(), Type: p.Type, Phase: p.Phase, Priority: p.Priority, Before: p.Before,
		Selector: SelectorText(spec), Match: MatchText(spec)}
}

// SelectorText says in a few words which proxies a plugin selects: "istio=ingressgateway",
// "Gateway/edge" or "*".
func SelectorText(s *v1alpha1.WasmPluginSpec) string {
	refs := s.TargetRefs
	if len(refs) == 0 && s.TargetRef != nil {
		refs = []v1alpha1.TargetReference{*s.TargetRef}
	}
	var words []string
	for _, r := range refs {
		words = append(words, r.Kind+"/"+r.Name)
	}
	if len(refs) == 0 && s.Selector != nil {
		for _, name := range slices.Sorted(maps.Keys(s.Selector.MatchLabels)) {
			words = append(words, name+"="+string(s.Selector.MatchLabels[name]))
		}
	}
	return cmp.Or(strings.Join(words, ","), "*")
}

// MatchText says in a few words which traffic a plugin sees: "SERVER:8080,8443;CLIENT" or "*".
func MatchText(s *v1alpha1.WasmPluginSpec) string {
	var words []string
	for i := range s.Match {
		m := &s.Match[i]
		word := string(m.EffectiveMode())
		for j, p := range m.Ports {
			word += []string{":", ","}[min(j, 1)] + fmt.Sprint(p.Number)
		}
		words = append(words, word)
	}
	return cmp.Or(strings.Join(words, ";"), "*")
}
