package kube

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/stileproject/stile/api/crd/crdtest"
	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/kubetest"
)

// dryRun asks the API server what it would say of a document, unknown fields included, as kubectl does.
func dryRun(t *testing.T, plugins dynamic.ResourceInterface, text string) (refused bool) {
	t.Helper()
	var content map[string]any
	if err := yaml.Unmarshal([]byte(text), &content); err != nil {
		t.Fatal(err)
	}
	o := &unstructured.Unstructured{Object: content}
	o.SetNamespace("") // the resource's own
	_, err := plugins.Create(t.Context(), o, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict})
	if err != nil && !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err) {
		t.Fatalf("%s\n%v", text, err)
	}
	return err != nil
}

func goRefuses(text string) bool {
	for _, d := range document.Read("a.yaml", []byte(text)) {
		if d.HasErrors() {
			return true
		}
	}
	return false
}

// What the Go validation says is what a real API server says with our definition, over the documents of api/crd/agreement.
func TestAPIServerAndGoSayTheSame(t *testing.T) {
	t.Parallel()
	s := kubetest.API(t)
	client, err := dynamic.NewForConfig(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	plugins := client.Resource(wasmPlugins).Namespace(s.Namespace(t))
	type question struct {
		name, spec    string
		refused, want bool
	}
	var questions []*question
	for _, c := range crdtest.Cases() {
		if goRefuses(crdtest.Plugin(c.Spec)) != c.Bad {
			t.Errorf("%s: the Go validation says %v", c.Name, !c.Bad)
		}
		questions = append(questions, &question{name: c.Name, spec: c.Spec, want: c.Bad && c.GoOnly == ""})
	}
	fields := crdtest.Fields()
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		for _, value := range slices.Concat(crdtest.Anything(), fields[name]) {
			spec := "url: a\n" + name + ": " + value
			questions = append(questions, &question{name: name + " of " + value, spec: spec, want: goRefuses(crdtest.Plugin(spec))})
		}
	}
	todo := make(chan *question)
	var askers sync.WaitGroup
	for range 8 {
		askers.Go(func() {
			for q := range todo {
				q.refused = dryRun(t, plugins, crdtest.Plugin(q.spec))
			}
		})
	}
	for _, q := range questions {
		todo <- q
	}
	close(todo)
	askers.Wait()
	refusals := 0
	for _, q := range questions {
		if q.refused {
			refusals++
		}
		if q.refused != q.want {
			t.Errorf("%s: the API server refuses: %v, want %v\n%s", q.name, q.refused, q.want, q.spec)
		}
	}
	if len(questions) < 500 || refusals < 200 {
		t.Errorf("%d documents, %d refused: that says little", len(questions), refusals)
	}
}

// The type of a plugin cannot be changed on a real API server.
func TestTypeCannotBeChangedOnTheServer(t *testing.T) {
	t.Parallel()
	s := kubetest.API(t)
	ns := s.Namespace(t)
	s.Apply(t, nil, wasmPlugin(ns, "http", "url: a")+wasmPlugin(ns, "network", "url: a, type: NETWORK"))
	for name, bad := range map[string][]string{
		"http": {"url: a, type: NETWORK"}, "network": {"url: a, type: HTTP", "url: a, type: UNSPECIFIED_PLUGIN_TYPE"},
	} {
		for _, spec := range bad {
			err := s.TryApply(nil, wasmPlugin(ns, name, spec))
			if status := apierrors.APIStatus(nil); !errors.As(err, &status) || !strings.Contains(err.Error(), "delete the plugin and create it anew") {
				t.Errorf("%s to %s: %v", name, spec, err)
			}
		}
	}
	s.Apply(t, nil, wasmPlugin(ns, "http", "url: b, type: HTTP"))
}
