package kube

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/stileproject/stile/internal/kubetest"
)

// What people see who type kubectl get.
func TestKubectlShowsColumns(t *testing.T) {
	t.Parallel()
	s := kubetest.API(t)
	ns := s.Namespace(t)
	s.Apply(t, nil, wasmPlugin(ns, "auth", `url: "oci://registry.example/auth:v1", phase: AUTHN, priority: 7`)+wasmPlugin(ns, "fresh", "url: a"))
	s.Kubectl(t, "patch", "wasmplugin", "auth", "-n", ns, "--subresource=status", "--type=merge", "-p", `{"status":{"observedGeneration":1,"digest":"sha256:aa",
		"proxies":{"matched":12,"accepted":11,"rejected":0,"summary":"11/12"},"conditions":[
		{"type":"Accepted","status":"True","reason":"Accepted","message":"","lastTransitionTime":"2026-01-02T03:04:05Z"},
		{"type":"ResolvedRefs","status":"True","reason":"Resolved","message":"","lastTransitionTime":"2026-01-02T03:04:05Z"},
		{"type":"Programmed","status":"True","reason":"PartiallyProgrammed","message":"","lastTransitionTime":"2026-01-02T03:04:05Z"}]}}`)
	table := func(args ...string) [][]string {
		var rows [][]string
		for line := range strings.Lines(s.Kubectl(t, append([]string{"get", "wp", "-n", ns}, args...)...)) {
			rows = append(rows, regexp.MustCompile(`\s{2,}`).Split(strings.TrimSpace(line), -1))
		}
		return rows
	}
	rows := table()
	want := []string{"NAME", "ACCEPTED", "RESOLVED", "PROGRAMMED", "PROXIES", "DIGEST", "AGE"}
	if len(rows) != 3 || !slices.Equal(rows[0], want) {
		t.Fatalf("kubectl get: %q", rows)
	}
	want = []string{"auth", "True", "Resolved", "PartiallyProgrammed", "11/12", "sha256:aa"}
	if !slices.Equal(rows[1][:6], want) {
		t.Errorf("kubectl get: %q, want %q", rows[1], want)
	}
	rows = table("-o", "wide")
	want = []string{"NAME", "ACCEPTED", "RESOLVED", "PROGRAMMED", "PROXIES", "DIGEST", "URL", "PHASE", "PRIORITY", "AGE"}
	if !slices.Equal(rows[0], want) {
		t.Errorf("kubectl get -o wide: %q", rows[0])
	}
	want = []string{"oci://registry.example/auth:v1", "AUTHN", "7"}
	if !slices.Equal(rows[1][6:9], want) {
		t.Errorf("kubectl get -o wide: %q, want %q", rows[1], want)
	}
	s.Kubectl(t, "wait", "-n", ns, "wasmplugin/auth", "--for=condition=Programmed", "--timeout=5s")
}

// kubectl explain has something to say about every field.
func TestKubectlExplainsEveryField(t *testing.T) {
	t.Parallel()
	d, err := ours()
	if err != nil {
		t.Fatal(err)
	}
	v, _ := version(d)
	var mute []string
	var walk func(path string, p apiextensionsv1.JSONSchemaProps)
	walk = func(path string, p apiextensionsv1.JSONSchemaProps) {
		for name, sub := range p.Properties {
			at := path + "." + name
			if sub.Description == "" && at != ".metadata" {
				mute = append(mute, at)
			}
			walk(at, sub)
		}
		if p.Items != nil && p.Items.Schema != nil {
			walk(path+"[]", *p.Items.Schema)
		}
	}
	walk("", *v.Schema.OpenAPIV3Schema)
	if len(mute) > 0 {
		t.Errorf("fields without a description: %q", mute)
	}
	s := kubetest.API(t)
	for field, want := range map[string]string{
		"wasmplugin":                      "WasmPlugin adds a WebAssembly module to the filter chains of the proxies",
		"wasmplugin.spec.phase":           "phase says where in the chain the plugin runs",
		"wasmplugin.spec.url":             "url names the module",
		"wasmplugin.spec.vmConfig.env":    "env are the environment variables that the module sees",
		"wasmplugin.status.conditions":    "conditions are Accepted, ResolvedRefs and Programmed",
		"wasmplugin.status.proxies":       "proxies counts the proxies that the plugin concerns",
		"wasmplugin.spec.imagePullSecret": "imagePullSecret names the Secret, in the plugin's namespace",
	} {
		var got string
		kubetest.Eventually(t, func() string { // the API server takes a moment to publish what it explains from
			stdout, stderr, err := s.TryKubectl(t, nil, "explain", field)
			if got = stdout; err != nil {
				return field + ": " + stderr
			}
			return ""
		})
		if words := strings.Join(strings.Fields(got), " "); !strings.Contains(words, want) {
			t.Errorf("kubectl explain %s: want %q in\n%s", field, want, got)
		}
		if strings.Contains(got, "+kubebuilder") || strings.Contains(got, "---") {
			t.Errorf("kubectl explain %s shows what is for tools:\n%s", field, got)
		}
	}
}
