// Package examples holds ready documents, and the test that they are what they say.
package examples

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
)

// read returns the documents of all YAML files beneath a folder.
func read(t *testing.T, folder string) []document.Document {
	t.Helper()
	var docs []document.Document
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Ext(path) != ".yaml" {
			return err
		}
		data, err := os.ReadFile(path)
		docs = append(docs, document.Read(path, data)...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return docs
}

func TestExamplesAreValid(t *testing.T) {
	t.Parallel()
	for _, folder := range []string{"openid-connect", "authorization-chain"} {
		r := document.Report(read(t, folder))
		if r.Checked == 0 {
			t.Errorf("%s: no WasmPlugin", folder)
		}
		for _, f := range r.Findings {
			// The file example is honest about what nobody can check.
			if f.Reason != v1alpha1.ReasonNotVerifiable {
				t.Errorf("%s: %+v", folder, f)
			}
		}
	}
}

func TestPullSecretsAreThere(t *testing.T) {
	t.Parallel()
	for _, folder := range []string{"openid-connect", "authorization-chain"} {
		secrets := map[string]bool{}
		docs := read(t, folder)
		for _, d := range docs {
			if s, ok := d.Object.(*document.Secret); ok {
				secrets[s.Namespace+"/"+s.Name] = true
			}
		}
		for _, d := range docs {
			if p, ok := d.Object.(*v1alpha1.WasmPlugin); ok && p.Spec.ImagePullSecret != "" && !secrets[p.Namespace+"/"+p.Spec.ImagePullSecret] {
				t.Errorf("%s: no Secret %s", d.File, p.Spec.ImagePullSecret)
			}
		}
	}
}

// chain returns what a request meets in the example's listener.
func chain(t *testing.T, folder string) []string {
	t.Helper()
	data, err := os.ReadFile("envoy/edge.yaml")
	if err != nil {
		t.Fatal(err)
	}
	envoy, problems := xds.ParseEnvoy("edge.yaml", data)
	if len(problems) > 0 {
		t.Fatalf("envoy/edge.yaml: %+v", problems)
	}
	nodeData, err := os.ReadFile("node.yaml")
	if err != nil {
		t.Fatal(err)
	}
	node, err := xds.ParseNode(nodeData)
	if err != nil {
		t.Fatal(err)
	}
	in := plugin.Inputs{RootNamespace: "stile-system", Node: node, Listeners: envoy.Listeners()}
	for _, d := range read(t, folder) {
		if p, ok := d.Object.(*v1alpha1.WasmPlugin); ok {
			in.Plugins = append(in.Plugins, p)
		}
	}
	plan, found := plugin.Build(in)
	if len(found) > 0 || len(plan.Chains) != 1 || len(plan.Chains[0].Skipped) > 0 {
		t.Fatalf("plan %+v, problems %+v", plan, found)
	}
	var out []string
	for i, f := range in.Listeners[0].Chains[0].HTTP {
		for _, p := range plan.Chains[0].HTTP {
			if p.At == i {
				out = append(out, p.Plugin.Name)
			}
		}
		out = append(out, strings.TrimPrefix(f.Name, "envoy.filters.http."))
	}
	return out
}

func TestAuthorizationChainRunsInTheOrderItSays(t *testing.T) {
	t.Parallel()
	want := []string{"openid-connect", "jwt_authn", "acl-check", "check-header", "rbac", "router"}
	if d := cmp.Diff(want, chain(t, "authorization-chain")); d != "" {
		t.Errorf("chain (-want +got):\n%s", d)
	}
}

func TestOpenIDConnectRunsBeforeAuthentication(t *testing.T) {
	t.Parallel()
	want := []string{"openid-connect", "openid-connect-env", "openid-connect-file", "openid-connect-https", "jwt_authn", "rbac", "router"}
	if d := cmp.Diff(want, chain(t, "openid-connect")); d != "" {
		t.Errorf("chain (-want +got):\n%s", d)
	}
}

func TestModulesComeFromWhereTheFilesSay(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{"file": v1alpha1.SchemeFile, "oci": v1alpha1.SchemeOCI, "env": v1alpha1.SchemeOCI, "https": v1alpha1.SchemeHTTPS} {
		docs := read(t, "openid-connect/"+file+".yaml")
		p := docs[0].Object.(*v1alpha1.WasmPlugin)
		u, err := v1alpha1.ParseModuleURL(p.Spec.URL)
		if err != nil || u.Scheme != want {
			t.Errorf("%s: %s (%v), want %s", file, u.Scheme, err, want)
		}
	}
}
