package xds_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
	"github.com/stileproject/stile/internal/xds/xdstest"
)

var gateway = plugin.Node{ID: "gw-0", Cluster: "edge", Namespace: "team-a"}

// res makes a small resource of a type, whose version is given.
func res(t testing.TB, typeURL, name, version string) *xds.Resource {
	t.Helper()
	var m proto.Message
	switch typeURL {
	case xds.ListenerType:
		m = &listenerv3.Listener{Name: name, StatPrefix: version}
	case xds.RouteType:
		m = &routev3.RouteConfiguration{Name: name, InternalOnlyHeaders: []string{version}}
	case xds.ClusterType:
		m = &clusterv3.Cluster{Name: name, AltStatName: version}
	default:
		m = &corev3.TypedExtensionConfig{Name: name, TypedConfig: &anypb.Any{Value: []byte(version)}}
	}
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return &xds.Resource{Type: typeURL, Name: name, Version: version, Any: a, StandIn: strings.HasPrefix(version, "standin-")}
}

func lds(t testing.TB, name, version string) *xds.Resource {
	return res(t, xds.ListenerType, name, version)
}
func rds(t testing.TB, name, version string) *xds.Resource {
	return res(t, xds.RouteType, name, version)
}
func cds(t testing.TB, name, version string) *xds.Resource {
	return res(t, xds.ClusterType, name, version)
}
func ecds(t testing.TB, name, version string) *xds.Resource {
	return res(t, xds.ExtensionType, name, version)
}

// bench is a server within a synctest bubble, and the name of the one group that every stream joins.
type bench struct {
	t      *testing.T
	server *xds.Server
	dial   func() *grpc.ClientConn
	events []xds.Event
	done   chan struct{}
}

// inBubble runs a test against a server whose streams all join group "g".
func inBubble(t *testing.T, run func(t *testing.T, b *bench)) {
	t.Parallel()
	bubble(t, run)
}

// bubble is inBubble for a test that runs alone.
func bubble(t *testing.T, run func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, server: xds.NewServer(xds.Options{}), done: make(chan struct{})}
		b.dial = xdstest.Serve(t, b.server)
		stop := make(chan struct{})
		go func() {
			defer close(b.done)
			for {
				select {
				case e := <-b.server.Events():
					b.events = append(b.events, e)
					if e.Kind == xds.Connected {
						b.server.Join(e.Stream, "g")
					}
				case <-stop:
					return
				}
			}
		}()
		defer func() { close(stop); <-b.done }()
		run(t, b)
	})
}

func (b *bench) publish(resources ...*xds.Resource) {
	b.server.Publish("g", xds.NewSnapshot(resources...))
	synctest.Wait()
}

func (b *bench) ads() *xdstest.SotW {
	c := xdstest.OpenADS(b.t, b.dial(), gateway)
	return c
}

func (b *bench) delta() *xdstest.Delta { return xdstest.OpenDelta(b.t, b.dial(), gateway) }

// state returns the ledger's line about one resource of the one proxy: "state version message".
func (b *bench) state(typeURL, name string) string {
	b.t.Helper()
	synctest.Wait()
	for _, p := range b.server.Proxies() {
		for _, r := range p.Resources {
			if r.Type == typeURL && r.Name == name {
				return strings.TrimSpace(fmt.Sprintf("%s %s %s", r.State, r.Version, r.Message))
			}
		}
	}
	return ""
}

// contents names what a response holds.
func contents(t testing.TB, r *discoveryv3.DiscoveryResponse) []string {
	t.Helper()
	got := []string{}
	for _, a := range r.GetResources() {
		got = append(got, content(t, a))
	}
	return got
}

func content(t testing.TB, a *anypb.Any) string {
	t.Helper()
	m, err := a.UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	switch x := m.(type) {
	case *listenerv3.Listener:
		return x.GetName() + " " + x.GetStatPrefix()
	case *routev3.RouteConfiguration:
		return x.GetName() + " " + x.GetInternalOnlyHeaders()[0]
	case *clusterv3.Cluster:
		return x.GetName() + " " + x.GetAltStatName()
	case *corev3.TypedExtensionConfig:
		return x.GetName() + " " + string(x.GetTypedConfig().GetValue())
	}
	return "?"
}

