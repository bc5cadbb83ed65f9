package xds

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	clusterservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	extensionservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/extension/v3"
	listenerservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	routeservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/stileproject/stile/internal/plugin"
)

// The limits of a Server where Options leave them zero.
const (
	DefaultMaxStreams = 50_000
	DefaultMaxNames   = 10_000
	// maxName bounds one resource name.
	maxName = 1024
)

// Options of a Server. The zero value is usable.
type Options struct {
	Log        *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: no metrics
	// Authorize decides whether a peer may be the node that it says it is; ctx is the stream's,
	// with its peer. Nil: everybody may. An error closes the stream; its text goes to the peer.
	Authorize func(ctx context.Context, node plugin.Node) error
	// MaxStreams bounds the streams in all; MaxNames the names that one stream asks for of one type.
	MaxStreams, MaxNames int
}

// Server serves snapshots over xDS. Streams that have joined no group, or a group that has no
// snapshot yet, are answered nothing and lose nothing. All methods are safe for concurrent use.
type Server struct {
	log       *slog.Logger
	authorize func(context.Context, plugin.Node) error
	limits    struct{ streams, names int }
	metrics   *serverMetrics
	now       func() time.Time
	salt      int // the first try at proxies that may have refused the bytes of another stile

	events     *eventQueue
	rejections rejections
	stop       chan struct{}
	closed     sync.Once

	mu       sync.Mutex
	lastID   StreamID
	opening  int // streams that have not said who they are
	streams  map[StreamID]*stream
	groups   map[string]*group
	counts   map[string]*Counts // by the name of the ECDS resource
	carriers map[string]int     // by the same: proxies whose snapshot has it
}

// group is the streams that shall have one snapshot.
type group struct {
	snapshot *Snapshot
	members  map[StreamID]*stream
}

// NewServer returns a server that is ready to Register. Close it when its gRPC server has stopped.
func NewServer(o Options) *Server {
	s := &Server{
		log: o.Log, authorize: o.Authorize, now: time.Now, salt: 1000 + rand.IntN(50_000), //nolint:gosec // no secret: it shall differ from other processes'

		events: newEventQueue(), stop: make(chan struct{}),
		streams: map[StreamID]*stream{}, groups: map[string]*group{},
		counts: map[string]*Counts{}, carriers: map[string]int{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.limits.streams, s.limits.names = o.MaxStreams, o.MaxNames
	if s.limits.streams == 0 {
		s.limits.streams = DefaultMaxStreams
	}
	if s.limits.names == 0 {
		s.limits.names = DefaultMaxNames
	}
	s.metrics = newServerMetrics(o.Registerer, s.connectedNodes)
	return s
}

// Register adds ADS and the single-type services to g. Make g with ServerOptions.
func (s *Server) Register(g *grpc.Server) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, aggregated{server: s})
	listenerservicev3.RegisterListenerDiscoveryServiceServer(g, listenerService{server: s})
	routeservicev3.RegisterRouteDiscoveryServiceServer(g, routeService{server: s})
	clusterservicev3.RegisterClusterDiscoveryServiceServer(g, clusterService{server: s})
	extensionservicev3.RegisterExtensionConfigDiscoveryServiceServer(g, extensionService{server: s})
}

// Close ends every stream and the goroutine behind Events.
func (s *Server) Close() {
	s.closed.Do(func() {
		close(s.stop)
		s.events.close()
	})
}

// Events returns what happens at the proxies. There is one channel for one reader; a reader
// that is slow holds up nothing and finds fewer events, each of the latest.
func (s *Server) Events() <-chan Event { return s.events.out }

// Join puts a stream into a group: it is sent what differs between what it holds and the
// group's snapshot. Joining another group later moves it. A stream that is gone is ignored.
func (s *Server) Join(id StreamID, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[id]
	if st == nil || st.group == name && name != "" && s.groups[name] != nil {
		return
	}
	s.leave(st)
	g := s.groups[name]
	if g == nil {
		g = &group{members: map[StreamID]*stream{}}
		s.groups[name] = g
	}
	g.members[id] = st
	st.group = name
	if g.snapshot != nil {
		s.give(st, g.snapshot)
	}
}

// Publish sets what the proxies of a group shall have. It wakes the streams of that group
// alone, and each is sent only what differs from what it holds. A nil snapshot forgets the
// group: its streams keep what they have.
func (s *Server) Publish(name string, snapshot *Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.groups[name]
	if snapshot == nil {
		if g != nil {
			g.snapshot = nil
			s.prune(name, g)
		}
		return
	}
	if g == nil {
		g = &group{members: map[StreamID]*stream{}}
		s.groups[name] = g
	}
	if g.snapshot.Equal(snapshot) {
		return
	}
	g.snapshot = snapshot
	for _, st := range g.members {
		s.give(st, snapshot)
	}
}

// give sets what one stream shall have, and wakes it. s.mu is held.
func (s *Server) give(st *stream, snapshot *Snapshot) {
	s.carry(st, snapshot)
	st.snapshot = snapshot
	s.recount(st)
	st.wakeUp()
}

// leave takes a stream out of its group. It keeps its snapshot until it has another. s.mu is held.
func (s *Server) leave(st *stream) {
	g := s.groups[st.group]
	if g == nil {
		return
	}
	delete(g.members, st.id)
	s.prune(st.group, g)
}

func (s *Server) prune(name string, g *group) {
	if len(g.members) == 0 && g.snapshot == nil {
		delete(s.groups, name)
	}
}

// reserve counts a stream in before any work is done for it.
func (s *Server) reserve() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.streams)+s.opening >= s.limits.streams {
		return false
	}
	s.opening++
	return true
}

// opened makes a reserved stream known; unless told so it is gone again with release.
func (s *Server) opened(st *stream, version string) {
	s.mu.Lock()
	s.opening--
	s.lastID++
	st.id = s.lastID
	st.since = s.now()
	s.streams[st.id] = st
	s.mu.Unlock()
	s.events.add(Event{Kind: Connected, Stream: st.id, Node: st.node, EnvoyVersion: version})
}

// release forgets a stream that has ended, known or not.
func (s *Server) release(st *stream) {
	s.mu.Lock()
	if st.id == 0 {
		s.opening--
		s.mu.Unlock()
		return
	}
	s.leave(st)
	s.carry(st, nil)
	for key, e := range st.entries {
		s.count(key, e, "")
	}
	st.entries = nil
	delete(s.streams, st.id)
	s.mu.Unlock()
	s.events.add(Event{Kind: Gone, Stream: st.id})
}

// snapshotOf returns what a stream shall have at this moment; nil if that is not known yet.
func (s *Server) snapshotOf(st *stream) *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return st.snapshot
}

func (s *Server) connectedNodes() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	nodes := make(map[nodeKey]struct{}, len(s.streams))
	for _, st := range s.streams {
		nodes[st.key] = struct{}{}
	}
	return float64(len(nodes))
}
