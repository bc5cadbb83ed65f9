package cli

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stileproject/stile/internal/oci/localregistry"
)

// What "translate --format envoy" prints is what an Envoy without a control plane loads:
// the operator's listeners with the modules in place.
func TestTranslate_RealEnvoyAcceptsTheLists(t *testing.T) {
	t.Parallel()
	envoy := os.Getenv("STILE_ENVOY")
	if envoy == "" {
		t.Skip("STILE_ENVOY is not set; make test sets it")
	}
	r := newRegistry(t, localregistry.Options{Mode: localregistry.Bearer})
	r.push()
	secret, err := os.ReadFile(r.pullSecret)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	plugin := func(name, pullSecret, signs string) string {
		return "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: { name: " + name + ", namespace: team-a }\nspec: { url: 'oci://" + r.image(":v1") + "'" + pullSecret + ", pluginConfig: { " + signs + " } }\n---\n"
	}
	node := write(t, folder, "node.yaml", "id: gw\ncluster: edge\nmetadata: { NAMESPACE: team-a }\n")
	validate := func(documents string) (string, error) {
		path := write(t, folder, "a.yaml", documents+string(secret))
		lists := r.stile("translate", "-f", path, "--node", node, "--envoy", "testdata/scene/envoy", "--format", "envoy").want(t, OK).stdout
		bootstrap := write(t, folder, "bootstrap.yaml", "static_resources:\n  "+strings.ReplaceAll(lists, "\n", "\n  ")+"\n")
		out, err := exec.CommandContext(t.Context(), envoy, "--mode", "validate", "-c", bootstrap, "--concurrency", "1", "--base-id", "77").CombinedOutput()
		return string(out), err
	}
	if out, err := validate(plugin("good", ", imagePullSecret: regcred", "name: good") + plugin("refused", "", "name: refused")); err != nil {
		t.Errorf("Envoy refuses the lists: %v\n%s", err, out)
	}
	// It did look at the module: one that refuses its configuration is not accepted.
	if out, err := validate(plugin("good", ", imagePullSecret: regcred", "nam: good")); err == nil {
		t.Errorf("Envoy accepts a module that refuses its configuration:\n%s", out)
	}
}
