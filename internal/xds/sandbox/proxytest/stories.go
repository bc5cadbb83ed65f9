package proxytest

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // a module that traps
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/stileproject/stile/internal/xds/sandbox"
	"github.com/stileproject/stile/internal/xds/sandbox/adstest"
	"github.com/stileproject/stile/modules"
)

const (
	long  = 2 * time.Minute        // longer than a story lasts
	short = 500 * time.Millisecond // a fetch time-out that a story waits for
)

// badge is a plugin that signs with a name, in a VM of that name.
func badge(name string) *httpwasmv3.Wasm {
	return adstest.Inline("vm-"+name, modules.Badge(), fmt.Sprintf(`{"name":%q}`, name))
}

// refused is a plugin that refuses its configuration; salt changes its bytes.
func refused(salt string) *httpwasmv3.Wasm {
	return adstest.Inline("vm-refused-"+salt, modules.Badge(), `{}`)
}

func (w *world) listener(version string, filters ...*hcmv3.HttpFilter) {
	w.Set(adstest.ListenerType, version, adstest.HTTPListener(listenerName, filters...))
}

var stories = []story{
	{"plugins run in the order of the listener", func(w *world) {
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()), adstest.Discovered("b", long, adstest.Closed()), adstest.Discovered("c", long, adstest.Closed()))
		w.filter("a", "a1", badge("first"))
		w.filter("b", "b1", adstest.Inline("vm-toll", modules.Toll(), ""))
		w.filter("c", "c1", badge("third"))
		w.connect()
		w.sees(200, "GET /path?q=1 trail=here,first,toll,third toll=paid id=36 proto=http", "x-stile-pass: 1", "x-stile-trail: here")
		w.sees(200, "trail=one,first,toll,third ", "x-stile-pass: 1", "x-stile-trail: one", "x-stile-trail: two")
		if got := w.ask("x-stile-pass: 1"); got.badge != "third,first" {
			w.Errorf("responses pass the plugins backwards: badge %q", got.badge)
		}
		got := w.ask()
		if got.status != 403 || got.body != "toll: this way needs the header x-stile-pass\n" || got.badge != "first" {
			w.Errorf("a plugin's own answer passes those before it: %+v", got)
		}
		if got := w.post("hello", "x-stile-pass: 1"); got.status != 200 || !strings.Contains(got.body, "POST /path?q=1") || !strings.HasSuffix(got.body, "body=hello") {
			w.Errorf("a request with a body: %+v", got)
		}
		for _, name := range []string{"a1", "b1", "c1"} {
			w.WaitACK(w.T, adstest.ExtensionType, name)
		}
		l, _ := w.state().Listener(listenerName)
		if !slices.Equal(l.Filters, []string{"a", "b", "c", "envoy.filters.http.router"}) || l.Version != "l1" || l.Address != w.address() || l.Warming {
			w.Errorf("listener: %+v", l)
		}
		x, _ := w.state().Extension("b")
		sum := sha256.Sum256(modules.Toll())
		if x.Version != "b1" || x.Live != adstest.WasmFilter || x.SHA256 != hex.EncodeToString(sum[:]) || x.Default {
			w.Errorf("extension: %+v", x)
		}
	}},
	{"the node says who it is, once a stream", func(w *world) {
		w.listener("l1")
		w.connect()
		w.WaitACK(w.T, adstest.ListenerType, "l1")
		requests := w.Requests()
		node := requests[0].GetNode()
		metadata := node.GetMetadata().AsMap()
		if node.GetId() != "gw-0" || node.GetCluster() != "edge" || metadata["NAMESPACE"] != "team-a" || fmt.Sprint(metadata["LABELS"]) != "map[app:gateway]" {
			w.Errorf("node: %v", node)
		}
		if !slices.ContainsFunc(node.GetExtensions(), func(x *corev3.Extension) bool {
			return slices.Contains(x.GetTypeUrls(), strings.TrimPrefix(adstest.WasmFilter, "type.googleapis.com/"))
		}) {
			w.Error("the node does not list the Wasm filter among its extensions")
		}
		for _, r := range requests[1:] {
			if r.GetNode() != nil {
				w.Errorf("the node again in %v", r)
			}
		}
		if requests[0].GetTypeUrl() != adstest.ClusterType || requests[1].GetTypeUrl() != adstest.ListenerType {
			w.Error("clusters are asked for before listeners")
		}
	}},
	{"an update of a plugin is live at once", func(w *world) {
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()))
		w.filter("a", "a1", badge("one"))
		w.connect()
		w.sees(200, "trail=one")
		w.filter("a", "a2", badge("two"))
		w.WaitACK(w.T, adstest.ExtensionType, "a2")
		w.soon(200, "trail=two")
	}},
	{"what is rejected changes nothing, and the same bytes again are accepted without effect", func(w *world) {
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()))
		w.filter("a", "a1", badge("one"))
		w.connect()
		w.sees(200, "trail=one")
		w.filter("a", "a2", refused("x"))
		if why := w.WaitNACK(w.T, adstest.ExtensionType, "a2"); !strings.Contains(why, "vm-refused-x") {
			w.Errorf("the rejection does not name the plugin: %q", why)
		}
		w.sees(200, "trail=one")
		w.filter("a", "a3", refused("x"))
		w.WaitACK(w.T, adstest.ExtensionType, "a3")
		w.sees(200, "trail=one")
		w.filter("a", "a4", refused("y"))
		w.WaitNACK(w.T, adstest.ExtensionType, "a4")
		w.filter("a", "a5", badge("two"))
		w.WaitACK(w.T, adstest.ExtensionType, "a5")
		w.soon(200, "trail=two")
	}},
	{"a module that is none is rejected", func(w *world) {
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()))
		w.filter("a", "a1", badge("one"))
		w.connect()
		w.sees(200, "trail=one")
		w.filter("a", "a2", adstest.Inline("vm-html", []byte("<html>not found</html>"), ""))
		w.WaitNACK(w.T, adstest.ExtensionType, "a2")
		w.sees(200, "trail=one")
	}},
	{"a stand-in stands in until the plugin comes", func(w *world) {
		w.listener("l1", adstest.Discovered("a", long, adstest.Open()))
		w.filter("a", "a1", adstest.Closed())
		w.connect()
		w.sees(503, "fault filter abort")
		w.filter("a", "a2", badge("one"))
		w.WaitACK(w.T, adstest.ExtensionType, "a2")
		w.soon(200, "trail=one")
		w.filter("a", "a3", adstest.Open())
		w.WaitACK(w.T, adstest.ExtensionType, "a3")
		w.soon(200, "trail= ")
	}},
	{"without an answer the listener waits, then takes the default", func(w *world) {
		w.listener("l1", adstest.Discovered("a", short, adstest.Closed()))
		w.connect()
		w.WaitACK(w.T, adstest.ListenerType, "l1")
		w.sees(503, "fault filter abort")
		if x, _ := w.state().Extension("a"); !x.Default || x.Live != adstest.FaultFilter || x.Version != "" {
			w.Errorf("extension: %+v", x)
		}
		w.filter("a", "a1", badge("late"))
		w.WaitACK(w.T, adstest.ExtensionType, "a1")
		w.soon(200, "trail=late")
	}},
	{"without an answer and without a default it answers 500", func(w *world) {
		w.listener("l1", adstest.Discovered("a", short, nil))
		w.connect()
		w.sees(500, "")
		w.filter("a", "a1", badge("late"))
		w.WaitACK(w.T, adstest.ExtensionType, "a1")
		w.soon(200, "trail=late")
	}},
	{"a first answer that is rejected lets the default act", func(w *world) {
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()))
		w.filter("a", "a1", refused("x"))
		w.connect()
		w.WaitNACK(w.T, adstest.ExtensionType, "a1")
		w.sees(503, "fault filter abort")
	}},
	{"a first answer that is rejected, without default, is 500", func(w *world) {
		w.listener("l1", adstest.Discovered("a", long, nil))
		w.filter("a", "a1", refused("x"))
		w.connect()
		w.WaitNACK(w.T, adstest.ExtensionType, "a1")
		w.sees(500, "")
	}},
	{"a remote module is fetched while the listener warms", func(w *world) {
		files := w.files()
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()))
		w.filter("a", "a1", files.remote("one", false))
		w.connect()
		w.sees(200, "trail=one")
		if n := files.served.Load(); n != 1 {
			w.Errorf("the module was fetched %d times", n)
		}
	}},
	{"a remote module with another sum is not run", func(w *world) {
		files := w.files()
		files.body = append(modules.Badge(), 0)
		w.listener("l1", adstest.Discovered("a", long, adstest.Open()))
		w.filter("a", "a1", files.remote("one", false))
		w.connect()
		w.WaitACK(w.T, adstest.ExtensionType, "a1")
		w.sees(503, "")
	}},
	{"a live update by remote is accepted before its code is there", func(w *world) {
		files := w.files()
		files.hold = make(chan struct{})
		w.Cleanup(func() { close(files.hold) })
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()))
		w.filter("a", "a1", badge("one"))
		w.connect()
		w.sees(200, "trail=one")
		w.filter("a", "a2", files.remote("two", false))
		w.WaitACK(w.T, adstest.ExtensionType, "a2")
		w.soon(200, "trail= ")
		w.filter("a", "a3", files.remote("three", false))
		w.WaitACK(w.T, adstest.ExtensionType, "a3")
		w.soon(503, "")
		w.filter("a", "a4", badge("four"))
		w.WaitACK(w.T, adstest.ExtensionType, "a4")
		w.soon(200, "trail=four")
		if n := files.served.Load(); n != 0 {
			w.Errorf("the module was fetched %d times", n)
		}
	}},
	{"a remote module that cannot be had acts by its own policy, not by the default", func(w *world) {
		files := w.files()
		files.body = nil
		remote := files.remote("one", false)
		remote.Config.FailurePolicy = wasmv3.FailurePolicy_FAIL_OPEN
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()))
		w.filter("a", "a1", remote)
		w.connect()
		w.sees(200, "trail= ")
		if n := files.served.Load(); n != 2 {
			w.Errorf("asked %d times, want the first and one retry", n)
		}
	}},
	{"nack_on_code_cache_miss at the start lets the default act first", func(w *world) {
		files := w.files()
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()))
		w.filter("a", "a1", files.remote("one", true))
		w.connect()
		w.WaitNACK(w.T, adstest.ExtensionType, "a1")
		w.sees(503, "fault filter abort")
	}},
	{"one extension that is not answered holds the whole start", func(w *world) {
		w.Set(adstest.ListenerType, "l1", adstest.HTTPListener(listenerName), adstest.HTTPListener("other", adstest.Discovered("a", 0, nil)))
		w.connect()
		w.WaitACK(w.T, adstest.ListenerType, "l1")
		w.pause(200 * time.Millisecond)
		if l, _ := w.state().Listener(listenerName); l.Address != "" && w.reaches(l.Address) {
			w.Error("a listener serves before its neighbour is warm")
		}
		w.filter("a", "a1", badge("one"))
		w.sees(200, "trail= ")
	}},
	{"after the start a listener does not wait for its neighbours", func(w *world) {
		w.Set(adstest.ListenerType, "l1", adstest.HTTPListener("first"))
		w.connect()
		w.WaitACK(w.T, adstest.ListenerType, "l1")
		w.until("first serves", func(s sandbox.State) bool { l, _ := s.Listener("first"); return l.Address != "" })
		w.Set(adstest.ListenerType, "l2", adstest.HTTPListener("first"), adstest.HTTPListener(listenerName), adstest.HTTPListener("other", adstest.Discovered("a", 0, nil)))
		w.sees(200, "trail= ")
	}},
	{"what was rejected before a reconnect counts as held after it", func(w *world) {
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()))
		w.filter("a", "a1", badge("one"))
		w.connect()
		w.WaitACK(w.T, adstest.ExtensionType, "a1")
		w.filter("a", "a2", refused("x"))
		w.WaitNACK(w.T, adstest.ExtensionType, "a2")
		w.Server.Close()
		again := adstest.StartAt(w.T, w.Server.Address())
		again.SetExtension("a", "a2", refused("x"))
		again.WaitACK(w.T, adstest.ExtensionType, "a2")
		w.sees(200, "trail=one")
	}},
	{"nack_on_code_cache_miss rejects, fetches, and takes the next one", func(w *world) {
		files := w.files()
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()))
		w.filter("a", "a1", badge("one"))
		w.connect()
		w.sees(200, "trail=one")
		for i := 1; ; i++ {
			version := fmt.Sprint("a", i+1)
			w.filter("a", version, files.remote(fmt.Sprint("try", i), true))
			r := w.Wait(w.T, "answer "+version, adstest.ExtensionType, func(r *discoveryv3.DiscoveryRequest) bool {
				return strings.HasSuffix(r.GetResponseNonce(), "/"+version)
			})
			if r.GetErrorDetail() == nil {
				if i == 1 {
					w.Error("the first was accepted though its code was not there")
				}
				w.soon(200, fmt.Sprint("trail=try", i))
				return
			}
			w.sees(200, "trail=one")
			if i > 100 {
				w.Fatal("never accepted")
			}
			w.pause(50 * time.Millisecond)
		}
	}},
	{"a filter of a type that the listener does not take is rejected", func(w *world) {
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()))
		w.filter("a", "a1", badge("one"))
		w.connect()
		w.sees(200, "trail=one")
		w.filter("a", "a2", &routerv3.Router{})
		w.WaitNACK(w.T, adstest.ExtensionType, "a2")
		w.filter("a", "a3", &routerv3.Router{})
		w.WaitNACK(w.T, adstest.ExtensionType, "a3")
		w.sees(200, "trail=one")
	}},
	{"a listener that names an unknown filter type is rejected, its neighbour is not", func(w *world) {
		bad := adstest.Discovered("a", long, nil)
		bad.GetConfigDiscovery().TypeUrls = []string{"type.googleapis.com/no.such.Filter"}
		w.Set(adstest.ListenerType, "l1", adstest.HTTPListener("other", bad), adstest.HTTPListener(listenerName))
		w.connect()
		if why := w.WaitNACK(w.T, adstest.ListenerType, "l1"); !strings.Contains(why, "other") {
			w.Errorf("the rejection does not name the listener: %q", why)
		}
		w.sees(200, "trail= ")
	}},
	{"an update of the listener keeps its address and its plugins", func(w *world) {
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()))
		w.filter("a", "a1", badge("one"))
		w.connect()
		w.sees(200, "trail=one")
		before := w.address()
		w.filter("b", "b1", badge("two"))
		w.listener("l2", adstest.Discovered("b", long, adstest.Closed()), adstest.Discovered("a", long, adstest.Closed()))
		w.WaitACK(w.T, adstest.ListenerType, "l2")
		w.soon(200, "trail=two,one")
		if after := w.address(); after != before {
			w.Errorf("the address was %s and is %s", before, after)
		}
		w.listener("l3", adstest.Discovered("b", long, adstest.Closed()))
		w.soon(200, "trail=two ")
		w.Wait(w.T, "unsubscribe a", adstest.ExtensionType, func(r *discoveryv3.DiscoveryRequest) bool {
			return slices.Equal(r.GetResourceNames(), []string{"b"})
		})
	}},
	{"a new listener version warms while the old one serves", func(w *world) {
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()))
		w.filter("a", "a1", badge("one"))
		w.connect()
		w.sees(200, "trail=one")
		w.listener("l2", adstest.Discovered("a", long, adstest.Closed()), adstest.Discovered("b", long, adstest.Closed()))
		w.until("warming", func(s sandbox.State) bool { l, _ := s.Listener(listenerName); return l.Warming && l.Version == "l1" })
		w.sees(200, "trail=one ")
		w.filter("b", "b1", badge("two"))
		w.soon(200, "trail=one,two")
	}},
	{"a listener that is left out is gone", func(w *world) {
		w.listener("l1")
		w.connect()
		w.sees(200, "")
		w.Set(adstest.ListenerType, "l2")
		w.until("no listener", func(s sandbox.State) bool { return len(s.Listeners) == 0 })
	}},
	{"the server goes away and comes back", func(w *world) {
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()))
		w.filter("a", "a1", badge("one"))
		w.connect()
		w.sees(200, "trail=one")
		w.WaitACK(w.T, adstest.ExtensionType, "a1")
		w.Server.Close()
		w.until("disconnected", func(s sandbox.State) bool { return !s.Connected })
		w.sees(200, "trail=one")
		again := adstest.StartAt(w.T, w.Server.Address())
		again.Wait(w.T, "say what it holds", adstest.ExtensionType, func(r *discoveryv3.DiscoveryRequest) bool {
			return r.GetVersionInfo() == "a1" && r.GetResponseNonce() == "" && slices.Equal(r.GetResourceNames(), []string{"a"})
		})
		if first := again.Requests()[0]; first.GetNode().GetId() != "gw-0" {
			w.Error("the first request of the new stream has no node")
		}
		again.SetExtension("a", "a2", badge("two"))
		again.WaitACK(w.T, adstest.ExtensionType, "a2")
		w.soon(200, "trail=two")
	}},
	{"a plugin that traps fails closed", func(w *world) {
		w.listener("l1", adstest.Discovered("a", long, adstest.Open()))
		w.filter("a", "a1", adstest.Inline("vm-traps", trap(), ""))
		w.connect()
		w.sees(503, "")
		w.sees(503, "")
	}},
	{"a plugin that traps and fails open lets pass", func(w *world) {
		open := adstest.Inline("vm-traps", trap(), "")
		open.Config.FailurePolicy = wasmv3.FailurePolicy_FAIL_OPEN
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()))
		w.filter("a", "a1", open)
		w.connect()
		w.soon(200, "trail= ")
	}},
	{"a module of 6 MiB travels in its resource", func(w *world) {
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()))
		w.filter("a", "a1", adstest.Inline("vm-large", padded(6<<20), `{"name":"large"}`))
		w.connect()
		w.sees(200, "trail=large")
	}},
	{"the configuration dump shows no module bytes", func(w *world) {
		w.listener("l1", adstest.Discovered("a", long, adstest.Closed()))
		w.filter("a", "a1", badge("one"))
		w.connect()
		w.sees(200, "trail=one")
		dump, err := w.proxy.ConfigDump(w.Context())
		if err != nil {
			w.Fatal(err)
		}
		if !bytes.Contains(dump, []byte("vm-one")) || bytes.Contains(dump, []byte("AGFzbQ")) {
			w.Errorf("dump: %s", dump)
		}
	}},
}

