package envoy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// The types that the throw-away server is asked for.
const (
	listenerType  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	routeType     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	extensionType = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
)

// ads is a throw-away ADS server: it sends what it is told to, right or wrong, and notes
// what Envoy says to it.
type ads struct {
	t       testing.TB
	address string

	mu        sync.Mutex // guards what follows, and sending
	resources map[string]map[string]held
	versions  map[string]int // by type
	nonces    map[string]int // to the version sent under it
	streams   map[*stream]bool
	said      map[string]verdict // by type and version
	asked     map[string][]string
	reported  map[string]string // by type, in delta by type and name: the version Envoy said it held as a stream began
	changed   chan struct{}     // closed and made anew whenever said or asked change
}

// held is a resource of the server.
type held struct {
	body    *anypb.Any
	version string
}

// stream is one stream of one Envoy: in the state of the world, or delta.
type stream struct {
	sotw  discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer
	delta discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	names map[string][]string // by type; nil = not asked for
	sent  map[string]bool     // delta: type, name and version that it was sent or said to hold
	ended chan struct{}
}

// verdict is what Envoy said to one version.
type verdict struct {
	ACK     bool
	Message string // of a NACK
}

func startADS(t testing.TB) *ads {
	t.Helper()
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &ads{
		t: t, address: socket.Addr().String(),
		resources: map[string]map[string]held{},
		versions:  map[string]int{},
		nonces:    map[string]int{},
		streams:   map[*stream]bool{},
		said:      map[string]verdict{},
		asked:     map[string][]string{},
		reported:  map[string]string{},
		changed:   make(chan struct{}),
	}
	server := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(server, a)
	served := make(chan struct{})
	go func() {
		_ = server.Serve(socket) // ends with Stop
		close(served)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	return a
}

// StreamAggregatedResources answers one stream in the state of the world.
func (a *ads) StreamAggregatedResources(s discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return serve(s.Context(), a, &stream{sotw: s}, s.Recv, a.receive)
}

// DeltaAggregatedResources answers one delta stream.
func (a *ads) DeltaAggregatedResources(s discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return serve(s.Context(), a, &stream{delta: s}, s.Recv, a.receiveDelta)
}

// serve hands what st receives to receive until either side ends the stream.
func serve[R any](ctx context.Context, a *ads, st *stream, next func() (R, error), receive func(*stream, R) error) error {
	st.names, st.sent, st.ended = map[string][]string{}, map[string]bool{}, make(chan struct{})
	a.mu.Lock()
	a.streams[st] = true
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.streams, st)
		a.mu.Unlock()
	}()

	requests := make(chan R)
	go func() {
		defer close(requests)
		for {
			r, err := next()
			if err != nil {
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case <-st.ended:
			return io.ErrUnexpectedEOF
		case r, ok := <-requests:
			if !ok {
				return nil
			}
			if err := receive(st, r); err != nil {
				return err
			}
		}
	}
}

func (a *ads) receive(st *stream, r *discovery.DiscoveryRequest) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	typeURL := r.GetTypeUrl()
	known, names := st.names[typeURL], slices.Clone(r.GetResourceNames())
	if known == nil {
		a.reported[typeURL] = r.GetVersionInfo()
	}
	if names == nil {
		names = []string{} // wildcard
	}
	st.names[typeURL] = names
	a.note(typeURL, r.GetResponseNonce(), r.GetErrorDetail(), names)
	if known == nil || !slices.Equal(known, names) {
		return a.send(st, typeURL)
	}
	return nil
}

func (a *ads) receiveDelta(st *stream, r *discovery.DeltaDiscoveryRequest) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	typeURL := r.GetTypeUrl()
	known := st.names[typeURL]
	names := append(slices.Clone(known), r.GetResourceNamesSubscribe()...)
	names = slices.DeleteFunc(names, func(n string) bool { return slices.Contains(r.GetResourceNamesUnsubscribe(), n) })
	if names == nil {
		names = []string{}
	}
	st.names[typeURL] = names
	if known == nil {
		delete(a.reported, typeURL)
	}
	for name, version := range r.GetInitialResourceVersions() {
		a.reported[typeURL+" "+name] = version
		st.sent[typeURL+" "+name+" "+version] = true
	}
	a.note(typeURL, r.GetResponseNonce(), r.GetErrorDetail(), names)
	if known == nil || !slices.Equal(known, names) {
		return a.send(st, typeURL)
	}
	return nil
}

// note keeps what Envoy says and asks. The caller holds a.mu.
func (a *ads) note(typeURL, nonce string, detail *status.Status, names []string) {
	if version, answered := a.nonces[nonce]; answered {
		a.said[key(typeURL, version)] = verdict{detail == nil, detail.GetMessage()}
	}
	a.asked[typeURL] = names
	close(a.changed)
	a.changed = make(chan struct{})
}

