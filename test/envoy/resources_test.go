package envoy_test

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"testing"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
)

//go:generate ../../tools/wat2wasm.sh testdata

//go:embed testdata/tag.wasm
var tagModule []byte

//go:embed testdata/guard.wasm
var guardModule []byte

const (
	httpWasm     = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"
	httpFault    = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"
	httpRouter   = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
	networkWasm  = "type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm"
	networkRBAC  = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC"
	networkHCM   = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
	networkProxy = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
)

// plugin is the name of the one extension that most tests are about.
const plugin = "extensions.istio.io/wasmplugin/team-a.tag"

type object = map[string]any

// module is another version of testdata/tag.wat: it tags requests with tag, which has eight characters.
func module(tag string) []byte {
	if len(tag) != len("version0") {
		panic("module: tag " + tag + " has not eight characters")
	}
	return bytes.Replace(tagModule, []byte("version0"), []byte(tag), 1)
}

// padded is code with a custom section of n bytes at its end: the same module, only larger.
func padded(code []byte, n int) []byte {
	section := append([]byte{3}, "pad"...) // the section's name, then its bytes
	section = append(section, make([]byte, n)...)
	size := []byte{0} // section id 0: custom
	for rest := len(section); ; rest >>= 7 {
		if rest < 0x80 {
			size = append(size, byte(rest))
			break
		}
		size = append(size, byte(rest)|0x80)
	}
	return append(append(bytes.Clone(code), size...), section...)
}

func sum(code []byte) string {
	s := sha256.Sum256(code)
	return hex.EncodeToString(s[:])
}

// wasm says what a Wasm filter's configuration holds; the zero value of a field leaves it out.
type wasm struct {
	Type   string // of the filter; default HTTP
	VM     string
	Inline []byte
	Remote []byte // fetched from URL
	URL    string
	Nack   bool // nack_on_code_cache_miss
	Tries  int  // num_retries
	Env    map[string]string
	Config string
	Policy string // failure policy; default FAIL_CLOSED
}

func (w wasm) any(t testing.TB) *anypb.Any {
	t.Helper()
	return toAny(t, w.object())
}

func (w wasm) object() object {
	code := object{"local": object{"inline_bytes": w.Inline}}
	if w.URL != "" {
		code = object{"remote": object{
			"sha256":       sum(w.Remote),
			"http_uri":     object{"uri": w.URL, "cluster": "modules", "timeout": "10s"},
			"retry_policy": object{"num_retries": w.Tries, "retry_back_off": object{"base_interval": "0.1s", "max_interval": "0.2s"}},
		}}
	}
	vm := object{"vm_id": w.VM, "code": code, "runtime": "envoy.wasm.runtime.v8", "nack_on_code_cache_miss": w.Nack}
	if w.Env != nil {
		vm["environment_variables"] = object{"key_values": w.Env}
	}
	policy, typeURL := w.Policy, w.Type
	if policy == "" {
		policy = "FAIL_CLOSED"
	}
	if typeURL == "" {
		typeURL = httpWasm
	}
	config := object{"name": "tag", "root_id": "tag", "failure_policy": policy, "vm_config": vm}
	if w.Config != "" {
		config["configuration"] = object{"@type": "type.googleapis.com/google.protobuf.StringValue", "value": w.Config}
	}
	return object{"@type": typeURL, "config": config}
}

// toAny makes an Any of the JSON form of one.
func toAny(t testing.TB, o object) *anypb.Any {
	t.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var a anypb.Any
	if err := protojson.Unmarshal(data, &a); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	return &a
}

// The stand-ins, as stile sends them.

// httpClosed answers 503 itself. Its runtime keys are its own, so that no runtime setting meant for another fault
// filter opens it.
func httpClosed() object {
	return object{
		"@type":                            httpFault,
		"abort":                            object{"http_status": 503, "percentage": object{"numerator": 100, "denominator": "HUNDRED"}},
		"abort_percent_runtime":            "stile.standin.abort_percent",
		"abort_http_status_runtime":        "stile.standin.http_status",
		"max_active_faults_runtime":        "stile.standin.max_active_faults",
		"disable_downstream_cluster_stats": true,
	}
}

func httpOpen() object { return object{"@type": httpFault} }
func networkClosed() object {
	return object{"@type": networkRBAC, "rules": object{}, "stat_prefix": "stile_standin."}
}
func networkOpen() object { return object{"@type": networkRBAC, "stat_prefix": "stile_standin."} }

// discovered is a filter whose configuration comes by ECDS.
type discovered struct {
	Name    string   // default plugin
	Default object   // default_config
	Timeout string   // initial_fetch_timeout; default 30s
	Types   []string // type_urls; default those of the plugin and its stand-in
	Network bool
}

func (d discovered) filter() object {
	name, timeout := d.Name, d.Timeout
	if name == "" {
		name = plugin
	}
	if timeout == "" {
		timeout = "30s"
	}
	types := []string{httpWasm, httpFault}
	if d.Network {
		types = []string{networkWasm, networkRBAC}
	}
	if d.Types != nil {
		types = d.Types
	}
	source := object{
		"config_source": object{"ads": object{}, "resource_api_version": "V3", "initial_fetch_timeout": timeout},
		"type_urls":     types,
	}
	if d.Default != nil {
		source["default_config"] = d.Default
	}
	return object{"name": name, "config_discovery": source}
}

// httpListener passes requests through the filters to the cluster "upstream".
func httpListener(t testing.TB, name string, filters ...discovered) *listener.Listener {
	t.Helper()
	chain := []object{}
	for _, f := range filters {
		chain = append(chain, f.filter())
	}
	chain = append(chain, object{"name": "router", "typed_config": object{"@type": httpRouter}})
	return toListener(t, name, object{"name": "hcm", "typed_config": object{
		"@type": networkHCM, "stat_prefix": "http", "http_filters": chain,
		"route_config": object{"virtual_hosts": []object{{
			"name": "all", "domains": []string{"*"},
			"routes": []object{{"match": object{"prefix": "/"}, "route": object{"cluster": "upstream"}}},
		}}},
	}})
}

// tcpListener passes connections through the filters to the cluster "upstream".
func tcpListener(t testing.TB, name string, filters ...discovered) *listener.Listener {
	t.Helper()
	chain := []object{}
	for _, f := range filters {
		f.Network = true
		chain = append(chain, f.filter())
	}
	chain = append(chain, object{"name": "tcp", "typed_config": object{
		"@type": networkProxy, "stat_prefix": "tcp", "cluster": "upstream"}})
	return toListener(t, name, chain...)
}

func toListener(t testing.TB, name string, filters ...object) *listener.Listener {
	t.Helper()
	data, err := json.Marshal(object{
		"name":          name,
		"address":       object{"socket_address": object{"address": "127.0.0.1", "port_value": 0}},
		"filter_chains": []object{{"filters": filters}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var l listener.Listener
	if err := protojson.Unmarshal(data, &l); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	return &l
}
