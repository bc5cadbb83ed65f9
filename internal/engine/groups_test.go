package engine

import (
	"testing"

	"github.com/stileproject/stile/internal/plugin"
)

// What a peer writes into its node must not make it one of another tenant's proxies: they would be sent one snapshot.
func TestP2_NoNodeIsTakenForAnother(t *testing.T) {
	t.Parallel()
	victim := plugin.Node{Cluster: "edge", Namespace: "team-b", Labels: map[string]string{"app": "gateway", "tier": "edge"}}
	seen := map[string]string{groupName(victim, "all", "1.40.0"): "the victim"}
	for name, n := range map[string]struct {
		node    plugin.Node
		version string
	}{
		"fields within the version":    {plugin.Node{Cluster: "app", Namespace: "gateway", Gateway: "tier", GatewayClass: "edge"}, "1.40.0\x00edge\x00team-b\x00\x00"},
		"fields within the cluster":    {plugin.Node{Cluster: "edge\x00team-b", Labels: victim.Labels}, "1.40.0"},
		"a label within a label":       {plugin.Node{Cluster: "edge", Namespace: "team-b", Labels: map[string]string{"app": "gateway\x00tier\x00edge"}}, "1.40.0"},
		"a label's value in its name":  {plugin.Node{Cluster: "edge", Namespace: "team-b", Labels: map[string]string{"app\x00gateway": "", "tier": "edge"}}, "1.40.0"},
		"a service among the labels":   {plugin.Node{Cluster: "edge", Namespace: "team-b", Labels: victim.Labels, Services: []string{"a"}}, "1.40.0"},
		"an entry in place of that":    {plugin.Node{Cluster: "edge", Namespace: "team-b", Labels: victim.Labels, ServiceEntries: []string{"a"}}, "1.40.0"},
		"an extension in place of it":  {plugin.Node{Cluster: "edge", Namespace: "team-b", Labels: victim.Labels, Extensions: []string{"a"}}, "1.40.0"},
		"lists that run into another":  {plugin.Node{Cluster: "edge", Namespace: "team-b", Labels: victim.Labels, Services: []string{"a\x01b"}}, "1.40.0"},
		"two services":                 {plugin.Node{Cluster: "edge", Namespace: "team-b", Labels: victim.Labels, Services: []string{"a", "b"}}, "1.40.0"},
		"a service and another's name": {plugin.Node{Cluster: "edge", Namespace: "team-b", Labels: victim.Labels, Services: []string{"a\x00b"}}, "1.40.0"},
	} {
		key := groupName(n.node, "all", n.version)
		if other, taken := seen[key]; taken {
			t.Errorf("%s: a proxy of the group of %s", name, other)
		}
		seen[key] = name
	}
	// What differs in nothing but the order of its lists is one group.
	a, b := victim, victim
	a.Services, b.Services = []string{"x", "y"}, []string{"y", "x"}
	if groupName(a, "f", "v") != groupName(b, "f", "v") {
		t.Error("the order of a list makes another group")
	}
}
