package e2e_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stileproject/stile/modules"
)

// TestPlugins_ReachEveryKindOfListener has a real Envoy take in each kind of listener that there is, with plugins where they belong.
func TestPlugins_ReachEveryKindOfListener(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("badge:v1", modules.Badge())
	w.push("mark:v1", wasm(t, "testdata/mark.wasm"))
	one, two, own := portOf(freePort(t)), portOf(freePort(t)), portOf(freePort(t))
	at := func(port string) string {
		return "{ socket_address: { address: 127.0.0.1, port_value: " + port + " } }"
	}
	certificate, key, _ := selfSigned(t, "a.example")
	quicTLS := `{ name: quic, typed_config: { "@type": type.googleapis.com/envoy.extensions.transport_sockets.quic.v3.QuicDownstreamTransport, downstream_tls_context: { common_tls_context: { tls_certificates: [{ certificate_chain: { inline_string: ` +
		fmt.Sprintf("%q", certificate) + ` }, private_key: { inline_string: ` + fmt.Sprintf("%q", key) + ` } }] } } } }`
	ours := `
        - { name: extensions.istio.io/wasmplugin/team-a.early, config_discovery: { config_source: { ads: {}, resource_api_version: V3 }, type_urls: [type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm] } }
        - { name: cors, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors } }`
	places := `
        - { name: stile.dev/phase/UNSPECIFIED_PHASE }
        - { name: cors, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors } }
        - { name: stile.dev/phase/STATS }`
	w.envoyFile("listeners:\n" +
		// The chain that is matched by its port, and the default one for the listener's other address.
		"- name: ports\n  address: " + at(one) + "\n  additional_addresses: [{ address: " + at(two) + " }]\n  filter_chains:\n  - filter_chain_match: { destination_port: " + one + " }\n    filters:" + hcm("", jwtAndRBAC) +
		"  default_filter_chain:\n    filters:" + hcm("", jwtAndRBAC) +
		"- name: inbound\n  traffic_direction: INBOUND\n  address: " + at(own) + "\n  filter_chains:\n  - filters:" + hcm("", jwtAndRBAC) +
		listener("named", "{ ports: [5] }", hcm("", ours)) +
		listener("placeholders", "{ ports: [6] }", hcm("", places)) +
		"- name: quic\n  address: { socket_address: { protocol: UDP, address: 127.0.0.1, port_value: 0 } }\n  metadata: { filter_metadata: { stile.dev: { ports: [8] } } }\n  udp_listener_config: { quic_options: {} }\n  filter_chains:\n  - transport_socket: " + quicTLS + "\n    filters:" + hcm("\n        codec_type: HTTP3", jwtAndRBAC) +
		"- name: udp\n  address: { socket_address: { protocol: UDP, address: 127.0.0.1, port_value: 0 } }\n  udp_listener_config: { downstream_socket_config: { max_rx_datagram_size: 1500 } }\n  listener_filters:\n  - name: udp\n    typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig, stat_prefix: u, matcher: { on_no_match: { action: { name: route, typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route, cluster: upstream } } } } }\n" +
		"- name: empty\n  address: { socket_address: { address: 127.0.0.1, port_value: 0 } }\n  filter_chains: [{ filters: [] }]\n")
	badge := func(name, more string) {
		w.plugin(name, "url: '"+w.image("badge:v1")+"', pluginConfig: { name: "+name+" }, "+more)
	}
	badge("first-port", "phase: AUTHN, match: [{ mode: CLIENT, ports: [{ number: "+one+" }] }]")
	badge("second-port", "phase: AUTHZ, match: [{ mode: CLIENT, ports: [{ number: "+two+" }] }]")
	badge("served", "match: [{ mode: SERVER, ports: [{ number: "+own+" }] }]")
	badge("called", "match: [{ mode: CLIENT, ports: [{ number: "+own+" }] }]")
	badge("early", "phase: STATS, match: [{ ports: [{ number: 5 }, { number: 6 }] }]")
	badge("late", "match: [{ ports: [{ number: 5 }, { number: 6 }] }]")
	badge("over-quic", "match: [{ ports: [{ number: 8 }] }]")
	w.plugin("net", "url: '"+w.image("mark:v1")+"', type: NETWORK, pluginConfig: { mark: G }, match: [{ ports: [{ number: 8 }] }]")
	w.start("")
	e := w.envoy()
	e.WaitReady()

	w.now(net.JoinHostPort("127.0.0.1", one), "trail=first-port ")
	// The default chain is of the whole listener: plugins of both its ports are in it.
	w.now(net.JoinHostPort("127.0.0.1", two), "trail=first-port,second-port ")
	w.now(net.JoinHostPort("127.0.0.1", own), "trail=served ")
	w.now(e.Listener("named"), "trail=early,late ")
	w.now(e.Listener("placeholders"), "trail=late,early ")
	dump, err := e.Admin("/config_dump?resource=dynamic_listeners")
	if err != nil {
		t.Fatal(err)
	}
	chain := chainsIn(t, dump)
	for name, want := range map[string]string{
		"quic":  "hcm jwt rbac extensions.istio.io/wasmplugin/team-a.over-quic router", // no NETWORK plugin
		"named": "hcm extensions.istio.io/wasmplugin/team-a.early cors extensions.istio.io/wasmplugin/team-a.late router",
		"udp":   "", "empty": "",
	} {
		if got, ok := chain[name]; got != want || !ok {
			t.Errorf("listener %s: %q, taken in: %v, want %q", name, got, ok, want)
		}
	}
	for _, name := range []string{"first-port", "second-port", "served", "early", "late", "over-quic"} {
		w.status(name, "accepted", accepted)
	}
	for _, name := range []string{"called", "net"} {
		w.status(name, "in no chain", func(p pluginStatus) bool { return p.Proxies.Matched == 0 })
	}
	if log := w.stile.Log(); !strings.Contains(log, "NotOnQUIC") {
		t.Error("the log does not say that a NETWORK plugin is not on QUIC")
	}
}

