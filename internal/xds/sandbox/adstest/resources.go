package adstest

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faultcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Type URLs of filters.
const (
	WasmFilter   = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"
	FaultFilter  = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"
	RouterFilter = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
)

// ADS is the configuration source "this very stream".
func ADS(timeout time.Duration) *corev3.ConfigSource {
	source := &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
	if timeout >= 0 {
		source.InitialFetchTimeout = durationpb.New(timeout)
	}
	return source
}

// Discovered is an HTTP filter whose configuration comes by ECDS: Wasm or HTTPFault.
// fallback may be nil.
func Discovered(name string, timeout time.Duration, fallback proto.Message) *hcmv3.HttpFilter {
	source := &corev3.ExtensionConfigSource{ConfigSource: ADS(timeout), TypeUrls: []string{WasmFilter, FaultFilter}}
	if fallback != nil {
		source.DefaultConfig = Any(fallback)
	}
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: source}}
}

// Fixed is an HTTP filter with its configuration in the listener.
func Fixed(name string, config proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: Any(config)}}
}

// HTTPListener is a listener on 127.0.0.1:0 with these filters and a router to the
// cluster "upstream".
func HTTPListener(name string, filters ...*hcmv3.HttpFilter) *listenerv3.Listener {
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix:  name,
		HttpFilters: append(append([]*hcmv3.HttpFilter(nil), filters...), Fixed("envoy.filters.http.router", &routerv3.Router{})),
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name: name,
			VirtualHosts: []*routev3.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []*routev3.Route{{
				Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "upstream"}}},
			}}}},
		}},
	}
	return &listenerv3.Listener{
		Name:    name,
		Address: Address("127.0.0.1", 0),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name:       "envoy.filters.network.http_connection_manager",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: Any(manager)},
		}}}},
	}
}

// Address is a TCP address.
func Address(host string, port int) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

// Cluster is a static cluster of one endpoint.
func Cluster(name, host string, port int) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ConnectTimeout:       durationpb.New(time.Second),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: Address(host, port)}},
			}}}},
		},
	}
}

// Closed is the stand-in that answers 503 to everybody.
func Closed() *faultv3.HTTPFault {
	return &faultv3.HTTPFault{Abort: &faultv3.FaultAbort{
		ErrorType:  &faultv3.FaultAbort_HttpStatus{HttpStatus: 503},
		Percentage: &typev3.FractionalPercent{Numerator: 100, Denominator: typev3.FractionalPercent_HUNDRED},
	}}
}

// Open is the stand-in that lets everybody pass.
func Open() *faultv3.HTTPFault { return &faultv3.HTTPFault{} }

// Delayed is an HTTPFault that this package uses as a marker of no effect.
func Delayed() *faultv3.HTTPFault {
	return &faultv3.HTTPFault{Delay: &faultcommonv3.FaultDelay{
		FaultDelaySecifier: &faultcommonv3.FaultDelay_FixedDelay{FixedDelay: durationpb.New(time.Millisecond)},
	}}
}

// Inline is a Wasm filter with its module in it. vmID makes the VM its own; config is
// the plugin configuration.
func Inline(vmID string, module []byte, config string) *httpwasmv3.Wasm {
	return Wasm(vmID, config, &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{Local: &corev3.DataSource{
		Specifier: &corev3.DataSource_InlineBytes{InlineBytes: module},
	}}})
}

// Remote is a Wasm filter whose module is fetched through a cluster.
func Remote(vmID, uri, cluster, sha256, config string) *httpwasmv3.Wasm {
	return Wasm(vmID, config, &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Remote{Remote: &corev3.RemoteDataSource{
		HttpUri: &corev3.HttpUri{
			Uri: uri, HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: cluster}, Timeout: durationpb.New(5 * time.Second),
		},
		Sha256: sha256,
	}}})
}

// Wasm is a Wasm filter that fails closed, with its module from code.
func Wasm(vmID, config string, code *corev3.AsyncDataSource) *httpwasmv3.Wasm {
	return &httpwasmv3.Wasm{Config: &wasmv3.PluginConfig{
		Name:          vmID,
		RootId:        vmID,
		FailurePolicy: wasmv3.FailurePolicy_FAIL_CLOSED,
		Configuration: Any(wrapperspb.String(config)),
		Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
			VmId: vmID, Runtime: "envoy.wasm.runtime.v8", Code: code,
		}},
	}}
}
