package v1alpha1_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stileproject/stile/api/v1alpha1"
)

// valid returns a plugin with nothing wrong, changed by edits.
func valid(edits ...func(*v1alpha1.WasmPlugin)) *v1alpha1.WasmPlugin {
	p := &v1alpha1.WasmPlugin{}
	p.Namespace, p.Name = "team-a", "auth"
	p.Spec.URL = "oci://registry.example/auth:v1"
	for _, e := range edits {
		e(p)
	}
	return p
}

func publicKey(t *testing.T, kind string) string {
	t.Helper()
	var der []byte
	var err error
	block := "PUBLIC KEY"
	switch kind {
	case "ecdsa":
		k, kerr := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if kerr != nil {
			t.Fatal(kerr)
		}
		der, err = x509.MarshalPKIXPublicKey(&k.PublicKey)
	case "ed25519":
		pub, _, kerr := ed25519.GenerateKey(rand.Reader)
		if kerr != nil {
			t.Fatal(kerr)
		}
		der, err = x509.MarshalPKIXPublicKey(pub)
	case "private":
		_, priv, kerr := ed25519.GenerateKey(rand.Reader)
		if kerr != nil {
			t.Fatal(kerr)
		}
		block = "PRIVATE KEY"
		der, err = x509.MarshalPKCS8PrivateKey(priv)
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: block, Bytes: der}))
}