func wantContents(t testing.TB, r *discoveryv3.DiscoveryResponse, want ...string) {
	t.Helper()
	if d := cmp.Diff(append([]string{}, want...), contents(t, r)); d != "" {
		t.Errorf("response (-want +got):\n%s", d)
	}
}

// quiet fails the test if a response has come.
func quiet[R any](t testing.TB, c interface{ Waiting() (R, bool) }) {
	t.Helper()
	synctest.Wait()
	if r, ok := c.Waiting(); ok {
		t.Errorf("an answer came that should not: %v", r)
	}
}

func TestServer_AnswersNothingBeforeTheFirstPlan(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		c := b.ads()
		c.Ask(xds.ListenerType)
		c.Ask(xds.ExtensionType, "a")
		quiet(t, c)
		b.publish(lds(t, "l", "1"), ecds(t, "a", "1"))
		wantContents(t, c.Next(), "l 1")
		wantContents(t, c.Next(), "a 1")
	})
}

func TestServer_EmptyPlanIsAnAnswerForListenersAndClusters(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish()
		c := b.ads()
		c.Ask(xds.ClusterType)
		wantContents(t, c.Next())
		d := b.delta()
		d.Ask(xds.ListenerType, nil)
		if r := d.Next(); len(r.GetResources()) != 0 {
			t.Errorf("got %v", r)
		}
	})
}

func TestServer_SendsNothingThatDidNotChange(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(lds(t, "l", "1"), ecds(t, "a", "1"), ecds(t, "b", "1"))
		c := b.ads()
		c.Ask(xds.ListenerType)
		c.Ack(c.Next())
		c.Ask(xds.ExtensionType, "a", "b")
		c.Ack(c.Next())
		c.Ack(c.Next())
		quiet(t, c)
		b.publish(lds(t, "l", "1"), ecds(t, "a", "1"), ecds(t, "b", "2"))
		r := c.Next()
		wantContents(t, r, "b 2")
		c.Ack(r)
		b.publish(lds(t, "l", "1"), ecds(t, "a", "1"), ecds(t, "b", "2"))
		quiet(t, c)
	})
}

func TestTrap1_DeltaNeverRemovesAnExtension(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(ecds(t, "a", "1"))
		c := b.delta()
		c.Ask(xds.ExtensionType, nil, "a", "unknown")
		r := c.Next()
		if len(r.GetRemovedResources()) != 0 || len(r.GetResources()) != 1 {
			t.Errorf("got %v", r)
		}
		c.Ack(r)
		b.publish()
		quiet(t, c)
		b.publish(&xds.Resource{Type: xds.ExtensionType, Name: "a", Hold: true})
		quiet(t, c)
	})
}

func TestTrap2_SotWRemovesByOmissionOnlyListenersAndClusters(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(lds(t, "l", "1"), lds(t, "m", "1"), rds(t, "r", "1"), ecds(t, "a", "1"))
		c := b.ads()
		c.Ask(xds.ListenerType)
		r := c.Next()
		wantContents(t, r, "l 1", "m 1")
		c.Ack(r)
		c.Ask(xds.RouteType, "r")
		c.Ack(c.Next())
		c.Ask(xds.ExtensionType, "a")
		c.Ack(c.Next())
		b.publish(lds(t, "m", "1"))
		r = c.Next()
		wantContents(t, r, "m 1")
		c.Ack(r)
		quiet(t, c)
		if got := b.state(xds.ListenerType, "l"); got != "" {
			t.Errorf("the ledger still has a listener that is gone: %s", got)
		}
	})
}

func TestTrap3_OneTypeNeverWaitsForAnother(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(cds(t, "c", "1"), lds(t, "l", "1"), rds(t, "r", "1"), ecds(t, "a", "1"))
		c := b.ads()
		c.Ask(xds.ClusterType)
		c.Ask(xds.ListenerType)
		c.Ask(xds.RouteType, "r")
		c.Ask(xds.ExtensionType, "a")
		got := map[string]bool{}
		for range 4 { // not one of them is acknowledged
			got[c.Next().GetTypeUrl()] = true
		}
		if len(got) != 4 {
			t.Errorf("answered types: %v", got)
		}
	})
}

