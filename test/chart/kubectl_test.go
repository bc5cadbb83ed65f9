package chart

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stileproject/stile/internal/kubetest"
)

// kubectlPlugin builds the program under the name by which kubectl finds it.
func kubectlPlugin(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(folder, "kubectl-stile"), "./cmd/stile")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return folder
}

// The story of someone with kubectl alone: what plugins there are, how they stand, and which replicas could not be asked. No
// kubelet is here, so no replica can be reached: that is what is said.
func TestKubectlStileStatus(t *testing.T) {
	api := kubetest.Start(t, kubetest.Options{NoCRD: true})
	folder, kubeconfig := kubectlPlugin(t), api.Kubeconfig(t, nil)
	run := func(as string, args ...string) (stdout, stderr string, code int) {
		t.Helper()
		c := exec.Command(filepath.Join(os.Getenv("STILE_KUBE_ASSETS"), "kubectl"), append([]string{"stile"}, args...)...)
		c.Env = []string{"PATH=" + folder + ":" + os.Getenv("PATH"), "KUBECONFIG=" + as, "HOME=" + folder}
		var out, errs strings.Builder
		c.Stdout, c.Stderr = &out, &errs
		_ = c.Run()
		return out.String(), errs.String(), c.ProcessState.ExitCode()
	}
	want := func(code, wanted int, stderr string, texts ...string) {
		t.Helper()
		if code != wanted {
			t.Errorf("want exit code %d, got %d: %s", wanted, code, stderr)
		}
		for _, text := range texts {
			if !strings.Contains(stderr, text) {
				t.Errorf("stderr lacks %q:\n%s", text, stderr)
			}
		}
	}

	_, stderr, code := run(kubeconfig, "status")
	want(code, 5, stderr, "this cluster knows no WasmPlugin", "install the CRD")

	// Two tenants' plugins; of one, stile has said something.
	api.Kubectl(t, "create", "-f", absolute(t, "deploy", "crd.yaml"))
	a, b := api.Namespace(t), api.Namespace(t)
	for _, ns := range []string{a, b} {
		kubetest.Eventually(t, func() string { // the first object after its definition takes a moment
			if err := api.TryApply(nil, "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: badge, namespace: "+ns+"}\nspec: {url: \"https://modules.example/a.wasm?sig=CANARY\"}\n"); err != nil {
				return err.Error()
			}
			return ""
		})
	}
	api.Kubectl(t, "patch", "wasmplugin", "-n", a, "badge", "--subresource=status", "--type=merge", `-p={"status":{"observedGeneration":1,"digest":"sha256:`+strings.Repeat("ab", 32)+`",
		"proxies":{"matched":12,"accepted":11,"rejected":1},"conditions":[
		{"type":"Accepted","status":"True","reason":"Accepted","message":"","lastTransitionTime":"2026-11-21T00:00:00Z"},
		{"type":"ResolvedRefs","status":"False","reason":"Unauthorized","message":"pull secret regcred may not read it","lastTransitionTime":"2026-11-21T00:00:00Z"},
		{"type":"Programmed","status":"True","reason":"ServingLastGood","message":"","lastTransitionTime":"2026-11-21T00:00:00Z"}]}}`)

	stdout, stderr, code := run(kubeconfig, "status")
	want(code, 0, stderr, "no pod labelled app.kubernetes.io/name=stile in namespace stile-system")
	for _, text := range []string{a + "/badge", b + "/badge", "11/12", "False (Unauthorized)", "True (ServingLastGood)", "pull secret regcred may not read it"} {
		if !strings.Contains(stdout, text) {
			t.Errorf("the table lacks %q:\n%s", text, stdout)
		}
	}
	if strings.Contains(stdout+stderr, "CANARY") {
		t.Error("a url's query is shown")
	}
	if stdout, _, _ := run(kubeconfig, "status", "-n", b, "-o", "name"); stdout != b+"/badge\n" {
		t.Errorf("-n: %q", stdout)
	}
	if _, stderr, code := run(kubeconfig, "status", a+"/nothing"); true {
		want(code, 5, stderr, "there is no WasmPlugin "+a+"/nothing")
	}

	// Replicas: one that is not ready, and one that says it is.
	home := api.Namespace(t)
	for _, pod := range []string{"stile-0", "stile-1"} {
		api.Apply(t, nil, "apiVersion: v1\nkind: Pod\nmetadata: {name: "+pod+", namespace: "+home+", labels: {app.kubernetes.io/name: stile}}\nspec:\n  automountServiceAccountToken: false\n  containers: [{name: stile, image: stile}]\n")
	}
	api.Kubectl(t, "patch", "pod", "-n", home, "stile-1", "--subresource=status", "--type=merge", `-p={"status":{"conditions":[{"type":"Ready","status":"True"}]}}`)
	stdout, stderr, code = run(kubeconfig, "status", "--service-namespace", home, "-o", "json")
	want(code, 0, stderr, "pod stile-0 are left out: not ready", "pod stile-1 are left out")
	var report struct {
		Plugins  []struct{ Namespace, Name string }
		Replicas []struct {
			Pod   string
			Asked bool
			Error string
		}
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || len(report.Plugins) != 2 || len(report.Replicas) != 2 {
		t.Fatalf("%v: %s", err, stdout)
	}

	// Somebody who may read the plugins of one namespace and nothing else.
	api.Apply(t, nil, "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: r, namespace: "+a+"}\nrules: [{apiGroups: [extensions.istio.io], resources: [wasmplugins], verbs: [list]}]\n---\n"+
		"apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: r, namespace: "+a+"}\nroleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: r}\nsubjects: [{kind: User, name: reader, apiGroup: rbac.authorization.k8s.io}]\n")
	reader := api.Kubeconfig(t, api.User(t, "reader"))
	_, stderr, code = run(reader, "status")
	want(code, 1, stderr, "name a namespace with -n")
	kubetest.Eventually(t, func() string {
		if stdout, _, _ := run(reader, "status", "-n", a, "-o", "name"); stdout != a+"/badge\n" {
			return "the reader's own namespace"
		}
		return ""
	})
	_, stderr, code = run(reader, "status", "-n", a)
	want(code, 0, stderr, "are left out", "pods is forbidden")

	_, stderr, code = run(kubeconfig, "status", "--context", "nowhere")
	want(code, 2, stderr, "nowhere")
}

func absolute(t *testing.T, parts ...string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(append([]string{"..", ".."}, parts...)...))
	if err != nil {
		t.Fatal(err)
	}
	return path
}
