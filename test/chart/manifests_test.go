package chart

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stileproject/stile/internal/kubetest"
)

const installHead = `# stile for clusters without Helm: what charts/stile renders with its defaults.
# Made by "cd test/chart && go test . -update". docs/install.md says what comes before it:
#
#   kubectl create -f crd.yaml        # not "apply": a WasmPlugin CRD that is there already stays as it is
#   kubectl apply --server-side -f install.yaml
#   kubectl -n stile-system create secret generic stile-keys --from-literal=keys.yaml="current: $(openssl rand -hex 32)"
#   kubectl -n stile-system create secret generic stile-tls --from-file=tls.crt --from-file=tls.key --from-file=ca.crt
---
apiVersion: v1
kind: Namespace
metadata:
  name: stile-system
  labels:
    app.kubernetes.io/name: stile
    pod-security.kubernetes.io/enforce: restricted
`

// deploy/install.yaml and deploy/crd.yaml are what the chart renders.
func TestInstallYAMLIsTheChart(t *testing.T) {
	t.Parallel()
	var install, crd strings.Builder
	install.WriteString(installHead)
	objects, _ := render(t, "crd: {install: always}")
	for _, o := range objects {
		labels := o.GetLabels()
		delete(labels, "helm.sh/chart")
		delete(labels, "app.kubernetes.io/managed-by")
		o.SetLabels(labels)
		if o.GetKind() == "CustomResourceDefinition" {
			o.SetAnnotations(map[string]string{"controller-gen.kubebuilder.io/version": o.GetAnnotations()["controller-gen.kubebuilder.io/version"]})
			crd.WriteString(text(t, o))
			continue
		}
		install.WriteString("---\n" + strings.ReplaceAll(text(t, o), "        app.kubernetes.io/managed-by: Helm\n        app.kubernetes.io/name", "        app.kubernetes.io/name"))
	}
	deploy := filepath.Join("..", "..", "deploy")
	golden(t, filepath.Join(deploy, "install.yaml"), strings.ReplaceAll(install.String(), "        helm.sh/chart: "+chartVersion(t)+"\n", ""))
	golden(t, filepath.Join(deploy, "crd.yaml"), crd.String())
}

func chartVersion(t *testing.T) string {
	t.Helper()
	c := load(t)
	return c.Metadata.Name + "-" + c.Metadata.Version
}

// The API server accepts every object of it, and "kubectl create" leaves a CRD that is there as it is.
func TestInstallYAMLIsAccepted(t *testing.T) {
	t.Parallel()
	api := kubetest.Start(t, kubetest.Options{NoCRD: true})
	deploy, err := filepath.Abs(filepath.Join("..", "..", "deploy"))
	if err != nil {
		t.Fatal(err)
	}
	api.Kubectl(t, "create", "-f", filepath.Join(deploy, "crd.yaml"))
	api.Kubectl(t, "apply", "-f", writeFile(t, strings.Split(installHead, "---\n")[1]))
	api.Kubectl(t, "apply", "--server-side", "--dry-run=server", "-f", filepath.Join(deploy, "install.yaml"))
	api.Kubectl(t, "apply", "--server-side", "-f", filepath.Join(deploy, "install.yaml"))
	if _, stderr, err := api.TryKubectl(t, nil, "create", "-f", filepath.Join(deploy, "crd.yaml")); err == nil || !strings.Contains(stderr, "AlreadyExists") {
		t.Errorf("a CRD that is there: want AlreadyExists, got %v %s", err, stderr)
	}
}

// The chart's copy of the CRD is the one that is generated from the types.
func TestTheChartsCRDIsTheGeneratedOne(t *testing.T) {
	t.Parallel()
	made, err := os.ReadFile(filepath.Join("..", "..", "api", "crd", "extensions.istio.io_wasmplugins.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, filepath.Join(chartFolder, "files", "crd.yaml"), string(made))
}
