// Package agreement holds the test that the CustomResourceDefinition and the Go
// validation say the same. It is a module of its own because it takes the API
// server's libraries, which stile itself does not need.
package agreement

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/document"
)

// server validates as the API server does with the CRD.
type server struct {
	schema  *structural.Structural
	openAPI validation.SchemaValidator
	cel     *cel.Validator
}

func newServer(t *testing.T) server {
	t.Helper()
	data, err := os.ReadFile("../extensions.istio.io_wasmplugins.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var v1 apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(data, &v1); err != nil {
		t.Fatal(err)
	}
	apiextensionsv1.SetDefaults_CustomResourceDefinition(&v1)
	apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&v1.Spec)
	v1.Status.StoredVersions = []string{"v1alpha1"}
	var crd apiextensions.CustomResourceDefinition
	if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(&v1, &crd, nil); err != nil {
		t.Fatal(err)
	}
	for _, err := range crdvalidation.ValidateCustomResourceDefinition(t.Context(), &crd) {
		t.Errorf("the API server refuses the CRD: %v", err)
	}
	props := crd.Spec.Validation
	if props == nil {
		props = crd.Spec.Versions[0].Schema
	}
	s, err := structural.NewStructural(props.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	v, _, err := validation.NewSchemaValidator(props.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	return server{s, v, cel.NewValidator(s, true, celconfig.PerCallLimit)}
}

// faults returns what the API server would refuse a document for, unknown fields included,
// as kubectl asks it to.
func (s server) faults(t *testing.T, doc, old string) []string {
	t.Helper()
	parse := func(text string) map[string]any {
		var obj map[string]any
		if err := yaml.Unmarshal([]byte(text), &obj); err != nil {
			t.Fatal(err)
		}
		return obj
	}
	obj := parse(doc)
	var out []string
	for _, p := range pruning.PruneWithOptions(obj, s.schema, true, structural.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}) {
		out = append(out, p+": unknown field")
	}
	defaulting.PruneNonNullableNullsWithoutDefaults(obj, s.schema)
	for _, e := range validation.ValidateCustomResource(nil, obj, s.openAPI) {
		out = append(out, e.Error())
	}
	for _, e := range listtype.ValidateListSetsAndMaps(nil, s.schema, obj) {
		out = append(out, e.Error())
	}
	if len(out) > 0 {
		return out // the API server evaluates rules only on what fits the schema
	}
	var oldObj any
	if old != "" {
		oldObj = parse(old)
	}
	errs, _ := s.cel.Validate(t.Context(), nil, s.schema, obj, oldObj, celconfig.RuntimeCELCostBudget)
	for _, e := range errs {
		out = append(out, e.Error())
	}
	return out
}

// plugin wraps a spec into a document.
func plugin(spec string) string {
	return "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a, namespace: team-a}\nspec:\n  " +
		strings.ReplaceAll(strings.TrimSpace(spec), "\n", "\n  ") + "\n"
}

const digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestCRDAndGoSayTheSame(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	many := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format+"\n", i)
		}
		return b.String()
	}
	for _, tc := range []struct {
		name, spec string
		bad        bool
		goOnly     string // why the schema cannot say it
	}{
		{name: "least", spec: "url: oci://r.example/a:v1"},
		{name: "no url", spec: "phase: AUTHN", bad: true},
		{name: "empty url", spec: `url: ""`, bad: true},
		{name: "null url", spec: `url: null`, bad: true},
		{name: "nulls are absent", spec: "url: a\nselector: null\nphase: null\npriority: null\nmatch: null\nvmConfig: null\npluginConfig: null"},
		{name: "address with port", spec: "url: 10.0.0.1:5000/a"},
		{name: "underscore host", spec: "url: my_reg:5000/a"},
		{name: "ipv6", spec: `url: "[::1]:5000/a"`},
		{name: "bare name", spec: "url: reg:5000/a"},
		{name: "upper-case scheme", spec: "url: OCI://r.example/a"},
		{name: "file", spec: "url: file:///opt/filters/openid.wasm"},
		{name: "file folder", spec: "url: file:///opt/", bad: true},
		{name: "https", spec: "url: https://bucket.example/a.wasm?token=1"},
		{name: "https without file", spec: "url: https://bucket.example", bad: true},
		{name: "https without host", spec: "url: https:///a.wasm", bad: true},
		{name: "https with password", spec: "url: https://u:p@bucket.example/a.wasm", bad: true},
		{name: "http with a port that is none", spec: "url: http://bucket.example:99999/a.wasm", bad: true, goOnly: "the port's range"},
		{name: "ftp", spec: "url: ftp://bucket.example/a.wasm", bad: true},
		{name: "no scheme before ://", spec: `url: "://bad url"`, bad: true},
		{name: "spaces", spec: `url: "oci://r.example/a b"`, bad: true},
		{name: "empty reference", spec: "url: oci://", bad: true},
		{name: "image with password", spec: "url: oci://u:p@r.example/a", bad: true},
		{name: "short digest", spec: "url: oci://r.example/a@sha256:abc", bad: true},
		{name: "image with query", spec: "url: oci://r.example/a?x=1", bad: true},
		{name: "image with fragment", spec: `url: "r.example/a#x"`, bad: true},
		{name: "upper-case repository", spec: "url: r.example/A", bad: true, goOnly: "the grammar of references"},
		{name: "long url", spec: "url: https://r.example/" + strings.Repeat("a", 4096), bad: true},
		{name: "digest", spec: "url: r.example/a@sha256:" + digest},
		{name: "digest and equal sha256", spec: "url: r.example/a@sha256:" + digest + "\nsha256: " + digest},
		{name: "digest and other sha256", spec: "url: r.example/a@sha256:" + digest + "\nsha256: " + strings.Repeat("0", 63) + "1", bad: true},
		{name: "digest in an http url and other sha256", spec: "url: https://r.example/a@sha256:" + digest + "\nsha256: " + strings.Repeat("0", 63) + "1", bad: true},
		{name: "digest in an http url and equal sha256", spec: "url: https://r.example/a@sha256:" + digest + "\nsha256: " + digest},
		{name: "empty sha256", spec: "url: a\nsha256: \"\""},
		{name: "upper-case sha256", spec: "url: a\nsha256: " + strings.ToUpper(digest), bad: true},
		{name: "sha256 as number", spec: "url: a\nsha256: 12", bad: true},
		{name: "pull policies", spec: "url: a\nimagePullPolicy: IfNotPresent"},
		{name: "pull policy of Kubernetes alone", spec: "url: a\nimagePullPolicy: Never", bad: true},
		{name: "empty pull policy", spec: "url: a\nimagePullPolicy: \"\"", bad: true},
		{name: "empty pull secret", spec: "url: a\nimagePullSecret: \"\"", bad: true},
		{name: "long pull secret", spec: "url: a\nimagePullSecret: " + strings.Repeat("a", 254), bad: true},
		{name: "key that is none", spec: "url: a\nverificationKey: nonsense", bad: true, goOnly: "what a PEM key is"},
		{name: "any plugin configuration", spec: "url: a\npluginConfig: {a: {b: [1, null, {c: 1.5}]}, 'd e': x}"},
		{name: "plugin configuration that is a list", spec: "url: a\npluginConfig: [1]", bad: true},
		{name: "plugin configuration that is text", spec: "url: a\npluginConfig: x", bad: true},
		{name: "empty plugin name", spec: "url: a\npluginName: \"\"", bad: true},
		{name: "long plugin name", spec: "url: a\npluginName: " + strings.Repeat("ä", 257), bad: true},
		{name: "longest plugin name", spec: "url: a\npluginName: " + strings.Repeat("ä", 256)},
		{name: "ASM_ROUTER", spec: "url: a\nphase: ASM_ROUTER"},
		{name: "phase by number", spec: "url: a\nphase: 100", bad: true},
		{name: "phase in lower case", spec: "url: a\nphase: authn", bad: true},
		{name: "empty phase", spec: "url: a\nphase: \"\"", bad: true},
		{name: "priority", spec: "url: a\npriority: -2147483648"},
		{name: "priority as float", spec: "url: a\npriority: 10.0"},
		{name: "priority beyond 32 bits", spec: "url: a\npriority: 2147483648", bad: true},
		{name: "priority as text", spec: "url: a\npriority: \"1\"", bad: true},
		{name: "priority with a fraction", spec: "url: a\npriority: 1.5", bad: true},
		{name: "FAIL_RELOAD", spec: "url: a\nfailStrategy: FAIL_RELOAD"},
		{name: "unknown fail strategy", spec: "url: a\nfailStrategy: FAIL_SAFE", bad: true},
		{name: "unspecified type", spec: "url: a\ntype: UNSPECIFIED_PLUGIN_TYPE"},
		{name: "unknown type", spec: "url: a\ntype: TCP", bad: true},
		{name: "unknown field", spec: "url: a\nselectr: {}", bad: true},
		{name: "unknown field deep down", spec: "url: a\nvmConfig: {env: [{name: A, vale: b}]}", bad: true},
		{name: "selector", spec: "url: a\nselector: {matchLabels: {istio: ingressgateway}}"},
		{name: "selector without labels", spec: "url: a\nselector: {}"},
		{name: "wildcard in label", spec: "url: a\nselector: {matchLabels: {a: 'b*'}}", bad: true},
		{name: "wildcard in label name", spec: "url: a\nselector: {matchLabels: {'a*': b}}", bad: true},
		{name: "empty label name", spec: "url: a\nselector: {matchLabels: {'': b}}", bad: true},
		{name: "long label", spec: "url: a\nselector: {matchLabels: {a: " + strings.Repeat("b", 64) + "}}", bad: true},
		{name: "label as boolean", spec: "url: a\nselector: {matchLabels: {a: yes}}", bad: true},
		{name: "null label", spec: "url: a\nselector: {matchLabels: {a: null}}"},
		{name: "too many labels", spec: "url: a\nselector:\n  matchLabels:\n" + many(4097, "    l%d: x"), bad: true},
		{name: "target", spec: "url: a\ntargetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: gw}]"},
		{name: "old target", spec: "url: a\ntargetRef: {group: gateway.networking.k8s.io, kind: GatewayClass, name: gw}"},
		{name: "service", spec: "url: a\ntargetRefs: [{kind: Service, name: s}, {group: core, kind: Service, name: s}, {group: '', kind: Service, name: s}]"},
		{name: "service entry", spec: "url: a\ntargetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: s}]"},
		{name: "gateway of no group", spec: "url: a\ntargetRefs: [{kind: Gateway, name: gw}]", bad: true},
		{name: "gateway of another group", spec: "url: a\ntargetRefs: [{group: networking.istio.io, kind: Gateway, name: gw}]", bad: true},
		{name: "service of another group", spec: "url: a\ntargetRefs: [{group: serving.knative.dev, kind: Service, name: s}]", bad: true},
		{name: "service entry of no group", spec: "url: a\ntargetRefs: [{kind: ServiceEntry, name: s}]", bad: true},
		{name: "unknown target", spec: "url: a\ntargetRefs: [{group: apps, kind: Deployment, name: d}]", bad: true},
		{name: "target without name", spec: "url: a\ntargetRefs: [{group: gateway.networking.k8s.io, kind: Gateway}]", bad: true},
		{name: "target without kind", spec: "url: a\ntargetRefs: [{group: gateway.networking.k8s.io, name: gw}]", bad: true},
		{name: "target elsewhere", spec: "url: a\ntargetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: gw, namespace: b}]", bad: true},
		{name: "target with empty namespace", spec: "url: a\ntargetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: gw, namespace: ''}]"},
		{name: "too many targets", spec: "url: a\ntargetRefs:\n" + many(17, "- {kind: Service, name: s%d}"), bad: true},
		{name: "selector and target", spec: "url: a\nselector: {matchLabels: {a: b}}\ntargetRefs: [{kind: Service, name: s}]", bad: true},
		{name: "selector and no targets", spec: "url: a\nselector: {}\ntargetRefs: []", bad: true},
		{name: "both targets", spec: "url: a\ntargetRef: {kind: Service, name: s}\ntargetRefs: [{kind: Service, name: s}]", bad: true},
		{name: "match", spec: "url: a\nmatch: [{mode: CLIENT, ports: [{number: 1}, {number: 65535}]}, {mode: UNDEFINED}, {}]"},
		{name: "port 0", spec: "url: a\nmatch: [{ports: [{number: 0}]}]", bad: true},
		{name: "port 65536", spec: "url: a\nmatch: [{ports: [{number: 65536}]}]", bad: true},
		{name: "port twice", spec: "url: a\nmatch: [{ports: [{number: 80}, {number: 80}]}]", bad: true},
		{name: "port twice in different entries", spec: "url: a\nmatch: [{ports: [{number: 80}]}, {ports: [{number: 80}]}]"},
		{name: "port without number", spec: "url: a\nmatch: [{ports: [{}]}]", bad: true},
		{name: "plain port", spec: "url: a\nmatch: [{ports: [80]}]", bad: true},
		{name: "unknown mode", spec: "url: a\nmatch: [{mode: BOTH}]", bad: true},
		{name: "null entry", spec: "url: a\nmatch: [null]", bad: true},
		{name: "env", spec: "url: a\nvmConfig: {env: [{name: A, value: ''}, {name: B_1, valueFrom: HOST}, {name: C, valueFrom: INLINE, value: x}, {name: D, valueFrom: INLINE}]}"},
		{name: "host env with value", spec: "url: a\nvmConfig: {env: [{name: A, valueFrom: HOST, value: x}]}", bad: true},
		{name: "host env with empty value", spec: "url: a\nvmConfig: {env: [{name: A, valueFrom: HOST, value: ''}]}", bad: true},
		{name: "env twice", spec: "url: a\nvmConfig: {env: [{name: A}, {name: A}]}", bad: true},
		{name: "env without name", spec: "url: a\nvmConfig: {env: [{value: x}]}", bad: true},
		{name: "env with a name that is no identifier", spec: "url: a\nvmConfig: {env: [{name: a-b}]}", bad: true},
		{name: "env with a digit first", spec: "url: a\nvmConfig: {env: [{name: 1a}]}", bad: true},
		{name: "reserved env", spec: "url: a\nvmConfig: {env: [{name: STILE_X}]}", bad: true},
		{name: "other reserved env", spec: "url: a\nvmConfig: {env: [{name: ISTIO_META_WASM_X}]}", bad: true},
		{name: "unknown source of env", spec: "url: a\nvmConfig: {env: [{name: A, valueFrom: SECRET}]}", bad: true},
		{name: "long env name", spec: "url: a\nvmConfig: {env: [{name: " + strings.Repeat("A", 257) + "}]}", bad: true},
		{name: "long env value", spec: "url: a\nvmConfig: {env: [{name: A, value: " + strings.Repeat("A", 2049) + "}]}", bad: true},
		{name: "too much env", spec: "url: a\nvmConfig:\n  env:\n" + many(257, "  - {name: A%d}"), bad: true},
		{name: "env value as number", spec: "url: a\nvmConfig: {env: [{name: A, value: 1}]}", bad: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			doc := plugin(tc.spec)
			crd := s.faults(t, doc, "")
			var golang []string
			for _, d := range document.Read("a.yaml", []byte(doc)) {
				for _, f := range d.Findings {
					if f.Severity == "error" {
						golang = append(golang, f.Field+": "+f.Message)
					}
				}
			}
			if (len(golang) > 0) != tc.bad {
				t.Errorf("the Go validation says %q, want bad=%v", golang, tc.bad)
			}
			if (len(crd) > 0) != (tc.bad && tc.goOnly == "") {
				t.Errorf("the CRD says %q, want bad=%v (but for: %s)", crd, tc.bad, tc.goOnly)
			}
		})
	}
}

