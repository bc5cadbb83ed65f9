package document_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/document"
)

const head = "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a, namespace: team-a}\n"

// told returns "index:line field severity reason" of all findings.
func told(docs []document.Document) []string {
	var out []string
	for _, f := range document.Report(docs).Findings {
		out = append(out, fmt.Sprintf("%d:%d %s %s %s", f.Document, f.Line, f.Field, f.Severity, f.Reason))
	}
	return out
}

// seen returns "index:line kind namespace/name" of all documents.
func seen(docs []document.Document) []string {
	var out []string
	for _, d := range docs {
		out = append(out, fmt.Sprintf("%d:%d %s %s/%s", d.Index, d.Line, d.Kind, d.Namespace, d.Name))
	}
	return out
}

func TestRead_CountsDocuments(t *testing.T) {
	t.Parallel()
	doc := func(name string) string {
		return "apiVersion: v1\nkind: Secret\nmetadata: {name: " + name + ", namespace: ns}\n"
	}
	for name, tc := range map[string]struct {
		text string
		want []string
	}{
		"one":                          {doc("a"), []string{"0:1 Secret ns/a"}},
		"none":                         {"", nil},
		"nothing but space":            {"\n\n  \n", nil},
		"nothing but a comment":        {"# x\n", nil},
		"nothing but marks":            {"---\n---\n---\n", nil},
		"null is nothing, and counts":  {"null\n---\n" + doc("a") + "---\n~\n---\n" + doc("b"), []string{"1:3 Secret ns/a", "3:9 Secret ns/b"}},
		"two":                          {doc("a") + "---\n" + doc("b"), []string{"0:1 Secret ns/a", "1:5 Secret ns/b"}},
		"a leading mark makes none":    {"---\n" + doc("a"), []string{"0:2 Secret ns/a"}},
		"nor with a comment before it": {"# licence\n---\n" + doc("a"), []string{"0:3 Secret ns/a"}},
		"nor with a directive":         {"%YAML 1.2\n---\n" + doc("a"), []string{"0:3 Secret ns/a"}},
		"empty ones count":             {doc("a") + "---\n---\n# nothing\n---\n" + doc("b"), []string{"0:1 Secret ns/a", "3:8 Secret ns/b"}},
		"two leading marks make one":   {"---\n---\n" + doc("a"), []string{"1:3 Secret ns/a"}},
		"a trailing mark":              {doc("a") + "---\n", []string{"0:1 Secret ns/a"}},
		"marks with comments":          {"--- # first\n" + doc("a") + "--- # second\n" + doc("b"), []string{"0:2 Secret ns/a", "1:6 Secret ns/b"}},
		"carriage returns":             {strings.ReplaceAll("---\n"+doc("a")+"---\n"+doc("b"), "\n", "\r\n"), []string{"0:2 Secret ns/a", "1:6 Secret ns/b"}},
		"a byte order mark":            {"\ufeff" + doc("a"), []string{"0:1 Secret ns/a"}},
		"content on the mark's line":   {"--- {apiVersion: v1, kind: Secret, metadata: {name: a, namespace: ns}}\n", []string{"0:1 Secret ns/a"}},
		"an end mark":                  {doc("a") + "...\n---\n" + doc("b"), []string{"0:1 Secret ns/a", "1:6 Secret ns/b"}},
		"a line that only begins like a mark": {
			"apiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: ns}\nstringData:\n  k: |\n    ---\n    x\n", []string{"0:1 Secret ns/a"}},
		"JSON":           {`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"a","namespace":"ns"}}`, []string{"0:1 Secret ns/a"}},
		"JSON with tabs": {"\n{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Secret\",\n\t\"metadata\": {\"name\": \"a\"}}\n", []string{"0:2 Secret default/a"}},
		"a List":         {"apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Secret\n  metadata: {name: a}\n- apiVersion: v1\n  kind: Secret\n  metadata: {name: b}\n", []string{"0:4 Secret default/a", "0:7 Secret default/b"}},
		"a typed List":   {"apiVersion: v1\nkind: SecretList\nitems:\n- metadata: {name: a}\n", []string{"0:4 Secret default/a"}},
		"a List in a List": {"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Secret, metadata: {name: a}}]}\n",
			[]string{"0:4 Secret default/a"}},
		"an empty List": {"apiVersion: v1\nkind: List\nitems: []\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			docs := document.Read("f.yaml", []byte(tc.text))
			if d := cmp.Diff(tc.want, seen(docs)); d != "" {
				t.Errorf("documents (-want +got):\n%s", d)
			}
			if f := told(docs); len(f) > 0 {
				t.Errorf("findings: %q", f)
			}
		})
	}
}

