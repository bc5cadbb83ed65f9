package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/stileproject/stile/internal/xds/sandbox"
	"github.com/stileproject/stile/internal/xds/sandbox/adstest"
	"github.com/stileproject/stile/modules"
)

// echo is an upstream that says what it got.
func echo(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "host=%s trail=%s body=%s length=%d agent=%q", r.Host, r.Header.Get("x-stile-trail"), body, r.ContentLength, r.Header.Values("User-Agent"))
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// proxy is a sandbox before an upstream, with one server.
func proxy(t *testing.T, o sandbox.Options) (*sandbox.Sandbox, *adstest.Server) {
	t.Helper()
	server := adstest.Start(t)
	server.Set(adstest.ClusterType, "c1")
	o.XDSAddress = server.Address()
	s := sandbox.Start(o)
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s, server
}

func address(t *testing.T, p sandbox.Proxy, listener string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	a, err := p.Address(ctx, listener)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func ask(t *testing.T, p sandbox.Proxy, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address(t, p, "in")+"/here", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("User-Agent", "test")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// cluster is a cluster of one address.
func cluster(t *testing.T, name, address string) *clusterv3.Cluster {
	t.Helper()
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return adstest.Cluster(name, host, port)
}

func TestSandbox_ListsWhatItDoesNotRun(t *testing.T) {
	t.Parallel()
	p, server := proxy(t, sandbox.Options{Upstream: echo(t)})
	l := adstest.HTTPListener("in",
		adstest.Fixed("jwt", &jwtv3.JwtAuthentication{}),
		adstest.Fixed("wasm", adstest.Inline("vm", modules.Badge(), `{"name":"a"}`)),
		adstest.Fixed("rbac", &httprbacv3.RBAC{}))
	server.Set(adstest.ListenerType, "l1", l)
	if status, body := ask(t, p, "hi"); status != 200 || !strings.Contains(body, `trail=a body=hi length=2 agent=["test"]`) {
		t.Errorf("%d %s", status, body)
	}
	state, err := p.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"jwt", "rbac"}, state.Listeners[0].NotRun); diff != "" {
		t.Error(diff)
	}
}

func TestSandbox_RoutesComeByRDSAndDecide(t *testing.T) {
	t.Parallel()
	p, server := proxy(t, sandbox.Options{})
	server.Set(adstest.ClusterType, "c2", cluster(t, "up", echo(t)))
	l := adstest.HTTPListener("in")
	manager := &hcmv3.HttpConnectionManager{}
	packed := l.GetFilterChains()[0].GetFilters()[0].GetTypedConfig()
	if err := packed.UnmarshalTo(manager); err != nil {
		t.Fatal(err)
	}
	manager.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: "r", ConfigSource: adstest.ADS(-1)}}
	l.FilterChains[0].Filters[0].ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: adstest.Any(manager)}
	server.Set(adstest.ListenerType, "l1", l)
	server.WaitACK(t, adstest.ListenerType, "l1")
	state, err := p.State(t.Context())
	if err != nil || !state.Listeners[0].Warming {
		t.Errorf("without its routes the listener must warm: %+v %v", state.Listeners, err)
	}
	routes := func(prefix string, action *routev3.Route) *routev3.RouteConfiguration {
		action.Match = &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: prefix}}
		return &routev3.RouteConfiguration{Name: "r", VirtualHosts: []*routev3.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []*routev3.Route{action}}}}
	}
	to := func(cluster string) *routev3.Route {
		return &routev3.Route{Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster}}}}
	}
	for i, step := range []struct {
		routes *routev3.RouteConfiguration
		status int
		words  string
	}{
		{routes("/", to("up")), 200, "body=hi"},
		{routes("/other", to("up")), 404, ""},
		{routes("/", to("nowhere")), 503, "no healthy upstream"},
		{routes("/", &routev3.Route{Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
			Status: 418, Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "short and stout"}}}}}), 418, "short and stout"},
	} {
		version := fmt.Sprint("r", i)
		server.SetNamed(adstest.RouteType, "r", version, step.routes)
		server.WaitACK(t, adstest.RouteType, version)
		if status, body := ask(t, p, "hi"); status != step.status || !strings.Contains(body, step.words) {
			t.Errorf("step %d: %d %s", i, status, body)
		}
	}
}

func TestSandbox_BodiesThatPluginsChange(t *testing.T) {
	t.Parallel()
	module, err := os.ReadFile("../../proxywasm/testdata/pauses.wasm")
	if err != nil {
		t.Fatal(err)
	}
	p, server := proxy(t, sandbox.Options{Upstream: echo(t)})
	server.Set(adstest.ListenerType, "l1", adstest.HTTPListener("in", adstest.Fixed("wasm", adstest.Inline("vm", module, ""))))
	if status, body := ask(t, p, "hello"); status != 200 || !strings.Contains(body, "body=STOPo length=5") {
		t.Errorf("%d %s", status, body)
	}
	if status, body := ask(t, p, ""); status != 504 || !strings.Contains(body, "paused") {
		t.Errorf("a pause that nothing ends: %d %s", status, body)
	}
	if status, _ := ask(t, p, strings.Repeat("x", 1<<20+1)); status != 413 {
		t.Errorf("a body that is too large to hold: %d", status)
	}
}

