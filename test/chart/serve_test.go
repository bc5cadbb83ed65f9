package chart

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/stileproject/stile/internal/kubetest"
)

// running is the real program, with the configuration and the account that the chart made.
type running struct {
	health string
	mu     sync.Mutex
	log    strings.Builder
}

// serve runs the program until the test ends. Of the chart's stile.yaml only what a pod would mount or bind is another.
func serve(t *testing.T, w *world, program string) *running {
	t.Helper()
	folder := t.TempDir()
	key, _, _ := unstructured.NestedString(w.release.get(t, secrets, w.own, w.release.name+"-keys").Object, "data", "keys.yaml")
	keys, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "keys.yaml"), keys, 0o600); err != nil {
		t.Fatal(err)
	}
	made, _, _ := unstructured.NestedString(w.release.get(t, configMaps, w.own, w.release.name).Object, "data", "stile.yaml")
	var cfg map[string]any
	if err := yaml.Unmarshal([]byte(made), &cfg); err != nil {
		t.Fatal(err)
	}
	for path, value := range map[string]string{
		"keys.file": filepath.Join(folder, "keys.yaml"), "store.directory": filepath.Join(folder, "store"),
		"resources.kubernetes.kubeconfig": w.api.Kubeconfig(t, w.account),
		"xds.address":                     "127.0.0.1:0", "modules.address": "127.0.0.1:0", "admin.address": "127.0.0.1:0", "health.address": "127.0.0.1:0", "webhook.address": "127.0.0.1:0",
	} {
		if err := unstructured.SetNestedField(cfg, value, strings.Split(path, ".")...); err != nil {
			t.Fatal(err)
		}
	}
	text, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(folder, "stile.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(program, "serve", "--config="+file, "--log-format=json")
	c.Env = []string{"HOME=" + folder, "POD_NAME=stile-0", "POD_NAMESPACE=" + w.own}
	out, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	r, started, ended := &running{}, make(chan string, 1), make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			r.mu.Lock()
			r.log.WriteString(lines.Text() + "\n")
			r.mu.Unlock()
			var line struct{ Msg, Health string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
				started <- line.Health
			}
		}
	}()
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		<-ended
		if err := c.Wait(); err != nil {
			t.Errorf("it ends with %v", err)
		}
		for line := range strings.Lines(r.said()) {
			// Secrets of namespaces that the values do not name are the one thing that it is to be refused.
			if strings.Contains(strings.ToLower(line), "forbidden") && !(strings.Contains(line, "pull secret cannot be read") && !strings.Contains(line, w.a+"/")) {
				t.Errorf("the roles lack something: %s", line)
			}
		}
		if strings.Contains(r.said(), "CANARY") {
			t.Error("a credential is in the log")
		}
	})
	select {
	case r.health = <-started:
	case <-ended:
		t.Fatalf("it has not started:\n%s", r.said())
	case <-time.After(30 * time.Second):
		t.Fatalf("it has not started in 30 s:\n%s", r.said())
	}
	return r
}

func (r *running) said() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

func (r *running) fetch(path string) string {
	answer, err := http.Get("http://" + r.health + path)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	return fmt.Sprintf("%d %s %v", answer.StatusCode, body, err)
}

var (
	configMaps = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	podsOf     = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	eventsOf   = schema.GroupVersionResource{Group: "events.k8s.io", Version: "v1", Resource: "events"}
	validating = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"}
	mutating   = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"}
)

