package plugin

import (
	"cmp"
	"slices"
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

// Build plans what the node runs. It is total: whatever is wrong becomes a Problem, and
// the rest of the plan stands.
func Build(in Inputs) (Plan, []Problem) {
	return Plan{}, nil
}
