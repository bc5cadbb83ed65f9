package proxytest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
	"github.com/stileproject/stile/internal/xds/sandbox"
	"github.com/stileproject/stile/modules"
)

// RunStile tells the stories in which the server is stile's own: plans, translation,
// ledger and proxy together.
func RunStile(t *testing.T, start Start) {
	t.Helper()
	for _, s := range stileStories {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			w := &stileWorld{world: &world{T: t, start: start}, plugins: map[string]*v1alpha1.WasmPlugin{}, deliver: map[string]xds.Delivery{}}
			w.upstream()
			w.serve()
			s.tell(w)
		})
	}
}

// stileWorld is a stile server without an engine: the story decides what is delivered.
type stileWorld struct {
	*world

	server     *xds.Server
	xdsAddress string
	modulesURL string
	plugins    map[string]*v1alpha1.WasmPlugin

	mu      sync.Mutex // guards deliver
	deliver map[string]xds.Delivery
}

const group = "edge"

// serve starts the server; whoever connects joins the one group.
func (w *stileWorld) serve() {
	w.Helper()
	w.server = xds.NewServer(xds.Options{})
	g := grpc.NewServer(xds.ServerOptions()...)
	w.server.Register(g)
	listener, err := (&net.ListenConfig{}).Listen(w.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	w.xdsAddress = listener.Addr().String()
	var wg sync.WaitGroup
	over := make(chan struct{})
	wg.Go(func() { _ = g.Serve(listener) })
	wg.Go(func() {
		for {
			select {
			case e := <-w.server.Events():
				if e.Kind == xds.Connected {
					w.server.Join(e.Stream, group)
				}
			case <-over:
				return
			}
		}
	})
	w.Cleanup(func() {
		close(over)
		g.Stop()
		w.server.Close()
		wg.Wait()
	})
}

// plugin declares a plugin of namespace team-a.
func (w *stileWorld) plugin(name string, phase v1alpha1.PluginPhase, config string) *v1alpha1.WasmPlugin {
	p := &v1alpha1.WasmPlugin{ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: name}}
	p.Spec.URL = "oci://registry.example/" + name + ":v1"
	p.Spec.Phase = phase
	if config != "" {
		p.Spec.PluginConfig = &v1alpha1.Object{Raw: []byte(config)}
	}
	w.plugins[name] = p
	return p
}

// give says what is delivered for a plugin from the next publish on.
func (w *stileWorld) give(name string, d xds.Delivery) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deliver[name] = d
}

func inlined(module []byte) xds.Delivery {
	return xds.Delivery{Mode: xds.Inline, Bytes: module, SHA256: sumOf(module), Size: int64(len(module))}
}

func sumOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// publish plans and translates the world as it is, and gives it to everybody.
func (w *stileWorld) publish() {
	w.Helper()
	host, port := split(w.T, w.upstreamAddress)
	file, problems := xds.ParseEnvoy("edge.yaml", fmt.Appendf(nil, edgeYAML, host, port))
	if file == nil || len(problems) > 0 {
		w.Fatal(problems)
	}
	node := plugin.Node{ID: "gw-0", Cluster: group, Namespace: "team-a", Labels: map[string]string{"app": "gateway"}}
	in := xds.Input{File: file, Node: node, Plugins: map[plugin.Key]*v1alpha1.WasmPlugin{}, ModulesURL: w.modulesURL}
	var all []*v1alpha1.WasmPlugin
	for _, p := range w.plugins {
		all = append(all, p)
		in.Plugins[plugin.KeyOf(p)] = p
	}
	plan, planProblems := plugin.Build(plugin.Inputs{RootNamespace: "root", Plugins: all, Node: node, Listeners: file.Listeners()})
	if len(planProblems) > 0 {
		w.Fatal(planProblems)
	}
	in.Plan = plan
	in.Deliver = func(k plugin.Key) xds.Delivery {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.deliver[k.Name]
	}
	snapshot, problems := xds.Translate(in)
	if len(problems) > 0 {
		w.Fatal(problems)
	}
	w.server.Publish(group, snapshot)
}