// TestValidate covers what a schema cannot say; what it can is held, rule by rule and
// against the schema, by the module in api/crd/agreement.
func TestValidate(t *testing.T) {
	t.Parallel()
	type edit = func(*v1alpha1.WasmPlugin)
	spec := func(e func(*v1alpha1.WasmPluginSpec)) []edit {
		return []edit{func(p *v1alpha1.WasmPlugin) { e(&p.Spec) }}
	}
	for name, tc := range map[string]struct {
		edits []edit
		want  []string // field severity reason
	}{
		"nothing wrong": {nil, nil},
		"everything missing": {[]edit{func(p *v1alpha1.WasmPlugin) { *p = v1alpha1.WasmPlugin{} }},
			[]string{"metadata.name error Required", "spec.url error Required"}},
		"names": {[]edit{func(p *v1alpha1.WasmPlugin) { p.Name, p.Namespace = strings.Repeat("a", 254), "a.b" }},
			[]string{"metadata.name error Invalid", "metadata.namespace error Invalid"}},
		"a dotted name": {[]edit{func(p *v1alpha1.WasmPlugin) { p.Name = "a.b-c.d" }}, nil},
		"a selector of nothing": {spec(func(s *v1alpha1.WasmPluginSpec) { s.Selector = &v1alpha1.WorkloadSelector{} }),
			[]string{"spec.selector warning NotRecommended"}},
		"targets of nothing": {spec(func(s *v1alpha1.WasmPluginSpec) { s.TargetRefs = []v1alpha1.TargetReference{} }),
			[]string{"spec.targetRefs warning NotRecommended"}},
		"an ECDSA key":                    {spec(func(s *v1alpha1.WasmPluginSpec) { s.VerificationKey = publicKey(t, "ecdsa") }), nil},
		"an Ed25519 key with text around": {spec(func(s *v1alpha1.WasmPluginSpec) { s.VerificationKey = "\n" + publicKey(t, "ed25519") + "\n\n" }), nil},
		"two keys": {spec(func(s *v1alpha1.WasmPluginSpec) { s.VerificationKey = publicKey(t, "ecdsa") + publicKey(t, "ecdsa") }),
			[]string{"spec.verificationKey error Invalid"}},
		"a private key": {spec(func(s *v1alpha1.WasmPluginSpec) { s.VerificationKey = publicKey(t, "private") }),
			[]string{"spec.verificationKey error Invalid"}},
		"a key that is none": {spec(func(s *v1alpha1.WasmPluginSpec) {
			s.VerificationKey = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
		}), []string{"spec.verificationKey error Invalid"}},
		"a key for what is not signed": {spec(func(s *v1alpha1.WasmPluginSpec) {
			s.URL, s.VerificationKey = "https://h.example/a.wasm", publicKey(t, "ecdsa")
		}), []string{"spec.verificationKey warning NotVerifiable"}},
		"a pull secret for what is not pulled": {spec(func(s *v1alpha1.WasmPluginSpec) { s.URL, s.ImagePullSecret = "https://h.example/a.wasm", "s" }),
			[]string{"spec.imagePullSecret warning NoEffect"}},
		"a checksum of a file": {spec(func(s *v1alpha1.WasmPluginSpec) { s.URL, s.SHA256 = "file:///a.wasm", hex64 }),
			[]string{"spec.sha256 warning NotVerifiable"}},
		"another checksum than the url's": {spec(func(s *v1alpha1.WasmPluginSpec) {
			s.URL, s.SHA256 = "r.example/a@sha256:"+hex64, strings.Repeat("0", 64)
		}), []string{"spec.sha256 error Invalid"}},
		"another checksum than an http url's": {spec(func(s *v1alpha1.WasmPluginSpec) {
			s.URL, s.SHA256 = "https://h.example/a@sha256:"+hex64, strings.Repeat("0", 64)
		}), []string{"spec.sha256 error Invalid"}},
		"open authentication": {spec(func(s *v1alpha1.WasmPluginSpec) { s.Phase, s.FailStrategy = v1alpha1.PhaseAuthN, v1alpha1.FailOpen }),
			[]string{"spec.failStrategy warning NotRecommended"}},
		"open statistics": {spec(func(s *v1alpha1.WasmPluginSpec) { s.Phase, s.FailStrategy = v1alpha1.PhaseStats, v1alpha1.FailOpen }), nil},
		"every fault at once, in the order of the fields": {spec(func(s *v1alpha1.WasmPluginSpec) {
			text := "x"
			*s = v1alpha1.WasmPluginSpec{
				Selector:        &v1alpha1.WorkloadSelector{MatchLabels: map[string]v1alpha1.LabelValue{"a": "*", "": "x"}},
				TargetRef:       &v1alpha1.TargetReference{Kind: "Pod", Namespace: "x"},
				URL:             "ftp://x",
				SHA256:          "X",
				ImagePullPolicy: "Never",
				ImagePullSecret: strings.Repeat("a", 254),
				VerificationKey: "x",
				PluginConfig:    &v1alpha1.Object{Raw: []byte(`{"a":1e999}`)},
				PluginName:      strings.Repeat("a", 257),
				Phase:           "LATE",
				FailStrategy:    "FAIL_SAFE",
				VMConfig:        &v1alpha1.VMConfig{Env: []v1alpha1.EnvVar{{Name: "A"}, {Name: "A", ValueFrom: "HOST", Value: &text}, {ValueFrom: "X"}}},
				Match:           []v1alpha1.TrafficSelector{{Mode: "BOTH", Ports: []v1alpha1.PortSelector{{Number: 1}, {Number: 1}, {}}}},
				Type:            "TCP",
			}
		}), []string{
			"spec.selector.matchLabels error Invalid", "spec.selector.matchLabels[a] error Invalid",
			"spec.targetRef.kind error Invalid", "spec.targetRef.name error Required", "spec.targetRef.namespace error Invalid", "spec error Invalid",
			"spec.url error Invalid", "spec.sha256 error Invalid", "spec.imagePullPolicy error Invalid", "spec.imagePullSecret error Invalid",
			"spec.verificationKey error Invalid", "spec.pluginName error Invalid", "spec.pluginConfig error Invalid", "spec.phase error Invalid", "spec.failStrategy error Invalid",
			"spec.vmConfig.env[1].name error Duplicate", "spec.vmConfig.env[1].value error Invalid", "spec.vmConfig.env[2].name error Required", "spec.vmConfig.env[2].valueFrom error Invalid",
			"spec.match[0].mode error Invalid", "spec.match[0].ports[1].number error Duplicate", "spec.match[0].ports[2].number error Invalid", "spec.type error Invalid",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, f := range valid(tc.edits...).Validate() {
				got = append(got, fmt.Sprintf("%s %s %s", f.Field, f.Severity, f.Reason))
				if f.Message == "" {
					t.Errorf("%s has no message", f.Field)
				}
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("findings (-want +got):\n%s", d)
			}
		})
	}
}

