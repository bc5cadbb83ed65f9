package xds_test

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/xds"
)

// Envoy makes a listener anew from the extension that it was sent last, though it refused
// it: see mend.go. So a refusal must not be the last word.

func TestP7_ARefusalIsFollowedByWhatRanBefore(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		name := xds.ResourceName(key("p"))
		in := world(t, map[string]xds.Delivery{"p": inline()}, wasmPlugin("p", nil))
		in.File = nil
		good := translate(t, in)
		in.Plugins[key("p")] = wasmPlugin("p", func(s *v1alpha1.WasmPluginSpec) { s.PluginConfig = &v1alpha1.Object{Raw: []byte(`{"bad":1}`)} })
		bad := translate(t, in)
		b.server.Publish("g", good)
		c := b.ads()
		c.Ask(xds.ExtensionType, name)
		first := c.Next()
		c.Ack(first)
		b.server.Publish("g", bad)
		c.Nack(c.Next(), "Unable to create Wasm plugin team-a.p")
		mended := c.Next()
		if !proto.Equal(mended.GetResources()[0], first.GetResources()[0]) {
			t.Errorf("what follows the refusal is not what ran before: %v", mended)
		}
		c.Ack(mended)
		quiet(t, c)
		if got := b.state(xds.ExtensionType, name); !strings.HasPrefix(got, "rejected "+bad.Resource(xds.ExtensionType, name).Version) {
			t.Errorf("the ledger says %q", got)
		}

		t.Log("on a new stream the proxy refuses again, and what it ran is still known")
		version := c.Version(xds.ExtensionType)
		c.Close()
		again := b.ads()
		again.Have(xds.ExtensionType, version)
		again.Ask(xds.ExtensionType, name)
		again.Nack(again.Next(), "Unable to create Wasm plugin team-a.p")
		if r := again.Next(); !proto.Equal(r.GetResources()[0], first.GetResources()[0]) {
			t.Errorf("what follows the refusal is not what ran before: %v", r)
		}
	})
}

func TestP7_AFirstRefusalIsFollowedByTheStandIn(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		in := world(t, map[string]xds.Delivery{"p": inline()}, wasmPlugin("p", nil))
		in.File = nil
		b.server.Publish("g", translate(t, in))
		c := b.ads()
		c.Ask(xds.ExtensionType, xds.ResourceName(key("p")))
		c.Nack(c.Next(), "Unable to create Wasm plugin team-a.p")
		standIn := c.Next()
		if !bytes.Contains(standIn.GetResources()[0].GetValue(), []byte("fault.v3.HTTPFault")) {
			t.Errorf("want the stand-in, have %v", standIn)
		}
		c.Nack(standIn, "no")
		quiet(t, c) // what is refused though it is to mend is not tried again
	})
}

func TestP7_ListenersThatWereRefusedAreSentAgainOnceTheirExtensionLoads(t *testing.T) {
	for _, delta := range []bool{false, true} {
		t.Run(map[bool]string{false: "state of the world", true: "delta"}[delta], func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				name := xds.ResourceName(key("p"))
				in := world(t, map[string]xds.Delivery{"p": inline()}, wasmPlugin("p", nil))
				b.server.Publish("g", translate(t, in))
				ask, refuse, accept, still := b.both(delta)
				ask(xds.ListenerType)
				listeners := refuse("Error adding/updating listener(s) http: Unable to create Wasm plugin team-a.p")
				still()
				ask(xds.ExtensionType, name)
				accept() // the extension loads
				if again := accept(); again != listeners {
					t.Errorf("after the extension loaded: %s, want the listeners %s", again, listeners)
				}
				still()
			})
		})
	}
}

// both opens a stream of either protocol, and returns what a story does with it; an answer
// is told by its type and resources.
func (b *bench) both(delta bool) (ask func(typeURL string, names ...string), refuse func(string) string, accept func() string, still func()) {
	if delta {
		c := b.delta()
		ask = func(typeURL string, names ...string) { c.Ask(typeURL, nil, names...) }
		refuse = func(m string) string { r := c.Next(); c.Nack(r, m); return r.GetTypeUrl() }
		accept = func() string { r := c.Next(); c.Ack(r); return r.GetTypeUrl() }
		return ask, refuse, accept, func() { b.t.Helper(); quiet(b.t, c) }
	}
	c := b.ads()
	refuse = func(m string) string { r := c.Next(); c.Nack(r, m); return r.GetTypeUrl() }
	accept = func() string { r := c.Next(); c.Ack(r); return r.GetTypeUrl() }
	return c.Ask, refuse, accept, func() { b.t.Helper(); quiet(b.t, c) }
}
