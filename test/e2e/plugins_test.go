package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stileproject/stile/modules"
)

// wasm reads a module of another room's tests.
func wasm(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tag(t *testing.T) []byte {
	return wasm(t, "../envoy/testdata/tag.wasm")
}

// tagged is another version of the module tag, that says the eight letters.
func tagged(t *testing.T, version string) []byte {
	t.Helper()
	return bytes.Replace(tag(t), []byte("version0"), []byte(version), 1)
}

// hcm is an HTTP connection manager; more is added to it, filters before its router.
func hcm(more, filters string) string {
	return `
    - name: hcm
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: in
        route_config: { name: r, virtual_hosts: [{ name: all, domains: ["*"], routes: [{ match: { prefix: / }, route: { cluster: upstream } }] }] }` + more + `
        http_filters:` + filters + `
        - { name: router, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }
`
}

const (
	tcpProxy = `
    - { name: tcp, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: upstream } }
`
	jwtAndRBAC = `
        - { name: jwt, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication } }
        - { name: rbac, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC } }`
)

// listener is a listener of one chain on any free port.
func listener(name, metadata, filters string) string {
	if metadata != "" {
		metadata = "\n  metadata: { filter_metadata: { stile.dev: " + metadata + " } }"
	}
	return "- name: " + name + "\n  address: { socket_address: { address: 127.0.0.1, port_value: 0 } }" + metadata + "\n  filter_chains:\n  - filters:" + filters
}

func TestPlugins_RunWhereTheirChainSays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("badge:v1", modules.Badge())
	w.push("toll:v1", modules.Toll())
	w.push("tag:v1", tag(t))
	w.push("mark:v1", wasm(t, "testdata/mark.wasm"))
	upgrade := `
        upgrade_configs:
        - { upgrade_type: websocket }
        - upgrade_type: echo
          filters:` + strings.ReplaceAll(jwtAndRBAC, "\n", "\n  ") + `
          - { name: router, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }`
	certificate, key, pool := selfSigned(t, "a.example", "b.example")
	secured := func(name string) string {
		return "  - filter_chain_match: { server_names: [" + name + "] }\n    transport_socket: { name: tls, typed_config: { \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: { tls_certificates: [{ certificate_chain: { inline_string: " +
			fmt.Sprintf("%q", certificate) + " }, private_key: { inline_string: " + fmt.Sprintf("%q", key) + " } }] } } }\n    filters:" + hcm("", jwtAndRBAC)
	}
	w.envoyFile("listeners:\n" +
		listener("http", "{ ports: [8080] }", hcm(upgrade, jwtAndRBAC)) +
		listener("other-port", "{ ports: [9090] }", hcm("", jwtAndRBAC)) +
		listener("inbound", "{ ports: [8080], mode: SERVER }", hcm("", jwtAndRBAC)) +
		listener("skipped", "{ skip: true }", hcm("", "")) +
		listener("tcp", "{ ports: [7070] }", tcpProxy) +
		listener("network-before-http", "{ ports: [6060] }", hcm("", "")) +
		"- name: tls\n  address: { socket_address: { address: 127.0.0.1, port_value: 0 } }\n  metadata: { filter_metadata: { stile.dev: { ports: [8080] } } }\n  listener_filters: [{ name: sni, typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector } }]\n  filter_chains:\n" + secured("a.example") + secured("b.example"))
	onHTTP := "match: [{ mode: CLIENT, ports: [{ number: 8080 }] }]"
	w.plugin("z-first", "url: '"+w.image("badge:v1")+"', phase: AUTHN, priority: 10, pluginConfig: { name: first }, "+onHTTP)
	w.plugin("a-second", "url: '"+w.image("badge:v1")+"', phase: AUTHN, pluginConfig: { name: second }, "+onHTTP)
	w.plugin("authz", "url: '"+w.image("toll:v1")+"', phase: AUTHZ, "+onHTTP)
	w.plugin("seen", "url: '"+w.image("tag:v1")+"', pluginName: my-root, vmConfig: { env: [{ name: WHO, value: me }] }, pluginConfig: { a: 1 }, "+onHTTP)
	w.plugin("elsewhere", "url: '"+w.image("badge:v1")+"', pluginConfig: { name: elsewhere }, match: [{ ports: [{ number: 9090 }] }]")
	w.plugin("served", "url: '"+w.image("badge:v1")+"', pluginConfig: { name: served }, match: [{ mode: SERVER }]")
	w.plugin("n-one", "url: '"+w.image("mark:v1")+"', type: NETWORK, priority: 2, pluginConfig: { mark: ET }, match: [{ ports: [{ number: 7070 }, { number: 6060 }] }]")
	w.plugin("n-two", "url: '"+w.image("mark:v1")+"', type: NETWORK, priority: 1, pluginConfig: { mark: G }, match: [{ ports: [{ number: 7070 }, { number: 6060 }] }]")
	w.start("")
	e := w.envoy()
	e.WaitReady()
	http := e.Listener("http")

	everything := `trail=first,second,toll toll=paid tag=version0 env=WHO=me config={"a":1}`
	w.now(http, everything, "x-stile-pass: 1")
	w.now(http, "403: toll: this way needs the header")
	w.now(e.Listener("other-port"), "trail=elsewhere toll= tag= ")
	w.now(e.Listener("inbound"), "trail=served toll= tag= ")
	w.now(e.Listener("skipped"), "trail= toll= tag= ")
	for _, name := range []string{"a.example", "b.example"} {
		// Each chain by its name.
		if err := w.answersOf(tlsClient(e.Listener("tls"), name, pool), "https://"+name+"/", everything, "x-stile-pass: 1"); err != nil {
			t.Errorf("chain %s: %v", name, err)
		}
	}
	for _, kind := range []string{"websocket", "echo"} {
		if got := upgraded(t, http, kind, "x-stile-pass: 1"); !strings.Contains(got, everything) || !strings.Contains(got, "upstream: hello") {
			t.Errorf("upgrade to %s, with a chain of its own or the common one: %s", kind, got)
		}
		if got := upgraded(t, http, kind); !strings.Contains(got, "403 Forbidden") {
			t.Errorf("upgrade to %s walks past the plugin: %s", kind, got)
		}
	}
	for _, name := range []string{"tcp", "network-before-http"} {
		// What the client lacks the two NETWORK plugins add, the one with the higher priority first.
		if got := say(t, e.Listener(name), " /x HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"); !strings.Contains(got, "GET /x trail=") {
			t.Errorf("NETWORK plugins on %s: %q", name, got)
		}
	}
	for _, name := range []string{"z-first", "a-second", "authz", "seen", "elsewhere", "served", "n-one", "n-two"} {
		w.status(name, "accepted", accepted)
	}
	dump, err := e.Admin("/config_dump")
	if err != nil || !strings.Contains(dump, `"root_id": "my-root"`) {
		t.Errorf("pluginName is not the root id: %v", err)
	}
}

