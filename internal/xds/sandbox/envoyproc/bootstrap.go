package envoyproc

import (
	"encoding/json"
	"fmt"
	"net"
	"strconv"
)

// object is a JSON object.
type object map[string]any

// xdsCluster is the one static cluster; operators' clusters have other names.
const xdsCluster = "stile-xds"

// bootstrap writes Envoy's first configuration: who it is, and that everything else
// comes over one aggregated stream.
func bootstrap(o Options) ([]byte, error) {
	host, portText, err := net.SplitHostPort(o.XDSAddress)
	if err != nil {
		return nil, fmt.Errorf("xDS address %q: write host:port: %w", o.XDSAddress, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("xDS address %q: the port is no number", o.XDSAddress)
	}
	kind := "STRICT_DNS"
	if net.ParseIP(host) != nil {
		kind = "STATIC"
	}
	labels := object{}
	for k, v := range o.Node.Labels {
		labels[k] = v
	}
	ads := object{"ads": object{}, "resource_api_version": "V3"}
	return json.MarshalIndent(object{
		"node": object{
			"id": o.Node.ID, "cluster": o.Node.Cluster,
			"metadata": object{"NAMESPACE": o.Node.Namespace, "LABELS": labels},
		},
		"admin": object{"address": socket("127.0.0.1", 0)},
		"dynamic_resources": object{
			"ads_config": object{
				"api_type": "GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
				"grpc_services": []any{object{"envoy_grpc": object{"cluster_name": xdsCluster}}},
			},
			"cds_config": ads,
			"lds_config": ads,
		},
		"static_resources": object{"clusters": []any{object{
			"name": xdsCluster, "type": kind, "connect_timeout": "2s",
			"typed_extension_protocol_options": object{
				"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": object{
					"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
					"explicit_http_config": object{"http2_protocol_options": object{}},
				},
			},
			"load_assignment": object{
				"cluster_name": xdsCluster,
				"endpoints": []any{object{"lb_endpoints": []any{object{
					"endpoint": object{"address": socket(host, port)},
				}}}},
			},
		}}},
	}, "", "  ")
}

func socket(host string, port uint64) object {
	return object{"socket_address": object{"address": host, "port_value": port}}
}
