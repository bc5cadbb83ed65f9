package kube

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/stileproject/stile/api/v1alpha1"
)

// What a foreign definition lets pass is invalid or harmless, whatever it is.
func TestReadPlugin_WhateverIsStored(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, text, field string }{
		{"fine", `"spec":{"url":"a"}`, ""},
		{"an unknown field", `"spec":{"url":"a","selectr":{}}`, "spec.selectr"},
		{"no spec", `"status":{}`, "spec"},
		{"a spec that is text", `"spec":"x"`, "spec"},
		{"a number for text", `"spec":{"url":1}`, "spec.url"},
		{"a status that is a list", `"spec":{"url":"a"},"status":[]`, ""},
		{"a status of texts", `"spec":{"url":"a"},"status":{"observedGeneration":1,"size":"1"}`, ""},
		{"a negative epoch", `"spec":{"url":"a"},"status":{"observedGeneration":1,"epoch":-1,"size":-1}`, ""},
		{"metadata that is not ours to judge", `"spec":{"url":"a"},"metadata":{"namespace":"team-a","name":"a","generation":3,"futureField":{},"ownerReferences":"x","labels":{"a":"b"}}`, ""},
		{"letters that YAML has no place for", `"spec":{"url":"a","pluginConfig":{"del":"\u007f","c1":"\u0085\u009b","bom":"\ufeff","none":"\uffff","sep":"\u2028","zero":"a\u0000b"}}`, ""},
		{"a key that YAML finds too long", `"spec":{"url":"a","pluginConfig":{"` + strings.Repeat("k", 5000) + `":1}}`, ""},
		{"numbers", `"spec":{"url":"a","pluginConfig":{"a":1e400000,"b":0}}`, "-"},
		{"floats", `"spec":{"url":"a","pluginConfig":{"a":1e21,"b":1.5,"c":-0.0,"d":9007199254740993}}`, ""},
		{"text that looks like more than one document", `"spec":{"url":"a","pluginConfig":{"a":"\n---\nkind: Secret\n"}}`, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			text := `{"apiVersion":"extensions.istio.io/v1alpha1","kind":"WasmPlugin","metadata":{"namespace":"team-a","name":"a","generation":3},` + test.text + `}`
			var u unstructured.Unstructured
			if err := json.Unmarshal([]byte(text), &u.Object); err != nil {
				if test.field == "-" {
					return // not even JSON
				}
				t.Fatal(err)
			}
			o := readPlugin(&u, nil).(*pluginObject)
			fields := []string{}
			for _, f := range o.invalid {
				fields = append(fields, f.Field)
			}
			if got := strings.Join(fields, ","); got != test.field {
				t.Errorf("faults of %q, want %q: %+v", got, test.field, o.invalid)
			}
			check(t, &u, o)
		})
	}
}

// check holds what is true of every object.
func check(t testing.TB, u *unstructured.Unstructured, o *pluginObject) {
	t.Helper()
	if o.plugin == nil || o.plugin.Name != u.GetName() || o.plugin.ResourceVersion != "" || len(o.plugin.ManagedFields) > 0 {
		t.Fatalf("plugin %+v", o.plugin)
	}
	if diff := cmp.Diff(v1alpha1.WasmPluginStatus{}, o.plugin.Status); diff != "" {
		t.Error(diff)
	}
	if (len(o.invalid) > 0) != (len(o.invalid) > 0 && len(o.findings) >= len(o.invalid)) {
		t.Errorf("%d faults, %d findings", len(o.invalid), len(o.findings))
	}
	again := readPlugin(u, nil).(*pluginObject)
	if !o.sameAs(again) || o.status != again.status {
		t.Error("read twice it is another")
	}
	if len(o.invalid) > 0 {
		return
	}
	// What was read is what was stored.
	spec, _, _ := unstructured.NestedMap(u.Object, "spec")
	stored, _ := json.Marshal(spec["pluginConfig"])
	var want v1alpha1.Object
	if json.Unmarshal(stored, &want) != nil {
		return
	}
	a, errA := want.Canonical()
	b, errB := o.plugin.Spec.PluginConfig.Canonical()
	if string(a) != string(b) || (errA == nil) != (errB == nil) {
		t.Errorf("pluginConfig is read as %s (%v), stored as %s (%v)", b, errB, a, errA)
	}
}

func FuzzReadPlugin(f *testing.F) {
	f.Add(`{"metadata":{"namespace":"a","name":"b","generation":1},"spec":{"url":"oci://r.example/a:v1","pluginConfig":{"a":[1,{"b":null}]}},"status":{"observedGeneration":1,"digest":"x"}}`)
	f.Add(`{"metadata":{"namespace":"a","name":"b"},"spec":{"url":"a","vmConfig":{"env":[{"name":"A","value":"\u0085"}]}}}`)
	f.Fuzz(func(t *testing.T, text string) {
		var u unstructured.Unstructured
		if json.Unmarshal([]byte(text), &u.Object) != nil || u.Object == nil {
			return
		}
		o := readPlugin(&u, nil).(*pluginObject)
		check(t, &u, o)
		if shared := readPlugin(&u, o).(*pluginObject); !shared.sameAs(o) {
			t.Error("beside what was known it is another")
		}
	})
}
