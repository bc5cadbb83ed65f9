package sotw_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	client "github.com/envoyproxy/go-control-plane/pkg/client/sotw/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
	"github.com/stileproject/stile/internal/xds/xdstest"
)

const quietTime = 300 * time.Millisecond

// world is a server of stile's with listeners by their names.
type world struct {
	*testing.T
	server *xds.Server
	client client.ADSClient
	got    chan []string // the listeners of the response that the client waits for; nil: it waits for none

	connect func()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, server: xds.NewServer(xds.Options{})}
	dial := xdstest.Serve(t, w.server)
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case e := <-w.server.Events():
				if e.Kind == xds.Connected {
					w.server.Join(e.Stream, "g")
				}
			case <-over:
				return
			}
		}
	}()
	t.Cleanup(func() { close(over); <-done })
	metadata, err := structpb.NewStruct(map[string]any{"NAMESPACE": "team-a"})
	if err != nil {
		t.Fatal(err)
	}
	w.client = client.NewADSClient(t.Context(), &corev3.Node{Id: "gw-0", Cluster: "edge", Metadata: metadata}, xds.ListenerType)
	w.connect = func() {
		t.Helper()
		w.got = nil
		if err := w.client.InitConnect(dial()); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// fetch has the client wait for one response, if it does not already: while it waits it can say nothing.
func (w *world) fetch() <-chan []string {
	if w.got != nil {
		return w.got
	}
	got := make(chan []string, 1)
	w.got = got
	go func() {
		r, err := w.client.Fetch()
		if err != nil {
			return
		}
		var names []string
		for _, a := range r.Resources {
			l := &listenerv3.Listener{}
			if err := a.UnmarshalTo(l); err != nil {
				names = append(names, err.Error())
				continue
			}
			names = append(names, l.GetName())
		}
		slices.Sort(names)
		got <- names
	}()
	return got
}

// publish plans listeners of these names.
func (w *world) publish(names ...string) {
	w.Helper()
	text := "listeners:\n"
	if len(names) == 0 {
		text = "listeners: []\n"
	}
	for _, name := range names {
		text += fmt.Sprintf("- { name: %s, address: { socket_address: { address: 127.0.0.1, port_value: 0 } }, filter_chains: [{ filters: [{ name: t, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: c } }] }] }\n", name)
	}
	file, problems := xds.ParseEnvoy("edge.yaml", []byte(text))
	if file == nil {
		w.Fatal(problems)
	}
	plan, _ := plugin.Build(plugin.Inputs{Listeners: file.Listeners()})
	snapshot, _ := xds.Translate(xds.Input{Plan: plan, File: file})
	w.server.Publish("g", snapshot)
}

func (w *world) next(want ...string) {
	w.Helper()
	select {
	case got := <-w.fetch():
		w.got = nil
		if strings.Join(got, " ") != strings.Join(want, " ") {
			w.Errorf("got %v, want %v", got, want)
		}
	case <-time.After(10 * time.Second):
		w.Fatalf("nothing came, want %v", want)
	}
}

func (w *world) quiet() {
	w.Helper()
	select {
	case got := <-w.fetch():
		w.got = nil
		w.Errorf("unasked: %v", got)
	case <-time.After(quietTime):
	}
}

func (w *world) ack() {
	w.Helper()
	if err := w.client.Ack(); err != nil {
		w.Fatal(err)
	}
}

func TestAThirdPartysClient(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.connect()
	w.quiet() // nothing before the first plan
	w.publish("a")
	w.next("a")
	w.ack()
	w.quiet()

	t.Log("what changes comes, with all that is there; what does not change does not")
	w.publish("a", "b")
	w.next("a", "b")
	w.ack()
	w.publish("b", "a")
	w.quiet()
	w.publish("b")
	w.next("b")
	w.ack()

	t.Log("what it refused is not sent again until it changes: no loop")
	w.publish("b", "bad")
	w.next("b", "bad")
	if err := w.client.Nack("no"); err != nil {
		t.Fatal(err)
	}
	w.quiet()
	w.publish("b", "good")
	w.next("b", "good")
	w.ack()

	t.Log("on a new connection it tells what it holds, and is told the world")
	w.connect()
	w.next("b", "good")
	w.ack()
	w.quiet()
	proxies := w.server.Proxies()
	if last := proxies[len(proxies)-1]; last.ID != "gw-0" || len(last.Resources) != 2 {
		t.Errorf("the ledger: %+v", proxies)
	}
}
