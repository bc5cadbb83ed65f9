package xds

import (
	"fmt"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
)

// addSwitches tells the views of listeners which routes switch plugins off: those of the
// connection manager itself, or of the file where it names them.
func addSwitches(listeners []*listenerv3.Listener, views []plugin.Listener, routes map[string]*routev3.RouteConfiguration) {
	for i, l := range listeners {
		for j, c := range chainsOf(l) {
			m, err := managerOf(c)
			if err != nil || m == nil {
				continue
			}
			r := m.GetRouteConfig()
			if r == nil {
				r = routes[m.GetRds().GetRouteConfigName()]
			}
			views[i].Chains[j].Switches = switchesOf(r)
		}
	}
}

// switchesOf returns the places at which plugins are switched off by name, in the order of
// the routes.
func switchesOf(r *routev3.RouteConfiguration) []plugin.Switch {
	var out []plugin.Switch
	add := func(configs map[string]*anypb.Any, where string, args ...any) {
		for _, name := range sortedKeys(configs) {
			f := &routev3.FilterConfig{}
			if strings.HasPrefix(name, v1alpha1.ECDSNamePrefix) && configs[name].MessageIs(f) && configs[name].UnmarshalTo(f) == nil && f.GetDisabled() {
				out = append(out, plugin.Switch{Filter: name, Where: fmt.Sprintf(where, args...)})
			}
		}
	}
	add(r.GetTypedPerFilterConfig(), "all routes")
	for _, host := range r.GetVirtualHosts() {
		add(host.GetTypedPerFilterConfig(), "virtual host %s", host.GetName())
		for i, route := range host.GetRoutes() {
			name := route.GetName()
			if name == "" {
				name = fmt.Sprint(i)
			}
			add(route.GetTypedPerFilterConfig(), "route %s/%s", host.GetName(), name)
			for _, c := range route.GetRoute().GetWeightedClusters().GetClusters() {
				add(c.GetTypedPerFilterConfig(), "route %s/%s to cluster %s", host.GetName(), name, c.GetName())
			}
		}
	}
	return out
}