// TestWhatGoAcceptsTheCRDAccepts tries urls made of the pieces that matter. The CRD may accept more
// than the Go validation does, never less: what `stile validate` passes must not fail in the cluster.
func TestWhatGoAcceptsTheCRDAccepts(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	pieces := []string{"oci://", "OCI://", "http://", "https://", "Https://", "file://", "://", "/", "//", ":", "@", "?", "#", "a", "A", "b.example", "my_reg", "[::1]", ":5000", ":v1", "10.0.0.1",
		"@sha256:" + digest, "@sha256:ab", "..", "%41", "%zz", " ", "\u00a0", "ä", "\u2028", "u:p@", "=", "&", "\\", "'", "*"}
	r := rand.New(rand.NewPCG(1, 1))
	accepted := 0
	for range 40000 {
		var url strings.Builder
		for range 1 + r.IntN(5) {
			url.WriteString(pieces[r.IntN(len(pieces))])
		}
		if _, err := v1alpha1.ParseModuleURL(url.String()); err != nil {
			continue
		}
		accepted++
		doc, err := yaml.Marshal(map[string]any{"apiVersion": "extensions.istio.io/v1alpha1", "kind": "WasmPlugin",
			"metadata": map[string]any{"name": "a", "namespace": "b"}, "spec": map[string]any{"url": url.String()}})
		if err != nil {
			t.Fatal(err)
		}
		if faults := s.faults(t, string(doc), ""); len(faults) > 0 {
			t.Errorf("%q: %q", url.String(), faults)
		}
	}
	if accepted < 1000 {
		t.Errorf("only %d urls were worth a try", accepted)
	}
}

