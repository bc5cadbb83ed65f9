package kube

import (
	"testing"

	"k8s.io/client-go/rest"
)

// The webhook judges the plugins that are read, and no others.
func TestOwns_WhatIsRead(t *testing.T) {
	t.Parallel()
	s, err := New(Config{REST: &rest.Config{Host: "https://127.0.0.1:1"}, Namespaces: []string{"a", "b"}, Revision: "blue", Selector: "app=edge,tier!=test"})
	if err != nil {
		t.Fatal(err)
	}
	all, err := New(Config{REST: &rest.Config{Host: "https://127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		namespace string
		labels    map[string]string
		want      bool
	}{
		"ours":              {"b", map[string]string{"istio.io/rev": "blue", "app": "edge"}, true},
		"another namespace": {"c", map[string]string{"istio.io/rev": "blue", "app": "edge"}, false},
		"another revision":  {"a", map[string]string{"istio.io/rev": "green", "app": "edge"}, false},
		"no revision":       {"a", map[string]string{"app": "edge"}, false},
		"not selected":      {"a", map[string]string{"istio.io/rev": "blue", "app": "edge", "tier": "test"}, false},
	} {
		if got := s.Owns(row.namespace, row.labels); got != row.want {
			t.Errorf("%s: %v", name, got)
		}
		if !all.Owns(row.namespace, row.labels) {
			t.Errorf("%s: a Source without a selection reads all", name)
		}
	}
}