func TestTrap3_AdditionsComeClustersFirstAndGoLast(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(cds(t, "old", "1"), lds(t, "l", "1"))
		c := b.ads()
		c.Ask(xds.ClusterType)
		c.Ack(c.Next())
		c.Ask(xds.ListenerType)
		c.Ack(c.Next())
		synctest.Wait()
		b.publish(cds(t, "new", "1"), lds(t, "l", "2"))
		r := c.Next()
		wantContents(t, r, "new 1", "old 1") // the listener may still refer to the old one
		second := c.Next()
		wantContents(t, second, "l 2")
		c.Ack(r)
		quiet(t, c)
		c.Ack(second)
		wantContents(t, c.Next(), "new 1")
	})
}

func TestTrap5_OneExtensionInEachResponse(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(ecds(t, "a", "1"), ecds(t, "b", "1"), ecds(t, "c", "1"))
		c := b.ads()
		c.Ask(xds.ExtensionType, "a", "b", "c")
		r := c.Next()
		wantContents(t, r, "a 1")
		c.Ack(r)
		r = c.Next()
		wantContents(t, r, "b 1")
		c.Nack(r, "no")
		r = c.Next()
		wantContents(t, r, "c 1") // a refusal of one is no refusal of another
		c.Ack(r)
		for name, want := range map[string]string{"a": "accepted 1", "b": "rejected 1 no", "c": "accepted 1"} {
			if got := b.state(xds.ExtensionType, name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
	})
}

func TestTrap5_ARefusedListenerResponseBlamesThoseItNames(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(lds(t, "l", "1"), lds(t, "l-2", "1"), lds(t, "m", "1"))
		c := b.ads()
		c.Ask(xds.ListenerType)
		c.Nack(c.Next(), "Error adding/updating listener(s) l-2: duplicate address\n")
		for name, want := range map[string]string{"l": "accepted 1", "l-2": "rejected 1 Error adding/updating listener(s) l-2: duplicate address", "m": "accepted 1"} {
			if got := b.state(xds.ListenerType, name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		b.publish(lds(t, "l", "2"), lds(t, "l-2", "1"), lds(t, "m", "1"))
		c.Nack(c.Next(), "something is wrong")
		if got := b.state(xds.ListenerType, "l"); got != "unproven 2 something is wrong" {
			t.Errorf("l is %q, want it unproven: the words name nobody", got)
		}
		if got := b.state(xds.ListenerType, "m"); got != "accepted 1" {
			t.Errorf("m is %q, want it accepted as before", got)
		}
	})
}

func TestTrap6_DeltaReconnectWithKnownVersionsCostsNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(cds(t, "c", "1"), lds(t, "l", "1"), ecds(t, "a", "1"), ecds(t, "b", "2"))
		c := b.delta()
		c.Ask(xds.ClusterType, map[string]string{"c": "1"})
		c.Ask(xds.ListenerType, map[string]string{"l": "1"}, "*")
		c.Ask(xds.ExtensionType, map[string]string{"a": "1", "b": "1"}, "a", "b")
		r := c.Next()
		if len(r.GetResources()) != 1 || r.GetResources()[0].GetName() != "b" || r.GetResources()[0].GetVersion() != "2" {
			t.Errorf("got %v, want b alone", r)
		}
		quiet(t, c)
		if got := b.state(xds.ExtensionType, "a"); got != "accepted 1" {
			t.Errorf("a is %q", got)
		}
	})
}

func TestTrap6_SotWReconnectIsSentWhatItNames(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(lds(t, "l", "1"), ecds(t, "a", "1"))
		c := b.ads()
		c.Ask(xds.ExtensionType, "a")
		c.Ack(c.Next())
		version := c.Version(xds.ExtensionType)
		c.Close()
		again := b.ads()
		again.Have(xds.ExtensionType, version)
		again.Ask(xds.ExtensionType, "a")
		r := again.Next()
		wantContents(t, r, "a 1") // equal bytes: Envoy skips them
		if r.GetVersionInfo() != version {
			t.Errorf("version %q, was %q: what a proxy holds has one version", r.GetVersionInfo(), version)
		}
	})
}

