package cluster

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
	"github.com/stileproject/stile/internal/xds/xdstest"
)

// proxy is an Envoy of the cluster "edge" that takes all from one replica.
type proxy struct {
	*testing.T
	stream *xdstest.SotW

	mu    sync.Mutex        // guards the stream and what follows
	names []string          // of extensions, asked for once a listener is there
	runs  map[string]string // by resource name: "<sha256>", "remote <url> <sha256>" or "standin"
	sent  map[string][]byte // the bytes behind it
	times int
}

// proxy connects a proxy of the tenant to a replica, which asks for the named plugins.
func (t *tenant) proxy(r *replica, id string, names ...string) *proxy {
	t.Helper()
	conn, err := grpc.NewClient(r.at.XDS, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	p := &proxy{T: t.T, runs: map[string]string{}, sent: map[string][]byte{}}
	p.stream = xdstest.OpenADS(t.T, conn, plugin.Node{ID: id, Cluster: "edge", Namespace: t.namespace})
	var resources []string
	for _, n := range names {
		resources = append(resources, xds.ResourceName(plugin.Key{Namespace: t.namespace, Name: n}))
	}
	p.stream.Ask(xds.ClusterType)
	p.stream.Ask(xds.ListenerType)
	p.names = resources
	ended, done := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(ended); <-done })
	go func() {
		defer close(done)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				p.take()
			}
		}
	}()
	return p
}

// take takes what has come, fetches remote modules and answers yes.
func (p *proxy) take() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		r, ok := p.stream.Waiting()
		if !ok {
			return
		}
		p.times++
		if r.GetTypeUrl() != xds.ExtensionType {
			p.stream.Ack(r)
			if r.GetTypeUrl() == xds.ListenerType && p.names != nil {
				p.stream.Ask(xds.ExtensionType, p.names...)
				p.names = nil
			}
			continue
		}
		for _, a := range r.GetResources() {
			var e corev3.TypedExtensionConfig
			if err := a.UnmarshalTo(&e); err != nil {
				p.Error(err)
				continue
			}
			p.runs[e.GetName()], p.sent[e.GetName()] = p.module(&e), a.GetValue()
		}
		p.stream.Ack(r)
	}
}

// module says what an extension runs; a remote module is fetched and checked.
func (p *proxy) module(e *corev3.TypedExtensionConfig) string {
	var w httpwasmv3.Wasm
	if e.GetTypedConfig().UnmarshalTo(&w) != nil {
		return "standin"
	}
	code := w.GetConfig().GetVmConfig().GetCode()
	if b := code.GetLocal().GetInlineBytes(); len(b) > 0 {
		return sum(b)
	}
	remote := code.GetRemote()
	body, err := get(p.T, remote.GetHttpUri().GetUri())
	if err != nil {
		return "unfetched: " + err.Error()
	}
	if got := sum([]byte(body)); got != remote.GetSha256() {
		p.Errorf("the module's sum is %s, not %s", got, remote.GetSha256())
	}
	return remote.GetSha256()
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// Runs waits until the plugin of the tenant runs what is wanted: a module or "standin".
func (p *proxy) Runs(t *tenant, name, want string) {
	p.Helper()
	resource := xds.ResourceName(plugin.Key{Namespace: t.namespace, Name: name})
	kubetest.Eventually(p.T, func() string {
		p.take()
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.runs[resource] != want {
			return fmt.Sprintf("%s runs %q, want %q", resource, p.runs[resource], want)
		}
		return ""
	})
}

// Quiet wants nothing new to come for d.
func (p *proxy) Quiet(d time.Duration, why string) {
	p.Helper()
	p.take()
	before := p.count()
	select {
	case <-time.After(d):
	case <-p.Context().Done():
	}
	p.take()
	if n := p.count() - before; n != 0 {
		p.Errorf("%d answers came though %s", n, why)
	}
}

func (p *proxy) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.times
}

// Sent is what the proxy was sent last for a plugin of the tenant, to the byte.
func (p *proxy) Sent(t *tenant, name string) string {
	p.take()
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.sent[xds.ResourceName(plugin.Key{Namespace: t.namespace, Name: name})])
}