func TestStandIns_SayWhatTheFailStrategySays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var dialled atomic.Int64
	greeter := greets(t, &dialled)
	w.envoyFile("listeners:\n"+
		listener("closed", "{ ports: [1] }", hcm("", jwtAndRBAC))+
		listener("open", "{ ports: [2] }", hcm("", jwtAndRBAC))+
		listener("tcp-closed", "{ ports: [3] }", strings.ReplaceAll(tcpProxy, "cluster: upstream", "cluster: greeter"))+
		listener("tcp-open", "{ ports: [4] }", strings.ReplaceAll(tcpProxy, "cluster: upstream", "cluster: greeter")), cluster("greeter", greeter))
	spec := func(image, strategy, port, more string) string {
		return "url: '" + w.image(image) + "', failStrategy: " + strategy + ", match: [{ ports: [{ number: " + port + " }] }]" + more
	}
	w.plugin("closed", spec("badge:v1", "FAIL_CLOSE", "1", ", pluginConfig: { name: closed }"))
	w.plugin("open", spec("badge:v1", "FAIL_OPEN", "2", ", pluginConfig: { name: open }"))
	w.plugin("tcp-closed", spec("mark:v1", "FAIL_CLOSE", "3", ", type: NETWORK, pluginConfig: { mark: HI }"))
	w.plugin("tcp-open", spec("mark:v1", "FAIL_OPEN", "4", ", type: NETWORK, pluginConfig: { mark: HI }"))
	w.start("")
	e := w.envoy()
	e.WaitReady()
	w.now(e.Listener("closed"), "503: fault filter abort")
	w.now(e.Listener("open"), "trail= ")
	if got := say(t, e.Listener("tcp-closed"), "x\n"); got != "" || dialled.Load() != 0 {
		t.Errorf("a closed NETWORK plugin: the client reads %q, the upstream was dialled %d times", got, dialled.Load())
	}
	if got := say(t, e.Listener("tcp-open"), "x\n"); got != "welcome\nx\n" {
		t.Errorf("an open NETWORK plugin: %q", got)
	}

	t.Log("the images come: the plugins take the places of their stand-ins, on listeners that run")
	w.push("badge:v1", modules.Badge())
	w.push("mark:v1", wasm(t, "testdata/mark.wasm"))
	w.soon(e.Listener("closed"), "trail=closed ")
	w.soon(e.Listener("open"), "trail=open ")
	for _, name := range []string{"tcp-closed", "tcp-open"} {
		w.eventually(name+" runs", func() error {
			if got := say(t, e.Listener(name), "x\n"); got != "welcome\nHIx\n" {
				return fmt.Errorf("the client reads %q", got)
			}
			return nil
		})
	}
}

