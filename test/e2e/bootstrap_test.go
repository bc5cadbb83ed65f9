package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/stileproject/stile/modules"
	"github.com/stileproject/stile/test/envoy/envoytest"
)

// bootstrap is an example with the addresses and files of this world in place of those that it is written with.
func (w *world) bootstrap(name string, replace ...string) string {
	w.Helper()
	text, err := os.ReadFile("../../examples/bootstrap/" + name)
	if err != nil {
		w.Fatal(err)
	}
	pairs := append([]string{"port_value: 18000", "port_value: " + portOf(w.at.XDS), "port_value: 18001", "port_value: " + portOf(w.at.Modules), "port_value: 9901", "port_value: 0", "port_value: 8080", "port_value: 0"}, replace...)
	return strings.NewReplacer(pairs...).Replace(string(text))
}

// routed is a listener with a route that switches the plugin badge off.
const routed = `listeners:
- name: http
  address: { socket_address: { address: 127.0.0.1, port_value: 0 } }
  filter_chains:
  - filters:
    - name: hcm
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: in
        route_config:
          name: r
          virtual_hosts:
          - name: all
            domains: ["*"]
            routes:
            - match: { prefix: /healthz }
              route: { cluster: upstream }
              typed_per_filter_config: { extensions.istio.io/wasmplugin/team-a.badge: { "@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true } }
            - { match: { prefix: / }, route: { cluster: upstream } }
        http_filters:
        - { name: router, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }
`

func TestBootstrap_Plain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("badge:v1", modules.Badge())
	w.push("tag:v1", tag(t))
	w.envoyFile(routed)
	w.plugin("badge", "url: '"+w.image("badge:v1")+"', pluginConfig: { name: badge }")
	w.start("")
	e := envoytest.Start(t, envoytest.Options{Bootstrap: w.bootstrap("plain.yaml")})
	e.WaitReady()
	address := e.Listener("http")
	w.now(address, "GET / trail=badge ")
	if err := w.answersOf(client, "http://"+address+"/healthz", "GET /healthz trail= "); err != nil {
		t.Errorf("a route that switches the plugin off: %v", err)
	}
	w.status("badge", "accepted", accepted)

	t.Log("a change of the plugin's configuration drains nothing; another plugin is a change of the listener")
	w.plugin("badge", "url: '"+w.image("badge:v1")+"', pluginConfig: { name: other }")
	w.soon(address, "trail=other ")
	if n := e.Stat("listener_manager.listener_modified") + e.Stat("listener_manager.listener_in_place_updated"); n != 0 {
		t.Errorf("a change of the configuration changed the listener %d times", n)
	}
	w.plugin("tag", "url: '"+w.image("tag:v1")+"'")
	w.eventually("the new plugin runs", func() error { return w.answers(e.Listener("http"), "trail=other toll= tag=version0") })
	if n := e.Stat("listener_manager.listener_in_place_updated"); n != 1 {
		t.Errorf("another plugin changed the listener's chains %d times", n)
	}
}

func TestBootstrap_MutualTLS(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("badge:v1", modules.Badge())
	w.envoyFile("listeners:\n" + listener("http", "", hcm("", jwtAndRBAC)))
	w.plugin("badge", "url: '"+w.image("badge:v1")+"', pluginConfig: { name: badge }")
	a := newAuthority(t)
	pair := func(folder, certificate, key string) {
		w.write(folder+"/tls.crt", certificate)
		w.write(folder+"/tls.key", key)
		w.write(folder+"/ca.crt", a.pem)
	}
	certificate, key := a.server("stile.example")
	pair("server", certificate, key)
	certificate, key = a.client("spiffe://cluster.local/ns/team-a/sa/gateway")
	pair("team-a", certificate, key)
	certificate, key = a.client("spiffe://cluster.local/ns/team-b/sa/gateway")
	pair("team-b", certificate, key)
	w.start("xds: { address: '" + w.at.XDS + "', tls: { certFile: server/tls.crt, keyFile: server/tls.key, clientCAFile: server/ca.crt }, identities: [{ spiffe: 'spiffe://cluster.local/ns/team-a/sa/*', namespaces: [team-a], clusters: [edge] }, { spiffe: 'spiffe://cluster.local/ns/team-b/sa/*', namespaces: [team-b] }] }\n")
	as := func(folder string) *envoytest.Envoy {
		return envoytest.Start(t, envoytest.Options{Bootstrap: w.bootstrap("mtls.yaml", "/etc/stile/tls", filepath.Join(w.folder, folder))})
	}
	e := as("team-a")
	e.WaitReady()
	w.now(e.Listener("http"), "trail=badge ")

	t.Log("another's certificate does not make it a proxy of team-a")
	stranger := as("team-b")
	w.eventually("it is turned away", func() error {
		if !strings.Contains(w.stile.Log(), "a proxy was turned away") {
			return fmt.Errorf("not said yet")
		}
		return nil
	})
	if stranger.Stat("listener_manager.listener_added") != 0 {
		t.Error("it was given listeners")
	}
}

