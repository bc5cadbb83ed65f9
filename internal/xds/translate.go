package xds

import (
	"fmt"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/stileproject/stile/internal/plugin"
)

// Translate makes the snapshot of one group of proxies. It is pure: equal inputs give equal
// bytes, and it waits for nothing. It is total: what is wrong with one plugin becomes a Problem
// and changes nothing for its neighbours. A nil snapshot is never returned.
func Translate(in Input) (*Snapshot, []Problem) {
	t := &translation{in: in, filters: map[plugin.Key]filterSource{}, standIns: map[string]*Resource{}}
	if t.in.Runtime == "" {
		t.in.Runtime = DefaultRuntime
	}
	resources := t.extensions()
	resources = append(resources, t.listeners()...)
	if in.File != nil {
		resources = append(resources, in.File.routes...)
	}
	resources = append(resources, t.clusters()...)
	s := NewSnapshot(resources...)
	s.standIns, s.bare = t.standIns, in.File == nil
	return s, t.problems
}

type translation struct {
	in       Input
	filters  map[plugin.Key]filterSource // what to insert for each plugin that can be served
	standIns map[string]*Resource
	problems []Problem
}

// filterSource is what a listener says of one plugin.
type filterSource struct {
	network   bool
	discovery *corev3.ExtensionConfigSource // nil where static is set
	static    *anypb.Any
}

func (t *translation) problem(k plugin.Key, severity, reason, format string, args ...any) {
	t.problems = append(t.problems, Problem{Plugin: k, Severity: severity, Reason: reason, Message: fmt.Sprintf(format, args...)})
}

// extensions makes the ECDS resource of every plugin that the group has.
func (t *translation) extensions() []*Resource {
	keys := append(t.in.Plan.Plugins(), t.in.ServeAlone...)
	slices.SortFunc(keys, comparePlugins)
	var out []*Resource
	for _, k := range slices.Compact(keys) {
		p := t.in.Plugins[k]
		if p == nil {
			t.problem(k, SeverityError, "Invalid", "is planned and not given")
			continue
		}
		e := &extension{key: k, spec: &p.Spec, in: &t.in, problem: t.problem}
		out = append(out, e.resource(t.in.Deliver(k)))
		t.filters[k] = e.source(out[len(out)-1])
		t.standIns[ResourceName(k)] = e.standIn()
	}
	return out
}

// listeners returns the operator's listeners with the plan's plugins inserted.
func (t *translation) listeners() []*Resource {
	if t.in.File == nil {
		return nil
	}
	plans := map[string][]*plugin.ChainPlan{}
	for i := range t.in.Plan.Chains {
		c := &t.in.Plan.Chains[i]
		if changes(c) {
			plans[c.Listener] = append(plans[c.Listener], c)
		}
	}
	out := make([]*Resource, 0, len(t.in.File.listeners))
	for _, l := range t.in.File.listeners {
		chains := plans[l.GetName()]
		if len(chains) == 0 && !t.in.Static {
			out = append(out, t.in.File.own[l.GetName()])
			continue
		}
		changed := proto.Clone(l).(*listenerv3.Listener)
		for _, c := range chains {
			if err := t.chain(changed, c); err != nil {
				t.problems = append(t.problems, Problem{File: t.in.File.file, Path: "listener " + l.GetName(),
					Severity: SeverityError, Reason: "Invalid", Message: err.Error()})
			}
		}
		if t.in.Static {
			t.ownRoutes(changed)
		}
		a := mustAny(changed)
		out = append(out, intern(ListenerType, l.GetName(), version(a.GetValue()), func() *Resource {
			return &Resource{Any: a, carries: carried(chains)}
		}))
	}
	return out
}

