// Package crdtest holds the documents over which the CustomResourceDefinition and the Go validation must agree: by the API
// server's own libraries in api/crd/agreement, and on a real API server.
package crdtest

import (
	"fmt"
	"strings"
)

// Digest is a digest that is well formed.
const Digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// Case is a plugin and what is to be said of it.
type Case struct {
	Name, Spec string
	Bad        bool
	GoOnly     string // why the schema cannot say it: then the Go validation alone refuses it
}

// Plugin wraps a spec into a document.
func Plugin(spec string) string {
	return "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a, namespace: team-a}\nspec:\n  " +
		strings.ReplaceAll(strings.TrimSpace(spec), "\n", "\n  ") + "\n"
}

// Cases are specs, good and bad, one for every rule of the API.
func Cases() []Case {
	many := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format+"\n", i)
		}
		return b.String()
	}
	return []Case{
		{Name: "least", Spec: "url: oci://r.example/a:v1"},
		{Name: "no url", Spec: "phase: AUTHN", Bad: true},
		{Name: "empty url", Spec: `url: ""`, Bad: true},
		{Name: "null url", Spec: `url: null`, Bad: true},
		{Name: "nulls are absent", Spec: "url: a\nselector: null\nphase: null\npriority: null\nmatch: null\nvmConfig: null\npluginConfig: null"},
		{Name: "address with port", Spec: "url: 10.0.0.1:5000/a"},
		{Name: "underscore host", Spec: "url: my_reg:5000/a"},
		{Name: "ipv6", Spec: `url: "[::1]:5000/a"`},
		{Name: "bare name", Spec: "url: reg:5000/a"},
		{Name: "upper-case scheme", Spec: "url: OCI://r.example/a"},
		{Name: "file", Spec: "url: file:///opt/filters/openid.wasm"},
		{Name: "file folder", Spec: "url: file:///opt/", Bad: true},
		{Name: "https", Spec: "url: https://bucket.example/a.wasm?token=1"},
		{Name: "https without file", Spec: "url: https://bucket.example", Bad: true},
		{Name: "https without host", Spec: "url: https:///a.wasm", Bad: true},
		{Name: "https with password", Spec: "url: https://u:p@bucket.example/a.wasm", Bad: true},
		{Name: "http with a port that is none", Spec: "url: http://bucket.example:99999/a.wasm", Bad: true, GoOnly: "the port's range"},
		{Name: "ftp", Spec: "url: ftp://bucket.example/a.wasm", Bad: true},
		{Name: "no scheme before ://", Spec: `url: "://bad url"`, Bad: true},
		{Name: "spaces", Spec: `url: "oci://r.example/a b"`, Bad: true},
		{Name: "empty reference", Spec: "url: oci://", Bad: true},
		{Name: "image with password", Spec: "url: oci://u:p@r.example/a", Bad: true},
		{Name: "short digest", Spec: "url: oci://r.example/a@sha256:abc", Bad: true},
		{Name: "image with query", Spec: "url: oci://r.example/a?x=1", Bad: true},
		{Name: "image with fragment", Spec: `url: "r.example/a#x"`, Bad: true},
		{Name: "upper-case repository", Spec: "url: r.example/A", Bad: true, GoOnly: "the grammar of references"},
		{Name: "long url", Spec: "url: https://r.example/" + strings.Repeat("a", 4096), Bad: true},
		{Name: "digest", Spec: "url: r.example/a@sha256:" + Digest},
		{Name: "digest and equal sha256", Spec: "url: r.example/a@sha256:" + Digest + "\nsha256: " + Digest},
		{Name: "digest and other sha256", Spec: "url: r.example/a@sha256:" + Digest + "\nsha256: " + strings.Repeat("0", 63) + "1", Bad: true},
		{Name: "digest in an http url and other sha256", Spec: "url: https://r.example/a@sha256:" + Digest + "\nsha256: " + strings.Repeat("0", 63) + "1", Bad: true},
		{Name: "digest in an http url and equal sha256", Spec: "url: https://r.example/a@sha256:" + Digest + "\nsha256: " + Digest},
		{Name: "empty sha256", Spec: "url: a\nsha256: \"\""},
		{Name: "upper-case sha256", Spec: "url: a\nsha256: " + strings.ToUpper(Digest), Bad: true},
		{Name: "sha256 as number", Spec: "url: a\nsha256: 12", Bad: true},
		{Name: "pull policies", Spec: "url: a\nimagePullPolicy: IfNotPresent"},
		{Name: "pull policy of Kubernetes alone", Spec: "url: a\nimagePullPolicy: Never", Bad: true},
		{Name: "empty pull policy", Spec: "url: a\nimagePullPolicy: \"\"", Bad: true},
		{Name: "empty pull secret", Spec: "url: a\nimagePullSecret: \"\"", Bad: true},
		{Name: "long pull secret", Spec: "url: a\nimagePullSecret: " + strings.Repeat("a", 254), Bad: true},
		{Name: "key that is none", Spec: "url: a\nverificationKey: nonsense", Bad: true, GoOnly: "what a PEM key is"},
		{Name: "any plugin configuration", Spec: "url: a\npluginConfig: {a: {b: [1, null, {c: 1.5}]}, 'd e': x}"},
		{Name: "plugin configuration that is a list", Spec: "url: a\npluginConfig: [1]", Bad: true},
		{Name: "plugin configuration that is text", Spec: "url: a\npluginConfig: x", Bad: true},
		{Name: "empty plugin name", Spec: "url: a\npluginName: \"\"", Bad: true},
		{Name: "long plugin name", Spec: "url: a\npluginName: " + strings.Repeat("ä", 257), Bad: true},
		{Name: "longest plugin name", Spec: "url: a\npluginName: " + strings.Repeat("ä", 256)},
		{Name: "ASM_ROUTER", Spec: "url: a\nphase: ASM_ROUTER"},
		{Name: "phase by number", Spec: "url: a\nphase: 100", Bad: true},
		{Name: "phase in lower case", Spec: "url: a\nphase: authn", Bad: true},
		{Name: "empty phase", Spec: "url: a\nphase: \"\"", Bad: true},
		{Name: "priority", Spec: "url: a\npriority: -2147483648"},
		{Name: "priority as float", Spec: "url: a\npriority: 10.0"},
		{Name: "priority beyond 32 bits", Spec: "url: a\npriority: 2147483648", Bad: true},
		{Name: "priority as text", Spec: "url: a\npriority: \"1\"", Bad: true},
		{Name: "priority with a fraction", Spec: "url: a\npriority: 1.5", Bad: true},
		{Name: "FAIL_RELOAD", Spec: "url: a\nfailStrategy: FAIL_RELOAD"},
		{Name: "unknown fail strategy", Spec: "url: a\nfailStrategy: FAIL_SAFE", Bad: true},
		{Name: "unspecified type", Spec: "url: a\ntype: UNSPECIFIED_PLUGIN_TYPE"},
		{Name: "unknown type", Spec: "url: a\ntype: TCP", Bad: true},
		{Name: "unknown field", Spec: "url: a\nselectr: {}", Bad: true},
		{Name: "unknown field deep down", Spec: "url: a\nvmConfig: {env: [{name: A, vale: b}]}", Bad: true},
		{Name: "selector", Spec: "url: a\nselector: {matchLabels: {istio: ingressgateway}}"},
		{Name: "selector without labels", Spec: "url: a\nselector: {}"},
		{Name: "wildcard in label", Spec: "url: a\nselector: {matchLabels: {a: 'b*'}}", Bad: true},
		{Name: "wildcard in label name", Spec: "url: a\nselector: {matchLabels: {'a*': b}}", Bad: true},
		{Name: "empty label name", Spec: "url: a\nselector: {matchLabels: {'': b}}", Bad: true},
		{Name: "long label", Spec: "url: a\nselector: {matchLabels: {a: " + strings.Repeat("b", 64) + "}}", Bad: true},
		{Name: "label as boolean", Spec: "url: a\nselector: {matchLabels: {a: yes}}", Bad: true},
		{Name: "null label", Spec: "url: a\nselector: {matchLabels: {a: null}}"},
		{Name: "too many labels", Spec: "url: a\nselector:\n  matchLabels:\n" + many(4097, "    l%d: x"), Bad: true},
		{Name: "target", Spec: "url: a\ntargetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: gw}]"},
		{Name: "old target", Spec: "url: a\ntargetRef: {group: gateway.networking.k8s.io, kind: GatewayClass, name: gw}"},
		{Name: "service", Spec: "url: a\ntargetRefs: [{kind: Service, name: s}, {group: core, kind: Service, name: s}, {group: '', kind: Service, name: s}]"},
		{Name: "service entry", Spec: "url: a\ntargetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: s}]"},
		{Name: "gateway of no group", Spec: "url: a\ntargetRefs: [{kind: Gateway, name: gw}]", Bad: true},
		{Name: "gateway of another group", Spec: "url: a\ntargetRefs: [{group: networking.istio.io, kind: Gateway, name: gw}]", Bad: true},
		{Name: "service of another group", Spec: "url: a\ntargetRefs: [{group: serving.knative.dev, kind: Service, name: s}]", Bad: true},
		{Name: "service entry of no group", Spec: "url: a\ntargetRefs: [{kind: ServiceEntry, name: s}]", Bad: true},
		{Name: "unknown target", Spec: "url: a\ntargetRefs: [{group: apps, kind: Deployment, name: d}]", Bad: true},
		{Name: "target without name", Spec: "url: a\ntargetRefs: [{group: gateway.networking.k8s.io, kind: Gateway}]", Bad: true},
		{Name: "target without kind", Spec: "url: a\ntargetRefs: [{group: gateway.networking.k8s.io, name: gw}]", Bad: true},
		{Name: "target elsewhere", Spec: "url: a\ntargetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: gw, namespace: b}]", Bad: true},
		{Name: "target with empty namespace", Spec: "url: a\ntargetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: gw, namespace: ''}]"},
		{Name: "too many targets", Spec: "url: a\ntargetRefs:\n" + many(17, "- {kind: Service, name: s%d}"), Bad: true},
		{Name: "selector and target", Spec: "url: a\nselector: {matchLabels: {a: b}}\ntargetRefs: [{kind: Service, name: s}]", Bad: true},
		{Name: "selector and no targets", Spec: "url: a\nselector: {}\ntargetRefs: []", Bad: true},
		{Name: "both targets", Spec: "url: a\ntargetRef: {kind: Service, name: s}\ntargetRefs: [{kind: Service, name: s}]", Bad: true},
		{Name: "match", Spec: "url: a\nmatch: [{mode: CLIENT, ports: [{number: 1}, {number: 65535}]}, {mode: UNDEFINED}, {}]"},
		{Name: "port 0", Spec: "url: a\nmatch: [{ports: [{number: 0}]}]", Bad: true},
		{Name: "port 65536", Spec: "url: a\nmatch: [{ports: [{number: 65536}]}]", Bad: true},
		{Name: "port twice", Spec: "url: a\nmatch: [{ports: [{number: 80}, {number: 80}]}]", Bad: true},
		{Name: "port twice in different entries", Spec: "url: a\nmatch: [{ports: [{number: 80}]}, {ports: [{number: 80}]}]"},
		{Name: "port without number", Spec: "url: a\nmatch: [{ports: [{}]}]", Bad: true},
		{Name: "plain port", Spec: "url: a\nmatch: [{ports: [80]}]", Bad: true},
		{Name: "unknown mode", Spec: "url: a\nmatch: [{mode: BOTH}]", Bad: true},
		{Name: "null entry", Spec: "url: a\nmatch: [null]", Bad: true},
		{Name: "env", Spec: "url: a\nvmConfig: {env: [{name: A, value: ''}, {name: B_1, valueFrom: HOST}, {name: C, valueFrom: INLINE, value: x}, {name: D, valueFrom: INLINE}]}"},
		{Name: "host env with value", Spec: "url: a\nvmConfig: {env: [{name: A, valueFrom: HOST, value: x}]}", Bad: true},
		{Name: "host env with empty value", Spec: "url: a\nvmConfig: {env: [{name: A, valueFrom: HOST, value: ''}]}", Bad: true},
		{Name: "env twice", Spec: "url: a\nvmConfig: {env: [{name: A}, {name: A}]}", Bad: true},
		{Name: "env without name", Spec: "url: a\nvmConfig: {env: [{value: x}]}", Bad: true},
		{Name: "env with a name that is no identifier", Spec: "url: a\nvmConfig: {env: [{name: a-b}]}", Bad: true},
		{Name: "env with a digit first", Spec: "url: a\nvmConfig: {env: [{name: 1a}]}", Bad: true},
		{Name: "reserved env", Spec: "url: a\nvmConfig: {env: [{name: STILE_X}]}", Bad: true},
		{Name: "other reserved env", Spec: "url: a\nvmConfig: {env: [{name: ISTIO_META_WASM_X}]}", Bad: true},
		{Name: "unknown source of env", Spec: "url: a\nvmConfig: {env: [{name: A, valueFrom: SECRET}]}", Bad: true},
		{Name: "long env name", Spec: "url: a\nvmConfig: {env: [{name: " + strings.Repeat("A", 257) + "}]}", Bad: true},
		{Name: "long env value", Spec: "url: a\nvmConfig: {env: [{name: A, value: " + strings.Repeat("A", 2049) + "}]}", Bad: true},
		{Name: "too much env", Spec: "url: a\nvmConfig:\n  env:\n" + many(257, "  - {name: A%d}"), Bad: true},
		{Name: "env value as number", Spec: "url: a\nvmConfig: {env: [{name: A, value: 1}]}", Bad: true},
	}
}