func TestBootstrap_OwnListeners(t *testing.T) {
	t.Parallel()
	for delivery, more := range map[string]string{"inline": "", "remote": "inlineMaxModule: 0"} {
		t.Run(delivery, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.push("badge:v1", modules.Badge())
			w.plugin("badge", "url: '"+w.image("badge:v1")+"', pluginConfig: { name: badge }")
			if more != "" {
				more = "xds: { address: '" + w.at.XDS + "', " + more + " }\n"
			}
			w.start(more)
			text := w.bootstrap("own-listeners.yaml")
			e := envoytest.Start(t, envoytest.Options{Bootstrap: text})
			e.WaitReady()
			w.eventually("the plugin signs", func() error { return signed(t, e.Listener("http"), "/", "badge") })
			if err := signed(t, e.Listener("http"), "/healthz", ""); err != nil {
				t.Errorf("a route that switches the plugin off: %v", err)
			}
			w.status("badge", "accepted", accepted)
			w.snippetIsWhatIsPasted(text)
		})
	}
}

// signed wants a 200 with the badge on it.
func signed(t *testing.T, address, path, badge string) error {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	_ = response.Body.Close()
	if got := response.Header.Get("X-Stile-Badge"); response.StatusCode != http.StatusOK || got != badge {
		return fmt.Errorf("%s, badge %q", response.Status, got)
	}
	return nil
}

// snippetIsWhatIsPasted wants the filter in the example to be what "stile translate --snippet" prints for its listeners.
func (w *world) snippetIsWhatIsPasted(bootstrap string) {
	w.Helper()
	var b struct {
		Static struct {
			Listeners []map[string]any `json:"listeners"`
		} `json:"static_resources"`
	}
	if err := yaml.Unmarshal([]byte(bootstrap), &b); err != nil {
		w.Fatal(err)
	}
	chains := b.Static.Listeners[0]["filter_chains"].([]any)
	manager := chains[0].(map[string]any)["filters"].([]any)[0].(map[string]any)["typed_config"].(map[string]any)
	filters := manager["http_filters"].([]any)
	pasted := filters[0]
	manager["http_filters"] = filters[1:]
	listeners, err := json.Marshal(map[string]any{"listeners": b.Static.Listeners})
	if err != nil {
		w.Fatal(err)
	}
	w.write("own.yaml", string(listeners))
	w.write("node.yaml", "id: gw-0\ncluster: own\nmetadata: { NAMESPACE: team-a, LABELS: { app: gateway } }\n")
	out, err := command(w.T, "translate", "-f", filepath.Join(w.folder, "resources"), "--node", filepath.Join(w.folder, "node.yaml"),
		"--envoy", filepath.Join(w.folder, "own.yaml"), "--plain-http", w.registry.Host(), "--snippet").Output()
	if err != nil {
		w.Fatalf("%v: %s", err, out)
	}
	var snippets []struct {
		Listener string `json:"listener"`
		Filters  []any  `json:"http_filters"`
	}
	if err := yaml.Unmarshal(out, &snippets); err != nil {
		w.Fatal(err)
	}
	if len(snippets) != 1 || len(snippets[0].Filters) != 1 {
		w.Fatalf("%s", out)
	}
	if diff := cmp.Diff(snippets[0].Filters[0], pasted); diff != "" {
		w.Errorf("the example pastes something else than the snippet:\n%s", diff)
	}
}

// A large module over mutual TLS, by a cluster stile-modules of the operator's own.
func TestModules_MutualTLS(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("badge:v1", modules.Badge())
	a := newAuthority(t)
	certificate, key := a.server("stile.example")
	w.write("tls/server.crt", certificate)
	w.write("tls/server.key", key)
	w.write("tls/ca.crt", a.pem)
	certificate, key = a.client("spiffe://cluster.local/ns/team-a/sa/gateway")
	w.write("tls/client.crt", certificate)
	w.write("tls/client.key", key)
	in := func(name string) string { return filepath.Join(w.folder, "tls", name) }
	own := cluster("stile-modules", w.at.Modules) + `  transport_socket:
    name: tls
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
      sni: stile.example
      common_tls_context:
        tls_params: { tls_maximum_protocol_version: TLSv1_3 }
        tls_certificates: [{ certificate_chain: { filename: ` + in("client.crt") + ` }, private_key: { filename: ` + in("client.key") + ` } }]
        validation_context: { trusted_ca: { filename: ` + in("ca.crt") + ` } }
`
	w.envoyFile("listeners:\n"+listener("http", "", hcm("", jwtAndRBAC)), own)
	w.plugin("badge", "url: '"+w.image("badge:v1")+"', pluginConfig: { name: badge }")
	w.start("xds: { address: '" + w.at.XDS + "', inlineMaxModule: 0 }\nmodules: { address: '" + w.at.Modules + "', url: 'https://" + w.at.Modules + "', tls: { certFile: tls/server.crt, keyFile: tls/server.key, clientCAFile: tls/ca.crt } }\n")
	e := w.envoy()
	e.WaitReady()
	w.now(e.Listener("http"), "trail=badge ")
	w.status("badge", "downloaded", func(p pluginStatus) bool { return p.Downloads == 1 })
	if _, err := fetch(t, tlsClient(w.at.Modules, "stile.example", a.pool()), "https://stile.example/modules/x"); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without a certificate: %v", err)
	}
}
