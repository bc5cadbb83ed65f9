package sandbox_test

import (
	"context"
	"fmt"
	"net/http"

	"github.com/stileproject/stile/internal/xds/sandbox"
	"github.com/stileproject/stile/internal/xds/sandbox/envoyproc"
)

// A proxy for a tenant: a real Envoy where there is one, else the sandbox.
func Example() {
	ctx := context.Background()
	node := sandbox.Node{ID: "team-a-gw", Cluster: "edge", Namespace: "team-a", Labels: map[string]string{"app": "gateway"}}
	start := func(envoy, xds string) (sandbox.Proxy, error) {
		if envoy == "" {
			return sandbox.Start(sandbox.Options{XDSAddress: xds, Node: node}), nil
		}
		return envoyproc.Start(ctx, envoyproc.Options{Path: envoy, XDSAddress: xds, Node: node})
	}
	proxy, err := start("", "127.0.0.1:18000")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer proxy.Stop()
	address, err := proxy.Address(ctx, "http") // waits until the listener "http" serves
	if err != nil {
		fmt.Println(err)
		return
	}
	resp, err := http.Get("http://" + address + "/")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	state, err := proxy.State(ctx)
	fmt.Println(resp.Status, state.Listeners, state.Extensions, err)
}
