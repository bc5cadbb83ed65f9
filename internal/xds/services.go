package xds

import (
	"time"

	clusterservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	extensionservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/extension/v3"
	listenerservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	routeservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

type (
	sotwServer  = grpc.BidiStreamingServer[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]
	deltaServer = grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
)

type aggregated struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	server *Server
}

func (a aggregated) StreamAggregatedResources(g sotwServer) error {
	return a.server.serve(sotwTransport{g}, "", false)
}

func (a aggregated) DeltaAggregatedResources(g deltaServer) error {
	return a.server.serve(deltaTransport{g}, "", true)
}

type listenerService struct {
	listenerservicev3.UnimplementedListenerDiscoveryServiceServer
	server *Server
}

func (l listenerService) StreamListeners(g sotwServer) error {
	return l.server.serve(sotwTransport{g}, ListenerType, false)
}

func (l listenerService) DeltaListeners(g deltaServer) error {
	return l.server.serve(deltaTransport{g}, ListenerType, true)
}

type routeService struct {
	routeservicev3.UnimplementedRouteDiscoveryServiceServer
	server *Server
}

func (r routeService) StreamRoutes(g sotwServer) error {
	return r.server.serve(sotwTransport{g}, RouteType, false)
}

func (r routeService) DeltaRoutes(g deltaServer) error {
	return r.server.serve(deltaTransport{g}, RouteType, true)
}

type clusterService struct {
	clusterservicev3.UnimplementedClusterDiscoveryServiceServer
	server *Server
}

func (c clusterService) StreamClusters(g sotwServer) error {
	return c.server.serve(sotwTransport{g}, ClusterType, false)
}

func (c clusterService) DeltaClusters(g deltaServer) error {
	return c.server.serve(deltaTransport{g}, ClusterType, true)
}

type extensionService struct {
	extensionservicev3.UnimplementedExtensionConfigDiscoveryServiceServer
	server *Server
}

func (e extensionService) StreamExtensionConfigs(g sotwServer) error {
	return e.server.serve(sotwTransport{g}, ExtensionType, false)
}

func (e extensionService) DeltaExtensionConfigs(g deltaServer) error {
	return e.server.serve(deltaTransport{g}, ExtensionType, true)
}

const (
	// maxRequest bounds a request: a node with all its extensions and the names and versions of
	// ten thousand resources stay below it.
	maxRequest = 4 << 20
	// streamsPerConnection is more than a proxy opens: ADS, or one stream for each type.
	streamsPerConnection = 16
	bufferSize           = 4 << 10
	// maxIdle ends connections without a stream: a proxy keeps one open, and others only a descriptor.
	maxIdle = 5 * time.Minute
	// maxAge lets proxies spread over replicas; grpc adds a jitter of a tenth. It is long since a
	// proxy that speaks the state of the world is sent its modules anew whenever it connects: there
	// is no other way to be sure that it has them. One that speaks delta is not.
	maxAge = 12 * time.Hour
)

// ServerOptions returns the options with which to make the gRPC server that Register is given:
// limits on what a peer may send, keepalive that finds dead peers, a maximum age so that proxies
// spread over replicas, small buffers, since most streams are quiet, and a codec that shares
// large resources among the proxies they go to. Credentials are the caller's to add.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newSharingCodec()),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxConcurrentStreams(streamsPerConnection),
		grpc.MaxHeaderListSize(64 << 10),
		grpc.ConnectionTimeout(20 * time.Second),
		grpc.ReadBufferSize(bufferSize),
		grpc.WriteBufferSize(bufferSize),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time:                  time.Minute,
			Timeout:               20 * time.Second,
			MaxConnectionIdle:     maxIdle,
			MaxConnectionAge:      maxAge,
			MaxConnectionAgeGrace: 10 * time.Second,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}
}
