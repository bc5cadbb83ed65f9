package plugin_test

import (
	"fmt"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
)

func ExampleBuild() {
	auth := &v1alpha1.WasmPlugin{}
	auth.Namespace, auth.Name = "edge", "auth"
	auth.Spec.Phase = v1alpha1.PhaseAuthN
	net := &v1alpha1.WasmPlugin{}
	net.Namespace, net.Name = "team-b", "net"

	plan, _ := plugin.Build(plugin.Inputs{
		RootNamespace: "stile-system",
		Plugins:       []*v1alpha1.WasmPlugin{net, auth},
		Node:          plugin.Node{ID: "gw-0", Namespace: "edge"},
		Listeners: []plugin.Listener{{Name: "http", Port: 8080, Chains: []plugin.Chain{{
			Type:    plugin.ChainHTTP,
			Network: []plugin.Filter{{Name: "hcm"}},
			HTTP: []plugin.Filter{
				{Name: "jwt", TypeURLs: []string{"envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"}},
				{Name: "router"},
			},
		}}}},
	})
	for _, p := range plan.Chains[0].HTTP {
		fmt.Println(p.Plugin, "runs before", p.Before)
	}
	for _, s := range plan.Chains[0].Skipped {
		fmt.Println(s.Plugin, "does not run:", s.Reason)
	}
	// Output:
	// edge/auth runs before jwt
	// team-b/net does not run: NamespaceMismatch
}
