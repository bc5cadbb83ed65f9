package xds_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
	"github.com/stileproject/stile/internal/xds/xdstest"
)

// history is two replicas of stile, two plugins and some proxies, to which things happen.
type history struct {
	t      *testing.T
	random *rand.Rand
	log    []string

	replicas [2]replica
	proxies  []*xdstest.Envoy
	nodes    []plugin.Node

	file     *xds.EnvoyFile
	version  int
	deliver  map[string]xds.Delivery
	good     map[string]xds.Delivery // the last good one
	planned  map[string]bool
	codes    map[string]string // what runs a resource of that version
	ran      []map[string]string
	mayStand []map[string]bool // the proxy may have been sent a stand-in, on purpose, that it has not looked at
}

// replica is one of the stiles that serve the same proxies.
type replica struct {
	server *xds.Server
	dial   func() *grpc.ClientConn
	stop   func()
}

const oneListener = `listeners: [{name: l, filter_chains: [{filters: [{name: m, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: s, route_config: {}, http_filters: [{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]}]`

func newHistory(t *testing.T, seed uint64) *history {
	h := &history{
		t: t, random: rand.New(rand.NewPCG(seed, 1)),
		deliver: map[string]xds.Delivery{}, good: map[string]xds.Delivery{}, planned: map[string]bool{"p": true, "q": true},
		codes: map[string]string{},
	}
	h.file, _ = xds.ParseEnvoy("one.yaml", []byte(oneListener))
	for i := range h.replicas {
		h.startServer(i)
	}
	for i := range 4 {
		n := plugin.Node{ID: fmt.Sprintf("gw-%d", i), Cluster: "edge", Namespace: "team-a"}
		e := xdstest.NewEnvoy(t, n, i%2 == 1, func() *grpc.ClientConn { return h.replicas[h.random.IntN(len(h.replicas))].dial() })
		e.Bad = func(code string) bool { return strings.HasPrefix(code, "bad-") || bad[code] }
		h.proxies, h.nodes = append(h.proxies, e), append(h.nodes, n)
		h.ran, h.mayStand = append(h.ran, map[string]string{}), append(h.mayStand, map[string]bool{})
		e.Connect()
	}
	return h
}

// bad are the sums of remote modules that no proxy takes.
var bad = func() map[string]bool {
	sums := map[string]bool{}
	for i := range 1000 {
		sums[sum(fmt.Sprintf("bad-%d", i))] = true
	}
	return sums
}()

func sum(code string) string {
	s := sha256.Sum256([]byte(code))
	return hex.EncodeToString(s[:])
}

func (h *history) note(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf(format, args...))
}

func (h *history) startServer(i int) {
	s := xds.NewServer(xds.Options{})
	dial, stop := xdstest.Start(h.t, s)
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
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
	}()
	h.replicas[i] = replica{server: s, dial: dial, stop: func() { close(over); <-done; stop() }}
}

// publish translates and publishes what is delivered now.
func (h *history) publish() {
	var plugins []*v1alpha1.WasmPlugin
	for _, name := range []string{"p", "q"} {
		if h.planned[name] {
			plugins = append(plugins, wasmPlugin(name, nil))
		}
	}
	plan, _ := plugin.Build(plugin.Inputs{Plugins: plugins, Node: h.nodes[0], Listeners: h.file.Listeners()})
	in := xds.Input{Plan: plan, File: h.file, Node: h.nodes[0], Plugins: map[plugin.Key]*v1alpha1.WasmPlugin{}, ModulesURL: "http://127.0.0.1:1",
		Deliver: func(k plugin.Key) xds.Delivery { return h.deliver[k.Name] }}
	for _, p := range plugins {
		in.Plugins[plugin.KeyOf(p)] = p
	}
	s, problems := xds.Translate(in)
	if len(problems) > 0 {
		h.t.Fatal(problems)
	}
	for _, p := range plugins {
		if d := h.deliver[p.Name]; d.Mode == xds.Inline || d.Mode == xds.Remote {
			code := string(d.Bytes)
			if d.Mode == xds.Remote {
				code = d.SHA256
			}
			h.codes[s.Resource(xds.ExtensionType, p.ECDSName()).Version] = code
		}
	}
	for _, r := range h.replicas {
		r.server.Publish("g", s)
	}
}

