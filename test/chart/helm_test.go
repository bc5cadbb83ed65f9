package chart

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	release "helm.sh/helm/v4/pkg/release/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// chartFolder is the chart that is tested.
var chartFolder = filepath.Join("..", "..", "charts", "stile")

// load reads the chart anew: Helm changes what it is given.
func load(t testing.TB) *chartv2.Chart {
	t.Helper()
	c, err := loader.Load(chartFolder)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// values reads YAML as a user would write it into a file for -f.
func values(t testing.TB, text string) map[string]any {
	t.Helper()
	v := map[string]any{}
	if err := yaml.UnmarshalStrict([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// render is "helm template stile charts/stile -n stile-system -f TEXT": no cluster is
// asked for anything. Objects come in Helm's order; notes are what a user reads.
func render(t testing.TB, text string) (objects []*unstructured.Unstructured, notes string) {
	t.Helper()
	objects, notes, err := tryRender(t, text)
	if err != nil {
		t.Fatal(err)
	}
	return objects, notes
}

func tryRender(t testing.TB, text string) ([]*unstructured.Unstructured, string, error) {
	t.Helper()
	install := action.NewInstall(&action.Configuration{})
	install.DryRunStrategy = action.DryRunClient
	install.ReleaseName, install.Namespace = "stile", "stile-system"
	install.KubeVersion = &common.KubeVersion{Version: "v1.36.3", Major: "1", Minor: "36"}
	done, err := install.Run(load(t), values(t, text))
	if err != nil {
		return nil, "", err
	}
	r := done.(*release.Release)
	text = r.Manifest
	for _, h := range r.Hooks {
		text += "\n---\n" + h.Manifest
	}
	return decode(t, text), r.Info.Notes, nil
}

// decode reads the documents of a manifest.
func decode(t testing.TB, text string) []*unstructured.Unstructured {
	t.Helper()
	var all []*unstructured.Unstructured
	for _, one := range strings.Split("\n"+text, "\n---") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(one), &o.Object); err != nil {
			t.Fatalf("%v in\n%s", err, one)
		}
		if len(o.Object) > 0 {
			all = append(all, o)
		}
	}
	return all
}

// find returns the one object of a kind and name.
func find(t testing.TB, objects []*unstructured.Unstructured, kind, name string) *unstructured.Unstructured {
	t.Helper()
	for _, o := range objects {
		if o.GetKind() == kind && o.GetName() == name {
			return o
		}
	}
	t.Fatalf("no %s %s among %v", kind, name, names(objects))
	return nil
}

func names(objects []*unstructured.Unstructured) []string {
	var all []string
	for _, o := range objects {
		all = append(all, o.GetKind()+"/"+o.GetName())
	}
	return all
}

func writeFile(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
