package xds_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
	"github.com/stileproject/stile/test/envoy/envoytest"
)

// realWorld is this server and a real Envoy.
type realWorld struct {
	t       *testing.T
	address string
	server  *xds.Server
	stop    func()
	envoy   *envoytest.Envoy
	file    *xds.EnvoyFile
	module  []byte
	modules string

	mu      sync.Mutex // guards fetches
	fetches int
}

const realListener = `
listeners:
  - name: in
    address: { socket_address: { address: 127.0.0.1, port_value: 0 } }
    filter_chains:
      - filters:
          - name: m
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
              stat_prefix: in
              route_config:
                name: r
                virtual_hosts:
                  - name: v
                    domains: ["*"]
                    routes:
                      - match: { prefix: / }
                        direct_response: { status: 200 }
                        response_headers_to_add: [{ header: { key: x-config, value: "%REQ(x-config)%" } }]
              http_filters:
                - name: r
                  typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
`

func newRealWorld(t *testing.T, delta bool) *realWorld {
	t.Helper()
	if os.Getenv("STILE_ENVOY") == "" {
		t.Skip("STILE_ENVOY is not set; make test sets it")
	}
	module, err := os.ReadFile("../../test/envoy/testdata/tag.wasm")
	if err != nil {
		t.Fatal(err)
	}
	w := &realWorld{t: t, address: "127.0.0.1:0", module: module}
	var problems []xds.Problem
	if w.file, problems = xds.ParseEnvoy("real.yaml", []byte(realListener)); w.file == nil {
		t.Fatal(problems)
	}
	modules := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		w.mu.Lock()
		w.fetches++
		w.mu.Unlock()
		_, _ = rw.Write(module)
	})}
	listener := listen(t, "127.0.0.1:0")
	go func() { _ = modules.Serve(listener) }()
	t.Cleanup(func() { _ = modules.Close() })
	w.modules = "http://" + listener.Addr().String()
	w.start()
	t.Cleanup(func() { w.stop() })
	w.publish(xds.Delivery{Mode: xds.Inline}, "")
	w.envoy = envoytest.Start(t, envoytest.Options{XDS: w.address, ID: "gw-0", Cluster: "edge", Metadata: map[string]any{"NAMESPACE": "team-a"}, CDS: true, Delta: delta})
	return w
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	var err error
	for range 50 { // the port of the one before may not be free at once
		var l net.Listener
		if l, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", address); err == nil {
			return l
		}
		<-time.After(20 * time.Millisecond)
	}
	t.Fatal(err)
	return nil
}

// start starts a stile, on the address of the one before.
func (w *realWorld) start() {
	w.t.Helper()
	s := xds.NewServer(xds.Options{})
	g := grpc.NewServer(xds.ServerOptions()...)
	s.Register(g)
	l := listen(w.t, w.address)
	w.address = l.Addr().String()
	var wg sync.WaitGroup
	over := make(chan struct{})
	wg.Go(func() { _ = g.Serve(l) })
	wg.Go(func() {
		for {
			select {
			case e := <-s.Events():
				if e.Kind == xds.Connected {
					s.Join(e.Stream, "g")
				}
			case <-over:
				return
			}
		}
	})
	w.server = s
	w.stop = func() { close(over); g.Stop(); s.Close(); wg.Wait() }
}

// publish publishes the plugin with a configuration. A
// Delivery of mode Inline or Remote is filled in with the module.
func (w *realWorld) publish(d xds.Delivery, config string) {
	w.t.Helper()
	d.SHA256, d.Size = sum(string(w.module)), int64(len(w.module))
	switch d.Mode {
	case xds.Inline:
		d.Bytes = w.module
	case xds.Remote:
		d.URL = w.modules + "/modules/t"
	}
	p := wasmPlugin("p", func(s *v1alpha1.WasmPluginSpec) {
		s.PluginConfig = &v1alpha1.Object{Raw: []byte(config)}
	})
	node := plugin.Node{ID: "gw-0", Cluster: "edge", Namespace: "team-a"}
	plan, _ := plugin.Build(plugin.Inputs{Plugins: []*v1alpha1.WasmPlugin{p}, Node: node, Listeners: w.file.Listeners()})
	s, problems := xds.Translate(xds.Input{Plan: plan, File: w.file, Node: node, ModulesURL: w.modules,
		Plugins: map[plugin.Key]*v1alpha1.WasmPlugin{plugin.KeyOf(p): p}, Deliver: func(plugin.Key) xds.Delivery { return d }})
	if len(problems) > 0 {
		w.t.Fatal(problems)
	}
	w.server.Publish("g", s)
}