// connect starts a proxy, the one that the story asks from now on.
func (w *stileWorld) connect(id string) sandbox.Proxy {
	w.Helper()
	w.proxy = w.start(w.T, w.xdsAddress, sandbox.Node{ID: id, Cluster: group, Namespace: "team-a", Labels: map[string]string{"app": "gateway"}})
	return w.proxy
}

// counts waits until the ledger counts as wanted.
func (w *stileWorld) counts(name string, ok func(xds.Counts) bool) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	var last xds.Counts
	for ctx.Err() == nil {
		if last = w.server.Counts(plugin.Key{Namespace: "team-a", Name: name}); ok(last) {
			return
		}
		w.pause(20 * time.Millisecond)
	}
	w.Fatalf("the ledger never counted plugin %s right: %+v", name, last)
}

func accepted(n int) func(xds.Counts) bool {
	return func(c xds.Counts) bool { return c.Accepted == n && c.Rejected == 0 }
}

const edgeYAML = `
listeners:
- name: in
  address: {socket_address: {address: 127.0.0.1, port_value: 0}}
  filter_chains:
  - filters:
    - name: http
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: in
        route_config:
          virtual_hosts:
          - {name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: upstream}}]}
        http_filters:
        - name: jwt
          typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication}
        - name: rbac
          typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC}
        - name: router
          typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
clusters:
- name: upstream
  connect_timeout: 1s
  load_assignment:
    cluster_name: upstream
    endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %s, port_value: %d}}}}]}]
`

type stileStory struct {
	name string
	tell func(*stileWorld)
}

