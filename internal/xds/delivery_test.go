package xds_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/stileproject/stile/internal/xds"
	"github.com/stileproject/stile/internal/xds/xdstest"
)

// vmOf returns the VM configuration within an ECDS resource.
func vmOf(t testing.TB, a *anypb.Any) *wasmv3.VmConfig {
	t.Helper()
	config, filter := &corev3.TypedExtensionConfig{}, &httpwasmv3.Wasm{}
	if err := a.UnmarshalTo(config); err != nil {
		t.Fatal(err)
	}
	if err := config.GetTypedConfig().UnmarshalTo(filter); err != nil {
		t.Fatal(err)
	}
	return filter.GetConfig().GetVmConfig()
}

// only publishes one plugin without listeners of ours, and one listener beside.
func (b *bench) only(d xds.Delivery) *xds.Resource {
	b.t.Helper()
	in := world(b.t, map[string]xds.Delivery{"p": d}, wasmPlugin("p", nil))
	in.File, in.ModulesURL = nil, ""
	s := translate(b.t, in)
	r := s.Resource(xds.ExtensionType, xds.ResourceName(key("p")))
	b.publish(r, lds(b.t, "l", "1"))
	return r
}

var pluginResource = xds.ResourceName(key("p"))

func nacks(t testing.TB, r *discoveryv3.DiscoveryResponse) bool {
	t.Helper()
	return vmOf(t, r.GetResources()[0]).GetNackOnCodeCacheMiss()
}

func TestRemote_GoesPlainOnlyToAListenerThatWarms(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.only(remote())

		t.Log("a proxy that starts: its listener waits for the code")
		c := b.ads()
		c.Ask(xds.ListenerType)
		c.Ack(c.Next())
		c.Ask(xds.ExtensionType, pluginResource)
		r := c.Next()
		if nacks(t, r) {
			t.Error("the first answer to a listener that warms asks to be refused: the stand-in would serve first")
		}
		c.Ack(r)

		t.Log("a new version for the same proxy: never plain")
		d := remote()
		d.URL += "-2"
		b.only(d)
		r = c.Next()
		if !nacks(t, r) {
			t.Error("a live update by plain remote: Envoy would skip the filter and say yes")
		}
		c.Ack(r)
		version := c.Version(xds.ExtensionType)
		c.Close()

		t.Log("a proxy that was running already, and asks as its stream begins")
		again := b.ads()
		again.Have(xds.ListenerType, "x")
		again.Ask(xds.ListenerType)
		again.Ack(again.Next())
		again.Have(xds.ExtensionType, version)
		again.Ask(xds.ExtensionType, pluginResource)
		if r := again.Next(); !nacks(t, r) || vmOf(t, r.GetResources()[0]).GetVmId() == "" {
			t.Error("a proxy that runs was sent plain remote")
		}

		t.Log("one with its own listeners, of which nothing is known")
		own := b.ads()
		own.Ask(xds.ExtensionType, pluginResource)
		if r := own.Next(); !nacks(t, r) {
			t.Error("a proxy of which nothing is known was sent plain remote")
		}
	})
}

func TestRemote_ALateAnswerIsNotPlain(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(&xds.Resource{Type: xds.ExtensionType, Name: pluginResource, Hold: true}, lds(t, "l", "1"))
		c := b.ads()
		c.Ask(xds.ListenerType)
		c.Ack(c.Next())
		c.Ask(xds.ExtensionType, pluginResource)
		synctest.Wait()
		<-time.After(40 * time.Second) // the bubble's clock: the stand-in is live by now
		b.only(remote())
		if r := c.Next(); !nacks(t, r) {
			t.Error("plain remote over a live stand-in opens it")
		}
	})
}

func TestRemote_AYesToThePlainFormIsProvenLater(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		version := b.only(remote()).Version
		c := b.ads()
		c.Ask(xds.ListenerType)
		c.Ack(c.Next())
		c.Ask(xds.ExtensionType, pluginResource)
		c.Ack(c.Next())
		if got := b.state(xds.ExtensionType, pluginResource); got != "sent "+version+"~plain" {
			t.Errorf("%q: a yes before the code is there proves nothing", got)
		}
		c.WaitNext(time.Minute)
		r := c.Next()
		if !nacks(t, r) {
			t.Error("the proof is plain again")
		}
		c.Nack(r, "Unable to create Wasm plugin team-a.p")
		if got := b.state(xds.ExtensionType, pluginResource); !strings.HasPrefix(got, "sent ") {
			t.Errorf("%q, want sent: it is fetching", got)
		}
		c.WaitNext(time.Minute)
		c.Ack(c.Next())
		if got := b.state(xds.ExtensionType, pluginResource); got != "accepted "+version+"~2" {
			t.Errorf("%q, want it accepted", got)
		}
		synctest.Wait()
		<-time.After(time.Hour)
		quiet(t, c)
	})
}

