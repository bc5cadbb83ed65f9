package plugin_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/plugin"
)

var update = flag.Bool("update", false, "write testdata/out anew")

// TestExplain_Golden explains each scenario of testdata/in: a node and its listeners,
// then the WasmPlugins. A new rule is a new pair of files.
func TestExplain_Golden(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/in/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			t.Parallel()
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			scenario, rest, _ := bytes.Cut(data, []byte("\n---\n"))
			in := plugin.Inputs{Invalid: map[plugin.Key][]v1alpha1.Finding{}}
			if err := yaml.UnmarshalStrict(scenario, &in); err != nil {
				t.Fatal(err)
			}
			for _, d := range document.Read(file, rest) {
				p, ok := d.Object.(*v1alpha1.WasmPlugin)
				if !ok {
					t.Fatalf("document %d is no WasmPlugin: %+v", d.Index, d.Findings)
				}
				in.Plugins = append(in.Plugins, p)
				for _, f := range d.Findings {
					in.Invalid[plugin.KeyOf(p)] = append(in.Invalid[plugin.KeyOf(p)],
						v1alpha1.Finding{Field: f.Field, Severity: f.Severity, Reason: f.Reason, Message: f.Message})
				}
			}
			got, err := json.MarshalIndent(plugin.Explain(in), "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			out := strings.Replace(strings.TrimSuffix(file, ".yaml")+".json", "/in/", "/out/", 1)
			if *update {
				if err := os.WriteFile(out, got, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Errorf("%s (-want +got):\n%s", out, d)
			}
		})
	}
}
