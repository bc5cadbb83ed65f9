package xdstest

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
)

// Envoy is a fake proxy that models what is dangerous about the real one, as docs/envoy-observed.md
// has it: an update by plain remote of code that it does not have makes it skip the filter and
// say yes; bytes that it refused last are accepted without being applied, over reconnects too; a
// first answer that is refused, or does not come in time, leaves the default; code is fetched
// while a resource that asks for it is refused; a reconnect tells what was accepted last.
//
// It belongs to one goroutine within a synctest bubble, and acts when told to Step.
type Envoy struct {
	t     testing.TB
	node  plugin.Node
	dial  func() *grpc.ClientConn
	delta bool

	// Bad tells which code the proxy refuses: inline bytes, or the sha256 of remote code.
	Bad func(code string) bool
	// FetchTime is how long a fetch takes.
	FetchTime time.Duration

	sotw   *SotW
	stream *Delta

	// What outlives streams and not the process.
	listeners map[string][]string // the extensions that each names
	filters   map[string]*filter
	versions  map[string]string // state of the world: last accepted, by type
	resources map[string]map[string]string
	fetched   map[string]time.Time // code in the cache from then on, by sha256
}

// filter is one extension as the proxy's listeners have it.
type filter struct {
	asked   time.Time
	standIn string   // the default: "closed" or "open"
	runs    string   // what serves: a code, "closed", "open", "skipped", or empty while it warms
	real    bool     // runs is a module
	last    [32]byte // hash of the bytes last seen
	refused bool     // those were refused
}

// NewEnvoy returns a proxy that has not started.
func NewEnvoy(t testing.TB, node plugin.Node, delta bool, dial func() *grpc.ClientConn) *Envoy {
	e := &Envoy{t: t, node: node, dial: dial, delta: delta, FetchTime: 3 * time.Second, Bad: func(string) bool { return false }}
	e.Restart()
	return e
}

// Restart ends the process, if it ran, and starts it without any memory.
func (e *Envoy) Restart() {
	e.Disconnect()
	e.listeners, e.filters, e.versions = map[string][]string{}, map[string]*filter{}, map[string]string{}
	e.resources, e.fetched = map[string]map[string]string{}, map[string]time.Time{}
}

// Connected reports whether there is a stream.
func (e *Envoy) Connected() bool { return e.sotw != nil || e.stream != nil }

// Disconnect loses the stream and nothing else.
func (e *Envoy) Disconnect() {
	if e.sotw != nil {
		e.sotw.Close()
	}
	if e.stream != nil {
		e.stream.Close()
	}
	e.sotw, e.stream = nil, nil
}

// Connect opens a stream, to whichever server it is dialled to now, and asks for what the
// process wants.
func (e *Envoy) Connect() {
	e.Disconnect()
	if e.delta {
		e.stream = OpenDelta(e.t, e.dial(), e.node)
		e.stream.Ask(xds.ClusterType, e.resources[xds.ClusterType])
		e.stream.Ask(xds.ListenerType, e.resources[xds.ListenerType])
		if len(e.filters) > 0 {
			e.stream.Ask(xds.ExtensionType, e.resources[xds.ExtensionType], e.names()...)
		}
		return
	}
	e.sotw = OpenADS(e.t, e.dial(), e.node)
	for typeURL, v := range e.versions {
		e.sotw.Have(typeURL, v)
	}
	e.sotw.Ask(xds.ClusterType)
	e.sotw.Ask(xds.ListenerType)
	if len(e.filters) > 0 {
		e.sotw.Ask(xds.ExtensionType, e.names()...)
	}
}

func (e *Envoy) names() []string { return slices.Sorted(maps.Keys(e.filters)) }

// Runs says what serves the plugin: "module <code>", "closed", "open", "skipped", "warming", or
// "absent" if no listener names it.
func (e *Envoy) Runs(k plugin.Key) string {
	f := e.filters[xds.ResourceName(k)]
	switch {
	case f == nil:
		return "absent"
	case f.runs == "":
		return "warming"
	case f.real:
		return "module " + f.runs
	default:
		return f.runs
	}
}

