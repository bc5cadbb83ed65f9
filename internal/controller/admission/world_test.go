package admission

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/stileproject/stile/internal/canary"
	"github.com/stileproject/stile/internal/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m, kubetest.Options{})) }

// world is a namespace with stile's account, and an API server that calls webhooks by URL.
type world struct {
	*kubetest.Server
	t                  *testing.T
	namespace, service string
	account            *rest.Config // exactly the rights of the package comment
	admin              kubernetes.Interface
	canary             *canary.Watcher
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, canary: canary.Watch(t), Server: kubetest.API(t)}
	w.namespace = w.Namespace(t)
	w.service = "hook-" + w.namespace[:4]
	w.account = w.ServiceAccount(t, w.namespace, "stile")
	w.canary.Track(w.account.BearerToken)
	w.Apply(t, nil, strings.NewReplacer("NS", w.namespace, "SVC", w.service).Replace(`
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {namespace: NS, name: hook}, rules: [
  {apiGroups: [""], resources: [secrets], resourceNames: [SVC-tls], verbs: [get, create, update, patch]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {namespace: NS, name: hook},
 roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: hook}, subjects: [{kind: ServiceAccount, namespace: NS, name: stile}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: NS-hook}, rules: [
  {apiGroups: [admissionregistration.k8s.io], resources: [validatingwebhookconfigurations, mutatingwebhookconfigurations], resourceNames: [SVC], verbs: [get, watch, patch]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: NS-hook},
 roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: NS-hook}, subjects: [{kind: ServiceAccount, namespace: NS, name: stile}]}`))
	var err error
	if w.admin, err = kubernetes.NewForConfig(w.Config); err != nil {
		t.Fatal(err)
	}
	return w
}

// replica is a Server that runs until the test ends.
type replica struct {
	*Server
	url  string
	stop func()
}

// config is that of a replica at an address of its own.
func (w *world) config() Config {
	w.t.Helper()
	listener, err := new(net.ListenConfig).Listen(w.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	return Config{REST: w.account, Listener: listener, Namespace: w.namespace, Service: w.service, Hosts: []string{"127.0.0.1"}, Log: w.canary.Log()}
}

func (w *world) run(cfg Config, prepare func(*Server)) *replica {
	w.t.Helper()
	s, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	s.Handle(ValidatePath, ValidatePlugins(PluginRules{}))
	if prepare != nil {
		prepare(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	r := &replica{Server: s, url: "https://" + cfg.Listener.Addr().String(), stop: func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("run: %v", err)
		}
	}}
	w.t.Cleanup(r.stop)
	return r
}

// hook applies a configuration that calls each of the URLs for this world's plugins.
func (w *world) hook(kind, path, policy string, urls ...string) {
	w.t.Helper()
	var hooks []string
	for n, url := range urls {
		hooks = append(hooks, fmt.Sprintf(`{name: hook%d.stile.dev, clientConfig: {url: "%s%s"}, failurePolicy: %s, sideEffects: None, timeoutSeconds: 5,
  admissionReviewVersions: [v1], namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %s}},
  rules: [{apiGroups: [extensions.istio.io], apiVersions: ["*"], resources: [wasmplugins], operations: [CREATE, UPDATE, DELETE]}]}`, n, url, path, policy, w.namespace))
	}
	w.Apply(w.t, nil, fmt.Sprintf("{apiVersion: admissionregistration.k8s.io/v1, kind: %s, metadata: {name: %s}, webhooks: [%s]}", kind, w.service, strings.Join(hooks, ",")))
	w.t.Cleanup(func() {
		ctx := context.Background()
		hooks := w.admin.AdmissionregistrationV1()
		_ = hooks.ValidatingWebhookConfigurations().Delete(ctx, w.service, metav1.DeleteOptions{})
		_ = hooks.MutatingWebhookConfigurations().Delete(ctx, w.service, metav1.DeleteOptions{})
	})
}

// ready waits until the API server trusts the replica and calls it.
func (w *world) ready(r *replica) {
	w.t.Helper()
	kubetest.Eventually(w.t, func() string {
		if err := r.Ready(); err != nil {
			return err.Error()
		}
		return ""
	})
	// The API server learns of the configuration by a watch of its own.
	bad := w.plugin("probe", `url: oci://r.example/a, verificationKey: "no key"`)
	kubetest.Within(w.t, 30*time.Second, func() string {
		if err := w.TryApply(nil, bad); err == nil || !strings.Contains(err.Error(), "denied the request") {
			return fmt.Sprintf("a call of the webhook, got %v", err)
		}
		return ""
	})
}

func (w *world) plugin(name, spec string) string {
	return fmt.Sprintf("{apiVersion: extensions.istio.io/v1alpha1, kind: WasmPlugin, metadata: {namespace: %s, name: %s}, spec: {%s}}", w.namespace, name, spec)
}