func TestServer_AfterARestartAYesIsNeverToBytesRefusedBefore(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		r := b.only(inline())
		t.Log("the proxy ran before this stile: it holds something, and refused this version of another stile")
		c := b.ads()
		c.Have(xds.ListenerType, "x")
		c.Ask(xds.ListenerType)
		c.Ack(c.Next())
		c.Have(xds.ExtensionType, "w1-")
		c.Ask(xds.ExtensionType, pluginResource)
		got := c.Next()
		if string(got.GetResources()[0].GetValue()) == string(r.Any.GetValue()) {
			t.Error("the bytes are those that another stile may have sent: a yes would prove nothing")
		}
		c.Ack(got)
		if s := b.state(xds.ExtensionType, pluginResource); !strings.HasPrefix(s, "accepted "+r.Version+"~") {
			t.Errorf("ledger: %q", s)
		}
		version := c.Version(xds.ExtensionType)
		c.Close()

		t.Log("connected again it is sent the bytes that it holds: they cost it nothing")
		again := b.ads()
		again.Have(xds.ExtensionType, version)
		again.Ask(xds.ExtensionType, pluginResource)
		if r := again.Next(); string(r.GetResources()[0].GetValue()) != string(got.GetResources()[0].GetValue()) || r.GetVersionInfo() != version {
			t.Error("the bytes differ from those that it holds")
		}
	})
}

func TestServer_ANewProcessIsSentThePlainBytes(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		r := b.only(inline())
		for range 2 {
			c := b.ads()
			c.Ask(xds.ListenerType)
			c.Ack(c.Next())
			c.Ask(xds.ExtensionType, pluginResource)
			got := c.Next()
			if string(got.GetResources()[0].GetValue()) != string(r.Any.GetValue()) {
				t.Error("the bytes are not those that the group shares")
			}
			c.Close()
		}
	})
}

// A module that the process before it refused while it was fetching, as it was asked to, comes
// plainly to a new process: its listener waits for it, and nobody meets a stand-in.
func TestRemote_ANewProcessOwesNothingToTheOneBefore(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.only(remote())
		ask := func(c *xdstest.SotW, clusters, listeners string) *discoveryv3.DiscoveryResponse {
			c.Have(xds.ClusterType, clusters)
			c.Ask(xds.ClusterType)
			c.Have(xds.ListenerType, listeners)
			c.Ask(xds.ListenerType)
			c.Ask(xds.ExtensionType, pluginResource)
			for {
				if r := c.Next(); r.GetTypeUrl() == xds.ExtensionType {
					return r
				}
			}
		}
		running := b.ads()
		r := ask(running, "1", "1")
		if !nacks(t, r) {
			t.Fatal("a process that runs is sent the plain form")
		}
		running.Nack(r, "Unable to create Wasm plugin team-a.p")
		running.Close()

		half := b.ads() // it has refused its listeners, in part, but runs with its clusters
		if !nacks(t, ask(half, "1", "")) {
			t.Error("a process that holds clusters is taken for a new one")
		}
		half.Close()

		if nacks(t, ask(b.ads(), "", "")) {
			t.Error("a new process meets the stand-in")
		}
	})
}

func TestP8_HoldWithKeepAnswersNobodyAndCountsThoseWhoRunIt(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.publish(ecds(t, pluginResource, "1"))
		c := b.ads()
		c.Ask(xds.ExtensionType, pluginResource)
		c.Ack(c.Next())
		version := c.Version(xds.ExtensionType)
		b.publish(&xds.Resource{Type: xds.ExtensionType, Name: pluginResource, Hold: true, Keep: true})
		quiet(t, c)
		if got, want := b.server.Counts(key("p")), (xds.Counts{Matched: 1, Sent: 1, Accepted: 1}); got != want {
			t.Errorf("counts %+v, want %+v", got, want)
		}
		fresh, back := b.ads(), b.ads()
		fresh.Ask(xds.ExtensionType, pluginResource)
		back.Have(xds.ExtensionType, version)
		back.Ask(xds.ExtensionType, pluginResource)
		quiet(t, fresh)
		quiet(t, back)
		if got, want := b.server.Counts(key("p")), (xds.Counts{Matched: 3, Sent: 2, Accepted: 2}); got != want {
			t.Errorf("counts %+v, want %+v", got, want)
		}
		t.Log("when it is there again all are sent it but the one who was, on this stream")
		b.publish(ecds(t, pluginResource, "1"))
		quiet(t, c)
		wantContents(t, fresh.Next(), pluginResource+" 1")
		wantContents(t, back.Next(), pluginResource+" 1")
	})
}

func TestRemote_ThePlainFormIsNeverSentAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		version := b.only(remote()).Version
		c := b.ads()
		c.Ask(xds.ListenerType)
		c.Ack(c.Next())
		c.Ask(xds.ExtensionType, pluginResource)
		c.Ack(c.Next())
		said := c.Version(xds.ExtensionType)
		c.Close()

		again := b.ads()
		again.Have(xds.ListenerType, "x")
		again.Ask(xds.ListenerType)
		again.Ack(again.Next())
		again.Have(xds.ExtensionType, said)
		again.Ask(xds.ExtensionType, pluginResource)
		quiet(t, again)
		if got := b.state(xds.ExtensionType, pluginResource); got != "sent "+version+"~plain" {
			t.Errorf("ledger: %q", got)
		}
		again.WaitNext(time.Minute)
		r := again.Next()
		if !nacks(t, r) {
			t.Error("the plain form was sent again: where its code is missing Envoy would skip the filter")
		}
		again.Ack(r)
		if got := b.state(xds.ExtensionType, pluginResource); !strings.HasPrefix(got, "accepted ") {
			t.Errorf("ledger: %q", got)
		}
	})
}