// carried returns the names of the extensions that the chains of one listener refer to.
func carried(chains []*plugin.ChainPlan) []string {
	var names []string
	add := func(placements []plugin.Placement) {
		for _, p := range placements {
			names = append(names, ResourceName(p.Plugin))
		}
	}
	for _, c := range chains {
		add(c.Network)
		add(c.HTTP)
		for _, u := range c.Upgrades {
			add(u.HTTP)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// ownRoutes writes the file's route configurations into the connection managers that ask ADS
// for them: where there is no control plane nobody else would bring them.
func (t *translation) ownRoutes(l *listenerv3.Listener) {
	for _, c := range chainsOf(l) {
		manager, err := managerOf(c)
		if err != nil || manager == nil || !fromADS(manager.GetRds().GetConfigSource()) {
			continue
		}
		for _, r := range t.in.File.routes {
			config := &routev3.RouteConfiguration{}
			if r.Name != manager.GetRds().GetRouteConfigName() || r.Any.UnmarshalTo(config) != nil {
				continue
			}
			manager.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: config}
			last := c.GetFilters()[len(c.GetFilters())-1]
			last.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: mustAny(manager)}
		}
	}
}

// changes reports whether a chain's plan asks for anything.
func changes(c *plugin.ChainPlan) bool {
	if len(c.Network) > 0 || len(c.HTTP) > 0 || len(c.Drop) > 0 || len(c.DropNetwork) > 0 {
		return true
	}
	return slices.ContainsFunc(c.Upgrades, func(u plugin.UpgradePlan) bool { return len(u.HTTP) > 0 || len(u.Drop) > 0 })
}

// chain inserts the plugins of one chain's plan into a listener.
func (t *translation) chain(l *listenerv3.Listener, plan *plugin.ChainPlan) error {
	var c *listenerv3.FilterChain
	switch {
	case plan.FilterChain == -1:
		c = l.GetDefaultFilterChain()
	case plan.FilterChain >= 0 && plan.FilterChain < len(l.GetFilterChains()):
		c = l.GetFilterChains()[plan.FilterChain]
	}
	if c == nil {
		return fmt.Errorf("filter chain %d is planned and not there", plan.FilterChain)
	}
	if err := t.http(c, plan); err != nil {
		return err
	}
	c.Filters = insert(c.GetFilters(), plan.Network, plan.DropNetwork, t.networkFilter)
	return nil
}

// http inserts the HTTP plugins into the connection manager at the end of the chain.
func (t *translation) http(c *listenerv3.FilterChain, plan *plugin.ChainPlan) error {
	if len(plan.HTTP) == 0 && len(plan.Drop) == 0 && len(plan.Upgrades) == 0 {
		return nil
	}
	manager, err := managerOf(c)
	if err != nil {
		return err
	}
	if manager == nil {
		return fmt.Errorf("filter chain %d has no HTTP connection manager", plan.FilterChain)
	}
	manager.HttpFilters = insert(manager.GetHttpFilters(), plan.HTTP, plan.Drop, t.httpFilter)
	index := 0 // package plugin sees the upgrades that have filters of their own
	for _, u := range manager.GetUpgradeConfigs() {
		if len(u.GetFilters()) == 0 {
			continue
		}
		for _, planned := range plan.Upgrades {
			if planned.Index == index {
				u.Filters = insert(u.GetFilters(), planned.HTTP, planned.Drop, t.httpFilter)
			}
		}
		index++
	}
	last := c.GetFilters()[len(c.GetFilters())-1]
	last.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: mustAny(manager)}
	return nil
}

// insert returns filters with the placements before, or in place of, those that they name, and
// without the dropped ones. filter returns false for a plugin that cannot be inserted; where such
// a plugin would have taken a filter's place the filter stays.
func insert[F any](filters []F, placements []plugin.Placement, drop []int, filter func(plugin.Placement) (F, bool)) []F {
	out := []F{}
	for i := 0; i <= len(filters); i++ {
		replaced := false
		for _, p := range placements {
			if at := min(max(p.At, 0), len(filters)); at != i {
				continue
			}
			f, ok := filter(p)
			if !ok {
				continue
			}
			out = append(out, f)
			replaced = replaced || p.Replace
		}
		if i < len(filters) && !replaced && !slices.Contains(drop, i) {
			out = append(out, filters[i])
		}
	}
	return out
}

func (t *translation) httpFilter(p plugin.Placement) (*hcmv3.HttpFilter, bool) {
	s, ok := t.filters[p.Plugin]
	if !ok || s.network {
		return nil, false
	}
	f := &hcmv3.HttpFilter{Name: ResourceName(p.Plugin)}
	if s.static != nil {
		f.ConfigType = &hcmv3.HttpFilter_TypedConfig{TypedConfig: s.static}
	} else {
		f.ConfigType = &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: s.discovery}
	}
	return f, true
}

func (t *translation) networkFilter(p plugin.Placement) (*listenerv3.Filter, bool) {
	s, ok := t.filters[p.Plugin]
	if !ok || !s.network {
		return nil, false
	}
	f := &listenerv3.Filter{Name: ResourceName(p.Plugin)}
	if s.static != nil {
		f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: s.static}
	} else {
		f.ConfigType = &listenerv3.Filter_ConfigDiscovery{ConfigDiscovery: s.discovery}
	}
	return f, true
}
