package sandbox

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"
)

// The resource types of the stream, in the order in which they are asked for.
const (
	clusterType   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	listenerType  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	routeType     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	extensionType = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
)

var resourceTypes = []string{clusterType, listenerType, routeType, extensionType}

const (
	reconnectFirst = 100 * time.Millisecond
	reconnectMax   = 5 * time.Second
)

// typeState is what the proxy knows of one resource type. The version outlives a
// stream, the nonce does not.
type typeState struct {
	wanted  bool     // asked for, once there is a stream
	names   []string // sorted; empty = all of it, for clusters and listeners
	version string   // last accepted
	nonce   string   // of the last response on this stream
}

// stream is one connection to the server.
type stream struct {
	client    discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	nodeGiven bool
	answered  bool
}

// connect keeps a stream open: it opens one, hands what arrives to the loop, and opens
// the next when it ends, ever more slowly while nothing arrives.
func (s *Sandbox) connect(ctx context.Context) error {
	connection, err := grpc.NewClient("passthrough:///"+s.options.XDSAddress,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		// Envoy has no limit here: modules travel in resources.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: reconnectFirst, Multiplier: 2, Jitter: 0.2, MaxDelay: reconnectMax},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		return fmt.Errorf("xDS address %q: %w", s.options.XDSAddress, err)
	}
	defer connection.Close()
	delay := reconnectFirst
	for ctx.Err() == nil {
		answered, err := s.oneStream(ctx, connection)
		if answered {
			delay = reconnectFirst
		}
		s.log.Debug("xDS stream ended", "err", err, "again", delay)
		timer := time.NewTimer(delay/2 + rand.N(delay)) //nolint:gosec // jitter
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		delay = min(2*delay, reconnectMax)
	}
	return nil
}

// oneStream opens a stream and receives until it ends.
func (s *Sandbox) oneStream(ctx context.Context, connection *grpc.ClientConn) (answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client, err := discoveryv3.NewAggregatedDiscoveryServiceClient(connection).StreamAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	own := &stream{client: client}
	s.post(ctx, func() { s.opened(own) })
	defer s.post(s.ctx, func() {
		if s.stream == own {
			s.stream = nil
		}
	})
	for {
		response, err := client.Recv()
		if err != nil {
			return answered, err
		}
		answered = true
		s.post(ctx, func() { s.received(own, response) })
	}
}

// opened asks on a new stream for everything that is wanted, saying what is held.
func (s *Sandbox) opened(st *stream) {
	s.stream = st
	s.want(clusterType)
	for _, typeURL := range resourceTypes {
		t := s.typeOf(typeURL)
		t.nonce = ""
		if t.wanted {
			s.send(typeURL, nil)
		}
	}
	if !s.listenersDue {
		s.after(defaultFetchTimeout, s.startListeners)
	}
}

// want begins to ask for a type; opened and send do the asking.
func (s *Sandbox) want(typeURL string) { s.typeOf(typeURL).wanted = true }

// startListeners asks for listeners: when clusters are known, or do not come.
func (s *Sandbox) startListeners() {
	if s.listenersDue {
		return
	}
	s.listenersDue = true
	s.want(listenerType)
	s.send(listenerType, nil)
	s.after(defaultFetchTimeout, func() {
		if s.typeOf(listenerType).nonce == "" && len(s.listeners) == 0 {
			s.started = true // nobody answers: what comes later comes one by one
		}
	})
}

func (s *Sandbox) typeOf(typeURL string) *typeState {
	t := s.types[typeURL]
	if t == nil {
		t = &typeState{}
		s.types[typeURL] = t
	}
	return t
}

// subscribe asks for names of a type, if they are others than before.
func (s *Sandbox) subscribe(typeURL string, names []string) {
	t := s.typeOf(typeURL)
	if slices.Equal(t.names, names) {
		return
	}
	t.names, t.wanted = names, true
	s.send(typeURL, nil)
}

// received applies a response and answers it: ACK with its version, or NACK with the
// version held before and what is wrong.
func (s *Sandbox) received(st *stream, r *discoveryv3.DiscoveryResponse) {
	if s.stream != st {
		return // of a stream that has ended
	}
	st.answered = true
	t := s.typeOf(r.GetTypeUrl())
	if !t.wanted {
		s.log.Warn("xDS server sent a type that nobody asked for", "type", r.GetTypeUrl())
		return
	}
	t.nonce = r.GetNonce()
	err := s.apply(r)
	if err != nil {
		s.log.Warn("configuration rejected", "type", r.GetTypeUrl(), "version", r.GetVersionInfo(), "err", err)
	} else {
		t.version = r.GetVersionInfo()
	}
	if r.GetTypeUrl() == clusterType {
		s.startListeners()
	}
	s.subscribeAll()
	s.send(r.GetTypeUrl(), err)
}

// subscribeAll asks for the routes and extensions that listeners name now.
func (s *Sandbox) subscribeAll() {
	s.subscribe(routeType, s.routeNames())
	s.subscribe(extensionType, slices.Sorted(maps.Keys(s.extensions)))
}

// send writes one request of a type.
func (s *Sandbox) send(typeURL string, problem error) {
	if s.stream == nil {
		return
	}
	t := s.typeOf(typeURL)
	request := &discoveryv3.DiscoveryRequest{
		TypeUrl:       typeURL,
		VersionInfo:   t.version,
		ResponseNonce: t.nonce,
		ResourceNames: t.names,
	}
	if problem != nil {
		request.ErrorDetail = &statuspb.Status{Code: int32(codes.InvalidArgument), Message: problem.Error()}
	}
	if !s.stream.nodeGiven {
		request.Node = s.node()
		s.stream.nodeGiven = true
	}
	if err := s.stream.client.Send(request); err != nil {
		s.log.Debug("xDS request not sent", "type", typeURL, "err", err) // Recv says why and ends the stream
	}
}

// node is how the proxy names itself.
func (s *Sandbox) node() *corev3.Node {
	labels := map[string]*structpb.Value{}
	for k, v := range s.options.Node.Labels {
		labels[k] = structpb.NewStringValue(v)
	}
	return &corev3.Node{
		Id:            s.options.Node.ID,
		Cluster:       s.options.Node.Cluster,
		UserAgentName: "stile-sandbox",
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"NAMESPACE": structpb.NewStringValue(s.options.Node.Namespace),
			"LABELS":    structpb.NewStructValue(&structpb.Struct{Fields: labels}),
		}},
		Extensions: nodeExtensions(),
	}
}
