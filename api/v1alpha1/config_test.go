package v1alpha1_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/stileproject/stile/api/v1alpha1"
)

func TestDefaultConfig_IsValidAndSurvivesYAML(t *testing.T) {
	t.Parallel()
	c := v1alpha1.DefaultConfig()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var again v1alpha1.Config
	if err := yaml.UnmarshalStrict(text, &again); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(c, &again); d != "" {
		t.Errorf("after YAML (-want +got):\n%s", d)
	}
	for _, want := range []string{"maxSize: 4Gi", "recheck: 1h0m0s", "warmHold: 20s", "inlineMaxModule: 8Mi"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	other := v1alpha1.DefaultConfig()
	other.Wasm.HostEnvAllow[0] = "changed"
	if v1alpha1.DefaultConfig().Wasm.HostEnvAllow[0] == "changed" {
		t.Error("defaults are shared")
	}
}

func TestConfig_EveryFaultAtOnce(t *testing.T) {
	t.Parallel()
	second := func(n time.Duration) v1alpha1.Duration { return v1alpha1.Duration{Duration: n * time.Second} }
	c := v1alpha1.DefaultConfig()
	c.APIVersion, c.Kind, c.RootNamespace = "v1", "Conf", ""
	c.Resources = v1alpha1.ResourcesConfig{Directory: "x", Kubernetes: &v1alpha1.KubernetesConfig{Namespaces: []string{"A"}, Selector: "a in b"}}
	c.Envoy.Default = "../x.yaml"
	c.Envoy.Nodes = []v1alpha1.EnvoyNode{{File: "a/b", Namespace: "A", Services: []string{""}, ServiceEntries: []string{"a", ""}}}
	c.Envoy.Anchors = v1alpha1.EnvoyAnchors{First: []string{"nonsense"}, AuthN: []string{"type.googleapis.com/a.B"}, Stats: []string{"a.B", "c.D"}}
	c.Store = v1alpha1.StoreConfig{}
	c.XDS = v1alpha1.XDSConfig{Address: "0.0.0.0:1", TLS: v1alpha1.TLSConfig{CertFile: "c"}, Identities: []v1alpha1.Identity{{SPIFFE: "x"}}, InlineMaxModule: -1, WarmHold: second(-1)}
	c.Modules = v1alpha1.ModulesConfig{Address: ":2", URL: "ftp://x"}
	c.Admin.Address = "nothing"
	c.Health.Address = "x:99999"
	c.Access = v1alpha1.AccessConfig{Grace: second(-1), GraceWhileAnswering: second(-1), Rotation: second(-1), OnRevoked: "panic",
		Denied: v1alpha1.DeniedConfig{First: second(2), Max: second(1), ConfirmAfter: second(-1)}, Unauthorized: v1alpha1.UnauthorizedConfig{First: second(2), Max: second(1)}}
	c.Fetch = v1alpha1.FetchConfig{RefreshAlways: second(-1), Allow: []string{"https://x", "*.example", "x:y"}}
	c.Registries = []v1alpha1.RegistryConfig{{}, {Host: "https://x"}, {Host: "a:443"}, {Host: "A", PlainHTTP: true, CertFile: "c", Namespaces: []string{"*", "N"}, TokenHosts: []string{"a/b"}, Grace: second(-1), MaxInFlight: -1}}
	c.Wasm = v1alpha1.WasmConfig{HostEnvAllow: []string{"A-B"}, Preflight: "maybe"}
	c.Placement = v1alpha1.PlacementConfig{PullSecret: v1alpha1.SecretReference{Name: "x"}, Preferred: []v1alpha1.ArchitectureWeight{{}, {Architecture: "arm64", Weight: 101}, {Architecture: "arm64", Weight: 1}}, MaxWait: second(-1)}
	var got []string
	for _, f := range c.Findings() {
		got = append(got, f.Field)
	}
	want := []string{
		"apiVersion", "kind", "rootNamespace", "resources", "resources.kubernetes.namespaces[0]", "resources.kubernetes.selector",
		"envoy.default", "envoy.nodes[0]", "envoy.nodes[0].file", "envoy.nodes[0].namespace", "envoy.nodes[0].services", "envoy.nodes[0].serviceEntries",
		"envoy.anchors.first[0]", "envoy.anchors.stats[0]",
		"store.directory", "store.maxSize", "store.maxPerNamespace",
		"xds.tls.keyFile", "xds.address", "xds.identities[0].spiffe", "xds.tls.clientCAFile", "xds.inlineMaxModule", "xds.warmHold",
		"modules.address", "modules.url", "admin.address", "health.address",
		"access.recheck", "access.forget", "access.grace", "access.graceWhileAnswering", "access.tokenMaxAge", "access.rotation", "access.timeout",
		"access.retry.attempts", "access.denied.max", "access.denied.confirmAfter", "access.unauthorized.max", "access.onRevoked", "access.maxProofs", "access.maxPerNamespace",
		"fetch.maxModuleSize", "fetch.timeout", "fetch.refreshAlways", "fetch.allow[0]", "fetch.allow[2]", "fetch.maxInFlight",
		"registries[0].host", "registries[1].host", "registries[3].host", "registries[3]", "registries[3].plainHTTP", "registries[3].namespaces[1]", "registries[3].tokenHosts[0]",
		"registries[3].grace", "registries[3].maxInFlight", "wasm.hostEnvAllow[0]", "wasm.preflight",
		"placement.pullSecret", "placement.preferred[0].architecture", "placement.preferred[0].weight", "placement.preferred[1].weight", "placement.preferred[2].architecture", "placement.maxWait",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("fields (-want +got):\n%s", d)
	}
	err := c.Validate()
	if n := strings.Count(fmt.Sprint(err), "\n") + 1; n != len(want) {
		t.Errorf("%d faults joined, want %d: %v", n, len(want), err)
	}
}

func TestConfig_Addresses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		edit func(*v1alpha1.Config)
		want string // the field of the one fault; empty: none
	}{
		{"localhost is loopback", func(c *v1alpha1.Config) { c.XDS.Address = "localhost:1" }, ""},
		{"IPv6 loopback", func(c *v1alpha1.Config) { c.XDS.Address = "[::1]:1" }, ""},
		{"mapped loopback", func(c *v1alpha1.Config) { c.XDS.Address = "[::ffff:127.0.0.1]:1" }, ""},
		{"everywhere", func(c *v1alpha1.Config) { c.XDS.Address = ":18000" }, "xds.address"},
		{"everywhere, insecure", func(c *v1alpha1.Config) { c.XDS.Address, c.XDS.Insecure = ":18000", true }, ""},
		{"everywhere, with certificates", func(c *v1alpha1.Config) {
			c.XDS.Address, c.XDS.TLS = ":18000", v1alpha1.TLSConfig{CertFile: "c", KeyFile: "k", ClientCAFile: "a"}
		}, ""},
		{"certificates of the server alone do not do", func(c *v1alpha1.Config) {
			c.XDS.Address, c.XDS.TLS = ":18000", v1alpha1.TLSConfig{CertFile: "c", KeyFile: "k"}
		}, "xds.address"},
		{"modules everywhere", func(c *v1alpha1.Config) { c.Modules.Address = "10.0.0.1:1" }, "modules.address"},
		{"any port", func(c *v1alpha1.Config) {
			c.XDS.Address, c.Modules.Address, c.Admin.Address = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
		}, ""},
		{"the same port", func(c *v1alpha1.Config) { c.Modules.Address = c.XDS.Address }, "modules.address"},
		{"health beside admin", func(c *v1alpha1.Config) { c.Health.Address = c.Admin.Address }, ""},
		{"admin everywhere", func(c *v1alpha1.Config) { c.Admin.Address = "0.0.0.0:1" }, "admin.address"},
		{"admin everywhere, in Kubernetes", func(c *v1alpha1.Config) {
			c.Admin.Address, c.Resources = "0.0.0.0:1", v1alpha1.ResourcesConfig{Kubernetes: &v1alpha1.KubernetesConfig{}}
		}, ""},
		{"placement without Kubernetes", func(c *v1alpha1.Config) { c.Placement.Enabled = true }, "placement.enabled"},
		{"no resources", func(c *v1alpha1.Config) { c.Resources.Directory = "" }, "resources"},
	} {
		c := v1alpha1.DefaultConfig()
		tc.edit(c)
		var got []string
		for _, f := range c.Findings() {
			got = append(got, f.Field)
		}
		if strings.Join(got, ",") != tc.want {
			t.Errorf("%s: faults %v, want %q", tc.name, got, tc.want)
		}
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]v1alpha1.Size{
		`"4Gi"`: 4 << 30, `"8Mi"`: 8 << 20, `"1Ki"`: 1024, `"2Ti"`: 2 << 40, `"1500"`: 1500, `1500`: 1500, `0`: 0, `"3M"`: 3e6, `"1k"`: 1000, `"2G"`: 2e9,
	} {
		var s v1alpha1.Size
		if err := json.Unmarshal([]byte(in), &s); err != nil || s != want {
			t.Errorf("%s: %d (%v), want %d", in, s, err, want)
		}
	}
	for _, in := range []string{`"-1"`, `-1`, `1.5`, `"1.5Gi"`, `"4 Gi"`, `"Gi"`, `""`, `"9223372036854775807Ki"`, `true`, `"4gi"`} {
		var s v1alpha1.Size
		if err := json.Unmarshal([]byte(in), &s); err == nil {
			t.Errorf("%s is taken for %d", in, s)
		}
	}
	for s, want := range map[v1alpha1.Size]string{0: "0", 1: "1", 1024: "1Ki", 4 << 30: "4Gi", 1500: "1500"} {
		if s.String() != want {
			t.Errorf("%d: %s, want %s", int64(s), s, want)
		}
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]time.Duration{`"1h30m"`: 90 * time.Minute, `""`: 0, `0`: 0, `"0s"`: 0} {
		var d v1alpha1.Duration
		if err := json.Unmarshal([]byte(in), &d); err != nil || d.Duration != want {
			t.Errorf("%s: %s (%v), want %s", in, d, err, want)
		}
	}
	for _, in := range []string{`5`, `"5"`, `"1 hour"`, `true`} {
		var d v1alpha1.Duration
		if err := json.Unmarshal([]byte(in), &d); err == nil {
			t.Errorf("%s is taken for %s", in, d)
		}
	}
}