func TestRead_Findings(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		text string
		want []string
	}{
		"valid":  {head + "spec: {url: a}\n", nil},
		"syntax": {"a: [\n", []string{"0:1  error Syntax"}},
		"syntax in one of two": {"a: [\n---\n" + head + "spec: {url: 'a b'}\n", []string{
			"0:1  error Syntax", "1:6 spec.url error Invalid"}},
		"tab":       {"a:\n\tb: c\n", []string{"0:2  error Syntax"}},
		"not UTF-8": {"a: \xff\n", []string{"0:1  error Syntax"}},
		"UTF-16":    {"a\x00:\x00\n\x00", []string{"0:1  error Syntax"}},
		"a document that is not UTF-8 takes no other along": {head + "spec: {url: 'a b'}\n---\na: b\nc: \xe4\n---\n" + head + "spec: {url: 'a b'}\n", []string{
			"0:4 spec.url error Invalid", "1:7  error Syntax", "2:9 metadata.name warning Duplicate", "2:12 spec.url error Invalid"}},
		"zero byte":                        {"kind: x\na: \x00\n", []string{"0:2  error Syntax"}},
		"a scalar":                         {"hello\n", []string{"0:1  error Invalid"}},
		"a list":                           {"- a\n", []string{"0:1  error Invalid"}},
		"no kind":                          {"apiVersion: v1\n", []string{"0:1 kind error Required"}},
		"kind as number":                   {"apiVersion: v1\nkind: 1\n", []string{"0:1 kind error Required"}},
		"unknown kind":                     {"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n", []string{"0:1 kind warning UnknownKind"}},
		"unknown kind without version":     {"kind: Deployment\n", []string{"0:1 kind warning UnknownKind"}},
		"no version":                       {"kind: WasmPlugin\nmetadata: {name: a}\nspec: {url: a}\n", []string{"0:1 apiVersion error Required"}},
		"unknown version":                  {"apiVersion: extensions.istio.io/v1\nkind: WasmPlugin\nmetadata: {name: a}\nspec: {url: a}\n", []string{"0:1 apiVersion error UnknownAPIVersion"}},
		"unknown version of Secret":        {"apiVersion: v2\nkind: Secret\n", []string{"0:1 apiVersion error UnknownAPIVersion"}},
		"the Gateway of another group":     {"apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\n", []string{"0:1 kind warning UnknownKind"}},
		"a Gateway with fields of its own": {"apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec: {anything: 1, gatewayClassName: c}\n", nil},
		"a kubeconfig":                     {"apiVersion: v1\nkind: Config\nusers: []\n", []string{"0:1 kind warning UnknownKind"}},
		"duplicate key":                    {head + "spec:\n  url: a\n  phase: AUTHN\n  url: b\n", []string{"0:7 spec.url error Duplicate"}},
		"duplicate kind":                   {head + "kind: WasmPlugin\nspec: {url: a}\n", []string{"0:4 kind error Duplicate"}},
		"duplicate key in JSON": {`{"apiVersion":"extensions.istio.io/v1alpha1","kind":"WasmPlugin","metadata":{"name":"a"},"spec":{"url":"a","url":"a"}}`,
			[]string{"0:1 spec.url error Duplicate"}},
		"duplicate key deep down": {head + "spec:\n  url: a\n  pluginConfig:\n    x: [{a: 1, a: 2}]\n", []string{"0:7 spec.pluginConfig.x[0].a error Duplicate"}},
		"no spec":                 {head, []string{"0:1 spec error Required"}},
		"null spec":               {head + "spec:\n", []string{"0:1 spec error Required"}},
		"no name":                 {"apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nspec: {url: a}\n", []string{"0:1 metadata.name error Required"}},
		"bad name":                {"apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: A_b, namespace: a.b}\nspec: {url: a}\n", []string{"0:3 metadata.name error Invalid", "0:3 metadata.namespace error Invalid"}},
		"unknown fields everywhere": {head + "spec:\n  url: a\n  Phase: AUTHN\n  vmConfig:\n    env:\n    - {name: A}\n    - {name: B}\n    - {nam: C}\nstate: {}\n", []string{
			"0:6 spec.Phase error UnknownField", "0:11 spec.vmConfig.env[2].nam error UnknownField", "0:11 spec.vmConfig.env[2].name error Required", "0:12 state error UnknownField"}},
		"unknown metadata":               {"apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a, lables: {}}\nspec: {url: a}\n", []string{"0:3 metadata.lables error UnknownField"}},
		"metadata as a server writes it": {"apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata:\n  name: a\n  creationTimestamp: 2026-01-02T03:04:05Z\n  uid: x\n  generation: 3\n  resourceVersion: '7'\n  managedFields: [{manager: kubectl, fieldsV1: {f:spec: {}}}]\n  annotations: {a: b}\nspec: {url: a}\nstatus: {conditions: [], foreign: 1}\n", nil},
		"bad time":                       {"apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a, creationTimestamp: yesterday}\nspec: {url: a}\n", []string{"0:3 metadata.creationTimestamp error Invalid"}},
		"all faults at once": {head + "spec:\n  url: 7\n  sha256: ABC\n  priority: high\n  phase: LATE\n  match: [{ports: [{number: 0}]}]\n", []string{
			"0:5 spec.url error Invalid", "0:6 spec.sha256 error Invalid", "0:7 spec.priority error Invalid", "0:8 spec.phase error Invalid", "0:9 spec.match[0].ports[0].number error Invalid"}},
		"booleans of YAML 1.1 are booleans, as for kubectl": {head + "spec: {url: a, pluginName: yes}\n", []string{"0:4 spec.pluginName error Invalid"}},
		"quoted they are text":                              {head + "spec: {url: a, pluginName: 'yes'}\n", nil},
		"anchors":                                           {head + "spec:\n  url: a\n  selector: {matchLabels: &l {a: b}}\n  pluginConfig: {x: *l, <<: *l}\n", nil},
		"unknown anchor":                                    {head + "spec: {url: *x}\n", []string{"0:1  error Syntax"}},
		"an anchor in itself":                               {"a: &a [*a]\n", []string{"0:1  error Syntax"}},
		"unknown tag":                                       {head + "spec: {url: !env X}\n", []string{"0:4  error Syntax"}},
		"not a number":                                      {head + "spec: {url: a, pluginConfig: {x: .nan}}\n", []string{"0:4  error Syntax"}},
		"a map for a key":                                   {"{a: b}: c\n", []string{"0:1  error Syntax"}},
		"two documents without a mark":                      {head + "spec: {url: a}\n...\nkind: x\n", []string{"0:5  error Syntax"}},
		"items of a List": {"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: extensions.istio.io/v1alpha1, kind: WasmPlugin, metadata: {name: a}, spec: {url: a, url: b}}\n- {kind: Foo}\n- 1\n", []string{
			"0:4 spec.url error Duplicate", "0:5 kind warning UnknownKind", "0:6  error Invalid"}},
		"a List of another version":       {"apiVersion: v2\nkind: List\nitems: []\n", []string{"0:1 apiVersion error UnknownAPIVersion"}},
		"a typed List of another version": {"apiVersion: v2\nkind: SecretList\nitems: []\n", []string{"0:1 apiVersion error UnknownAPIVersion"}},
		"items that are no list":          {"apiVersion: v1\nkind: List\nitems: {}\n", []string{"0:3 items error Invalid"}},
		"secret":                          {"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ntype: kubernetes.io/dockerconfigjson\ndata: {.dockerconfigjson: e30=}\n", nil},
		"secret without its key":          {"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ntype: kubernetes.io/dockerconfigjson\ndata: {config: e30=}\n", []string{"0:5 data[.dockerconfigjson] error Required"}},
		"secret without JSON":             {"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ntype: kubernetes.io/dockercfg\nstringData: {.dockercfg: x}\n", []string{"0:5 stringData[.dockercfg] error Invalid"}},
		"secret that is not base64":       {"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: '?'}\n", []string{"0:4 data[a] error Invalid"}},
		"secret of numbers":               {"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {a: 1}\n", []string{"0:4 stringData[a] error Invalid"}},
		"secret with another field":       {"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nspec: {}\n", []string{"0:4 spec error UnknownField"}},
		"the same plugin twice":           {head + "spec: {url: a}\n---\n" + head + "spec: {url: b}\n", []string{"1:6 metadata.name warning Duplicate"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			docs := document.Read("f.yaml", []byte(tc.text))
			if d := cmp.Diff(tc.want, told(docs)); d != "" {
				t.Errorf("findings (-want +got):\n%s\n%+v", d, document.Report(docs).Findings)
			}
		})
	}
}