// The program does all its work with the configuration and the account that the chart makes, and is refused nothing.
func TestServeWithWhatTheChartMakes(t *testing.T) {
	program := filepath.Join(kubectlPlugin(t), "kubectl-stile")
	for name, values := range map[string]string{
		"stile-plain": "tls: {insecure: true}\nsecrets: {namespaces: [TEAM-A]}",
		"stile-full":  "tls: {insecure: true}\nsecrets: {namespaces: [TEAM-A]}\nplacement: {enabled: true, maxWait: 1s}",
	} {
		t.Run(name, func(t *testing.T) {
			w := installed(t, name, values)
			r := serve(t, w, program)
			kubetest.Eventually(t, func() string {
				if answer := r.fetch("/readyz"); !strings.HasPrefix(answer, "200 ") {
					return answer
				}
				return ""
			})
			// A plugin whose pull secret may be read, and is none.
			w.api.Apply(t, nil, "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: p, namespace: "+w.a+"}\nspec: {url: oci://registry.example/a/p:v1, imagePullSecret: regcred}\n")
			kubetest.Eventually(t, func() string {
				p := w.release.get(t, plugins, w.a, "p")
				conditions, _, _ := unstructured.NestedSlice(p.Object, "status", "conditions")
				if text := fmt.Sprint(conditions); !strings.Contains(text, "PullSecretInvalid") {
					return "the status of the plugin: " + text
				}
				events, err := w.release.dynamic.Resource(eventsOf).Namespace(w.a).List(context.Background(), listOptions)
				if err != nil || !strings.Contains(fmt.Sprint(events), "PullSecretInvalid") {
					return fmt.Sprintf("an event of the plugin: %v", err)
				}
				if webhook := fmt.Sprint(w.release.get(t, validating, "", name+"-webhook").Object["webhooks"]); !strings.Contains(webhook, "caBundle") {
					return "the authority of the webhook's certificate"
				}
				if answer := r.fetch("/metrics"); !strings.Contains(answer, "stile_leader 1") || !strings.Contains(answer, `stile_plugins{programmed=`) || !strings.Contains(answer, "stile_store_max_bytes") {
					return "the metrics of the service"
				}
				return ""
			})
			if name != "stile-full" {
				return
			}
			kubetest.Eventually(t, func() string { // nobody answers for the image: let go once maxWait is over
				pod := w.release.get(t, podsOf, w.a, "p")
				if gates, _, _ := unstructured.NestedSlice(pod.Object, "spec", "schedulingGates"); len(gates) > 0 {
					return "the pod is held"
				}
				if webhook := fmt.Sprint(w.release.get(t, mutating, "", name+"-webhook").Object["webhooks"]); !strings.Contains(webhook, "caBundle") {
					return "the authority of the gate's certificate"
				}
				return ""
			})
		})
	}
}

// What the chart runs before it uninstalls lets every held pod go, with the account that it makes for that alone.
func TestUninstallingLetsPodsGo(t *testing.T) {
	program := filepath.Join(kubectlPlugin(t), "kubectl-stile")
	w := installed(t, "stile-going", "placement: {enabled: true}")
	hooks, args := "", []string(nil)
	for _, h := range w.release.hooks(t) {
		for _, o := range decode(t, h) {
			if o.GetKind() == "Job" {
				containers := first(t, o, "spec", "template", "spec", "containers")
				for _, a := range containers["args"].([]any) {
					args = append(args, a.(string))
				}
				continue
			}
			hooks += "---\n" + text(t, o)
		}
	}
	w.api.Apply(t, nil, hooks)
	for i := range 100 {
		w.api.Apply(t, nil, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: held-%d, namespace: %s}\nspec:\n  automountServiceAccountToken: false\n  schedulingGates: [{name: stile.dev/architecture}, {name: other/gate}]\n  containers: [{name: c, image: registry.example/a/p}]\n", i, w.b))
	}
	account := w.api.Kubeconfig(t, w.api.ServiceAccount(t, w.own, "stile-going-release"))
	run := func() (string, error) {
		out, err := exec.Command(program, append(args, "--kubeconfig="+account, "-o=json")...).CombinedOutput()
		return string(out), err
	}
	kubetest.Eventually(t, func() string { // its role reaches the authorizer by a watch
		if out, err := run(); err != nil {
			return out
		}
		return ""
	})
	pods, err := w.release.dynamic.Resource(podsOf).List(context.Background(), listOptions)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		gates, _, _ := unstructured.NestedSlice(p.Object, "spec", "schedulingGates")
		if strings.Contains(fmt.Sprint(gates), "stile.dev/architecture") {
			t.Errorf("%s/%s is still held", p.GetNamespace(), p.GetName())
		}
		if strings.HasPrefix(p.GetName(), "held-") && !strings.Contains(fmt.Sprint(gates), "other/gate") {
			t.Errorf("%s: somebody else's gate is gone", p.GetName())
		}
	}
	if _, err := w.release.dynamic.Resource(mutating).Get(context.Background(), "stile-going-webhook", getOptions); err == nil {
		t.Error("new pods are still given the gate")
	}
}
