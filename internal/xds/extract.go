package xds

import (
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	filterchainv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/filter_chain/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	udpatypev1 "github.com/cncf/xds/go/udpa/type/v1"
	xdstypev3 "github.com/cncf/xds/go/xds/type/v3"

	"github.com/stileproject/stile/internal/plugin"
)

// metadataKey is the filter metadata by which a listener overrides what stile reads from it.
const metadataKey = "stile.dev"

// hcmType is the type of the filter that holds HTTP filters.
const hcmType = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"

// viewListener says what package plugin needs to know of a listener.
func viewListener(l *listenerv3.Listener, path string) (plugin.Listener, []finding) {
	view := plugin.Listener{Name: l.GetName(), Mode: "CLIENT"}
	if l.GetTrafficDirection() == corev3.TrafficDirection_INBOUND {
		view.Mode = "SERVER"
	}
	if port := portOf(l.GetAddress()); port != 0 {
		view.Ports = append(view.Ports, port)
	}
	for _, a := range l.GetAdditionalAddresses() {
		if port := portOf(a.GetAddress()); port != 0 {
			view.Ports = append(view.Ports, port)
		}
	}
	view.QUIC = l.GetUdpListenerConfig().GetQuicOptions() != nil
	findings := applyMetadata(l, &view, path)
	if len(view.Ports) > 0 {
		view.Port = view.Ports[0]
	}
	// Ports of the metadata are all that counts: a chain's own must not win over them.
	_, told := l.GetMetadata().GetFilterMetadata()[metadataKey].GetFields()["ports"]
	for i, c := range l.GetFilterChains() {
		chain, err := viewChain(c, i)
		if told {
			chain.Port = 0
		}
		if err != nil {
			findings = append(findings, finding{path: fmt.Sprintf("%s.filter_chains[%d]", path, i), reason: "Invalid", message: err.Error()})
		}
		view.Chains = append(view.Chains, chain)
	}
	if c := l.GetDefaultFilterChain(); c != nil {
		chain, err := viewChain(c, -1)
		if err != nil {
			findings = append(findings, finding{path: path + ".default_filter_chain", reason: "Invalid", message: err.Error()})
		}
		view.Chains = append(view.Chains, chain)
	}
	return view, findings
}

func portOf(a *corev3.Address) uint32 { return a.GetSocketAddress().GetPortValue() }

// applyMetadata reads the listener's metadata stile.dev: {mode, ports, skip}.
func applyMetadata(l *listenerv3.Listener, view *plugin.Listener, path string) []finding {
	s := l.GetMetadata().GetFilterMetadata()[metadataKey]
	if s == nil {
		return nil
	}
	at := fmt.Sprintf("%s.metadata.filter_metadata[%q]", path, metadataKey)
	var findings []finding
	bad := func(key, want string) {
		findings = append(findings, finding{path: at + "." + key, reason: "Invalid", message: want})
	}
	for key, value := range s.GetFields() {
		switch key {
		case "mode":
			switch mode := value.GetStringValue(); mode {
			case "CLIENT", "SERVER":
				view.Mode = mode
			default:
				bad(key, "must be CLIENT or SERVER")
			}
		case "skip":
			if _, ok := value.GetKind().(*structpb.Value_BoolValue); !ok {
				bad(key, "must be true or false")
			}
			view.Skip = value.GetBoolValue()
		case "ports":
			view.Ports = nil
			for _, p := range value.GetListValue().GetValues() {
				n := p.GetNumberValue()
				if n < 1 || n > 65535 || n != float64(uint32(n)) {
					bad(key, "must be a list of ports from 1 to 65535")
					continue
				}
				view.Ports = append(view.Ports, uint32(n))
			}
			if len(view.Ports) == 0 && len(findings) == 0 {
				bad(key, "must be a list of ports from 1 to 65535")
			}
		default:
			bad(key, "unknown; the keys are mode, ports and skip")
		}
	}
	return findings
}

func viewChain(c *listenerv3.FilterChain, index int) (plugin.Chain, error) {
	chain := plugin.Chain{Index: index, Type: plugin.ChainTCP}
	chain.Port = c.GetFilterChainMatch().GetDestinationPort().GetValue()
	for _, f := range c.GetFilters() {
		filter := plugin.Filter{Name: f.GetName()}
		if d := f.GetConfigDiscovery(); d != nil {
			filter.TypeURLs = d.GetTypeUrls()
		} else {
			filter.TypeURLs = unwrap(f.GetTypedConfig())
		}
		chain.Network = append(chain.Network, filter)
	}
	manager, err := managerOf(c)
	if err != nil || manager == nil {
		return chain, err
	}
	chain.Type = plugin.ChainHTTP
	chain.HTTP = viewHTTP(manager.GetHttpFilters())
	for _, u := range manager.GetUpgradeConfigs() {
		if len(u.GetFilters()) > 0 {
			chain.Upgrades = append(chain.Upgrades, plugin.Upgrade{Type: u.GetUpgradeType(), Filters: viewHTTP(u.GetFilters())})
		}
	}
	return chain, nil
}

