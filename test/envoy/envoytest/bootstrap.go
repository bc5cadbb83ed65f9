package envoytest

import (
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
)

// object is a JSON object of the bootstrap.
type object = map[string]any

func bootstrap(o Options) object {
	ads := object{"ads": object{}, "resource_api_version": "V3"}
	dynamic := object{}
	clusters := []object{}
	if o.XDS != "" {
		api := "GRPC"
		if o.Delta {
			api = "DELTA_GRPC"
		}
		dynamic["ads_config"] = object{
			"api_type":              api,
			"transport_api_version": "V3",
			"grpc_services":         []object{{"envoy_grpc": object{"cluster_name": "xds"}}},
		}
		dynamic["lds_config"] = ads
		if o.CDS {
			dynamic["cds_config"] = ads
		}
		xds := cluster("xds", o.XDS)
		xds["typed_extension_protocol_options"] = object{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": object{
				"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
				"explicit_http_config": object{"http2_protocol_options": object{}},
			},
		}
		clusters = append(clusters, xds)
	}
	for _, name := range slices.Sorted(maps.Keys(o.Clusters)) {
		clusters = append(clusters, cluster(name, o.Clusters[name]))
	}

	b := object{
		"node": object{
			"id":       orElse(o.ID, "test"),
			"cluster":  orElse(o.Cluster, "test"),
			"metadata": o.Metadata,
		},
		"admin":             object{"address": socket("127.0.0.1:0")},
		"dynamic_resources": dynamic,
		"static_resources":  object{"clusters": clusters},
	}
	if o.Runtime != nil {
		b["layered_runtime"] = object{"layers": []object{{"name": "static", "static_layer": o.Runtime}}}
	}
	maps.Copy(b, o.Extra)
	return b
}

func cluster(name, address string) object {
	return object{
		"name":            name,
		"type":            "STATIC",
		"connect_timeout": "2s",
		"load_assignment": object{
			"cluster_name": name,
			"endpoints": []object{{
				"lb_endpoints": []object{{"endpoint": object{"address": socket(address)}}},
			}},
		},
	}
}

func socket(address string) object {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		panic("envoytest: address " + address + " is not host:port")
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		panic("envoytest: port of " + address + " is not a number")
	}
	return object{"socket_address": object{"address": host, "port_value": n}}
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// logBuffer collects what Envoy writes, for the test that fails.
type logBuffer struct {
	mu   sync.Mutex // guards data
	data []byte
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = append(b.data, p...)
	return len(p), nil
}

// tail returns the last n bytes, all if n is negative.
func (b *logBuffer) tail(n int) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n < 0 || len(b.data) <= n {
		return string(b.data)
	}
	return string(b.data[len(b.data)-n:])
}
