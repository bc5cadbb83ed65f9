package rbac

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

//go:generate go test . -update

var update = flag.Bool("update", false, "write what is generated")

func TestTemplateIsTheTable(t *testing.T) {
	t.Parallel()
	path := filepath.Join("..", "stile", "templates", "rbac.yaml")
	got := Template()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("charts/stile/templates/rbac.yaml is not what the table says (make generate writes it):\n%s", diff)
	}
}

func TestTableIsMinimal(t *testing.T) {
	t.Parallel()
	for _, r := range Rules {
		if r.Why == "" {
			t.Errorf("%s %v: a right without a reason", r.Group, r.Resources)
		}
		for _, all := range [][]string{r.Resources, r.Verbs} {
			if slices.Contains(all, "*") {
				t.Errorf("%s %v: a star gives what nobody has thought of", r.Group, r.Resources)
			}
		}
		if r.Group == "*" || slices.Contains(r.Verbs, "escalate") || slices.Contains(r.Verbs, "bind") || slices.Contains(r.Verbs, "impersonate") {
			t.Errorf("%s %v %v: a right to more rights", r.Group, r.Resources, r.Verbs)
		}
		if slices.Contains(r.Resources, "secrets") && (slices.Contains(r.Verbs, "list") || slices.Contains(r.Verbs, "delete")) {
			t.Errorf("%v %v: Secrets are read by name, never listed", r.Resources, r.Verbs)
		}
		if slices.Contains(r.Resources, "wasmplugins") && len(slices.DeleteFunc(slices.Clone(r.Verbs), func(v string) bool { return v == "get" || v == "list" || v == "watch" })) > 0 {
			t.Errorf("%v %v: a plugin is its author's", r.Resources, r.Verbs)
		}
	}
}
