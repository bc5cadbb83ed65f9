package kube

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"github.com/stileproject/stile/api/crd"
	"github.com/stileproject/stile/api/v1alpha1"
)

// ours is the definition that this stile was built with.
var ours = sync.OnceValues(func() (*apiextensionsv1.CustomResourceDefinition, error) {
	var d apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(crd.WasmPlugin, &d); err != nil {
		return nil, fmt.Errorf("read our own definition of WasmPlugin: %w", err)
	}
	return &d, nil
})

// missing returns what a cluster's definition of WasmPlugin lacks beside ours, one sentence each, with what follows from
// it. A definition that says more than ours lacks nothing.
func missing(theirs *apiextensionsv1.CustomResourceDefinition) []string {
	mine, err := ours()
	if err != nil {
		return []string{err.Error()}
	}
	want, _ := version(mine)
	have, ok := version(theirs)
	if !ok {
		return []string{"the cluster's WasmPlugin has no version " + v1alpha1.Version + " that is served: no plugin can be read"}
	}
	var l lacks
	if have.Subresources == nil || have.Subresources.Status == nil {
		l.say("the cluster's WasmPlugin has no status subresource: no status can be written")
	}
	var w, h apiextensionsv1.JSONSchemaProps
	if want.Schema != nil && want.Schema.OpenAPIV3Schema != nil {
		w = *want.Schema.OpenAPIV3Schema
	}
	if have.Schema != nil && have.Schema.OpenAPIV3Schema != nil {
		h = *have.Schema.OpenAPIV3Schema
	}
	for _, part := range []string{"spec", "status"} {
		l.compare(part, w.Properties[part], h.Properties[part])
	}
	if l.rules > 0 {
		l.say("%d of our validation rules are not in the cluster's WasmPlugin: what they refuse is let in, and refused by stile with Accepted=False", l.rules)
	}
	return l.list
}

func version(d *apiextensionsv1.CustomResourceDefinition) (apiextensionsv1.CustomResourceDefinitionVersion, bool) {
	for _, v := range d.Spec.Versions {
		if v.Name == v1alpha1.Version && v.Served {
			return v, true
		}
	}
	return apiextensionsv1.CustomResourceDefinitionVersion{}, false
}

// lacks gathers what one schema lacks.
type lacks struct {
	list  []string
	rules int
}

func (l *lacks) say(format string, a ...any) { l.list = append(l.list, fmt.Sprintf(format, a...)) }

func (l *lacks) compare(path string, want, have apiextensionsv1.JSONSchemaProps) {
	open := have.XPreserveUnknownFields != nil && *have.XPreserveUnknownFields
	if lost := absent(want.Enum, have.Enum); len(have.Enum) > 0 && len(lost) > 0 {
		l.say("%s does not know %s in the cluster's WasmPlugin: the API server refuses a plugin that says so", path, strings.Join(lost, ", "))
	}
	if !strings.HasPrefix(path, "status") {
		l.rules += rulesLacking(want, have)
	}
	for _, name := range slices.Sorted(maps.Keys(want.Properties)) {
		at := path + "." + name
		sub, ok := have.Properties[name]
		switch {
		case ok:
			l.compare(at, want.Properties[name], sub)
		case !open:
			l.say("%s is no field of the cluster's WasmPlugin: the API server drops it", at)
		}
	}
	if want.Items != nil && want.Items.Schema != nil && have.Items != nil && have.Items.Schema != nil {
		l.compare(path+"[]", *want.Items.Schema, *have.Items.Schema)
	}
	if want.AdditionalProperties != nil && want.AdditionalProperties.Schema != nil &&
		have.AdditionalProperties != nil && have.AdditionalProperties.Schema != nil {
		l.compare(path+"[]", *want.AdditionalProperties.Schema, *have.AdditionalProperties.Schema)
	}
}

// absent returns the values of an enumeration that another has not.
func absent(want, have []apiextensionsv1.JSON) []string {
	var lost []string
	for _, w := range want {
		if !slices.ContainsFunc(have, func(h apiextensionsv1.JSON) bool { return string(h.Raw) == string(w.Raw) }) {
			lost = append(lost, strings.Trim(string(w.Raw), `"`))
		}
	}
	return lost
}

// rulesLacking counts the rules in CEL that another schema does not have in the same words.
func rulesLacking(want, have apiextensionsv1.JSONSchemaProps) int {
	n := 0
	for _, w := range want.XValidations {
		if !slices.ContainsFunc(have.XValidations, func(h apiextensionsv1.ValidationRule) bool { return h.Rule == w.Rule }) {
			n++
		}
	}
	return n
}