// Step takes everything that has come, answers it, and does the same again until nothing comes.
func (e *Envoy) Step() {
	e.t.Helper()
	for {
		synctest.Wait()
		e.timeouts()
		if e.sotw != nil {
			r, ok := e.sotw.Waiting()
			if !ok {
				return
			}
			e.takeSotW(r)
		} else if e.stream != nil {
			r, ok := e.stream.Waiting()
			if !ok {
				return
			}
			e.takeDelta(r)
		} else {
			return
		}
	}
}

// timeouts gives the default to what has waited too long.
func (e *Envoy) timeouts() {
	for _, f := range e.filters {
		if f.runs == "" && time.Since(f.asked) >= 30*time.Second {
			f.runs = f.standIn
		}
	}
}

func (e *Envoy) takeSotW(r *discoveryv3.DiscoveryResponse) {
	var refusal string
	switch r.GetTypeUrl() {
	case xds.ListenerType:
		listeners := map[string]*listenerv3.Listener{}
		for _, a := range r.GetResources() {
			l := &listenerv3.Listener{}
			e.must(a.UnmarshalTo(l))
			listeners[l.GetName()] = l
		}
		e.versions[r.GetTypeUrl()] = r.GetVersionInfo()
		e.sotw.Ack(r)
		if e.setListeners(listeners) {
			e.sotw.names[xds.ExtensionType] = e.names()
			e.sotw.Send(&discoveryv3.DiscoveryRequest{TypeUrl: xds.ExtensionType, ResourceNames: e.names(), VersionInfo: e.versions[xds.ExtensionType], ResponseNonce: e.lastNonce()})
		}
		return
	case xds.ExtensionType:
		if len(r.GetResources()) != 1 {
			e.t.Errorf("%d extensions in one response", len(r.GetResources()))
		}
		for _, a := range r.GetResources() {
			if why := e.extension(a); why != "" {
				refusal = why
			}
		}
		e.sotw.nonce = r.GetNonce()
	}
	if refusal != "" {
		e.sotw.Nack(r, refusal)
		return
	}
	e.versions[r.GetTypeUrl()] = r.GetVersionInfo()
	e.sotw.Ack(r)
}

func (e *Envoy) lastNonce() string { return e.sotw.nonce }

func (e *Envoy) takeDelta(r *discoveryv3.DeltaDiscoveryResponse) {
	typeURL := r.GetTypeUrl()
	var refusal string
	if typeURL == xds.ExtensionType {
		if len(r.GetRemovedResources()) > 0 {
			e.t.Errorf("extensions are removed: %v", r.GetRemovedResources())
		}
		for _, x := range r.GetResources() {
			if why := e.extension(x.GetResource()); why != "" {
				refusal = why
			}
		}
	}
	if refusal != "" {
		e.stream.Nack(r, refusal)
		return
	}
	have := e.resources[typeURL]
	if have == nil {
		have = map[string]string{}
		e.resources[typeURL] = have
	}
	for _, x := range r.GetResources() {
		have[x.GetName()] = x.GetVersion()
	}
	for _, name := range r.GetRemovedResources() {
		delete(have, name)
	}
	e.stream.Ack(r)
	if typeURL != xds.ListenerType {
		return
	}
	before := e.names()
	changed := map[string]*listenerv3.Listener{}
	for _, x := range r.GetResources() {
		l := &listenerv3.Listener{}
		e.must(x.GetResource().UnmarshalTo(l))
		changed[x.GetName()] = l
	}
	e.mergeListeners(changed, r.GetRemovedResources())
	var added, dropped []string
	for _, n := range e.names() {
		if !slices.Contains(before, n) {
			added = append(added, n)
		}
	}
	for _, n := range before {
		if e.filters[n] == nil {
			dropped = append(dropped, n)
			delete(e.resources[xds.ExtensionType], n)
		}
	}
	if len(added)+len(dropped) > 0 {
		e.stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.ExtensionType, ResourceNamesSubscribe: added, ResourceNamesUnsubscribe: dropped})
	}
}

