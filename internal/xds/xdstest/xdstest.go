// Package xdstest is the other end of package xds in tests: a gRPC connection in memory, and
// clients of both protocols that say exactly what a test tells them to say. It works within
// testing/synctest and outside.
package xdstest

import (
	"context"
	"net"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	extensionservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/extension/v3"
	listenerservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
)

// Serve runs s behind a gRPC server in memory for the length of the test and returns a
// function that opens connections to it.
func Serve(t testing.TB, s *xds.Server) func() *grpc.ClientConn {
	t.Helper()
	dial, stop := Start(t, s)
	t.Cleanup(stop)
	return dial
}

// Start is Serve for a server that ends before its test does: stop ends it, and s too.
func Start(t testing.TB, s *xds.Server) (dial func() *grpc.ClientConn, stop func()) {
	t.Helper()
	listener := bufconn.Listen(64 << 10)
	g := grpc.NewServer(xds.ServerOptions()...)
	s.Register(g)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = g.Serve(listener)
	}()
	stop = func() {
		g.Stop()
		<-served
		s.Close()
	}
	dial = func() *grpc.ClientConn {
		t.Helper()
		conn, err := grpc.NewClient("passthrough:///xds",
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	return dial, stop
}

// Node returns Envoy's Node message for n.
func Node(n plugin.Node) *corev3.Node {
	metadata := map[string]any{}
	if n.Namespace != "" {
		metadata["NAMESPACE"] = n.Namespace
	}
	if n.Gateway != "" {
		metadata["GATEWAY"] = n.Gateway
	}
	if len(n.Labels) > 0 {
		labels := map[string]any{}
		for k, v := range n.Labels {
			labels[k] = v
		}
		metadata["LABELS"] = labels
	}
	m, err := structpb.NewStruct(metadata)
	if err != nil {
		panic(err)
	}
	return &corev3.Node{Id: n.ID, Cluster: n.Cluster, Metadata: m}
}

// Failure is the error detail of a refusal.
func Failure(message string) *status.Status {
	return &status.Status{Code: int32(codes.InvalidArgument), Message: message}
}

// patience bounds the wait for a response that should come.
const patience = 10 * time.Second

// inbox collects what a stream receives.
type inbox[R any] struct {
	t        testing.TB
	messages chan R
	ended    chan error
	peek     R
	peeked   bool
}

func collect[R any](t testing.TB, recv func() (R, error)) inbox[R] {
	in := inbox[R]{t: t, messages: make(chan R, 1024), ended: make(chan error, 1)}
	go func() {
		for {
			m, err := recv()
			if err != nil {
				in.ended <- err
				return
			}
			in.messages <- m
		}
	}()
	return in
}

// Next returns the next response; the test fails if none comes.
func (in *inbox[R]) Next() R {
	in.t.Helper()
	if in.peeked {
		in.peeked = false
		return in.peek
	}
	select {
	case m := <-in.messages:
		return m
	case err := <-in.ended:
		in.t.Fatalf("the stream ended: %v", err)
	case <-time.After(patience):
		in.t.Fatal("no response came")
	}
	panic("unreachable")
}

// WaitNext waits until the next response is there, without taking it.
func (in *inbox[R]) WaitNext(atMost time.Duration) {
	in.t.Helper()
	if in.peeked {
		return
	}
	select {
	case m := <-in.messages:
		in.peek, in.peeked = m, true
	case <-time.After(atMost):
		in.t.Fatalf("no response came in %v", atMost)
	}
}

// Waiting returns the next response if it is there already. Call synctest.Wait before.
func (in *inbox[R]) Waiting() (R, bool) {
	if in.peeked {
		in.peeked = false
		return in.peek, true
	}
	select {
	case m := <-in.messages:
		return m, true
	default:
		var none R
		return none, false
	}
}

// Ended returns the error with which the stream ended; the test fails if it does not.
func (in *inbox[R]) Ended() error {
	in.t.Helper()
	select {
	case err := <-in.ended:
		return err
	case <-time.After(patience):
		in.t.Fatal("the stream did not end")
	}
	panic("unreachable")
}

// SotW is a state-of-the-world stream.
type SotW struct {
	inbox[*discoveryv3.DiscoveryResponse]
	node   *corev3.Node
	stream grpc.BidiStreamingClient[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]
	cancel context.CancelFunc
	names  map[string][]string // last asked for, by type
	have   map[string]string   // last version accepted, by type
	nonce  string              // of the last extension, for Envoy
}

// OpenADS opens an ADS stream. The node goes with the first request.
func OpenADS(t testing.TB, conn *grpc.ClientConn, node plugin.Node) *SotW {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	return newSotW(t, node, stream, cancel, err)
}

// OpenExtensions opens a stream of the single-type service for extensions.
func OpenExtensions(t testing.TB, conn *grpc.ClientConn, node plugin.Node) *SotW {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := extensionservicev3.NewExtensionConfigDiscoveryServiceClient(conn).StreamExtensionConfigs(ctx)
	return newSotW(t, node, stream, cancel, err)
}

// OpenListeners opens a stream of the single-type service for listeners.
func OpenListeners(t testing.TB, conn *grpc.ClientConn, node plugin.Node) *SotW {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := listenerservicev3.NewListenerDiscoveryServiceClient(conn).StreamListeners(ctx)
	return newSotW(t, node, stream, cancel, err)
}

func newSotW(t testing.TB, node plugin.Node, stream grpc.BidiStreamingClient[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse], cancel context.CancelFunc, err error) *SotW {
	t.Helper()
	t.Cleanup(cancel)
	if err != nil {
		t.Fatal(err)
	}
	return &SotW{
		inbox: collect(t, stream.Recv), node: Node(node), stream: stream, cancel: cancel,
		names: map[string][]string{}, have: map[string]string{},
	}
}

// Send sends a request as it is; the first one of the stream gets the node.
func (c *SotW) Send(r *discoveryv3.DiscoveryRequest) {
	c.t.Helper()
	if c.node != nil {
		r.Node, c.node = c.node, nil
	}
	if err := c.stream.Send(r); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// Ask asks for names of a type, or for all if there are none, with the version last accepted.
func (c *SotW) Ask(typeURL string, names ...string) {
	c.t.Helper()
	c.names[typeURL] = names
	c.Send(&discoveryv3.DiscoveryRequest{TypeUrl: typeURL, ResourceNames: names, VersionInfo: c.have[typeURL]})
}

// Have sets the version that the client says it accepted before, on another stream.
func (c *SotW) Have(typeURL, version string) { c.have[typeURL] = version }

// Version returns the version of a type that was last accepted.
func (c *SotW) Version(typeURL string) string { return c.have[typeURL] }

// Ack accepts a response.
func (c *SotW) Ack(r *discoveryv3.DiscoveryResponse) {
	c.t.Helper()
	c.have[r.GetTypeUrl()] = r.GetVersionInfo()
	c.Send(&discoveryv3.DiscoveryRequest{
		TypeUrl: r.GetTypeUrl(), ResourceNames: c.names[r.GetTypeUrl()], ResponseNonce: r.GetNonce(), VersionInfo: r.GetVersionInfo(),
	})
}

// Nack refuses a response.
func (c *SotW) Nack(r *discoveryv3.DiscoveryResponse, message string) {
	c.t.Helper()
	c.Send(&discoveryv3.DiscoveryRequest{
		TypeUrl: r.GetTypeUrl(), ResourceNames: c.names[r.GetTypeUrl()], ResponseNonce: r.GetNonce(),
		VersionInfo: c.have[r.GetTypeUrl()], ErrorDetail: Failure(message),
	})
}

// Close ends the stream.
func (c *SotW) Close() { c.cancel() }

// Delta is a stream of the incremental protocol.
type Delta struct {
	inbox[*discoveryv3.DeltaDiscoveryResponse]
	node   *corev3.Node
	stream grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
	cancel context.CancelFunc
}

// OpenDelta opens an ADS stream of the incremental protocol.
func OpenDelta(t testing.TB, conn *grpc.ClientConn, node plugin.Node) *Delta {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &Delta{inbox: collect(t, stream.Recv), node: Node(node), stream: stream, cancel: cancel}
}

// Send sends a request as it is; the first one of the stream gets the node.
func (c *Delta) Send(r *discoveryv3.DeltaDiscoveryRequest) {
	c.t.Helper()
	if c.node != nil {
		r.Node, c.node = c.node, nil
	}
	if err := c.stream.Send(r); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// Ask subscribes to names of a type, saying which versions the client has.
func (c *Delta) Ask(typeURL string, have map[string]string, names ...string) {
	c.t.Helper()
	c.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: names, InitialResourceVersions: have})
}

// Drop unsubscribes from names of a type.
func (c *Delta) Drop(typeURL string, names ...string) {
	c.t.Helper()
	c.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesUnsubscribe: names})
}

// Ack accepts a response.
func (c *Delta) Ack(r *discoveryv3.DeltaDiscoveryResponse) {
	c.t.Helper()
	c.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
}

// Nack refuses a response.
func (c *Delta) Nack(r *discoveryv3.DeltaDiscoveryResponse, message string) {
	c.t.Helper()
	c.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ErrorDetail: Failure(message)})
}

// Close ends the stream.
func (c *Delta) Close() { c.cancel() }
