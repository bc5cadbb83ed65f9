package xds_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
)

var update = flag.Bool("update", false, "write the golden files anew")

// wasm is the smallest module there is: magic and version.
var wasm = []byte("\x00asm\x01\x00\x00\x00")

const wasmSHA = "93a44bbb96c751218e4c00d479e4c14358122a389acca16205b1e4d0dc5f9476"

func key(name string) plugin.Key { return plugin.Key{Namespace: "team-a", Name: name} }

func wasmPlugin(name string, change func(*v1alpha1.WasmPluginSpec)) *v1alpha1.WasmPlugin {
	p := &v1alpha1.WasmPlugin{ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: name}}
	p.Spec.URL = "oci://registry.example/" + name + ":v1"
	if change != nil {
		change(&p.Spec)
	}
	return p
}

// world is a plan over edge.yaml with the given plugins.
func world(t testing.TB, deliver map[string]xds.Delivery, plugins ...*v1alpha1.WasmPlugin) xds.Input {
	t.Helper()
	f := edge(t)
	node := plugin.Node{ID: "gw-0", Cluster: "edge", Namespace: "team-a"}
	plan, problems := plugin.Build(plugin.Inputs{RootNamespace: "root", Plugins: plugins, Node: node, Listeners: f.Listeners()})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	in := xds.Input{Plan: plan, File: f, Node: node, Plugins: map[plugin.Key]*v1alpha1.WasmPlugin{}, ModulesURL: "http://127.0.0.1:18001"}
	for _, p := range plugins {
		in.Plugins[plugin.KeyOf(p)] = p
	}
	in.Deliver = func(k plugin.Key) xds.Delivery { return deliver[k.Name] }
	return in
}

func inline() xds.Delivery {
	return xds.Delivery{Mode: xds.Inline, Bytes: wasm, SHA256: wasmSHA, Size: int64(len(wasm))}
}

func remote() xds.Delivery {
	return xds.Delivery{Mode: xds.Remote, URL: "http://127.0.0.1:18001/modules/token", SHA256: wasmSHA, Size: 9 << 20}
}

func translate(t testing.TB, in xds.Input) *xds.Snapshot {
	t.Helper()
	s, problems := xds.Translate(in)
	if len(problems) > 0 {
		t.Fatalf("translate: %v", problems)
	}
	return s
}

func pluginConfig(t testing.TB, s *xds.Snapshot, name string) *wasmv3.PluginConfig {
	t.Helper()
	r := s.Resource(xds.ExtensionType, xds.ResourceName(key(name)))
	if r == nil {
		t.Fatalf("no extension %s", name)
	}
	config, filter := &corev3.TypedExtensionConfig{}, &httpwasmv3.Wasm{}
	if err := r.Any.UnmarshalTo(config); err != nil {
		t.Fatal(err)
	}
	if err := config.GetTypedConfig().UnmarshalTo(filter); err != nil {
		t.Fatal(err)
	}
	if err := filter.ValidateAll(); err != nil {
		t.Error(err)
	}
	return filter.GetConfig()
}

func text(s string) *string { return &s }

// everything is one plugin of each kind of delivery and strategy.
func everything(t testing.TB) xds.Input {
	return world(t, map[string]xds.Delivery{
		"inline": inline(), "remote": remote(), "file": {Mode: xds.File, Path: "/etc/envoy/p.wasm"},
		"closed": {Mode: xds.StandIn}, "open": {Mode: xds.StandIn}, "pending": {Mode: xds.Hold},
		"net": inline(), "net-closed": {Mode: xds.StandIn}, "net-open": {Mode: xds.StandIn},
	},
		wasmPlugin("inline", func(s *v1alpha1.WasmPluginSpec) {
			s.Phase, s.PluginName = v1alpha1.PhaseAuthN, "root"
			s.PluginConfig = &v1alpha1.Object{Raw: []byte(`{"b": 1.0, "a": {"z": [true, null], "y": "<&>"}}`)}
			s.VMConfig = &v1alpha1.VMConfig{Env: []v1alpha1.EnvVar{
				{Name: "B", ValueFrom: v1alpha1.EnvHost}, {Name: "A", ValueFrom: v1alpha1.EnvHost}, {Name: "C", Value: text("c")}, {Name: "D"}}}
		}),
		wasmPlugin("remote", func(s *v1alpha1.WasmPluginSpec) { s.Phase, s.FailStrategy = v1alpha1.PhaseAuthZ, v1alpha1.FailReload }),
		wasmPlugin("file", func(s *v1alpha1.WasmPluginSpec) { s.Phase, s.FailStrategy = v1alpha1.PhaseStats, v1alpha1.FailOpen }),
		wasmPlugin("closed", nil),
		wasmPlugin("open", func(s *v1alpha1.WasmPluginSpec) { s.FailStrategy = v1alpha1.FailOpen }),
		wasmPlugin("pending", nil),
		wasmPlugin("net", func(s *v1alpha1.WasmPluginSpec) { s.Type = v1alpha1.TypeNetwork }),
		wasmPlugin("net-closed", func(s *v1alpha1.WasmPluginSpec) { s.Type = v1alpha1.TypeNetwork }),
		wasmPlugin("net-open", func(s *v1alpha1.WasmPluginSpec) {
			s.Type, s.FailStrategy = v1alpha1.TypeNetwork, v1alpha1.FailOpen
		}),
	)
}