// chainsIn are the names of the filters of each active listener in a dump: of the first chain, and of its manager.
func chainsIn(t *testing.T, dump string) map[string]string {
	t.Helper()
	type filter struct {
		Name  string
		Typed struct {
			HTTP []struct{ Name string } `json:"http_filters"`
		} `json:"typed_config"`
	}
	var all struct {
		Configs []struct {
			Name   string
			Active *struct {
				Listener struct {
					Chains []struct{ Filters []filter } `json:"filter_chains"`
				}
			} `json:"active_state"`
		}
	}
	if err := json.Unmarshal([]byte(dump), &all); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, c := range all.Configs {
		if c.Active == nil {
			continue
		}
		var names []string
		if chains := c.Active.Listener.Chains; len(chains) > 0 {
			for _, f := range chains[0].Filters {
				names = append(names, f.Name)
				for _, h := range f.Typed.HTTP {
					names = append(names, h.Name)
				}
			}
		}
		out[c.Name] = strings.Join(names, " ")
	}
	return out
}

// TestEnvoyFile_WhatIsBrokenTakesNothing is the life of an Envoy file under a real Envoy: broken before stile began, good, broken,
// empty, gone, good again.
func TestEnvoyFile_WhatIsBrokenTakesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("badge:v1", modules.Badge())
	w.plugin("badge", "url: '"+w.image("badge:v1")+"', pluginConfig: { name: badge }")
	w.write("envoy/edge.yaml", "listeners: [{ nme: http }]\n")
	w.start("")
	e := w.envoy()
	w.eventually("stile says why the proxy is not answered", func() error {
		verbose, err := w.api("/readyz?verbose")
		if err != nil {
			return err
		}
		proxies, err := w.api("/api/v1/proxies")
		if err != nil {
			return err
		}
		status, err := command(t, "status", "--server", w.at.Admin).Output()
		if err != nil {
			return err
		}
		if !strings.Contains(verbose, "[!]envoy file edge: ") || !strings.Contains(proxies, `"waiting":true`) || !strings.Contains(string(status), "is not answered yet") {
			return fmt.Errorf("%s\n%s\n%s", verbose, proxies, status)
		}
		return nil
	})
	if e.Ready() {
		t.Error("envoy is ready, and was answered nothing")
	}

	good := "listeners:\n" + listener("http", "", hcm("", jwtAndRBAC))
	w.envoyFile(good)
	e.WaitReady()
	address := e.Listener("http")
	w.now(address, "trail=badge ")
	if verbose, err := w.api("/readyz?verbose"); err != nil || strings.Contains(verbose, "[!]") {
		t.Errorf("after it is mended: %v, %s", err, verbose)
	}

	for what, harm := range map[string]func(){
		"not Envoy's":                 func() { w.write("envoy/edge.yaml", "listeners: [{ nme: http }]\n") },
		"not YAML":                    func() { w.write("envoy/edge.yaml", "listeners: [") },
		"empty":                       func() { w.write("envoy/edge.yaml", "") },
		"half of it":                  func() { w.write("envoy/edge.yaml", good[:len(good)/2]) },
		"an unknown field deep in it": func() { w.write("envoy/edge.yaml", strings.ReplaceAll(good, "prefix: /", "prefx: /")) },
		"not there": func() {
			if err := os.Remove(filepath.Join(w.folder, "envoy/edge.yaml")); err != nil {
				t.Fatal(err)
			}
		},
		"a folder": func() {
			if err := os.Remove(filepath.Join(w.folder, "envoy/edge.yaml")); err != nil {
				t.Fatal(err)
			}
			w.write("envoy/edge.yaml/x", "")
		},
	} {
		harm()
		before := len(w.stile.Log())
		w.plugin("badge", "url: '"+w.image("badge:v1")+"', pluginConfig: { name: 'x"+fmt.Sprint(before)+"' }")
		w.eventually(what+": the plugin of a file that is broken is still followed", func() error {
			return w.answers(address, "trail=x"+fmt.Sprint(before)+" ")
		})
		if err := os.RemoveAll(filepath.Join(w.folder, "envoy/edge.yaml")); err != nil {
			t.Fatal(err)
		}
		w.envoyFile(good)
	}
	if n := e.Stat("listener_manager.listener_removed"); n != 0 {
		t.Errorf("%d listeners were removed", n)
	}
}
