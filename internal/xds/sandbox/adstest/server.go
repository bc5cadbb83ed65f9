// Package adstest is a throw-away xDS server for the tests of proxies: state of the
// world over one aggregated stream, told exactly what to send. Its one rule: it has
// no opinion; it sends what a test sets, once, and records every request.
package adstest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// The resource types that the server knows.
const (
	ListenerType  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	ClusterType   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	RouteType     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	ExtensionType = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
)

// Server is one server on a loopback port. Its methods may be called concurrently.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	grpc    *grpc.Server
	address string

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at every change
	whole    map[string]*response
	named    map[string]map[string]*response // type, name
	requests []*discoveryv3.DiscoveryRequest
	streams  int
}

// response is what is sent for a type, or for one name of a type.
type response struct {
	version   string
	serial    int
	resources []*anypb.Any
}

// Start starts a server, which serves no resource yet. It ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	return StartAt(t, "127.0.0.1:0")
}

// StartAt is Start on a given address: that of a server that was closed before.
func StartAt(t testing.TB, address string) *Server {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{
		grpc:    grpc.NewServer(),
		address: listener.Addr().String(),
		changed: make(chan struct{}),
		whole:   map[string]*response{},
		named:   map[string]map[string]*response{},
	}
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s.grpc, s)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.grpc.Serve(listener) }()
	t.Cleanup(func() { s.Close(); <-done })
	return s
}

// Close ends all streams and stops listening.
func (s *Server) Close() { s.grpc.Stop() }

// Address returns host:port.
func (s *Server) Address() string { return s.address }

// Set makes resources the whole state of a type (listeners, clusters) and sends it to
// everybody that asked for the type.
func (s *Server) Set(typeURL, version string, resources ...proto.Message) {
	r := &response{version: version}
	for _, m := range resources {
		r.resources = append(r.resources, Any(m))
	}
	s.change(func() {
		if old := s.whole[typeURL]; old != nil {
			r.serial = old.serial + 1
		}
		s.whole[typeURL] = r
	})
}

// SetNamed sets one resource of a type that is asked for by name (routes, extensions)
// and sends it, alone in its response, to everybody that asked for the name. Setting
// the same again sends it again.
func (s *Server) SetNamed(typeURL, name, version string, resource proto.Message) {
	s.change(func() {
		if s.named[typeURL] == nil {
			s.named[typeURL] = map[string]*response{}
		}
		r := &response{version: version, resources: []*anypb.Any{Any(resource)}}
		if old := s.named[typeURL][name]; old != nil {
			r.serial = old.serial + 1
		}
		s.named[typeURL][name] = r
	})
}

// SetExtension sets one extension configuration.
func (s *Server) SetExtension(name, version string, config proto.Message) {
	s.SetNamed(ExtensionType, name, version, &corev3.TypedExtensionConfig{Name: name, TypedConfig: Any(config)})
}

// Requests returns all requests so far, in the order of their arrival.
func (s *Server) Requests() []*discoveryv3.DiscoveryRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*discoveryv3.DiscoveryRequest(nil), s.requests...)
}

// Streams returns how many streams have been opened so far.
func (s *Server) Streams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams
}

// Wait waits until a request of the type matches, and returns the first that does.
func (s *Server) Wait(t testing.TB, what, typeURL string, match func(*discoveryv3.DiscoveryRequest) bool) *discoveryv3.DiscoveryRequest {
	t.Helper()
	deadline := time.After(45 * time.Second)
	for {
		s.mu.Lock()
		changed := s.changed
		for _, r := range s.requests {
			if r.GetTypeUrl() == typeURL && match(r) {
				s.mu.Unlock()
				return r
			}
		}
		s.mu.Unlock()
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("the proxy did not %s; it said:\n%s", what, s.said())
		}
	}
}

// WaitACK waits until a version of a type was accepted.
func (s *Server) WaitACK(t testing.TB, typeURL, version string) {
	t.Helper()
	s.Wait(t, "accept "+version, typeURL, func(r *discoveryv3.DiscoveryRequest) bool {
		return r.GetErrorDetail() == nil && r.GetVersionInfo() == version && r.GetResponseNonce() != ""
	})
}

// WaitNACK waits until a response of that version was rejected, and returns why.
func (s *Server) WaitNACK(t testing.TB, typeURL, version string) string {
	t.Helper()
	r := s.Wait(t, "reject "+version, typeURL, func(r *discoveryv3.DiscoveryRequest) bool {
		return r.GetErrorDetail() != nil && nonceVersion(r.GetResponseNonce()) == version
	})
	return r.GetErrorDetail().GetMessage()
}

func (s *Server) said() string {
	text := ""
	for _, r := range s.Requests() {
		text += fmt.Sprintf("  %s version=%q nonce=%q names=%v error=%q\n", r.GetTypeUrl(), r.GetVersionInfo(), r.GetResponseNonce(), r.GetResourceNames(), r.GetErrorDetail().GetMessage())
	}
	return text
}

func (s *Server) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// subscription is what a stream wants of one type and has been sent.
type subscription struct {
	names []string
	sent  map[string]int // name ("" = the whole type) to serial
}

// StreamAggregatedResources serves one proxy.
func (s *Server) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	s.change(func() { s.streams++ })
	subscriptions := map[string]*subscription{}
	received := make(chan *discoveryv3.DiscoveryRequest)
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		defer close(received)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case received <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	nonce := 0
	for {
		s.mu.Lock()
		changed := s.changed
		due := s.due(subscriptions)
		s.mu.Unlock()
		for _, d := range due {
			nonce++
			d.Nonce = fmt.Sprintf("%d/%s", nonce, d.GetVersionInfo())
			if err := stream.Send(d); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case r, ok := <-received:
			if !ok {
				return io.EOF
			}
			sub := subscriptions[r.GetTypeUrl()]
			if sub == nil {
				sub = &subscription{sent: map[string]int{}}
				subscriptions[r.GetTypeUrl()] = sub
			}
			sub.names = r.GetResourceNames()
			s.change(func() { s.requests = append(s.requests, r) })
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// due returns what is set, wanted and not sent yet. s.mu is held.
func (s *Server) due(subscriptions map[string]*subscription) []*discoveryv3.DiscoveryResponse {
	var out []*discoveryv3.DiscoveryResponse
	add := func(typeURL, name string, r *response, sub *subscription) {
		if serial, sent := sub.sent[name]; r == nil || (sent && serial == r.serial) {
			return
		}
		sub.sent[name] = r.serial
		out = append(out, &discoveryv3.DiscoveryResponse{TypeUrl: typeURL, VersionInfo: r.version, Resources: r.resources})
	}
	for _, typeURL := range []string{ClusterType, ListenerType, RouteType, ExtensionType} {
		sub := subscriptions[typeURL]
		if sub == nil {
			continue
		}
		add(typeURL, "", s.whole[typeURL], sub)
		for _, name := range sub.names {
			add(typeURL, name, s.named[typeURL][name], sub)
		}
	}
	return out
}

func nonceVersion(nonce string) string {
	var n int
	var version string
	if _, err := fmt.Sscanf(nonce, "%d/%s", &n, &version); err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	return version
}

// Any packs a message deterministically; one that is an Any already is left as it is.
func Any(m proto.Message) *anypb.Any {
	if a, ok := m.(*anypb.Any); ok {
		return a
	}
	a := &anypb.Any{}
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic(err) // a message of the test's own making
	}
	return a
}
