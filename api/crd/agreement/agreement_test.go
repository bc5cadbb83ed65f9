// Package agreement holds the test that the CustomResourceDefinition and the Go
// validation say the same. It is a module of its own because it takes the API
// server's libraries, which stile itself does not need.
package agreement

import (
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

	"github.com/stileproject/stile/api/crd/crdtest"
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

func TestCRDAndGoSayTheSame(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for _, tc := range crdtest.Cases() {
		t.Run(tc.Name, func(t *testing.T) {
			t.Parallel()
			doc := crdtest.Plugin(tc.Spec)
			crd := s.faults(t, doc, "")
			var golang []string
			for _, d := range document.Read("a.yaml", []byte(doc)) {
				for _, f := range d.Findings {
					if f.Severity == "error" {
						golang = append(golang, f.Field+": "+f.Message)
					}
				}
			}
			if (len(golang) > 0) != tc.Bad {
				t.Errorf("the Go validation says %q, want bad=%v", golang, tc.Bad)
			}
			if (len(crd) > 0) != (tc.Bad && tc.GoOnly == "") {
				t.Errorf("the CRD says %q, want bad=%v (but for: %s)", crd, tc.Bad, tc.GoOnly)
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
		"@sha256:" + crdtest.Digest, "@sha256:ab", "..", "%41", "%zz", " ", "\u00a0", "ä", "\u2028", "u:p@", "=", "&", "\\", "'", "*"}
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
	anything, fields := crdtest.Anything(), crdtest.Fields()
	names := slices.Sorted(maps.Keys(fields))
	good, bad := 0, 0
	judge := func(spec string) {
		doc := crdtest.Plugin(spec)
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
		doc := crdtest.Plugin("url: a\npluginConfig:\n  a: " + strings.ReplaceAll(scalar, "\n      ", "\n    "))
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
		if got := s.faults(t, crdtest.Plugin(tc.new), crdtest.Plugin(tc.old)); (len(got) > 0) != tc.bad {
			t.Errorf("from %q to %q: %q, want bad=%v", tc.old, tc.new, got, tc.bad)
		}
	}
}
