package kube

import (
	"encoding/json"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"github.com/stileproject/stile/api/crd"
	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/source"
)

// previous is our definition as it was before the newest fields, values and rules.
func previous(t *testing.T) string {
	t.Helper()
	var d map[string]any
	if err := yaml.Unmarshal(crd.WasmPlugin, &d); err != nil {
		t.Fatal(err)
	}
	version := d["spec"].(map[string]any)["versions"].([]any)[0].(map[string]any)
	properties := version["schema"].(map[string]any)["openAPIV3Schema"].(map[string]any)["properties"].(map[string]any)
	spec, status := properties["spec"].(map[string]any), properties["status"].(map[string]any)
	phase := spec["properties"].(map[string]any)["phase"].(map[string]any)
	phase["enum"] = []any{"UNSPECIFIED_PHASE", "AUTHN", "AUTHZ", "STATS"}
	delete(spec["properties"].(map[string]any), "verificationKey")
	withoutRules(spec)
	delete(status, "x-kubernetes-preserve-unknown-fields")
	for _, name := range []string{"epoch", "servedEpoch", "resolvedDigest", "servedGeneration", "size"} {
		delete(status["properties"].(map[string]any), name)
	}
	text, err := yaml.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func withoutRules(node any) {
	switch node := node.(type) {
	case map[string]any:
		delete(node, "x-kubernetes-validations")
		for _, sub := range node {
			withoutRules(sub)
		}
	case []any:
		for _, sub := range node {
			withoutRules(sub)
		}
	}
}

func TestMissing(t *testing.T) {
	t.Parallel()
	read := func(text string) *apiextensionsv1.CustomResourceDefinition {
		var d apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict([]byte(text), &d); err != nil {
			t.Fatal(err)
		}
		return &d
	}
	if got := missing(read(string(crd.WasmPlugin))); len(got) != 0 {
		t.Errorf("our own definition lacks %q", got)
	}
	got := strings.Join(missing(read(previous(t))), "\n")
	for _, want := range []string{
		"spec.phase does not know ASM_ROUTER", "spec.verificationKey is no field", "status.epoch is no field", "status.resolvedDigest is no field",
		"status.servedEpoch is no field", "status.servedGeneration is no field", "status.size is no field", "of our validation rules are not in",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("want %q in\n%s", want, got)
		}
	}
	if n := strings.Count(got, "\n"); n != 7 {
		t.Errorf("%d lines more than there is to say:\n%s", n-7, got)
	}

	// Istio's keeps extra fields of a status, but prunes them inside its conditions.
	foreign := read(string(crd.WasmPlugin))
	version := &foreign.Spec.Versions[0]
	version.Subresources = nil
	status := version.Schema.OpenAPIV3Schema.Properties["status"]
	status.Properties = map[string]apiextensionsv1.JSONSchemaProps{"conditions": {Type: "array", Items: &apiextensionsv1.JSONSchemaPropsOrArray{
		Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{
			"type": {}, "status": {}, "reason": {}, "message": {}, "lastTransitionTime": {}}}}}}
	version.Schema.OpenAPIV3Schema.Properties["status"] = status
	got = strings.Join(missing(foreign), "\n")
	if got != "the cluster's WasmPlugin has no status subresource: no status can be written\n"+
		"status.conditions[].observedGeneration is no field of the cluster's WasmPlugin: the API server drops it" {
		t.Error(got)
	}
	foreign.Spec.Versions[0].Served = false
	if got := missing(foreign); len(got) != 1 || !strings.Contains(got[0], "has no version v1alpha1") {
		t.Errorf("%q", got)
	}
}

// Plugins that were stored under the definition of before are read, said to be invalid where only we know, and served
// when the new definition has come.
func TestUpgradeOfTheDefinition(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.Start(t, kubetest.Options{NoCRD: true}))
	c.apply(previous(t))
	plugins := wasmPlugin("A", "good", `url: "oci://registry.example/good:v1", phase: AUTHN, vmConfig: {env: [{name: A, value: b}]}`) +
		wasmPlugin("A", "stored", `url: "ftp://registry.example/stored"`) // the new definition would refuse it
	kubetest.Eventually(t, func() string {
		if err := c.server.TryApply(nil, c.names(plugins)); err != nil {
			return err.Error()
		}
		return ""
	})
	if err := c.server.TryApply(nil, c.names(wasmPlugin("A", "router", "url: a, phase: ASM_ROUTER"))); err == nil {
		t.Error("the definition of before knows ASM_ROUTER")
	}
	c.server.Kubectl(t, "patch", "wasmplugin", "good", "-n", c.a, "--subresource=status", "--type=merge", "-p",
		`{"status":{"observedGeneration":1,"digest":"sha256:aa","moduleSHA256":"bb","epoch":4}}`)
	c.watchFirst()
	if lack := has(c.a+"/good 1", c.a+"/stored 1")(c.last); lack != "" {
		t.Fatal(lack)
	}
	good, stored := source.Key{Namespace: c.a, Name: "good"}, source.Key{Namespace: c.a, Name: "stored"}
	if len(c.last.Invalid[good]) != 0 || len(c.last.Invalid[stored]) == 0 {
		t.Errorf("invalid: %+v", c.last.Invalid)
	}
	if p := c.last.Published[good]; p == nil || p.Digest != "sha256:aa" || p.Epoch != 0 {
		t.Errorf("published: %+v (the epoch is no field yet)", p)
	}
	if got := strings.Join(c.source.Missing(), "\n"); !strings.Contains(got, "ASM_ROUTER") || !strings.Contains(got, "status.epoch") {
		t.Errorf("missing: %s", got)
	}

	before := c.last.Plugin(good)
	c.apply(string(crd.WasmPlugin))
	kubetest.Eventually(t, func() string { return strings.Join(c.source.Missing(), "\n") })
	kubetest.Eventually(t, func() string {
		if err := c.server.TryApply(nil, c.names(wasmPlugin("A", "router", "url: a, phase: ASM_ROUTER"))); err != nil {
			return err.Error()
		}
		return ""
	})
	c.sees(has(c.a+"/good 1", c.a+"/router 1", c.a+"/stored 1"))
	if c.last.Plugin(good) != before {
		t.Error("the upgrade has changed a plugin")
	}
	c.server.Kubectl(t, "patch", "wasmplugin", "good", "-n", c.a, "--subresource=status", "--type=merge", "-p", `{"status":{"epoch":5}}`)
	c.sees(func(w *source.World) string {
		if p := w.Published[good]; p == nil || p.Epoch != 5 || p.Digest != "sha256:aa" {
			text, _ := json.Marshal(p)
			return "epoch 5 beside what was stored before, have " + string(text)
		}
		return ""
	})
	// What was stored before and is refused today can still be mended, and taken away.
	c.apply(wasmPlugin("A", "stored", `url: "oci://registry.example/stored:v1"`))
	c.sees(has(c.a+"/good 1", c.a+"/router 1", c.a+"/stored 2"))
	if len(c.last.Invalid) != 0 {
		t.Errorf("invalid: %+v", c.last.Invalid)
	}
}