func TestTranslate_Golden(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*xds.Input){
		"everything": func(*xds.Input) {},
		"static":     func(in *xds.Input) { in.Static = true },
		"oldproxy": func(in *xds.Input) {
			in.EnvoyVersion = "1.32.4"
			in.Node.Extensions = []string{"type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm", "envoy.filters.network.wasm"}
		},
		"httpsmodules": func(in *xds.Input) { in.ModulesURL = "https://modules.example:8443/stile" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := everything(t)
			change(&in)
			snapshot, problems := xds.Translate(in)
			report, err := snapshot.Report(xds.ReportOptions{ShowURLs: true, YAMLNames: true})
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			for _, p := range problems {
				fmt.Fprintf(&b, "# %s: %s: %v\n", p.Severity, p.Reason, p)
			}
			e := json.NewEncoder(&b)
			e.SetEscapeHTML(false)
			e.SetIndent("", "  ")
			if err := e.Encode(report); err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", "translate", name+".json")
			if *update {
				if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), b.String()); d != "" {
				t.Errorf("%s (-want +got), -update writes it:\n%s", golden, d)
			}
		})
	}
}

func TestP10_SameInputsSameBytes(t *testing.T) {
	t.Parallel()
	first := translate(t, everything(t))
	for range 5 {
		again := translate(t, everything(t))
		for _, typeURL := range []string{xds.ListenerType, xds.RouteType, xds.ClusterType, xds.ExtensionType} {
			a, b := first.Resources(typeURL), again.Resources(typeURL)
			if len(a) != len(b) {
				t.Fatalf("%s: %d and %d resources", typeURL, len(a), len(b))
			}
			for i := range a {
				if a[i].Version != b[i].Version || a[i].Any.GetTypeUrl() != b[i].Any.GetTypeUrl() || !bytes.Equal(a[i].Any.GetValue(), b[i].Any.GetValue()) {
					t.Errorf("%s differs between two translations", a[i].Name)
				}
			}
		}
		if first.Fingerprint() != again.Fingerprint() || !first.Equal(again) {
			t.Error("equal snapshots have different fingerprints")
		}
	}
}

func TestP7_ANeighbourChangesNothing(t *testing.T) {
	t.Parallel()
	good := wasmPlugin("good", nil)
	alone := translate(t, world(t, map[string]xds.Delivery{"good": inline()}, good))
	bad := wasmPlugin("bad", func(s *v1alpha1.WasmPluginSpec) { s.PluginConfig = &v1alpha1.Object{Raw: []byte(`{"a":`)} })
	both, problems := xds.Translate(world(t, map[string]xds.Delivery{"good": inline(), "bad": inline()}, good, bad))
	if len(problems) != 1 || problems[0].Plugin != key("bad") {
		t.Errorf("problems: %v", problems)
	}
	name := xds.ResourceName(key("good"))
	if a, b := alone.Resource(xds.ExtensionType, name), both.Resource(xds.ExtensionType, name); a.Version != b.Version {
		t.Error("the good plugin's resource changed with its neighbour")
	}
	if r := both.Resource(xds.ExtensionType, xds.ResourceName(key("bad"))); !r.StandIn {
		t.Errorf("the bad plugin's resource is %+v, want its stand-in", r)
	}
}