func TestReport_IsAsPromised(t *testing.T) {
	t.Parallel()
	docs := append(document.Read("b.yaml", []byte(head+"spec: {url: a, sha256: X}\n")), document.Read("a.yaml", []byte("kind: [\n"))...)
	r := document.Report(docs)
	if !r.HasErrors() || r.Checked != 1 {
		t.Errorf("checked %d, errors %v", r.Checked, r.HasErrors())
	}
	got, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want := `{
  "apiVersion": "stile.dev/v1alpha1",
  "kind": "ValidationReport",
  "checked": 1,
  "findings": [
    {
      "file": "a.yaml",
      "document": 0,
      "line": 1,
      "kind": "",
      "namespace": "",
      "name": "",
      "field": "",
      "severity": "error",
      "reason": "Syntax",
      "message": "is not YAML: did not find expected node content"
    },
    {
      "file": "b.yaml",
      "document": 0,
      "line": 4,
      "kind": "WasmPlugin",
      "namespace": "team-a",
      "name": "a",
      "field": "spec.sha256",
      "severity": "error",
      "reason": "Invalid",
      "message": "must be 64 lower-case hexadecimal digits"
    }
  ]
}`
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Errorf("report (-want +got):\n%s", d)
	}
	if empty, _ := json.Marshal(document.Report(nil)); string(empty) != `{"apiVersion":"stile.dev/v1alpha1","kind":"ValidationReport","checked":0,"findings":[]}` {
		t.Errorf("empty report: %s", empty)
	}
}