// Anything are values of every kind, to be put where they may not belong.
func Anything() []string {
	return []string{"null", `""`, "x", "0", "1", "-1", "1.5", "1e3", "2147483648", "true", "'true'", "[]", "{}", "[null]", "[{}]", "[x]", "[1]", "{x: y}", "{'': x}", "{x: null}", "[[]]", "{x: {}}", `"ä"`, "2026-01-02", "0x10", "~"}
}

// Fields are the fields of a spec beside url, and one that there is not, each with values that are nearly right.
func Fields() map[string][]string {
	gateway := "{group: gateway.networking.k8s.io, kind: Gateway, name: g}"
	return map[string][]string{
		"selector":        {"{matchLabels: {a: b}}", "{matchLabels: {a: 'b*'}}", "{matchLabels: null}", "{matchLabels: {a: 1}}", "{matchLabels: [a]}", "{matchLabels: {a: b}, matchExpressions: []}"},
		"targetRef":       {gateway, "{kind: Service, name: ''}", "{kind: Service}", "{kind: Service, name: s, namespace: null}", "{group: 1, kind: Service, name: s}"},
		"targetRefs":      {"[" + gateway + "]", "[" + gateway + ", {kind: Pod, name: p}]", "[{kind: '', name: p}]"},
		"sha256":          {Digest, strings.ToUpper(Digest), "'" + Digest + " '"},
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
}