// get returns the status of a request, and the configuration of the module that it met.
func (w *realWorld) get() string {
	w.t.Helper()
	w.envoy.WaitReady()
	r, err := http.Get("http://" + w.envoy.Listener("in") + "/")
	if err != nil {
		return err.Error()
	}
	defer func() { _ = r.Body.Close() }()
	_, _ = io.Copy(io.Discard, r.Body)
	http.DefaultClient.CloseIdleConnections()
	return strings.TrimSpace(fmt.Sprintf("%d %s", r.StatusCode, r.Header.Get("X-Config")))
}

// sees waits until the ledger says so of the plugin.
func (w *realWorld) sees(want xds.Counts) {
	w.t.Helper()
	w.envoy.Eventually(fmt.Sprintf("counts %+v", want), func() error {
		if got := w.server.Counts(key("p")); got != want {
			return fmt.Errorf("counts are %+v: %+v", got, w.server.Proxies())
		}
		return nil
	})
}

func (w *realWorld) serves(want string) {
	w.t.Helper()
	if got := w.get(); got != want {
		w.t.Errorf("a request gets %q, want %q", got, want)
	}
}

func TestRealEnvoy_TheLedgerIsHonestOverARestartOfStile(t *testing.T) {
	t.Parallel()
	for name, delta := range map[string]bool{"state of the world": false, "delta": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newRealWorld(t, delta)
			w.publish(xds.Delivery{Mode: xds.Inline}, `{"a":1}`)
			w.sees(xds.Counts{Matched: 1, Sent: 1, Accepted: 1})
			w.serves(`200 {"a":1}`)

			t.Log("a version that it refuses: what runs goes on")
			good := w.module
			w.module = []byte("\x00asm\x01\x00\x00\x00")
			w.publish(xds.Delivery{Mode: xds.Inline}, `{"a":2}`)
			w.sees(xds.Counts{Matched: 1, Sent: 1, Rejected: 1})
			w.serves(`200 {"a":1}`)

			t.Log("stile restarts and remembers nothing: the proxy must not say yes to what it refused")
			w.stop()
			w.start()
			w.publish(xds.Delivery{Mode: xds.Inline}, `{"a":2}`)
			w.sees(xds.Counts{Matched: 1, Sent: 1, Rejected: 1})
			w.serves(`200 {"a":1}`)

			t.Log("and again, with the right taken away: it keeps what it runs")
			w.stop()
			w.start()
			w.publish(xds.Delivery{Mode: xds.StandIn, Keep: true}, `{"a":2}`)
			w.sees(xds.Counts{Matched: 1, Sent: 1, Accepted: 1})
			w.serves(`200 {"a":1}`)

			w.module = good
			w.publish(xds.Delivery{Mode: xds.Inline}, `{"a":3}`)
			w.sees(xds.Counts{Matched: 1, Sent: 1, Accepted: 1})
			w.serves(`200 {"a":3}`)

			t.Log("a right that ends by the fail strategy")
			w.publish(xds.Delivery{Mode: xds.StandIn}, `{"a":3}`)
			w.sees(xds.Counts{Matched: 1, Sent: 1, Accepted: 1})
			w.serves("503")
		})
	}
}

func TestRealEnvoy_RemoteNeverOpensTheWay(t *testing.T) {
	t.Parallel()
	w := newRealWorld(t, false)
	w.sees(xds.Counts{Matched: 1, Sent: 1, Accepted: 1})
	w.publish(xds.Delivery{Mode: xds.StandIn}, "")
	w.sees(xds.Counts{Matched: 1, Sent: 1, Accepted: 1})
	w.serves("503")

	t.Log("over a live stand-in: closed until the code is there, and accepted means there")
	w.publish(xds.Delivery{Mode: xds.Remote}, `{"a":1}`)
	for range 20 {
		if got := w.get(); got != "503" && got != `200 {"a":1}` {
			t.Fatalf("a request gets %q", got)
		}
	}
	w.sees(xds.Counts{Matched: 1, Sent: 1, Accepted: 1})
	w.serves(`200 {"a":1}`)
	if w.fetches == 0 {
		t.Error("nothing was fetched")
	}
}
