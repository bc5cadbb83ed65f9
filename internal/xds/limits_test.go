package xds_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
	"github.com/stileproject/stile/internal/xds/xdstest"
)

func TestServer_WhoMayNotIsTurnedAwayUnknown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := xds.NewServer(xds.Options{Authorize: func(_ context.Context, n plugin.Node) error {
			if n.Namespace != "team-a" {
				return errors.New("this certificate speaks for team-a alone")
			}
			return nil
		}})
		dial := xdstest.Serve(t, s)
		c := xdstest.OpenADS(t, dial(), plugin.Node{ID: "x", Cluster: "edge", Namespace: "team-b"})
		c.Ask(xds.ListenerType)
		if err := c.Ended(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("ended with %v", err)
		}
		synctest.Wait()
		select {
		case e := <-s.Events():
			t.Errorf("event %+v", e)
		default:
		}
		if p := s.Proxies(); len(p) != 0 {
			t.Errorf("proxies %+v", p)
		}
	})
}

func TestServer_StreamsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := xds.NewServer(xds.Options{MaxStreams: 1})
		dial := xdstest.Serve(t, s)
		first := xdstest.OpenADS(t, dial(), gateway)
		first.Ask(xds.ListenerType)
		synctest.Wait()
		if err := xdstest.OpenADS(t, dial(), gateway).Ended(); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("ended with %v", err)
		}
		first.Close()
		synctest.Wait()
		again := xdstest.OpenADS(t, dial(), gateway)
		again.Ask(xds.ListenerType)
		synctest.Wait()
		if p := s.Proxies(); len(p) != 1 {
			t.Errorf("proxies %+v", p)
		}
	})
}

func TestServer_Metrics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewPedanticRegistry()
		s := xds.NewServer(xds.Options{Registerer: registry})
		dial := xdstest.Serve(t, s)
		s.Publish("g", xds.NewSnapshot(lds(t, "l", "1"), ecds(t, "a", "1")))
		c := xdstest.OpenADS(t, dial(), gateway)
		c.Ask(xds.ListenerType)
		s.Join((<-s.Events()).Stream, "g")
		c.Ack(c.Next())
		c.Ask(xds.ExtensionType, "a")
		c.Nack(c.Next(), "no")
		synctest.Wait()
		want := `
# HELP stile_xds_connected_nodes Proxies that are connected.
# TYPE stile_xds_connected_nodes gauge
stile_xds_connected_nodes 1
# HELP stile_xds_nacks_total Responses that proxies rejected, by the type of their resources.
# TYPE stile_xds_nacks_total counter
stile_xds_nacks_total{type="cluster"} 0
stile_xds_nacks_total{type="extension"} 1
stile_xds_nacks_total{type="listener"} 0
stile_xds_nacks_total{type="route"} 0
# HELP stile_xds_pushes_total Responses sent to proxies, by the type of their resources.
# TYPE stile_xds_pushes_total counter
stile_xds_pushes_total{type="cluster"} 0
stile_xds_pushes_total{type="extension"} 1
stile_xds_pushes_total{type="listener"} 1
stile_xds_pushes_total{type="route"} 0
`
		if err := testutil.GatherAndCompare(registry, strings.NewReader(want)); err != nil {
			t.Error(err)
		}
	})
}

func TestParseNode_SaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	got, err := xds.ParseNode([]byte(`{"node": {"id": "a", "cluster": "b", "metadata": {"NAMESPACE": "n", "GATEWAY": "g", "LABELS": {"x": "y"}},
	  "extensions": [{"name": "envoy.filters.http.wasm"}, {"name": "other", "typeUrls": ["envoy.extensions.filters.network.wasm.v3.Wasm"]}, {"name": "envoy.filters.http.fault", "disabled": true}]}}`))
	want := plugin.Node{ID: "a", Cluster: "b", Namespace: "n", Gateway: "g", Labels: map[string]string{"x": "y"}, Extensions: []string{
		typePrefix + "http.wasm.v3.Wasm", typePrefix + "network.wasm.v3.Wasm"}}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if n, _ := xds.ParseNode([]byte("id: a\nextensions: [{name: x}]")); len(n.Extensions) == 0 {
		t.Error("a proxy that lists extensions, and none of ours, would be taken to have all")
	}
	for text, want := range map[string]string{
		"":                    "empty",
		"[]":                  "must be an object",
		"id: a\nklaster: b":   "did you mean cluster?",
		"id: a\nid: b":        "twice",
		"id: {a: b}":          "must be a string",
		"metadata: [1, 2, 3]": "metadata",
	} {
		if _, err := xds.ParseNode([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