func (h *history) module(kind string, remote bool) xds.Delivery {
	h.version++
	code := fmt.Sprintf("%s%d", kind, h.version)
	d := xds.Delivery{Mode: xds.Inline, Bytes: []byte(code), SHA256: sum(code), Size: 3}
	if remote {
		d = xds.Delivery{Mode: xds.Remote, URL: "http://127.0.0.1:1/modules/x", SHA256: sum(code), Size: 9 << 20}
	}
	return d
}

// happen is one event.
func (h *history) happen() {
	name := []string{"p", "q"}[h.random.IntN(2)]
	i := h.random.IntN(len(h.proxies))
	publish := true
	switch n := h.random.IntN(100); {
	case n < 20:
		remote := h.random.IntN(2) == 0
		h.deliver[name] = h.module("good", remote)
		h.good[name] = h.deliver[name]
		h.note("%s good%d remote=%v", name, h.version, remote)
	case n < 30:
		h.deliver[name] = h.module("bad-", h.random.IntN(2) == 0)
		h.note("%s bad%d", name, h.version)
	case n < 36 && h.good[name].Mode != xds.Hold:
		h.deliver[name] = h.good[name]
		h.note("%s back to the last good one", name)
	case n < 42:
		h.deliver[name] = xds.Delivery{Mode: xds.Hold, Keep: h.random.IntN(2) == 0}
		h.note("%s hold", name)
	case n < 48:
		h.deliver[name] = xds.Delivery{Mode: xds.StandIn, Keep: true}
		h.note("%s keep", name)
	case n < 52:
		h.deliver[name] = xds.Delivery{Mode: xds.StandIn}
		h.note("%s revoked", name)
	case n < 56:
		h.planned[name] = !h.planned[name]
		h.note("%s planned=%v", name, h.planned[name])
	case n < 66:
		h.note("gw-%d disconnects", i)
		publish = false
		h.proxies[i].Disconnect()
	case n < 78:
		h.note("gw-%d connects", i)
		publish = false
		h.proxies[i].Connect()
	case n < 81:
		h.note("gw-%d restarts", i)
		publish = false
		h.proxies[i].Restart()
		h.ran[i] = map[string]string{}
		h.proxies[i].Connect()
	case n < 85:
		h.note("both stiles restart")
		for i, r := range h.replicas {
			r.stop()
			h.startServer(i)
		}
		for _, e := range h.proxies {
			e.Disconnect()
		}
	default:
		d := time.Duration(h.random.IntN(40_000)) * time.Millisecond
		h.note("%v pass", d)
		publish = false
		for _, e := range h.proxies {
			e.Step() // a proxy may read late, and not later than its own timers
		}
		<-time.After(d)
	}
	if publish {
		h.publish()
	}
}

// look lets some proxies act, and holds what they run and what the ledger says to the promises.
func (h *history) look(all bool) {
	h.t.Helper()
	for i, e := range h.proxies {
		stepped := all || h.random.IntN(4) > 0
		if stepped {
			e.Step()
		}
		for _, name := range []string{"p", "q"} {
			now, before := e.Runs(key(name)), h.ran[i][name]
			if now == "skipped" {
				h.t.Errorf("gw-%d skips %s", i, name)
			}
			if strings.HasPrefix(before, "module ") && !strings.HasPrefix(now, "module ") && now != "absent" && !h.stands(name) && !h.mayStand[i][name] {
				h.t.Errorf("gw-%d ran %q of %s and is left with %q", i, before, name, now)
			}
			if h.stands(name) || stepped {
				h.mayStand[i][name] = h.stands(name)
			}
			h.ran[i][name] = now
		}
	}
	synctest.Wait()
	for _, replica := range h.replicas {
		for _, p := range replica.server.Proxies() {
			for i, n := range h.nodes {
				if n.ID != p.ID || !h.proxies[i].Connected() {
					continue
				}
				for _, r := range p.Resources {
					h.honest(h.proxies[i], r)
				}
			}
		}
	}
}