func TestSandbox_WhereModulesAndTheirEnvironmentComeFrom(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "badge.wasm")
	if err := os.WriteFile(file, modules.Badge(), 0o600); err != nil {
		t.Fatal(err)
	}
	p, server := proxy(t, sandbox.Options{Upstream: echo(t), HostEnv: map[string]string{"POD": "p"}})
	server.Set(adstest.ListenerType, "l1", adstest.HTTPListener("in", adstest.Discovered("a", time.Minute, nil)))
	local := func(path string) *httpwasmv3.Wasm {
		w := adstest.Wasm("vm", `{"name":"file"}`, &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{Local: &corev3.DataSource{
			Specifier: &corev3.DataSource_Filename{Filename: path}}}})
		w.GetConfig().GetVmConfig().EnvironmentVariables = &wasmv3.EnvironmentVariables{HostEnvKeys: []string{"POD", "HOME"}}
		return w
	}
	server.SetExtension("a", "a1", local(file))
	server.WaitACK(t, adstest.ExtensionType, "a1")
	if _, body := ask(t, p, ""); !strings.Contains(body, "trail=file") {
		t.Error(body)
	}
	configured := adstest.Inline("vm", modules.Badge(), "")
	fields, err := structpb.NewStruct(map[string]any{"name": "struct<&>"})
	if err != nil {
		t.Fatal(err)
	}
	configured.Config.Configuration = adstest.Any(fields)
	server.SetExtension("a", "a2", configured)
	server.WaitACK(t, adstest.ExtensionType, "a2")
	if _, body := ask(t, p, ""); !strings.Contains(body, "trail=struct<&>") {
		t.Error(body)
	}

	otherRuntime := adstest.Inline("vm", modules.Badge(), `{"name":"a"}`)
	otherRuntime.GetConfig().GetVmConfig().Runtime = "envoy.wasm.runtime.wamr"
	both := adstest.Inline("vm", modules.Badge(), `{"name":"a"}`)
	both.Config.FailOpen = true //nolint:staticcheck // the deprecated field is what is tested
	twice := local(file)
	twice.GetConfig().GetVmConfig().EnvironmentVariables.KeyValues = map[string]string{"POD": "q"}
	for version, bad := range map[string]struct {
		config *httpwasmv3.Wasm
		words  string
	}{
		"b1": {local(file + ".missing"), "no such file"},
		"b2": {otherRuntime, "envoy.wasm.runtime.wamr"},
		"b3": {both, "only one of fail_open or failure_policy"},
		"b4": {twice, "Key POD is duplicated"},
		"b5": {adstest.Wasm("vm", "", nil), ""},
	} {
		server.SetExtension("a", version, bad.config)
		if why := server.WaitNACK(t, adstest.ExtensionType, version); !strings.Contains(why, bad.words) {
			t.Errorf("%s: %s", version, why)
		}
	}
	state, err := p.State(t.Context())
	if x, _ := state.Extension("a"); err != nil || x.Version != "a2" || x.Rejected == "" || x.RejectedVersion == "" {
		t.Errorf("state: %+v %v", x, err)
	}
}

func TestSandbox_SaysWhatItDoesNotServe(t *testing.T) {
	t.Parallel()
	p, server := proxy(t, sandbox.Options{})
	server.Set(adstest.ListenerType, "l1", &listenerv3.Listener{Name: "in", Address: adstest.Address("127.0.0.1", 0), FilterChains: []*listenerv3.FilterChain{{}}})
	server.WaitACK(t, adstest.ListenerType, "l1")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := p.Address(ctx, "in"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no filter chain speaks HTTP") {
		t.Errorf("got %v", err)
	}
	for version, bad := range map[string]*listenerv3.Listener{
		"no router":             {Name: "in", Address: adstest.Address("127.0.0.1", 0), FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{Name: "m", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: adstest.Any(manager(adstest.Fixed("fault", adstest.Closed())))}}}}}},
		"default of other type": adstest.HTTPListener("in", adstest.Discovered("a", time.Minute, &jwtv3.JwtAuthentication{})),
		"bad inline plugin":     adstest.HTTPListener("in", adstest.Fixed("wasm", adstest.Inline("vm", nil, ""))),
		"delay":                 adstest.HTTPListener("in", adstest.Fixed("fault", adstest.Delayed())),
	} {
		version = strings.ReplaceAll(version, " ", "-")
		server.Set(adstest.ListenerType, version, bad)
		if why := server.WaitNACK(t, adstest.ListenerType, version); !strings.Contains(why, "in: ") {
			t.Errorf("%s: %s", version, why)
		}
	}
}

func manager(filters ...*hcmv3.HttpFilter) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{StatPrefix: "m", HttpFilters: filters, RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{}}}
}

func TestSandbox_Stop(t *testing.T) {
	t.Parallel()
	s := sandbox.New(sandbox.Options{XDSAddress: "127.0.0.1:1"})
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	if err := s.Run(t.Context()); !errors.Is(err, sandbox.ErrStopped) {
		t.Errorf("Run after Stop: %v", err)
	}
	p, server := proxy(t, sandbox.Options{Upstream: echo(t)})
	server.Set(adstest.ListenerType, "l1", adstest.HTTPListener("in"))
	at := address(t, p, "in")
	if err := errors.Join(p.Stop(), p.Stop()); err != nil {
		t.Error(err)
	}
	if _, err := p.State(t.Context()); !errors.Is(err, sandbox.ErrStopped) {
		t.Errorf("State after Stop: %v", err)
	}
	if _, err := p.Address(t.Context(), "in"); !errors.Is(err, sandbox.ErrStopped) {
		t.Errorf("Address after Stop: %v", err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+at, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := (&http.Transport{}).RoundTrip(req); err == nil {
		_ = resp.Body.Close()
		t.Error("the listener still serves")
	}
}