// send sends st what it asked for of one type, if there is any: in the state of the world everything, in delta
// what it does not hold. The caller holds a.mu.
func (a *ads) send(st *stream, typeURL string) error {
	names := st.names[typeURL]
	if names == nil {
		return nil
	}
	var all []*anypb.Any
	var news []*discovery.Resource
	for name, r := range a.resources[typeURL] {
		if len(names) != 0 && !slices.Contains(names, name) && !slices.Contains(names, "*") {
			continue
		}
		all = append(all, r.body)
		id := typeURL + " " + name + " " + r.version
		if !st.sent[id] {
			st.sent[id] = true
			news = append(news, &discovery.Resource{Name: name, Version: r.version, Resource: r.body})
		}
	}
	nonce := fmt.Sprint(len(a.nonces) + 1)
	switch {
	case st.delta != nil && len(news) > 0:
		a.nonces[nonce] = a.versions[typeURL]
		return st.delta.Send(&discovery.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: nonce, Resources: news})
	case st.sotw != nil && len(all) > 0:
		a.nonces[nonce] = a.versions[typeURL]
		return st.sotw.Send(&discovery.DiscoveryResponse{
			TypeUrl: typeURL, VersionInfo: fmt.Sprint(a.versions[typeURL]), Nonce: nonce, Resources: all,
		})
	}
	return nil
}

// remove tells delta streams that a resource is gone, and returns the version to wait for.
func (a *ads) remove(typeURL, name string) int {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.resources[typeURL], name)
	for st := range a.streams {
		if st.delta == nil {
			continue
		}
		a.versions[typeURL]++
		nonce := fmt.Sprint(len(a.nonces) + 1)
		a.nonces[nonce] = a.versions[typeURL]
		err := st.delta.Send(&discovery.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: nonce, RemovedResources: []string{name}})
		if err != nil {
			a.t.Errorf("remove %s: %v", name, err)
		}
	}
	return a.versions[typeURL]
}

// set makes m what the server has under that name, sends it to those who asked, and returns its version.
func (a *ads) set(typeURL, name string, m proto.Message) int {
	a.t.Helper()
	resource, err := anypb.New(m)
	if err != nil {
		a.t.Fatal(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.resources[typeURL] == nil {
		a.resources[typeURL] = map[string]held{}
	}
	a.versions[typeURL]++
	a.resources[typeURL][name] = held{resource, fmt.Sprint(a.versions[typeURL])}
	for st := range a.streams {
		if err := a.send(st, typeURL); err != nil {
			a.t.Logf("send %s: %v", name, err)
		}
	}
	return a.versions[typeURL]
}

// swap replaces a resource without sending it: the next set does.
func (a *ads) swap(typeURL, name string, m proto.Message) {
	a.t.Helper()
	resource, err := anypb.New(m)
	if err != nil {
		a.t.Fatal(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.resources[typeURL][name] = held{resource, fmt.Sprint(a.versions[typeURL] + 1)}
}

// push sets m and waits for what Envoy says to it.
func (a *ads) push(typeURL, name string, m proto.Message) verdict {
	a.t.Helper()
	return a.wait(typeURL, a.set(typeURL, name, m))
}

func (a *ads) pushExtension(name string, config *anypb.Any) verdict {
	a.t.Helper()
	return a.push(extensionType, name, extension(name, config))
}

func (a *ads) setExtension(name string, config *anypb.Any) int {
	a.t.Helper()
	return a.set(extensionType, name, extension(name, config))
}

// extension is what ECDS carries.
func extension(name string, config *anypb.Any) *core.TypedExtensionConfig {
	return &core.TypedExtensionConfig{Name: name, TypedConfig: config}
}

// wait waits for what Envoy says to a version.
func (a *ads) wait(typeURL string, version int) verdict {
	a.t.Helper()
	var v verdict
	a.until(fmt.Sprintf("a verdict on version %d of %s", version, typeURL), func() bool {
		said, ok := a.said[key(typeURL, version)]
		v = said
		return ok
	})
	return v
}

// waitAsked waits until Envoy has asked for a resource of that type and name.
func (a *ads) waitAsked(typeURL, name string) {
	a.t.Helper()
	a.until("envoy asks for "+name, func() bool { return slices.Contains(a.asked[typeURL], name) })
}

// wantReported compares the version that Envoy said it held when its last stream began.
func (a *ads) wantReported(what, want string) {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if got := a.reported[what]; got != want {
		a.t.Errorf("envoy reported version %q of %s as held, want %q", got, what, want)
	}
}

// until waits, up to 20 s, for a condition on what Envoy said; it is called with a.mu held.
func (a *ads) until(what string, condition func() bool) {
	a.t.Helper()
	patience := time.NewTimer(20 * time.Second)
	defer patience.Stop()
	for {
		a.mu.Lock()
		met, changed := condition(), a.changed
		a.mu.Unlock()
		if met {
			return
		}
		select {
		case <-changed:
		case <-patience.C:
			a.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// reconnect ends every stream, as a restart of the server would, and forgets what was said, so that the next wait
// is for what the new stream says.
func (a *ads) reconnect() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.said)
	clear(a.asked)
	for st := range a.streams {
		close(st.ended)
		delete(a.streams, st)
	}
}

func key(typeURL string, version int) string { return fmt.Sprintf("%s %d", typeURL, version) }