func TestValidateHostEnv(t *testing.T) {
	t.Parallel()
	p := valid(func(p *v1alpha1.WasmPlugin) {
		p.Spec.VMConfig = &v1alpha1.VMConfig{Env: []v1alpha1.EnvVar{
			{Name: "POD_NAME", ValueFrom: v1alpha1.EnvHost}, {Name: "AWS_SECRET", ValueFrom: v1alpha1.EnvHost}, {Name: "AWS_SECRET_2"}}}
	})
	got := p.ValidateHostEnv([]string{"POD_NAME"})
	if len(got) != 1 || got[0].Field != "spec.vmConfig.env[1].name" || got[0].Reason != v1alpha1.ReasonNotAllowed || !v1alpha1.HasErrors(got) {
		t.Errorf("findings: %+v", got)
	}
	if got := valid().ValidateHostEnv(nil); got != nil {
		t.Errorf("findings: %+v", got)
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	s := &valid().Spec
	if s.EffectivePhase() != v1alpha1.PhaseUnspecified || s.EffectivePriority() != 0 || s.EffectiveType() != v1alpha1.TypeHTTP ||
		s.EffectiveFailStrategy() != v1alpha1.FailClose || (&v1alpha1.TrafficSelector{}).EffectiveMode() != v1alpha1.ModeClientAndServer {
		t.Errorf("defaults are not those of the API")
	}
	s.FailStrategy = "FAIL_SAFE"
	if s.EffectiveFailStrategy() != v1alpha1.FailClose {
		t.Errorf("a fail strategy that is not understood must not open")
	}
	s.Type = v1alpha1.TypeUnspecified
	if s.EffectiveType() != v1alpha1.TypeHTTP {
		t.Errorf("an unspecified type is HTTP")
	}
	if got, want := valid().ECDSName(), "extensions.istio.io/wasmplugin/team-a.auth"; got != want {
		t.Errorf("ECDS name %s, want %s", got, want)
	}
}

func TestEffectivePullPolicy(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		url, sha256 string
		policy      v1alpha1.PullPolicy
		want        v1alpha1.PullPolicy
	}{
		{"r.example/a:v1", "", "", v1alpha1.PullIfNotPresent},
		{"r.example/a:v1", "", v1alpha1.PullUnspecified, v1alpha1.PullIfNotPresent},
		{"r.example/a:latest", "", "", v1alpha1.PullAlways},
		{"r.example/a", "", "", v1alpha1.PullAlways},
		{"r.example/a", "", v1alpha1.PullIfNotPresent, v1alpha1.PullIfNotPresent},
		{"r.example/a:v1", "", v1alpha1.PullAlways, v1alpha1.PullAlways},
		{"r.example/a:latest", hex64, "", v1alpha1.PullIfNotPresent},
		{"r.example/a:latest", hex64, v1alpha1.PullAlways, v1alpha1.PullIfNotPresent},
		{"r.example/a@sha256:" + hex64, "", v1alpha1.PullAlways, v1alpha1.PullIfNotPresent},
		{"https://h.example/latest", "", "", v1alpha1.PullIfNotPresent},
		{"https://h.example/a.wasm", "", v1alpha1.PullAlways, v1alpha1.PullAlways},
		{"://", "", "", v1alpha1.PullIfNotPresent},
	} {
		s := v1alpha1.WasmPluginSpec{URL: tc.url, SHA256: tc.sha256, ImagePullPolicy: tc.policy}
		if got := s.EffectivePullPolicy(); got != tc.want {
			t.Errorf("%s sha256 %q policy %q: %s, want %s", tc.url, tc.sha256, tc.policy, got, tc.want)
		}
	}
}

func TestObject_CanonicalIsOneSpelling(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		``: "", `{}`: "", `{"b":1,"a":2}`: `{"a":2,"b":1}`, ` { "a" : 1.0 } `: `{"a":1}`, `{"a":1e2}`: `{"a":100}`,
		`{"a":9223372036854775807}`: `{"a":9223372036854775807}`, `{"a":18446744073709551615}`: `{"a":18446744073709551615}`,
		`{"a":0.10}`: `{"a":0.1}`, `{"a":-0}`: `{"a":0}`, `{"a":"<\u0026>"}`: `{"a":"<&>"}`, `{"a":[{"c":1,"b":[null,true]}]}`: `{"a":[{"b":[null,true],"c":1}]}`,
	} {
		got, err := (&v1alpha1.Object{Raw: []byte(in)}).Canonical()
		if err != nil || string(got) != want {
			t.Errorf("%s: %s (%v), want %s", in, got, err, want)
		}
	}
	for _, in := range []string{`[]`, `{`, `{} {}`, `{"a":1e999}`, `null x`} {
		if got, err := (&v1alpha1.Object{Raw: []byte(in)}).Canonical(); err == nil {
			t.Errorf("%s: %s, want an error", in, got)
		}
	}
	var o v1alpha1.Object
	if err := json.Unmarshal([]byte(`[1]`), &o); err == nil {
		t.Error("a list is taken for an object")
	}
	if b, err := json.Marshal(struct{ O v1alpha1.Object }{}); err != nil || string(b) != `{"O":{}}` {
		t.Errorf("%s %v", b, err)
	}
}