func TestAFaultyModule_HurtsItselfAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("badge:v1", modules.Badge())
	w.push("traps:v1", wasm(t, "../../internal/proxywasm/testdata/traps.wasm"))
	var listeners strings.Builder
	for i, name := range []string{"trap-closed", "trap-open", "refuse-closed", "refuse-open", "live"} {
		listeners.WriteString(listener(name, fmt.Sprintf("{ ports: [%d] }", i+1), hcm("", jwtAndRBAC)))
	}
	w.envoyFile("listeners:\n" + listeners.String())
	w.plugin("neighbour", "url: '"+w.image("badge:v1")+"', phase: AUTHN, pluginConfig: { name: neighbour }")
	on := func(port int, strategy string) string {
		return fmt.Sprintf(", failStrategy: %s, match: [{ ports: [{ number: %d }] }]", strategy, port)
	}
	w.plugin("trap-closed", "url: '"+w.image("traps:v1")+"'"+on(1, "FAIL_CLOSE"))
	w.plugin("trap-open", "url: '"+w.image("traps:v1")+"'"+on(2, "FAIL_OPEN"))
	w.plugin("refuse-closed", "url: '"+w.image("badge:v1")+"', pluginConfig: { nam: x }"+on(3, "FAIL_CLOSE"))
	w.plugin("refuse-open", "url: '"+w.image("badge:v1")+"', pluginConfig: { nam: x }"+on(4, "FAIL_OPEN"))
	w.plugin("live", "url: '"+w.image("badge:v1")+"', pluginConfig: { name: live }"+on(5, "FAIL_CLOSE"))
	w.start("")
	e := w.envoy()
	e.WaitReady()

	t.Log("a module that traps at a request: by its fail strategy, and never past its neighbour")
	for range 5 {
		w.now(e.Listener("trap-closed"), "503: ")
	}
	w.soon(e.Listener("trap-open"), "trail=neighbour ")
	t.Log("one that refuses its configuration at first: the stand-in, and the proxy's words in the status")
	w.now(e.Listener("refuse-closed"), "503: fault filter abort")
	w.now(e.Listener("refuse-open"), "trail=neighbour ")
	for _, name := range []string{"refuse-closed", "refuse-open"} {
		w.status(name, "rejected", func(p pluginStatus) bool { return p.Proxies.Rejected == 1 && p.Proxies.Accepted == 0 })
	}
	w.status("neighbour", "accepted", accepted)
	t.Log("one that refuses a new configuration: what runs goes on")
	w.now(e.Listener("live"), "trail=neighbour,live ")
	w.plugin("live", "url: '"+w.image("badge:v1")+"', pluginConfig: { nam: live }"+on(5, "FAIL_CLOSE"))
	w.status("live", "rejected", func(p pluginStatus) bool { return p.Proxies.Rejected == 1 })
	w.now(e.Listener("live"), "trail=neighbour,live ")
	w.plugin("live", "url: '"+w.image("badge:v1")+"', pluginConfig: { name: again }"+on(5, "FAIL_CLOSE"))
	w.soon(e.Listener("live"), "trail=neighbour,again ")
	w.status("live", "accepted", accepted)
}

// greets is a TCP server that speaks first, and then says what it hears, once.
func greets(t *testing.T, dialled *atomic.Int64) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			dialled.Add(1)
			_, _ = io.WriteString(c, "welcome\n")
			line, _ := bufio.NewReader(c).ReadString('\n')
			_, _ = io.WriteString(c, line)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

// dial opens a connection that ends with the test.
func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// say sends bytes and returns all that comes until the other side closes.
func say(t *testing.T, address, text string) string {
	t.Helper()
	c := dial(t, address)
	_, _ = io.WriteString(c, text)
	b, _ := io.ReadAll(c) // closed with a reset counts as closed
	return string(b)
}

// upgraded asks for an upgrade, says hello, and returns all that comes.
func upgraded(t *testing.T, address, kind string, headers ...string) string {
	t.Helper()
	request := "GET /up HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: " + kind + "\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	for _, h := range headers {
		request += h + "\r\n"
	}
	c := dial(t, address)
	_, _ = io.WriteString(c, request+"\r\n")
	answer := bufio.NewReader(c)
	head, _ := answer.ReadString('\n')
	if strings.Contains(head, " 101 ") {
		_, _ = io.WriteString(c, "hello\n")
	} else {
		_ = c.SetDeadline(time.Now().Add(200 * time.Millisecond)) // a refusal keeps the connection
	}
	rest, _ := io.ReadAll(answer)
	return head + string(rest)
}

// tlsClient speaks TLS with the name to one address.
func tlsClient(address, name string, pool *x509.CertPool) *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: name},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		},
	}}
}
