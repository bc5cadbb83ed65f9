package istio_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http/httptest"
	"os"
	"sync/atomic"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"istio.io/istio/pkg/wasm"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/serve"
	"github.com/stileproject/stile/internal/xds"
	"github.com/stileproject/stile/modules"
)

// world is the module server, and what a proxy is sent of a plugin that it serves.
type world struct {
	t      *testing.T
	gone   atomic.Bool
	module []byte
	server *httptest.Server
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, module: modules.Badge()}
	w.server = httptest.NewServer(serve.New(w, serve.Options{}))
	t.Cleanup(w.server.Close)
	return w
}

type file struct{ io.ReadSeeker }

func (file) Close() error { return nil }

func (w *world) OpenModule(_ context.Context, token string) (io.ReadSeekCloser, serve.Module, error) {
	if token != "secret" || w.gone.Load() {
		return nil, serve.Module{}, serve.ErrGone
	}
	f, err := os.CreateTemp(w.t.TempDir(), "")
	if err != nil {
		return nil, serve.Module{}, err
	}
	if _, err = f.Write(w.module); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	return f, serve.Module{Plugin: "team-a/p", SHA256: sum(w.module), Size: int64(len(w.module))}, err
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// resource is what ECDS sends of the plugin.
func (w *world) resource(d xds.Delivery, strategy v1alpha1.FailStrategy) *anypb.Any {
	w.t.Helper()
	p := &v1alpha1.WasmPlugin{ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "p"}}
	p.Spec.URL = "oci://registry.example/p:v1"
	p.Spec.PluginConfig = &v1alpha1.Object{Raw: []byte(`{"name":"p"}`)}
	p.Spec.FailStrategy = strategy
	d.Size = int64(len(w.module))
	if d.SHA256 == "" {
		d.SHA256 = sum(w.module)
	}
	key := plugin.KeyOf(p)
	snapshot, problems := xds.Translate(xds.Input{
		Node: plugin.Node{ID: "gw-0", Namespace: "team-a"}, Plugins: map[plugin.Key]*v1alpha1.WasmPlugin{key: p}, ServeAlone: []plugin.Key{key},
		ModulesURL: w.server.URL, Deliver: func(plugin.Key) xds.Delivery { return d },
	})
	if len(problems) > 0 {
		w.t.Fatal(problems)
	}
	return snapshot.Resource(xds.ExtensionType, xds.ResourceName(key)).Any
}

// convert has the agent rewrite a resource as it does before Envoy sees it.
func (w *world) convert(resource *anypb.Any) *anypb.Any {
	w.t.Helper()
	cache := wasm.NewLocalFileCache(w.t.TempDir(), wasm.Options{HTTPRequestMaxRetries: 1})
	defer cache.Cleanup()
	resources := []*anypb.Any{resource}
	if err := wasm.MaybeConvertWasmExtensionConfig(resources, cache); err != nil {
		w.t.Fatal(err)
	}
	return resources[0]
}

// filter opens a resource as a filter.
func filter[M interface {
	*wasmv3.Wasm | *rbacv3.RBAC
}](t *testing.T, resource *anypb.Any) M {
	t.Helper()
	config := &corev3.TypedExtensionConfig{}
	if err := resource.UnmarshalTo(config); err != nil {
		t.Fatal(err)
	}
	message, err := config.GetTypedConfig().UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	m, ok := message.(any).(M)
	if !ok {
		t.Fatalf("the agent made a %T of it", message)
	}
	if name := config.GetName(); name != xds.ResourcePrefix+"team-a.p" {
		t.Errorf("its name is %s", name)
	}
	return m
}

func (w *world) remote() xds.Delivery {
	return xds.Delivery{Mode: xds.Remote, URL: w.server.URL + serve.PathPrefix + "secret"}
}

func TestRemote_TheAgentFetchesAndChecksWhatIsNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	got := filter[*wasmv3.Wasm](t, w.convert(w.resource(w.remote(), v1alpha1.FailClose)))
	name := got.GetConfig().GetVmConfig().GetCode().GetLocal().GetFilename()
	module, err := os.ReadFile(name)
	if err != nil || sum(module) != sum(w.module) {
		t.Errorf("the agent's file %q: %d bytes, %v", name, len(module), err)
	}
	if got.GetConfig().GetName() == "" || got.GetConfig().GetConfiguration() == nil || got.GetConfig().GetVmConfig().GetVmId() == "" {
		t.Errorf("lost on the way: %v", got)
	}
}

func TestRemote_AURLThatIsClosedIsTheFailStrategy(t *testing.T) {
	t.Parallel()
	for strategy, rules := range map[v1alpha1.FailStrategy]bool{v1alpha1.FailClose: true, v1alpha1.FailOpen: false} {
		w := newWorld(t)
		w.gone.Store(true)
		if got := filter[*rbacv3.RBAC](t, w.convert(w.resource(w.remote(), strategy))); (got.GetRules() != nil) != rules {
			t.Errorf("%s: %v", strategy, got)
		}
	}
}

func TestRemote_AnotherSumIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.remote()
	d.SHA256 = sum([]byte("another"))
	if got := filter[*rbacv3.RBAC](t, w.convert(w.resource(d, v1alpha1.FailClose))); got.GetRules() == nil {
		t.Error("the agent lets pass what is not what was named")
	}
}

func TestInline_TheAgentLeavesItAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	got := filter[*wasmv3.Wasm](t, w.convert(w.resource(xds.Delivery{Mode: xds.Inline, Bytes: w.module}, v1alpha1.FailClose)))
	if sum(got.GetConfig().GetVmConfig().GetCode().GetLocal().GetInlineBytes()) != sum(w.module) {
		t.Error("the module's bytes changed on the way")
	}
}