var stileStories = []stileStory{
	{"plugins run in the order of their phases", func(w *stileWorld) {
		w.plugin("z-authn", v1alpha1.PhaseAuthN, `{"name":"authn"}`)
		w.plugin("authz", v1alpha1.PhaseAuthZ, "")
		w.plugin("a-last", "", `{"name":"last"}`)
		w.give("z-authn", inlined(modules.Badge()))
		w.give("authz", inlined(modules.Toll()))
		w.give("a-last", inlined(modules.Badge()))
		w.publish()
		w.connect("gw-0")
		w.sees(200, "trail=authn,toll,last toll=paid", "x-stile-pass: 1")
		w.sees(403, "toll: this way needs the header")
		want := []string{xds.ResourcePrefix + "team-a.z-authn", "jwt", xds.ResourcePrefix + "team-a.authz", "rbac", xds.ResourcePrefix + "team-a.a-last", "router"}
		if l, _ := w.state().Listener(listenerName); !slices.Equal(l.Filters, want) {
			w.Errorf("filters: %v", l.Filters)
		}
		for _, name := range []string{"z-authn", "authz", "a-last"} {
			w.counts(name, accepted(1))
		}
	}},
	{"one who may not read is stood in for, and let in later", func(w *stileWorld) {
		w.plugin("a", "", `{"name":"a"}`)
		w.give("a", xds.Delivery{Mode: xds.StandIn})
		w.publish()
		w.connect("gw-0")
		w.sees(503, "fault filter abort")
		w.give("a", inlined(modules.Badge()))
		w.publish()
		w.soon(200, "trail=a")
		w.counts("a", accepted(1))
	}},
	{"while a verdict is pending the proxy waits", func(w *stileWorld) {
		w.plugin("a", "", `{"name":"a"}`)
		w.publish() // delivers nothing yet
		w.connect("gw-0")
		w.until("warming", func(s sandbox.State) bool { l, _ := s.Listener(listenerName); return l.Warming })
		w.give("a", inlined(modules.Badge()))
		w.publish()
		w.sees(200, "trail=a")
	}},
	{"a refused configuration hurts itself alone, and the ledger has the proxy's words", func(w *stileWorld) {
		w.plugin("a", v1alpha1.PhaseAuthN, `{"name":"a"}`)
		b := w.plugin("b", "", `{"name":"b"}`)
		w.give("a", inlined(modules.Badge()))
		w.give("b", inlined(modules.Badge()))
		w.publish()
		w.connect("gw-0")
		w.sees(200, "trail=a,b")
		b.Spec.PluginConfig = &v1alpha1.Object{Raw: []byte(`{"name":7}`)}
		w.publish()
		w.counts("b", func(c xds.Counts) bool { return c.Rejected == 1 && c.Accepted == 0 })
		w.sees(200, "trail=a,b")
		if !slices.ContainsFunc(w.server.Proxies()[0].Resources, func(r xds.ProxyResource) bool {
			return strings.HasSuffix(r.Name, "team-a.b") && strings.Contains(r.Message, "Unable to create Wasm plugin")
		}) {
			w.Errorf("ledger: %+v", w.server.Proxies())
		}
		b.Spec.PluginConfig = &v1alpha1.Object{Raw: []byte(`{"name":"B"}`)}
		w.publish()
		w.soon(200, "trail=a,B")
	}},
	{"a right that is taken away: what runs keeps running, who is new is stood in for", func(w *stileWorld) {
		w.plugin("a", "", `{"name":"a"}`)
		given := inlined(modules.Badge())
		w.give("a", given)
		w.publish()
		old := w.connect("gw-0")
		w.sees(200, "trail=a")
		w.counts("a", accepted(1))
		w.give("a", xds.Delivery{Mode: xds.StandIn, Keep: true, Kept: &given})
		w.publish()
		w.connect("gw-1")
		w.sees(503, "fault filter abort")
		w.proxy = old
		w.sees(200, "trail=a")
		w.give("a", given)
		w.publish()
		w.sees(200, "trail=a")
	}},
	{"a large module is fetched from the module server", func(w *stileWorld) {
		large := padded(1 << 20)
		server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/m/token" {
				rw.WriteHeader(http.StatusNotFound)
				return
			}
			_, _ = rw.Write(large)
		}))
		w.Cleanup(server.Close)
		w.modulesURL = server.URL
		w.plugin("a", "", `{"name":"a"}`)
		w.give("a", xds.Delivery{Mode: xds.Remote, URL: server.URL + "/m/token", SHA256: sumOf(large), Size: int64(len(large))})
		w.publish()
		w.connect("gw-0")
		w.sees(200, "trail=a")
		// That a plain remote was taken is believed only later: its ACK proves nothing.
		w.counts("a", func(c xds.Counts) bool { return c.Sent == 1 && c.Rejected == 0 })
	}},
	{"a live update to a large module never opens the way", func(w *stileWorld) {
		large := padded(1 << 20)
		server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { _, _ = rw.Write(large) }))
		w.Cleanup(server.Close)
		w.modulesURL = server.URL
		a := w.plugin("a", "", `{"name":"one"}`)
		w.give("a", inlined(modules.Badge()))
		w.publish()
		w.connect("gw-0")
		w.sees(200, "trail=one")
		a.Spec.PluginConfig = &v1alpha1.Object{Raw: []byte(`{"name":"two"}`)}
		w.give("a", xds.Delivery{Mode: xds.Remote, URL: server.URL + "/m/token", SHA256: sumOf(large), Size: int64(len(large)), NackOnMiss: true})
		w.publish()
		deadline := time.Now().Add(patience)
		for {
			got := w.ask()
			if strings.Contains(got.body, "trail=two") {
				return
			}
			if got.status != 200 || !strings.Contains(got.body, "trail=one") {
				w.Fatalf("meanwhile: %+v", got)
			}
			if time.Now().After(deadline) {
				w.Fatal("the large module was never taken")
			}
			w.pause(50 * time.Millisecond)
		}
	}},
}
