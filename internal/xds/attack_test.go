package xds_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
	"github.com/stileproject/stile/internal/xds/xdstest"
)

// liar is a peer that says anything.
type liar struct {
	*rand.Rand
	nonces []string // that it has seen
}

func (l *liar) one(of ...string) string { return of[l.IntN(len(of))] }

func (l *liar) typeURL() string {
	return l.one(xds.ClusterType, xds.ListenerType, xds.RouteType, xds.ExtensionType, xds.ExtensionType, xds.ExtensionType,
		"type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", "x")
}

func (l *liar) name() string {
	return l.one("*", "l", "m", "r", "c", pluginResource, xds.ResourceName(key("q")), "", "a\x00b", "../x", strings.Repeat("n", 1+l.IntN(1000)), fmt.Sprint(l.IntN(50)))
}

func (l *liar) names() []string {
	var out []string
	for range l.IntN(1 + l.IntN(300)) {
		out = append(out, l.name())
	}
	return out
}

func (l *liar) version() string {
	return l.one("", "1", "2", "standin-x", "1~3", "1~plain", "1~999999999999999999999", "~", "w1-", "w1-AAAA", "w1-"+strings.Repeat("A", 56), "w1-!!!", strings.Repeat("v", l.IntN(2000)))
}

func (l *liar) nonce() string {
	if len(l.nonces) > 0 && l.IntN(3) > 0 {
		return l.nonces[l.IntN(len(l.nonces))]
	}
	return l.one("", "1", "2", "-1", "99999999999999999999", "x")
}

// TestServer_WhateverAPeerSaysOthersAreServed has peers say anything, in both protocols: others are served all the same,
// what is counted is right, and nothing stays behind.
func TestServer_WhateverAPeerSaysOthersAreServed(t *testing.T) {
	t.Parallel()
	for seed := range histories / 8 {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				l := &liar{Rand: rand.New(rand.NewPCG(seed, 7))}
				b.publish(lds(t, "l", "1"), lds(t, "m", "1"), rds(t, "r", "1"), ecds(t, pluginResource, "1"), ecds(t, xds.ResourceName(key("q")), "1"))
				honest := b.delta()
				honest.Ask(xds.ListenerType, nil)
				honest.Ack(honest.Next())
				for round := range 4 {
					l.nonces = nil
					lies(t, l, b, seed%2 == 0)
					b.publish(lds(t, "l", fmt.Sprint(round+2)), rds(t, "r", "1"), ecds(t, pluginResource, fmt.Sprint(round+2)))
					honest.Ack(honest.Next())
				}
				synctest.Wait()
				if got := b.server.Counts(key("p")); got.Matched != 1 || got.Sent != 0 {
					t.Errorf("counts %+v, want the honest one, who asks for no extension", got)
				}
				if p := b.server.Proxies(); len(p) != 1 {
					t.Errorf("%d proxies", len(p))
				}
			})
		})
	}
}

// lies opens a stream, says fifty things and leaves.
func lies(t *testing.T, l *liar, b *bench, delta bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client := discoveryv3.NewAggregatedDiscoveryServiceClient(b.dial())
	node := xdstest.Node(plugin.Node{ID: "liar", Cluster: "edge", Namespace: "team-a"})
	if delta {
		stream, err := client.DeltaAggregatedResources(ctx)
		if err != nil {
			t.Fatal(err)
		}
		seen := make(chan string, 10_000)
		go func() {
			for {
				r, err := stream.Recv()
				if err != nil {
					return
				}
				seen <- r.GetNonce()
			}
		}()
		for i := range 50 {
			r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: l.typeURL(), ResponseNonce: l.nonce(), ResourceNamesSubscribe: l.names(), ResourceNamesUnsubscribe: l.names()}
			if i == 0 {
				r.Node = node
			}
			if l.IntN(4) == 0 {
				r.InitialResourceVersions = map[string]string{l.name(): l.version(), l.name(): l.version()}
			}
			if l.IntN(3) == 0 {
				r.ErrorDetail = xdstest.Failure(l.name() + l.version())
			}
			if stream.Send(r) != nil {
				return
			}
			synctest.Wait()
			for len(seen) > 0 {
				l.nonces = append(l.nonces, <-seen)
			}
			<-time.After(time.Duration(l.IntN(3000)) * time.Millisecond)
		}
		return
	}
	stream, err := client.StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 10_000)
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			seen <- r.GetNonce()
		}
	}()
	for i := range 50 {
		r := &discoveryv3.DiscoveryRequest{TypeUrl: l.typeURL(), ResponseNonce: l.nonce(), ResourceNames: l.names(), VersionInfo: l.version()}
		if i == 0 {
			r.Node = node
		}
		if l.IntN(3) == 0 {
			r.ErrorDetail = xdstest.Failure(l.name() + l.version())
		}
		if stream.Send(r) != nil {
			return
		}
		synctest.Wait()
		for len(seen) > 0 {
			l.nonces = append(l.nonces, <-seen)
		}
		<-time.After(time.Duration(l.IntN(3000)) * time.Millisecond)
	}
}