// TestAnySpecIsJudgedAlike puts values of every kind into every field, some at a time.
func TestAnySpecIsJudgedAlike(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	anything := []string{"null", `""`, "x", "0", "1", "-1", "1.5", "1e3", "2147483648", "true", "'true'", "[]", "{}", "[null]", "[{}]", "[x]", "[1]", "{x: y}", "{'': x}", "{x: null}", "[[]]", "{x: {}}", `"ä"`, "2026-01-02", "0x10", "~"}
	gateway := "{group: gateway.networking.k8s.io, kind: Gateway, name: g}"
	fields := map[string][]string{
		"selector":        {"{matchLabels: {a: b}}", "{matchLabels: {a: 'b*'}}", "{matchLabels: null}", "{matchLabels: {a: 1}}", "{matchLabels: [a]}", "{matchLabels: {a: b}, matchExpressions: []}"},
		"targetRef":       {gateway, "{kind: Service, name: ''}", "{kind: Service}", "{kind: Service, name: s, namespace: null}", "{group: 1, kind: Service, name: s}"},
		"targetRefs":      {"[" + gateway + "]", "[" + gateway + ", {kind: Pod, name: p}]", "[{kind: '', name: p}]"},
		"sha256":          {digest, strings.ToUpper(digest), "'" + digest + " '"},
		"imagePullPolicy": {"Always", "IfNotPresent", "UNSPECIFIED_POLICY", "always"},
		"imagePullSecret": {"regcred", "'a b'"},
		"pluginConfig":    {"{a: [1, {b: null}]}", "{a: 2026-01-02}"},
		"pluginName":      {"root"},
		"phase":           {"AUTHN", "ASM_ROUTER", "' AUTHN'"},
		"priority":        {"10", "-2147483648", "-2147483649", "2147483647", "10.0"},
		"failStrategy":    {"FAIL_OPEN", "FAIL_RELOAD", "fail_open"},
		"vmConfig":        {"{env: null}", "{env: []}", "{env: [{name: A}]}", "{env: [{name: A}, {name: A}]}", "{env: [{name: A, valueFrom: HOST, value: null}]}", "{env: [{name: A, valueFrom: HOST, value: ''}]}", "{env: [{name: A, valueFrom: null, value: x}]}", "{env: {name: A}}"},
		"match":           {"[{mode: CLIENT}]", "[{mode: null, ports: null}]", "[{mode: ''}]", "[{ports: [{number: 80}]}]", "[{ports: [{number: 80}, {number: 80.0}]}]", "[{ports: [{number: '80'}]}]", "[{ports: [{number: null}]}]", "[{ports: {number: 80}}]"},
		"type":            {"HTTP", "NETWORK", "UNSPECIFIED_PLUGIN_TYPE", "http"},
		"other":           nil,
	}
	names := slices.Sorted(maps.Keys(fields))
	good, bad := 0, 0
	judge := func(spec string) {
		doc := plugin(spec)
		var golang []string
		for _, d := range document.Read("a.yaml", []byte(doc)) {
			for _, f := range d.Findings {
				if f.Severity == "error" {
					golang = append(golang, f.Field+": "+f.Message)
				}
			}
		}
		crd := s.faults(t, doc, "")
		if len(crd) > 0 {
			bad++
		} else {
			good++
		}
		if (len(golang) > 0) != (len(crd) > 0) {
			t.Errorf("%q\nthe Go validation says %q\nthe CRD says           %q", spec, golang, crd)
		}
	}
	for _, name := range names {
		for _, value := range slices.Concat(anything, fields[name]) {
			judge("url: a\n" + name + ": " + value)
		}
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 3000 {
		spec := "url: a"
		for _, i := range r.Perm(len(names))[:1+r.IntN(4)] {
			values := fields[names[i]] // mostly sensible ones: most documents are nearly right
			if len(values) == 0 || r.IntN(4) == 0 {
				values = anything
			}
			spec += "\n" + names[i] + ": " + values[r.IntN(len(values))]
		}
		judge(spec)
	}
	if good < 500 || bad < 500 {
		t.Errorf("%d documents were good and %d bad: that says little", good, bad)
	}
}

// TestValuesAreWhatKubectlTakesThemFor reads scalars of every spelling as kubectl's own YAML does.
func TestValuesAreWhatKubectlTakesThemFor(t *testing.T) {
	t.Parallel()
	for _, scalar := range []string{"y", "n", "Y", "yes", "No", "on", "OFF", "true", "True", "tRUE", "010", "0o10", "0o8", "08", "0x1F", "0b11", "1_000", "1e400", "1e5", "12e03", ".5", "1.", "+1", "-0", "1:30", "190:20:30",
		"~", "NULL", "null", "''", "'1'", `"yes"`, "=", "x y", "2026-01-02", "2026-01-02T03:04:05Z", "!!str 1", "!!str yes", "!!int '1'", "!!binary aGk=", "|\n      two\n      lines", ">-\n      one\n      line", "18446744073709551615", "-9223372036854775808"} {
		doc := plugin("url: a\npluginConfig:\n  a: " + strings.ReplaceAll(scalar, "\n      ", "\n    "))
		var want struct {
			Spec struct{ PluginConfig v1alpha1.Object }
		}
		if err := yaml.Unmarshal([]byte(doc), &want); err != nil {
			t.Fatalf("%s: %v", scalar, err)
		}
		docs := document.Read("a.yaml", []byte(doc))
		if len(docs) != 1 || docs[0].HasErrors() {
			t.Errorf("%s: %+v", scalar, docs)
			continue
		}
		kubectl, err := want.Spec.PluginConfig.Canonical()
		if err != nil {
			t.Fatalf("%s: %v", scalar, err)
		}
		ours, err := docs[0].Object.(*v1alpha1.WasmPlugin).Spec.PluginConfig.Canonical()
		if err != nil || string(ours) != string(kubectl) {
			t.Errorf("%s: kubectl reads %s, stile %s (%v)", scalar, kubectl, ours, err)
		}
	}
}

func TestTypeCannotBeChanged(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for _, tc := range []struct {
		old, new string
		bad      bool
	}{
		{"url: a", "url: b", false},
		{"url: a", "url: a\ntype: HTTP", false},
		{"url: a\ntype: HTTP", "url: a\ntype: UNSPECIFIED_PLUGIN_TYPE", false},
		{"url: a", "url: a\ntype: NETWORK", true},
		{"url: a\ntype: NETWORK", "url: a", true},
	} {
		if got := s.faults(t, plugin(tc.new), plugin(tc.old)); (len(got) > 0) != tc.bad {
			t.Errorf("from %q to %q: %q, want bad=%v", tc.old, tc.new, got, tc.bad)
		}
	}
}