func TestRules_HostEnvHoldsWhereItIsGiven(t *testing.T) {
	t.Parallel()
	text := "kind: List\napiVersion: v1\nitems:\n- apiVersion: extensions.istio.io/v1alpha1\n  kind: WasmPlugin\n  metadata: {name: a}\n  spec:\n    url: a\n    vmConfig:\n      env:\n" +
		"      - {name: POD_NAME, valueFrom: HOST}\n      - {name: TOKEN, valueFrom: HOST}\n      - {name: OTHER, value: x}\n"
	for _, tc := range []struct {
		allowed []string
		want    []string
	}{
		{nil, nil},
		{[]string{"POD_NAME"}, []string{"0:12 spec.vmConfig.env[1].name error NotAllowed"}},
		{[]string{}, []string{"0:11 spec.vmConfig.env[0].name error NotAllowed", "0:12 spec.vmConfig.env[1].name error NotAllowed"}},
	} {
		if d := cmp.Diff(tc.want, told(document.Rules{HostEnv: tc.allowed}.Read("a.yaml", []byte(text)))); d != "" {
			t.Errorf("allowed %q (-want +got):\n%s", tc.allowed, d)
		}
	}
}

func TestRead_KeepsWhatItReads(t *testing.T) {
	t.Parallel()
	docs := document.Read("f.yaml", []byte(head+`spec:
  url: a
  priority: 1e1
  pluginConfig: {b: [1, 0x10, 1.50, null, "é", on], a: {z: "<>&"}}
  vmConfig: {env: [{name: A, value: ""}, {name: B}]}
  targetRefs: []
`))
	p := docs[0].Object.(*v1alpha1.WasmPlugin)
	if *p.Spec.Priority != 10 || p.Spec.TargetRefs == nil || *p.Spec.VMConfig.Env[0].Value != "" || p.Spec.VMConfig.Env[1].Value != nil {
		t.Errorf("read %+v", p.Spec)
	}
	got, err := p.Spec.PluginConfig.Canonical()
	if want := `{"a":{"z":"<>&"},"b":[1,16,1.5,null,"é",true]}`; err != nil || string(got) != want {
		t.Errorf("configuration %s, want %s (%v)", got, want, err)
	}
	if p.APIVersion != v1alpha1.WasmPluginAPIVersion || p.Kind != "WasmPlugin" || p.Namespace != "team-a" || p.Name != "a" {
		t.Errorf("read %+v", p)
	}
}