func viewHTTP(filters []*hcmv3.HttpFilter) []plugin.Filter {
	out := make([]plugin.Filter, 0, len(filters))
	for _, f := range filters {
		filter := plugin.Filter{Name: f.GetName()}
		if d := f.GetConfigDiscovery(); d != nil {
			filter.TypeURLs = d.GetTypeUrls()
		} else {
			filter.TypeURLs = unwrap(f.GetTypedConfig())
		}
		out = append(out, filter)
	}
	return out
}

// managerOf returns the HTTP connection manager at the end of a chain; nil if there is none.
func managerOf(c *listenerv3.FilterChain) (*hcmv3.HttpConnectionManager, error) {
	filters := c.GetFilters()
	if len(filters) == 0 {
		return nil, nil
	}
	a := filters[len(filters)-1].GetTypedConfig()
	if a == nil || !sameType(a.GetTypeUrl(), hcmType) {
		return nil, nil
	}
	m := &hcmv3.HttpConnectionManager{}
	if err := a.UnmarshalTo(m); err != nil {
		return nil, fmt.Errorf("HTTP connection manager: %w", err)
	}
	return m, nil
}

// unwrap returns the types of a filter's configuration, looking through TypedStruct,
// ExtensionWithMatcher and filter_chain, which alone may have several. No configuration
// has no type.
func unwrap(a *anypb.Any) []string { return unwrapTo(a, maxAnyDepth) }

func unwrapTo(a *anypb.Any, depth int) []string {
	for ; depth > 0; depth-- {
		if a == nil {
			return nil
		}
		m, err := a.UnmarshalNew()
		if err != nil {
			return []string{a.GetTypeUrl()}
		}
		switch x := m.(type) {
		case *xdstypev3.TypedStruct:
			return []string{x.GetTypeUrl()}
		case *udpatypev1.TypedStruct:
			return []string{x.GetTypeUrl()}
		case *matchingv3.ExtensionWithMatcher:
			a = x.GetExtensionConfig().GetTypedConfig()
		case *filterchainv3.FilterChainConfig:
			types := []string{a.GetTypeUrl()}
			for _, f := range x.GetDefaultFilterChain().GetFilters() {
				types = append(types, unwrapTo(f.GetTypedConfig(), depth-1)...)
			}
			return types
		default:
			return []string{a.GetTypeUrl()}
		}
	}
	return nil
}

// plainTypedStructs rewrites, in every chain's last filter, an HTTP connection manager that is
// written as a TypedStruct into its own type, so that filters can be inserted into it.
func plainTypedStructs(l *listenerv3.Listener) error {
	for _, c := range chainsOf(l) {
		filters := c.GetFilters()
		if len(filters) == 0 {
			continue
		}
		last := filters[len(filters)-1]
		types := unwrap(last.GetTypedConfig())
		if len(types) != 1 || !sameType(types[0], hcmType) || sameType(last.GetTypedConfig().GetTypeUrl(), hcmType) {
			continue
		}
		m, err := last.GetTypedConfig().UnmarshalNew()
		if err != nil {
			return err
		}
		var url string
		var plain *anypb.Any
		switch x := m.(type) {
		case *xdstypev3.TypedStruct:
			url = x.GetTypeUrl()
			typed, err := fromStruct(url, x.GetValue())
			if err != nil {
				return err
			}
			plain = mustAny(typed)
		case *udpatypev1.TypedStruct:
			url = x.GetTypeUrl()
			typed, err := fromStruct(url, x.GetValue())
			if err != nil {
				return err
			}
			plain = mustAny(typed)
		default:
			continue
		}
		last.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: plain}
	}
	return nil
}

// sameType reports whether two type URLs name one type; their hosts mean nothing.
func sameType(a, b string) bool {
	return a[strings.LastIndexByte(a, '/')+1:] == b[strings.LastIndexByte(b, '/')+1:]
}

// routesOf returns the names of the route configurations that a listener asks ADS for.
func routesOf(l *listenerv3.Listener) []string {
	var names []string
	for _, c := range chainsOf(l) {
		m, err := managerOf(c)
		if err != nil || m == nil {
			continue
		}
		if fromADS(m.GetRds().GetConfigSource()) {
			names = append(names, m.GetRds().GetRouteConfigName())
		}
	}
	return names
}

// chainsOf returns every filter chain of a listener, the default one last.
func chainsOf(l *listenerv3.Listener) []*listenerv3.FilterChain {
	chains := l.GetFilterChains()
	if c := l.GetDefaultFilterChain(); c != nil {
		chains = append(chains[:len(chains):len(chains)], c)
	}
	return chains
}

// fromADS reports whether a configuration is asked of this very server.
func fromADS(s *corev3.ConfigSource) bool { return s.GetAds() != nil || s.GetSelf() != nil }