func TestTrap7_Wildcards(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(lds(t, "l", "1"), lds(t, "m", "1"), rds(t, "r", "1"), ecds(t, "a", "1"))
		t.Log("a first request without names is all; an empty list after names is none")
		c := b.ads()
		c.Ask(xds.ListenerType)
		r := c.Next()
		wantContents(t, r, "l 1", "m 1")
		c.Ack(r)
		c.Ask(xds.ListenerType, "m")
		r = c.Next()
		wantContents(t, r, "m 1")
		c.Ack(r)
		c.Ask(xds.ListenerType)
		synctest.Wait()
		for {
			r, ok := c.Waiting()
			if !ok {
				break
			}
			wantContents(t, r)
			c.Ack(r)
			synctest.Wait()
		}
		t.Log("a star is all")
		c.Ask(xds.ListenerType, "*")
		wantContents(t, c.Next(), "l 1", "m 1")
		t.Log("routes and extensions have no wildcard")
		c.Ask(xds.RouteType)
		c.Ask(xds.ExtensionType)
		c.Ask(xds.ExtensionType, "*")
		quiet(t, c)
	})
}

func TestTrap7_NewNamesWithAnOldNonceAreAnsweredAndStaleNoncesIgnored(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(ecds(t, "a", "1"), ecds(t, "b", "1"))
		c := b.ads()
		c.Ask(xds.ExtensionType, "a")
		first := c.Next()
		c.Ack(first)
		b.publish(ecds(t, "a", "2"), ecds(t, "b", "1"))
		second := c.Next()
		wantContents(t, second, "a 2")
		// This request crossed the second response: it is no answer to it.
		c.Send(&discoveryv3.DiscoveryRequest{TypeUrl: xds.ExtensionType, ResourceNames: []string{"a", "b"}, ResponseNonce: first.GetNonce(), VersionInfo: first.GetVersionInfo()})
		if got := b.state(xds.ExtensionType, "a"); got != "sent 2" {
			t.Errorf("a is %q, want sent: a stale nonce says nothing", got)
		}
		c.Ask(xds.ExtensionType, "a", "b")
		c.Ack(second)
		wantContents(t, c.Next(), "b 1")
	})
}

func TestTrap8_AStreamKeepsItsNode(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(lds(t, "l", "1"))
		c := b.ads()
		c.Ask(xds.ListenerType)
		c.Ack(c.Next())
		c.Send(&discoveryv3.DiscoveryRequest{TypeUrl: xds.ListenerType, Node: xdstest.Node(gateway)})
		synctest.Wait()
		c.Send(&discoveryv3.DiscoveryRequest{TypeUrl: xds.ClusterType, Node: xdstest.Node(plugin.Node{ID: "gw-0", Cluster: "edge", Namespace: "team-b"})})
		if err := c.Ended(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("ended with %v, want InvalidArgument", err)
		}
	})
}

func TestTrap8_SingleTypeStreamsOfOneProxyAreOneProxy(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		name := xds.ResourceName(key("p"))
		b.publish(lds(t, "l", "1"), ecds(t, name, "1"))
		l := xdstest.OpenListeners(t, b.dial(), gateway)
		l.Ask(xds.ListenerType)
		l.Ack(l.Next())
		e := xdstest.OpenExtensions(t, b.dial(), gateway)
		e.Ask(xds.ExtensionType, name)
		e.Ack(e.Next())
		synctest.Wait()
		if p := b.server.Proxies(); len(p) != 1 || len(p[0].Resources) != 2 {
			t.Errorf("proxies: %+v, want one with two resources", p)
		}
		if got, want := b.server.Counts(key("p")), (xds.Counts{Matched: 1, Sent: 1, Accepted: 1}); got != want {
			t.Errorf("counts %+v, want %+v", got, want)
		}
		// A copied bootstrap: the same id, another process.
		other := b.ads()
		other.Ask(xds.ExtensionType, name)
		other.Nack(other.Next(), "no")
		synctest.Wait()
		if p := b.server.Proxies(); len(p) != 2 {
			t.Errorf("proxies: %+v, want two", p)
		}
		if got, want := b.server.Counts(key("p")), (xds.Counts{Matched: 2, Sent: 2, Accepted: 1, Rejected: 1}); got != want {
			t.Errorf("counts %+v, want %+v", got, want)
		}
	})
}

