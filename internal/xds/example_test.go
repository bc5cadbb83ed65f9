package xds_test

import (
	"fmt"

	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
)

func ExampleParseEnvoy() {
	_, problems := xds.ParseEnvoy("edge.yaml", []byte(`
clusters:
  - name: app
    conect_timeout: 1s
    lb_policy: BEST
`))
	for _, p := range problems {
		fmt.Println(p)
	}
	// Output:
	// edge.yaml: clusters[0].conect_timeout: no such field in envoy.config.cluster.v3.Cluster; did you mean connect_timeout?
	// edge.yaml: clusters[0].lb_policy: "BEST" is not one of ROUND_ROBIN, LEAST_REQUEST, RING_HASH, RANDOM, MAGLEV, CLUSTER_PROVIDED, LOAD_BALANCING_POLICY_CONFIG
}

func ExampleParseNode() {
	node, err := xds.ParseNode([]byte("id: gw-0\ncluster: edge\nmetadata: { NAMESPACE: team-a, LABELS: { app: gateway } }\n"))
	fmt.Println(node.ID, node.Cluster, node.Namespace, node.Labels["app"], err)
	// Output: gw-0 edge team-a gateway <nil>
}

func ExampleResourceName() {
	fmt.Println(xds.ResourceName(plugin.Key{Namespace: "team-a", Name: "auth"}))
	// Output: extensions.istio.io/wasmplugin/team-a.auth
}
