package plugin_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
)

// edge is an operator's file with an HTTP chain, an upgrade chain and a TCP chain.
const edge = `
listeners:
- name: http
  address: {socket_address: {address: 127.0.0.1, port_value: 8080}}
  filter_chains:
  - filters:
    - name: hcm
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: http
        route_config: {name: r, virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}]}
        http_filters: &filters
        - {name: jwt, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication}}
        - {name: rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC}}
        - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
        upgrade_configs:
        - upgrade_type: websocket
          filters: *filters
- name: tcp
  address: {socket_address: {address: 127.0.0.1, port_value: 8081}}
  filter_chains:
  - filters:
    - {name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: none}}
`

// sent returns what a proxy of the tests is sent, each resource as bytes; a plugin in invalid is
// given as its stand-in.
func sent(t *testing.T, file *xds.EnvoyFile, in plugin.Inputs) map[string][]byte {
	t.Helper()
	in.Listeners = file.Listeners()
	plan, _ := plugin.Build(in)
	specs := map[plugin.Key]*v1alpha1.WasmPlugin{}
	for _, p := range in.Plugins {
		specs[plugin.KeyOf(p)] = p
	}
	snapshot, _ := xds.Translate(xds.Input{
		Plan: plan, File: file, Plugins: specs, Node: in.Node,
		Deliver: func(k plugin.Key) xds.Delivery {
			if len(in.Invalid[k]) > 0 {
				return xds.Delivery{Mode: xds.StandIn}
			}
			return xds.Delivery{Mode: xds.Inline, Bytes: []byte("module of " + k.String()), SHA256: strings.Repeat("0", 64), Size: 1}
		},
	})
	out := map[string][]byte{}
	for _, typ := range []string{xds.ListenerType, xds.ClusterType, xds.RouteType, xds.ExtensionType} {
		for _, r := range snapshot.Resources(typ) {
			b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Any)
			if err != nil {
				t.Fatal(err)
			}
			out[fmt.Sprint(typ, " ", r.Name)] = append(b, r.Version...)
		}
	}
	return out
}

// TestP7_OnePluginChangesNoOthersBytes removes and breaks plugins and compares, byte for byte,
// what proxies are sent of the others. Breaking one that keeps its place changes no listener.
func TestP7_OnePluginChangesNoOthersBytes(t *testing.T) {
	t.Parallel()
	file, problems := xds.ParseEnvoy("edge.yaml", []byte(edge))
	if len(problems) > 0 {
		t.Fatalf("%+v", problems)
	}
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 70))
		in := world(r)
		before := sent(t, file, in)
		victim := r.IntN(len(in.Plugins))
		key, own := plugin.KeyOf(in.Plugins[victim]), xds.ExtensionType+" "+in.Plugins[victim].ECDSName()
		same := func(what string, after map[string][]byte, listeners bool) {
			t.Helper()
			for name, want := range before {
				if name == own || !listeners && strings.HasPrefix(name, xds.ListenerType) {
					continue
				}
				if !bytes.Equal(after[name], want) {
					t.Fatalf("seed %d: %s %s changed %s", seed, what, key, name)
				}
			}
		}
		shuffled := in
		shuffled.Plugins = slices.Clone(in.Plugins)
		r.Shuffle(len(shuffled.Plugins), func(i, j int) {
			shuffled.Plugins[i], shuffled.Plugins[j] = shuffled.Plugins[j], shuffled.Plugins[i]
		})
		after := sent(t, file, shuffled)
		same("shuffling with", after, true)
		if !bytes.Equal(after[own], before[own]) {
			t.Fatalf("seed %d: shuffling changed %s", seed, own)
		}

		removed := in
		removed.Plugins = slices.Delete(slices.Clone(in.Plugins), victim, victim+1)
		same("removing", sent(t, file, removed), before[own] == nil)

		broken := in
		broken.Invalid = map[plugin.Key][]v1alpha1.Finding{key: {{Field: "spec.url", Severity: "error", Reason: "Invalid", Message: "x"}}}
		same("breaking", sent(t, file, broken), true)
	}
}