func TestTrap13_LimitsBeforeWork(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish()
		for name, r := range map[string]*discoveryv3.DiscoveryRequest{
			"a long name": {TypeUrl: xds.ExtensionType, ResourceNames: []string{strings.Repeat("x", 1025)}},
			"many names":  {TypeUrl: xds.ExtensionType, ResourceNames: make([]string, xds.DefaultMaxNames+1)},
			"no type":     {},
		} {
			c := b.ads()
			c.Send(r)
			if code := status.Code(c.Ended()); code != codes.InvalidArgument && code != codes.ResourceExhausted {
				t.Errorf("%s: ended with %v", name, code)
			}
		}
		c := xdstest.OpenExtensions(t, b.dial(), gateway)
		c.Ask(xds.ListenerType)
		if err := c.Ended(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("another type on a single-type stream: %v", err)
		}
		t.Log("a type that is not served does not end the stream")
		a := b.ads()
		a.Ask("type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", "x")
		a.Ask(xds.ListenerType)
		wantContents(t, a.Next())
	})
}

func TestServer_ANameOutsideThePlanDoesNotExist(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.server.Publish("others", xds.NewSnapshot(ecds(t, "secret", "1")))
		b.publish(ecds(t, "a", "1"))
		c, d := b.ads(), b.delta()
		c.Ask(xds.ExtensionType, "secret")
		d.Ask(xds.ExtensionType, nil, "secret")
		quiet(t, c)
		quiet(t, d)
	})
}

func TestServer_NeverTheSameBytesToAProxyThatRejectedThem(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		in := world(t, map[string]xds.Delivery{"p": inline()}, wasmPlugin("p", nil))
		in.File = nil
		name := xds.ResourceName(key("p"))
		bad := translate(t, in)
		b.server.Publish("g", bad)
		c := b.ads()
		c.Ask(xds.ExtensionType, name)
		first := c.Next()
		c.Nack(first, "Wasm VM failed")
		c.Ack(c.Next()) // the stand-in: see mend_test.go
		quiet(t, c)
		b.server.Publish("g", xds.NewSnapshot(ecds(t, name, "2")))
		c.Ack(c.Next())
		b.server.Publish("g", bad) // and back
		quiet(t, c)
		if got := b.state(xds.ExtensionType, name); !strings.HasPrefix(got, "rejected "+bad.Resource(xds.ExtensionType, name).Version) {
			t.Errorf("the ledger says %q", got)
		}
		if got, want := b.server.Counts(key("p")), (xds.Counts{Matched: 1, Sent: 1, Rejected: 1}); got != want {
			t.Errorf("counts %+v, want %+v", got, want)
		}

		t.Log("the same proxy, connected anew and holding nothing, gets other bytes of the same")
		c.Close()
		again := b.ads()
		again.Ask(xds.ExtensionType, name)
		r := again.Next()
		if proto.Equal(r.GetResources()[0], first.GetResources()[0]) {
			t.Error("the bytes are those that were rejected")
		}
		again.Nack(r, "still no")
		again.Ack(again.Next())
		quiet(t, again)
	})
}

func TestServer_NotYetIsTriedAgainWithChangedBytesAndGrowingDelay(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		d := remote()
		d.NackOnMiss = true
		in := world(t, map[string]xds.Delivery{"p": d}, wasmPlugin("p", nil))
		in.File = nil
		name := xds.ResourceName(key("p"))
		b.server.Publish("g", translate(t, in))
		c := b.ads()
		c.Ask(xds.ExtensionType, name)
		seen := map[string]bool{}
		var delays []time.Duration
		for i := range 7 {
			r := c.Next()
			bytes := string(r.GetResources()[0].GetValue())
			if seen[bytes] {
				t.Fatal("the same bytes twice")
			}
			seen[bytes] = true
			at := time.Now()
			c.Nack(r, "Failed to load Wasm code (fetching) from http://127.0.0.1:18001/modules/token")
			c.Ack(c.Next()) // the stand-in, so that the refused bytes are not the last: see mend.go
			if got := b.state(xds.ExtensionType, name); strings.Contains(got, "token") || !strings.Contains(got, "<redacted>") {
				t.Errorf("the ledger shows the module's URL: %s", got)
			}
			if got, want := b.server.Counts(key("p")), (xds.Counts{Matched: 1, Sent: 1}); i < 5 && got != want {
				t.Errorf("counts %+v after refusal %d, want %+v: it is fetching", got, i, want)
			}
			c.WaitNext(10 * time.Minute)
			delays = append(delays, time.Since(at))
		}
		want := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, 64 * time.Second}
		if d := cmp.Diff(want, delays); d != "" {
			t.Errorf("delays (-want +got):\n%s", d)
		}
		c.Ack(c.Next())
		quiet(t, c)
		if got, want := b.server.Counts(key("p")), (xds.Counts{Matched: 1, Sent: 1, Accepted: 1}); got != want {
			t.Errorf("counts %+v, want %+v", got, want)
		}
	})
}

func TestServer_HoldAnswersNothingAndTakesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		hold := &xds.Resource{Type: xds.ExtensionType, Name: "a", Hold: true}
		b.publish(hold, ecds(t, "b", "1"))
		c := b.ads()
		c.Ask(xds.ExtensionType, "a", "b")
		r := c.Next()
		wantContents(t, r, "b 1")
		c.Ack(r)
		quiet(t, c)
		b.publish(ecds(t, "a", "1"), ecds(t, "b", "1"))
		c.Ack(c.Next())
		b.publish(hold, ecds(t, "b", "1"))
		quiet(t, c)
	})
}

func TestP8_KeepLeavesWhatRunsAndStandsInForTheNew(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(ecds(t, "a", "1"))
		old := b.ads()
		old.Ask(xds.ExtensionType, "a")
		old.Ack(old.Next())
		oldDelta := b.delta()
		oldDelta.Ask(xds.ExtensionType, nil, "a")
		oldDelta.Ack(oldDelta.Next())

		keep := ecds(t, "a", "standin-x")
		keep.Keep, keep.KeptVersion = true, "1"
		b.publish(keep)
		quiet(t, old)
		quiet(t, oldDelta)

		fresh := b.ads()
		fresh.Ask(xds.ExtensionType, "a")
		r := fresh.Next()
		wantContents(t, r, "a standin-x")
		fresh.Ack(r)

		t.Log("who reports that it runs a real version keeps it, whatever stile remembers")
		back := b.ads()
		back.Have(xds.ExtensionType, old.Version(xds.ExtensionType))
		back.Ask(xds.ExtensionType, "a")
		quiet(t, back)
		backDelta := b.delta()
		backDelta.Ask(xds.ExtensionType, map[string]string{"a": "0"}, "a")
		quiet(t, backDelta)

		t.Log("who reports the stand-in, or something that is not ours, is new")
		stood := b.ads()
		stood.Have(xds.ExtensionType, fresh.Version(xds.ExtensionType))
		stood.Ask(xds.ExtensionType, "a")
		wantContents(t, stood.Next(), "a standin-x")
		foreign := b.ads()
		foreign.Have(xds.ExtensionType, "17")
		foreign.Ask(xds.ExtensionType, "a")
		wantContents(t, foreign.Next(), "a standin-x")

		t.Log("and when the plugin is back all get it, except those who have it")
		b.publish(ecds(t, "a", "1"))
		quiet(t, old)
		wantContents(t, fresh.Next(), "a 1")
	})
}

func TestServer_ASlowProxyHoldsNoOtherAndPendsOnlyTheLatest(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(ecds(t, "a", "0"))
		slow, quick := b.ads(), b.ads()
		slow.Ask(xds.ExtensionType, "a")
		first := slow.Next() // never answered until the end
		quick.Ask(xds.ExtensionType, "a")
		quick.Ack(quick.Next())
		for i := 1; i <= 50; i++ {
			b.publish(ecds(t, "a", fmt.Sprint(i)))
			r := quick.Next()
			wantContents(t, r, fmt.Sprintf("a %d", i))
			quick.Ack(r)
		}
		quiet(t, slow)
		slow.Ack(first)
		r := slow.Next()
		wantContents(t, r, "a 50")
		slow.Ack(r)
		quiet(t, slow)
	})
}

func TestServer_PublishReachesItsGroupAlone(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(ecds(t, "a", "1"))
		c := b.ads()
		c.Ask(xds.ExtensionType, "a")
		c.Ack(c.Next())
		b.server.Publish("other", xds.NewSnapshot(ecds(t, "a", "2")))
		quiet(t, c)
		var id xds.StreamID
		for _, e := range b.events {
			id = max(id, e.Stream)
		}
		b.server.Join(id, "other")
		wantContents(t, c.Next(), "a 2")
	})
}