// A proxy that asks for thousands of names costs a request what there is, not what it asks for.
func TestServer_ThousandsOfNamesCostLittle(t *testing.T) {
	t.Parallel()
	s := xds.NewServer(xds.Options{})
	dial := xdstest.Serve(t, s)
	var names []string
	for i := range xds.DefaultMaxNames - 1 {
		names = append(names, fmt.Sprintf("nobody-%d", i))
	}
	s.Publish("g", xds.NewSnapshot(ecds(t, pluginResource, "0")))
	done := make(chan struct{})
	over := make(chan struct{})
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
	t.Cleanup(func() { close(over); <-done })
	c := xdstest.OpenDelta(t, dial(), gateway)
	c.Ask(xds.ExtensionType, nil, append(names, pluginResource)...)
	c.Ack(c.Next())
	began := time.Now()
	const changes = 100
	for i := range changes {
		s.Publish("g", xds.NewSnapshot(ecds(t, pluginResource, fmt.Sprint(i+1))))
		c.Ack(c.Next())
	}
	if each := time.Since(began) / changes; each > 20*time.Millisecond { // it was 5 ms alone, for sorting the names; now it is 0.1
		t.Errorf("a change takes %v", each)
	}
}

func TestServer_AProxysWordsOfItselfAreBounded(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 2000)
	labels := map[string]any{}
	for i := range 100 {
		labels[fmt.Sprint(i)] = strings.Repeat("y", 1000)
	}
	metadata := func(m map[string]any) *structpb.Struct {
		s, err := structpb.NewStruct(m)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for name, node := range map[string]*corev3.Node{
		"a long id":            {Id: long, Cluster: "edge"},
		"a long cluster":       {Id: "x", Cluster: long},
		"a long namespace":     {Id: "x", Cluster: "edge", Metadata: metadata(map[string]any{"NAMESPACE": long})},
		"many labels":          {Id: "x", Cluster: "edge", Metadata: metadata(map[string]any{"LABELS": labels})},
		"a long version":       {Id: "x", Cluster: "edge", UserAgentVersionType: &corev3.Node_UserAgentVersion{UserAgentVersion: long}},
		"a NUL in a version":   {Id: "x", Cluster: "edge", UserAgentVersionType: &corev3.Node_UserAgentVersion{UserAgentVersion: "1\x00edge"}},
		"a line end in an id":  {Id: "x\nlevel=ERROR", Cluster: "edge"},
		"an escape in a label": {Id: "x", Cluster: "edge", Metadata: metadata(map[string]any{"LABELS": map[string]any{"a": "\x1b[2J"}})},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(b.dial()).StreamAggregatedResources(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if err := stream.Send(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: xds.ListenerType}); err != nil {
					t.Fatal(err)
				}
				if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument || len(err.Error()) > 500 {
					t.Errorf("ended with %v", err)
				}
			})
		})
	}
	t.Run("whatever Envoy says of its own, however long", func(t *testing.T) {
		inBubble(t, func(t *testing.T, b *bench) {
			b.publish(lds(t, "l", "1"))
			node := &corev3.Node{Id: "x", Cluster: "edge", Metadata: metadata(map[string]any{"OTHER": strings.Repeat("z", 1<<20)})}
			for i := range 2000 {
				node.Extensions = append(node.Extensions, &corev3.Extension{Name: fmt.Sprintf("envoy.x.%d", i), Category: "y", TypeUrls: []string{long[:60]}})
			}
			stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(b.dial()).StreamAggregatedResources(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: xds.ListenerType}); err != nil {
				t.Fatal(err)
			}
			if r, err := stream.Recv(); err != nil || len(r.GetResources()) != 1 {
				t.Errorf("%v, %v", r, err)
			}
		})
	})
}

// A proxy that does not read keeps one response back, its own, however often what it shall have changes.
func TestServer_APeerThatDoesNotReadCostsOneResponse(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		const size = 4 << 20
		large := func(i int) *xds.Resource {
			return ecds(t, pluginResource, fmt.Sprint(i)+strings.Repeat("x", size))
		}
		b.publish(large(0))
		var streams []discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
		for i := range 8 {
			stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(b.dial()).StreamAggregatedResources(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			node := xdstest.Node(plugin.Node{ID: fmt.Sprintf("deaf-%d", i), Cluster: "edge", Namespace: "team-a"})
			if err := stream.Send(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: xds.ExtensionType, ResourceNames: []string{pluginResource}}); err != nil {
				t.Fatal(err)
			}
			streams = append(streams, stream)
		}
		synctest.Wait()
		quick := b.ads()
		quick.Ask(xds.ExtensionType, pluginResource)
		quick.Ack(quick.Next())
		before := heap()
		for i := range 12 {
			b.publish(large(i + 1))
			quick.Ack(quick.Next())
			synctest.Wait()
		}
		if grown := heap() - before; grown > 4*size {
			t.Errorf("the heap has grown by %d MiB for 12 changes that eight proxies do not read", grown>>20)
		}
		runtime.KeepAlive(streams)
	})
}

// A connection without a stream costs a descriptor and no longer than some minutes; one with a quiet stream lives on.
func TestServer_IdleConnectionsAreEnded(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(lds(t, "l", "1"))
		idle, quietly := b.dial(), b.dial()
		idle.Connect()
		c := xdstest.OpenADS(t, quietly, gateway)
		c.Ask(xds.ListenerType)
		c.Ack(c.Next())
		synctest.Wait()
		if idle.GetState() != connectivity.Ready {
			t.Fatalf("not connected: %v", idle.GetState())
		}
		<-time.After(10 * time.Minute)
		if idle.GetState() == connectivity.Ready {
			t.Error("a connection that nobody uses is kept")
		}
		if quietly.GetState() != connectivity.Ready {
			t.Error("a quiet proxy was cut off")
		}
		b.publish(lds(t, "l", "2"))
		wantContents(t, c.Next(), "l 2")
	})
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