func TestTranslate_VMIsNewForAnotherModuleOrEnvironment(t *testing.T) {
	t.Parallel()
	id := func(d xds.Delivery, change func(*v1alpha1.WasmPluginSpec), runtime string) string {
		in := world(t, map[string]xds.Delivery{"p": d}, wasmPlugin("p", change))
		in.Runtime = runtime
		return pluginConfig(t, translate(t, in), "p").GetVmConfig().GetVmId()
	}
	base := id(inline(), nil, "")
	if !strings.HasPrefix(base, "team-a.p.") {
		t.Errorf("vm_id %q does not name the plugin", base)
	}
	other := inline()
	other.SHA256 = strings.Repeat("0", 64)
	for name, got := range map[string]string{
		"module":  id(other, nil, ""),
		"runtime": id(inline(), nil, "envoy.wasm.runtime.wamr"),
		"environment": id(inline(), func(s *v1alpha1.WasmPluginSpec) {
			s.VMConfig = &v1alpha1.VMConfig{Env: []v1alpha1.EnvVar{{Name: "A", Value: text("1")}}}
		}, ""),
	} {
		if got == base {
			t.Errorf("another %s has the same vm_id", name)
		}
	}
	if got := id(inline(), func(s *v1alpha1.WasmPluginSpec) { s.PluginConfig = &v1alpha1.Object{Raw: []byte(`{"a":1}`)} }, ""); got != base {
		t.Error("another configuration is another VM: it need not be")
	}
}

func TestTranslate_TooLargeForEnvoyIsSaid(t *testing.T) {
	t.Parallel()
	d := remote()
	d.Size = 33 << 20
	_, problems := xds.Translate(world(t, map[string]xds.Delivery{"p": d}, wasmPlugin("p", nil)))
	if len(problems) != 1 || problems[0].Reason != "TooLargeForEnvoy" || problems[0].Severity != xds.SeverityWarning {
		t.Errorf("problems: %v", problems)
	}
}

func TestTranslate_OperatorsModulesClusterWins(t *testing.T) {
	t.Parallel()
	f, problems := xds.ParseEnvoy("own.yaml", []byte("clusters: [{name: stile-modules, connect_timeout: 7s}]"))
	if f == nil {
		t.Fatal(problems)
	}
	s := translate(t, xds.Input{File: f, ModulesURL: "http://127.0.0.1:1"})
	list := s.Resources(xds.ClusterType)
	if len(list) != 1 || !bytes.Contains(list[0].Any.GetValue(), []byte{0x08, 0x07}) {
		t.Errorf("clusters: %v", list)
	}
}

func TestP3_ReportsHideModuleURLsAndSensitiveFields(t *testing.T) {
	t.Parallel()
	const canary = "CANARY-private-key"
	f, problems := xds.ParseEnvoy("x.yaml", []byte(`clusters: [{name: a, transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {tls_certificates: [{private_key: {inline_string: `+canary+`}}]}}}}, {name: b, transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, value: {common_tls_context: {tls_certificates: [{private_key: {inline_string: `+canary+`}}]}}}}}]`))
	if f == nil {
		t.Fatal(problems)
	}
	in := world(t, map[string]xds.Delivery{"p": remote()}, wasmPlugin("p", nil))
	in.File = f
	in.Plan = plugin.Plan{}
	in.ServeAlone = []plugin.Key{key("p")}
	s := translate(t, in)
	for _, show := range []bool{false, true} {
		report, err := s.Report(xds.ReportOptions{ShowURLs: show})
		if err != nil {
			t.Fatal(err)
		}
		out, _ := json.Marshal(report)
		if strings.Contains(string(out), canary) {
			t.Errorf("a private key is shown:\n%s", out)
		}
		if got := strings.Contains(string(out), "/modules/token"); got != show {
			t.Errorf("module URL shown: %v, want %v\n%s", got, show, out)
		}
	}
}

func TestTranslate_StaticListenersHaveTheirRoutes(t *testing.T) {
	t.Parallel()
	f, problems := xds.ParseEnvoy("x.yaml", []byte(chainOf(`{name: m, typed_config: {"@type": `+hcm+`, stat_prefix: s, rds: {route_config_name: r, config_source: {ads: {}}}, http_filters: [`+routerFilter+`]}}`)+`
routes: [{name: r, internal_only_headers: [x-here]}]`))
	if f == nil || len(problems) > 0 {
		t.Fatal(problems)
	}
	for static, want := range map[bool]bool{true: true, false: false} {
		s := translate(t, xds.Input{File: f, Static: static})
		if got := bytes.Contains(s.Resource(xds.ListenerType, "l").Any.GetValue(), []byte("x-here")); got != want {
			t.Errorf("static %v: the routes are in the listener: %v", static, got)
		}
	}
}