// stands reports whether the plugin's proxies are meant to stand in, or to lose the plugin.
func (h *history) stands(name string) bool {
	return !h.planned[name] || h.deliver[name].Mode == xds.StandIn && !h.deliver[name].Keep
}

// honest checks that what the ledger calls accepted is what runs.
func (h *history) honest(e *xdstest.Envoy, r xds.ProxyResource) {
	h.t.Helper()
	version, _, _ := strings.Cut(r.Version, "~")
	code, known := h.codes[version]
	if r.State != xds.Accepted || !known {
		return
	}
	for _, name := range []string{"p", "q"} {
		if runs := e.Runs(key(name)); r.Name == xds.ResourceName(key(name)) && runs != "module "+code {
			h.t.Errorf("the ledger says that %s accepted %s, and it runs %q", name, code, runs)
		}
	}
}

// settle ends with a good version of everything, everybody connected, and time to come to rest.
func (h *history) settle() {
	h.t.Helper()
	for _, name := range []string{"p", "q"} {
		h.planned[name] = true
		h.deliver[name] = h.module("good", h.random.IntN(2) == 0)
	}
	h.publish()
	for _, e := range h.proxies {
		if !e.Connected() {
			e.Connect()
		}
	}
	for range 60 {
		h.look(true)
		<-time.After(10 * time.Second)
	}
	h.look(true)
	for _, name := range []string{"p", "q"} {
		d := h.deliver[name]
		want := "module " + string(d.Bytes)
		if d.Mode == xds.Remote {
			want = "module " + d.SHA256
		}
		for i, e := range h.proxies {
			if got := e.Runs(key(name)); got != want {
				h.t.Errorf("gw-%d runs %q of %s in the end, want %q", i, got, name, want)
			}
		}
		a, b := h.replicas[0].server.Counts(key(name)), h.replicas[1].server.Counts(key(name))
		got := xds.Counts{Matched: a.Matched + b.Matched, Sent: a.Sent + b.Sent, Accepted: a.Accepted + b.Accepted, Rejected: a.Rejected + b.Rejected, Unproven: a.Unproven + b.Unproven}
		if want := (xds.Counts{Matched: 4, Sent: 4, Accepted: 4}); got != want {
			h.t.Errorf("counts of %s: %+v, want %+v", name, got, want)
		}
	}
}

// histories is how many are played; STILE_HISTORIES says another number.
var histories uint64 = 150

// TestP8_NoHistoryTakesAGoodModuleFromAProxy plays random histories against a proxy that has
// the real one's hazards: at no point does one that ran a good version stand in or miss its
// filter, unless it is meant to; what the ledger calls accepted runs; no bytes are sent again
// that were refused; and in the end everybody runs what is wanted.
func TestP8_NoHistoryTakesAGoodModuleFromAProxy(t *testing.T) {
	t.Parallel()
	if n, err := strconv.ParseUint(os.Getenv("STILE_HISTORIES"), 10, 64); err == nil {
		histories = n
	}
	for seed := range histories {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := newHistory(t, seed)
				defer func() {
					for _, e := range h.proxies {
						e.Disconnect()
					}
					for _, r := range h.replicas {
						r.stop()
					}
					if t.Failed() {
						t.Log(strings.Join(h.log, "\n"))
					}
				}()
				for range 60 {
					h.happen()
					h.look(false)
					if t.Failed() {
						return
					}
				}
				h.settle()
			})
		})
	}
}
