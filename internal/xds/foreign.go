package xds

import (
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// foreignExtensions finds the filters of a listener that ask ADS for an extension that is no
// plugin's: stile has none of that name, and the listener would wait for it.
func foreignExtensions(l *listenerv3.Listener, path string) []finding {
	var found []finding
	look := func(at, name string, d *corev3.ExtensionConfigSource) {
		if d != nil && fromADS(d.GetConfigSource()) && !strings.HasPrefix(name, ResourcePrefix) {
			found = append(found, finding{path: at + ".config_discovery.config_source", reason: "NotServed", warning: true,
				message: fmt.Sprintf("asks ADS for the extension %q, which stile does not serve: the listener would wait for it; "+
					"write it as typed_config, or name an own api_config_source or path_config_source", name)})
		}
	}
	http := func(at string, filters []*hcmv3.HttpFilter) {
		for i, f := range filters {
			look(fmt.Sprintf("%s[%d]", at, i), f.GetName(), f.GetConfigDiscovery())
		}
	}
	for i, c := range chainsOf(l) {
		at := fmt.Sprintf("%s.filter_chains[%d]", path, i)
		if i == len(l.GetFilterChains()) {
			at = path + ".default_filter_chain"
		}
		for j, f := range c.GetFilters() {
			look(fmt.Sprintf("%s.filters[%d]", at, j), f.GetName(), f.GetConfigDiscovery())
		}
		manager, err := managerOf(c)
		if err != nil || manager == nil {
			continue
		}
		at = fmt.Sprintf("%s.filters[%d].typed_config", at, len(c.GetFilters())-1)
		http(at+".http_filters", manager.GetHttpFilters())
		for j, u := range manager.GetUpgradeConfigs() {
			http(fmt.Sprintf("%s.upgrade_configs[%d].filters", at, j), u.GetFilters())
		}
	}
	return found
}