// trap is a plugin that traps at its first request: internal/proxywasm/testdata/traps.wat.
func trap() []byte { return trapModule }

//go:embed traps.wasm
var trapModule []byte

// padded is the badge with a custom section that makes it size bytes and more.
func padded(size int) []byte {
	module := append(modules.Badge(), 0) // section 0: custom
	length := size + 2
	for n := length; ; n >>= 7 {
		b := byte(n & 0x7f)
		if n < 0x80 {
			module = append(module, b)
			break
		}
		module = append(module, b|0x80)
	}
	module = append(module, 1, 'p') // its name
	return append(module, make([]byte, size)...)
}

// files is a module server behind the cluster "files".
type files struct {
	body   []byte // nil: answer 404
	sum    string
	url    string
	hold   chan struct{} // answers wait until it is closed
	served atomic.Int64
}

func (w *world) files() *files {
	w.Helper()
	sum := sha256.Sum256(modules.Badge())
	f := &files{body: modules.Badge(), sum: hex.EncodeToString(sum[:])}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if f.hold != nil {
			select {
			case <-f.hold:
			case <-r.Context().Done():
				return
			}
		}
		f.served.Add(1)
		if f.body == nil {
			rw.WriteHeader(http.StatusNotFound)
		}
		_, _ = rw.Write(f.body)
	}))
	w.Cleanup(server.Close)
	f.url = server.URL + "/badge.wasm"
	upHost, upPort := split(w.T, w.upstreamAddress)
	host, port := split(w.T, server.Listener.Addr().String())
	w.Set(adstest.ClusterType, "c2", adstest.Cluster("upstream", upHost, upPort), adstest.Cluster("files", host, port))
	return f
}

// remote is the badge, fetched from the server.
func (f *files) remote(name string, nack bool) *httpwasmv3.Wasm {
	w := adstest.Remote("vm-"+name, f.url, "files", f.sum, fmt.Sprintf(`{"name":%q}`, name))
	w.GetConfig().GetVmConfig().NackOnCodeCacheMiss = nack
	return w
}