func TestRead_Secret(t *testing.T) {
	t.Parallel()
	docs := document.Read("f.yaml", []byte("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ntype: Opaque\ndata: {a: Q0FOQVJZ, b: eA==}\nstringData: {b: CANARY-2}\n"))
	s := docs[0].Object.(*document.Secret)
	if s.Namespace != "default" || s.Name != "s" || s.Type != "Opaque" || len(s.Data) != 2 {
		t.Errorf("read %+v", s)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		if text := fmt.Sprintf(verb, *s); strings.Contains(text, "CANARY") || strings.Contains(text, "43414e415259") {
			t.Errorf("%s prints the secret: %s", verb, text)
		}
	}
	if b, _ := json.Marshal(s); strings.Contains(string(b), "CANARY") {
		t.Errorf("JSON holds the secret: %s", b)
	}
}

// TestP3_FindingsRepeatNoValue breaks documents in every way, with a credential in each
// place, and looks for it in what is told.
func TestP3_FindingsRepeatNoValue(t *testing.T) {
	t.Parallel()
	const canary = "CANARY-s3cret"
	for _, text := range []string{
		"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: " + canary + "!}\n",
		"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ntype: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: " + canary + "}\n",
		"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: " + canary + "\n",
		"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {a: !!int " + canary + "}\n",
		"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {a: !!binary " + canary + "}\n",
		"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {a: \"" + canary + "\\q\"}\n",
		"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData:\n  a: \"" + canary + "\n",
		"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData:\n  a: *" + canary + "\n",
		head + "spec: {url: 'oci://user:" + canary + "@r.example/a'}\n",
		head + "spec: {url: 'oci://user:" + canary + "@r.example/a@sha256:abc'}\n",
		head + "spec: {url: 'user:" + canary + "@r.example/a'}\n",
		head + "spec: {url: 'https://user:" + canary + "@r.example/a'}\n",
		head + "spec: {url: 'https://r.example:x/a?token=" + canary + "'}\n",
		head + "spec: {url: 'https://r.example/%zz?token=" + canary + "'}\n",
		head + "spec: {url: 'r.example/a?token=" + canary + "'}\n",
		head + "spec: {url: a, verificationKey: " + canary + "}\n",
		head + "spec: {url: a, pluginConfig: " + canary + "}\n",
		head + "spec: {url: a, vmConfig: {env: [{name: A, valueFrom: HOST, value: " + canary + "}]}}\n",
		"apiVersion: stile.dev/v1alpha1\nkind: Config\nstore: {maxSize: " + canary + "}\naccess: {recheck: " + canary + "}\nmodules: {url: 'http://u:" + canary + "@h'}\n",
	} {
		for _, d := range document.Read("f.yaml", []byte(text)) {
			if len(d.Findings) == 0 {
				t.Errorf("nothing is wrong with %q", text)
			}
			for _, f := range d.Findings {
				if strings.Contains(f.Message, "CANARY") || strings.Contains(f.Field, "CANARY") {
					t.Errorf("%q is told as %+v", text, f)
				}
			}
		}
	}
}

func TestRead_BoundsWhatStrangersSend(t *testing.T) {
	t.Parallel()
	var laughs strings.Builder
	laughs.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&laughs, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	for name, text := range map[string]string{
		"a billion laughs":  laughs.String(),
		"deep":              strings.Repeat("[", 5000) + strings.Repeat("]", 5000),
		"deep and not JSON": strings.Repeat("{a: ", 5000) + strings.Repeat("}", 5000),
		"deep blocks":       strings.Repeat("- ", 5000) + "x",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			docs := document.Read("f.yaml", []byte(text))
			if len(docs) != 1 || len(docs[0].Findings) != 1 || docs[0].Findings[0].Reason != "Syntax" {
				t.Errorf("got %d documents, findings %v", len(docs), told(docs))
			}
		})
	}
}