// TestConfigHoldsNoSecret: the types of Config could not hold one without being noticed.
func TestConfigHoldsNoSecret(t *testing.T) {
	t.Parallel()
	var walk func(reflect.Type, string)
	walk = func(typ reflect.Type, path string) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice:
			walk(typ.Elem(), path)
		case reflect.Struct:
			for i := range typ.NumField() {
				walk(typ.Field(i).Type, path+"."+typ.Field(i).Name)
			}
		}
		for _, word := range []string{"Password", "Token", "Credential"} {
			if strings.HasSuffix(path, word) {
				t.Errorf("%s may hold a secret", path)
			}
		}
	}
	walk(reflect.TypeFor[v1alpha1.Config](), "Config")
}

func TestIsLoopback(t *testing.T) {
	t.Parallel()
	got := map[string]bool{}
	for _, a := range []string{"127.0.0.1:0", "[::1]:1", "localhost:1", "127.9.9.9:1", "0.0.0.0:1", ":1", "[::]:1", "10.0.0.1:1", "stile.example:1", "127.0.0.1", "[::ffff:127.0.0.1]:1"} {
		got[a] = v1alpha1.IsLoopback(a)
	}
	want := map[string]bool{"127.0.0.1:0": true, "[::1]:1": true, "localhost:1": true, "127.9.9.9:1": true, "0.0.0.0:1": false, ":1": false,
		"[::]:1": false, "10.0.0.1:1": false, "stile.example:1": false, "127.0.0.1": false, "[::ffff:127.0.0.1]:1": true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
