package plugin_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
)

func TestAssigned_TheFirstThatMatchesCounts(t *testing.T) {
	t.Parallel()
	node := plugin.Node{ID: "gw-0", Cluster: "edge/eu", Namespace: "own", Gateway: "g", Labels: map[string]string{"a": "1", "b": "1"}}
	for name, tc := range map[string]struct {
		assignments []v1alpha1.EnvoyNode
		want        func(*plugin.Node)
		file        string
	}{
		"none":                       {nil, func(*plugin.Node) {}, "edge_eu"},
		"another cluster":            {[]v1alpha1.EnvoyNode{{Cluster: "other", Namespace: "x", File: "x.yaml"}}, func(*plugin.Node) {}, "edge_eu"},
		"another id":                 {[]v1alpha1.EnvoyNode{{Cluster: "*", ID: "gw-1", Namespace: "x"}}, func(*plugin.Node) {}, "edge_eu"},
		"a star matches a slash too": {[]v1alpha1.EnvoyNode{{Cluster: "edge*", File: "all.yaml"}}, func(*plugin.Node) {}, "all"},
		"the first alone": {[]v1alpha1.EnvoyNode{{ID: "gw-*", Namespace: "first"}, {ID: "gw-0", Namespace: "second", Gateway: "second"}},
			func(n *plugin.Node) { n.Namespace = "first" }, "edge_eu"},
		"labels are added and win": {[]v1alpha1.EnvoyNode{{Cluster: "*", Labels: map[string]string{"b": "2", "c": "2"}, Gateway: "h"}},
			func(n *plugin.Node) { n.Labels, n.Gateway = map[string]string{"a": "1", "b": "2", "c": "2"}, "h" }, "edge_eu"},
		"what a waypoint serves": {[]v1alpha1.EnvoyNode{{Cluster: "*", Services: []string{"reviews"}, ServiceEntries: []string{"api"}}},
			func(n *plugin.Node) { n.Services, n.ServiceEntries = []string{"reviews"}, []string{"api"} }, "edge_eu"},
		"a glob that is none matches nothing": {[]v1alpha1.EnvoyNode{{Cluster: "[", Namespace: "x"}}, func(*plugin.Node) {}, "edge_eu"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := node
			tc.want(&want)
			got, file := node.Assigned(tc.assignments)
			if d := cmp.Diff(want, got); d != "" || file != tc.file {
				t.Errorf("file %q, want %q; node (-want +got):\n%s", file, tc.file, d)
			}
			if node.Labels["b"] != "1" || len(node.Labels) != 2 {
				t.Errorf("the proxy's own labels changed: %v", node.Labels)
			}
		})
	}
}

func TestServicesAreTargetsOfTheirWaypoint(t *testing.T) {
	t.Parallel()
	waypoint, _ := plugin.Node{ID: "wp-0", Namespace: "edge", Labels: map[string]string{"app": "wp"}}.Assigned(
		[]v1alpha1.EnvoyNode{{ID: "wp-*", Services: []string{"reviews"}, ServiceEntries: []string{"api"}}})
	for name, tc := range map[string]struct {
		kind, target, namespace string
		want                    bool
	}{
		"a Service":                           {"Service", "reviews", "edge", true},
		"another Service":                     {"Service", "ratings", "edge", false},
		"a ServiceEntry":                      {"ServiceEntry", "api", "edge", true},
		"a ServiceEntry is no Service":        {"Service", "api", "edge", false},
		"a Service of another namespace":      {"Service", "reviews", "root", false},
		"a ServiceEntry of another namespace": {"ServiceEntry", "api", "root", false},
	} {
		p := wasm("a", in(tc.namespace), target(tc.kind, tc.target))
		if got := plugin.Attaches("root", p, &waypoint); (got.Reason == "") != tc.want {
			t.Errorf("%s: %+v, want attached=%v", name, got, tc.want)
		}
	}
	const serves = "the proxy serves Service edge/reviews, ServiceEntry edge/api; the plugin targets Service edge/ratings"
	if got := plugin.Attaches("root", wasm("a", target("Service", "ratings")), &waypoint); got.Message != serves {
		t.Errorf("message %q, want %q", got.Message, serves)
	}
	if got := plugin.Attaches("root", wasm("a", selector("app", "wp")), &waypoint); got.Reason != plugin.SkipTargetMismatch {
		t.Errorf("a selector must not reach a waypoint: %+v", got)
	}
}