// setListeners applies the state of the world and reports whether the extensions' names changed.
func (e *Envoy) setListeners(all map[string]*listenerv3.Listener) bool {
	before := e.names()
	var gone []string
	for name := range e.listeners {
		if all[name] == nil {
			gone = append(gone, name)
		}
	}
	e.mergeListeners(all, gone)
	return !slices.Equal(before, e.names())
}

func (e *Envoy) mergeListeners(changed map[string]*listenerv3.Listener, gone []string) {
	for _, name := range gone {
		delete(e.listeners, name)
	}
	defaults := map[string]string{}
	for name, l := range changed {
		e.listeners[name] = nil
		for _, c := range l.GetFilterChains() {
			for _, f := range c.GetFilters() {
				manager := &hcmv3.HttpConnectionManager{}
				if f.GetTypedConfig().UnmarshalTo(manager) != nil {
					continue
				}
				for _, h := range manager.GetHttpFilters() {
					if d := h.GetConfigDiscovery(); d != nil {
						e.listeners[name] = append(e.listeners[name], h.GetName())
						defaults[h.GetName()] = e.standIn(d.GetDefaultConfig())
					}
				}
			}
		}
	}
	named := map[string]bool{}
	for _, names := range e.listeners {
		for _, n := range names {
			named[n] = true
		}
	}
	for n := range e.filters {
		if !named[n] {
			delete(e.filters, n)
		}
	}
	for n := range named {
		if e.filters[n] == nil {
			e.filters[n] = &filter{asked: time.Now(), standIn: defaults[n]}
		}
	}
}

func (e *Envoy) standIn(a *anypb.Any) string {
	fault := &faultv3.HTTPFault{}
	if a == nil || a.UnmarshalTo(fault) != nil {
		return "error 500"
	}
	if fault.GetAbort() != nil {
		return "closed"
	}
	return "open"
}

// extension applies one ECDS resource and returns why it is refused, if it is.
func (e *Envoy) extension(a *anypb.Any) string {
	config := &corev3.TypedExtensionConfig{}
	e.must(a.UnmarshalTo(config))
	f := e.filters[config.GetName()]
	if f == nil {
		return "" // dropped meanwhile
	}
	hash := sha256.Sum256(a.GetValue())
	if hash == f.last {
		if f.refused {
			e.t.Errorf("%s: the bytes that were refused last were sent again", config.GetName())
		}
		return "" // accepted and not applied
	}
	f.last, f.refused = hash, false
	wasm := &httpwasmv3.Wasm{}
	if config.GetTypedConfig().UnmarshalTo(wasm) != nil {
		f.runs, f.real = e.standIn(config.GetTypedConfig()), false
		return ""
	}
	vm := wasm.GetConfig().GetVmConfig()
	refuse := func() string {
		f.refused = true
		if f.runs == "" {
			f.runs = f.standIn
		}
		return "Unable to create Wasm plugin " + wasm.GetConfig().GetName()
	}
	remote := vm.GetCode().GetRemote()
	if remote == nil {
		code := string(vm.GetCode().GetLocal().GetInlineBytes())
		if e.Bad(code) {
			return refuse()
		}
		f.runs, f.real = code, true
		return ""
	}
	code := remote.GetSha256()
	at, fetching := e.fetched[code]
	cached := fetching && !time.Now().Before(at)
	switch {
	case cached && e.Bad(code):
		return refuse()
	case cached:
		f.runs, f.real = code, true
	case vm.GetNackOnCodeCacheMiss():
		if !fetching {
			e.fetched[code] = time.Now().Add(e.FetchTime)
		}
		return refuse()
	case f.runs == "":
		// The listener warms: it waits for the fetch. The model lets it be there at once.
		e.fetched[code] = time.Now()
		f.runs, f.real = code, true
		if e.Bad(code) {
			f.runs, f.real = f.standIn, false // the fail policy
		}
	default:
		f.runs, f.real = "skipped", false
	}
	return ""
}

func (e *Envoy) must(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

// String describes the process, for messages of tests.
func (e *Envoy) String() string {
	var b strings.Builder
	for _, n := range e.names() {
		fmt.Fprintf(&b, "%s=%s ", strings.TrimPrefix(n, xds.ResourcePrefix), e.filters[n].runs)
	}
	return b.String()
}