func TestServer_ResubscribingIsAskingAnew(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(ecds(t, "a", "1"))
		c := b.ads()
		c.Ask(xds.ExtensionType, "a")
		c.Ack(c.Next())
		c.Ask(xds.ExtensionType)
		c.Ask(xds.ExtensionType, "a")
		wantContents(t, c.Next(), "a 1")
		d := b.delta()
		d.Ask(xds.ExtensionType, nil, "a")
		d.Ack(d.Next())
		d.Drop(xds.ExtensionType, "a")
		if got := b.state(xds.ExtensionType, "b"); got != "" {
			t.Error(got)
		}
		d.Ask(xds.ExtensionType, nil, "a")
		if r := d.Next(); len(r.GetResources()) != 1 {
			t.Errorf("got %v", r)
		}
	})
}

func TestServer_DeltaRemovesListenersAndSaysNothingOfAnAbsentRoute(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(lds(t, "l", "1"), lds(t, "m", "1"), rds(t, "r", "1"))
		c := b.delta()
		c.Ask(xds.ListenerType, nil)
		c.Ack(c.Next())
		c.Ask(xds.RouteType, nil, "r", "absent")
		c.Ack(c.Next())
		quiet(t, c) // a real one that is told waits for it without end: test/envoy
		b.publish(lds(t, "m", "2"))
		r := c.Next()
		if d := cmp.Diff([]string{"l"}, r.GetRemovedResources()); d != "" || len(r.GetResources()) != 1 {
			t.Errorf("got %v %s", r, d)
		}
		c.Ack(r)
		quiet(t, c)
	})
}

func TestServer_EventsAreCoalescedAndHoldNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := xds.NewServer(xds.Options{})
		dial := xdstest.Serve(t, s)
		s.Publish("g", xds.NewSnapshot(lds(t, "l", "1")))
		for range 3 { // nobody reads the events
			c := xdstest.OpenADS(t, dial(), gateway)
			c.Ask(xds.ListenerType)
			synctest.Wait()
			c.Close()
			synctest.Wait()
		}
		c := xdstest.OpenADS(t, dial(), gateway)
		c.Ask(xds.ListenerType)
		synctest.Wait()
		var got []xds.EventKind
		for {
			select {
			case e := <-s.Events():
				got = append(got, e.Kind)
				if e.Kind == xds.Connected && e.Node.ID != "gw-0" {
					t.Errorf("node %+v", e.Node)
				}
				synctest.Wait()
				continue
			default:
			}
			break
		}
		// The first may have been on its way out of the queue already.
		if d := cmp.Diff([]xds.EventKind{xds.Connected, xds.Gone, xds.Connected}, got); d != "" {
			t.Errorf("events (-want +got):\n%s", d)
		}
	})
}

func TestTrap4_APluginIsNoFurtherThanItsListeners(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		s := translate(t, world(t, map[string]xds.Delivery{"p": inline()}, wasmPlugin("p", nil)))
		b.server.Publish("g", s)
		c := b.ads()
		c.Ask(xds.ListenerType)
		r := c.Next()
		c.Ask(xds.ExtensionType, pluginResource)
		c.Ack(c.Next())
		synctest.Wait()
		if got, want := b.server.Counts(key("p")), (xds.Counts{Matched: 1, Sent: 1}); got != want {
			t.Errorf("counts %+v, want %+v: the listener is not accepted yet", got, want)
		}
		c.Nack(r, "Error adding/updating listener(s) http: no")
		synctest.Wait()
		if got, want := b.server.Counts(key("p")), (xds.Counts{Matched: 1, Sent: 1, Rejected: 1}); got != want {
			t.Errorf("counts %+v, want %+v: its listener was refused", got, want)
		}
		b.server.Publish("g", translate(t, world(t, map[string]xds.Delivery{"p": inline()}, wasmPlugin("p", func(s *v1alpha1.WasmPluginSpec) { s.Phase = v1alpha1.PhaseAuthN }))))
		c.Ack(c.Next())
		synctest.Wait()
		if got, want := b.server.Counts(key("p")), (xds.Counts{Matched: 1, Sent: 1, Accepted: 1}); got != want {
			t.Errorf("counts %+v, want %+v", got, want)
		}
	})
}

func TestServer_DeltaUnsubscribingFromAllIsNoRemoval(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(lds(t, "l", "1"))
		c := b.delta()
		c.Ask(xds.ListenerType, nil)
		c.Ack(c.Next())
		c.Drop(xds.ListenerType, "*")
		quiet(t, c)
		b.publish(lds(t, "l", "2"))
		quiet(t, c)
		if got := b.state(xds.ListenerType, "l"); got != "" {
			t.Errorf("the ledger still has %q", got)
		}
	})
}