func TestReadConfig(t *testing.T) {
	t.Parallel()
	c, findings := document.ReadConfig("stile.yaml", []byte(`apiVersion: stile.dev/v1alpha1
kind: Config
resources:
  kubernetes: {}
store: {maxSize: 512Mi}
xds: {inlineMaxModule: 0, warmHold: 5s}
access: {denied: {first: 1s}}
registries:
- {host: "registry.example:5000", grace: ""}
fetch: {maxModuleSize: 1000000}
`))
	if len(findings) > 0 {
		t.Fatalf("findings: %+v", findings)
	}
	want := v1alpha1.DefaultConfig()
	want.Resources = v1alpha1.ResourcesConfig{Kubernetes: &v1alpha1.KubernetesConfig{}}
	want.Store.MaxSize = 512 << 20
	want.Store.MaxPerNamespace = 1 << 30
	want.XDS.InlineMaxModule = 0
	want.XDS.WarmHold.Duration = 5e9
	want.Access.Denied.First.Duration = 1e9
	want.Registries = []v1alpha1.RegistryConfig{{Host: "registry.example:5000"}}
	want.Fetch.MaxModuleSize = 1000000
	if d := cmp.Diff(want, c); d != "" {
		t.Errorf("configuration (-want +got):\n%s", d)
	}
}

func TestReadConfig_TellsEveryFaultWithItsLine(t *testing.T) {
	t.Parallel()
	_, findings := document.ReadConfig("stile.yaml", []byte(`apiVersion: stile.dev/v1alpha1
kind: Config
store:
  maxSize: 4 GB
  maxsize: 1
xds:
  address: 0.0.0.0:18000
access:
  recheck: 1 hour
  onRevoked: panic
registries:
- host: https://r.example
- host: r.example
  cert: x
`))
	var got []string
	for _, f := range findings {
		got = append(got, fmt.Sprintf("%d %s", f.Line, f.Field))
	}
	want := []string{"4 store.maxSize", "5 store.maxsize", "9 access.recheck", "14 registries[1].cert", "7 xds.address", "10 access.onRevoked", "12 registries[0].host"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("findings (-want +got):\n%s", d)
	}
	for name, text := range map[string]string{
		"empty": "", "another kind": "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n", "no YAML": "[", "two": "apiVersion: stile.dev/v1alpha1\nkind: Config\n---\na: b\n",
	} {
		if c, f := document.ReadConfig("stile.yaml", []byte(text)); c == nil || len(f) == 0 {
			t.Errorf("%s: configuration %v, findings %v", name, c, f)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, s := range []string{
		"", "---\n---\n", "a: [", "{\"a\":\"\\ud83d\\ude00\"}", "a: &a [*a]", "a: &a {<<: *a}", "!!binary x", "- - - -", "? a\n: b", "%YAML 1.2\n---\n", "a: !!float 1", "\ufeffa: 0b11", "...\n...\na",
		head + "spec:\n  url: oci://r.example/a:v1\n  sha256: ''\n  pluginConfig: {a: [1, 2.5e300, null, {b: on}]}\n  match: [{mode: CLIENT, ports: [{number: 80}]}]\n  vmConfig: {env: [{name: A, valueFrom: HOST}]}\n",
		"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {.dockerconfigjson: e30=}\ntype: kubernetes.io/dockerconfigjson\n",
		"apiVersion: v1\nkind: List\nitems:\n- " + strings.ReplaceAll(head, "\n", "\n  ") + "spec: {url: a}\n",
		"apiVersion: stile.dev/v1alpha1\nkind: Config\nstore: {maxSize: 1Gi}\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs := document.Read("f", data)
		r := document.Report(docs)
		if _, err := json.Marshal(r); err != nil {
			t.Fatal(err)
		}
		lines := 1 // YAML breaks lines at more than "\n"
		for _, brk := range []string{"\n", "\r", "\u0085", "\u2028", "\u2029"} {
			lines += strings.Count(string(data), brk)
		}
		for _, d := range r.Findings {
			if d.Line < 0 || d.Line > lines+1 || d.Message == "" || d.Reason == "" {
				t.Fatalf("finding %+v in a text of %d lines", d, lines)
			}
		}
		for _, d := range docs {
			if p, ok := d.Object.(*v1alpha1.WasmPlugin); ok && !d.HasErrors() {
				if _, err := p.Spec.PluginConfig.Canonical(); err != nil {
					t.Fatalf("no fault was found, and yet: %v", err)
				}
			}
		}
	})
}
