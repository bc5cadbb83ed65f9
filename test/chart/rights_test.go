package chart

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/stileproject/stile/internal/kubetest"
)

var plugins = schema.GroupVersionResource{Group: "extensions.istio.io", Version: "v1alpha1", Resource: "wasmplugins"}

// world is a release in a namespace of its own, with two tenants.
type world struct {
	api          *kubetest.Server
	own, a, b    string
	release      *helm
	account      *rest.Config
	client       kubernetes.Interface
	dynamic      dynamic.Interface
	allowed, not func(what string, err error)
}

// installed is the chart on the real API server, and its ServiceAccount: exactly what was rendered, and nothing else.
func installed(t *testing.T, name, text string) *world {
	t.Helper()
	api := kubetest.API(t)
	w := &world{api: api, own: api.Namespace(t, restricted...), a: api.Namespace(t), b: api.Namespace(t)}
	w.release = newHelm(t, api, name, w.own)
	w.release.install(t, strings.NewReplacer("TEAM-A", w.a, "TEAM-B", w.b).Replace(text))
	t.Cleanup(func() { w.release.uninstall(t) })
	for _, ns := range []string{w.a, w.b} {
		for _, s := range []string{"regcred", "other"} {
			api.Apply(t, nil, "apiVersion: v1\nkind: Secret\nmetadata: {name: "+s+", namespace: "+ns+"}\nstringData: {x: CANARY}\n")
		}
		plugin := "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: p, namespace: " + ns + "}\nspec: {url: oci://registry.example/a/p:v1}\n"
		kubetest.Eventually(t, func() string { // the first object after its definition takes a moment
			if err := api.TryApply(nil, plugin); err != nil {
				return err.Error()
			}
			return ""
		})
		api.Apply(t, nil, "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: "+ns+"}\nspec:\n  automountServiceAccountToken: false\n  schedulingGates: [{name: stile.dev/architecture}]\n  containers: [{name: c, image: registry.example/a/p}]\n")
	}
	w.account = api.ServiceAccount(t, w.own, name)
	w.client = kubernetes.NewForConfigOrDie(w.account)
	w.dynamic = dynamic.NewForConfigOrDie(w.account)
	w.allowed = func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: want it done, got %v", what, err)
		}
	}
	w.not = func(what string, err error) {
		t.Helper()
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: want Forbidden, got %v", what, err)
		}
	}
	// What the roles say reaches the authorizer by a watch.
	kubetest.Eventually(t, func() string {
		if _, err := w.dynamic.Resource(plugins).List(context.Background(), metav1.ListOptions{}); err != nil && !strings.Contains(text, "plugins:") {
			return err.Error()
		}
		return ""
	})
	return w
}

func (w *world) secret(namespace, name string) error {
	_, err := w.client.CoreV1().Secrets(namespace).Get(context.Background(), name, getOptions)
	return err
}

func (w *world) patchPod(namespace, patch string, sub ...string) error {
	_, err := w.client.CoreV1().Pods(namespace).Patch(context.Background(), "p", types.MergePatchType, []byte(patch), metav1.PatchOptions{}, sub...)
	return err
}

// The account reads pull secrets where the chart says, by name alone; it writes statuses and no plugin; it touches no pod.
func TestTheAccountMayDoWhatTheTableSaysAndNoMore(t *testing.T) {
	w := installed(t, "stile-rights", "secrets: {namespaces: [TEAM-A]}")
	ctx := context.Background()

	kubetest.Eventually(t, func() string {
		if err := w.secret(w.a, "regcred"); err != nil {
			return err.Error()
		}
		return ""
	})
	one, err := w.client.CoreV1().Secrets(w.a).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=regcred"})
	w.allowed("watch one Secret by name", err)
	if err == nil {
		one.Stop()
	}
	for _, ns := range []string{w.a, w.b, w.own, ""} {
		_, err := w.client.CoreV1().Secrets(ns).List(ctx, metav1.ListOptions{})
		w.not("list Secrets in "+ns, err)
	}
	w.not("get a Secret of a namespace that was not named", w.secret(w.b, "regcred"))
	w.not("get the root key", w.secret(w.own, "stile-rights-keys"))
	_, err = w.client.CoreV1().Secrets(w.a).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "new"}}, metav1.CreateOptions{})
	w.not("create a Secret of a tenant", err)
	w.not("delete a Secret", w.client.CoreV1().Secrets(w.a).Delete(ctx, "regcred", metav1.DeleteOptions{}))

	spec := []byte(`{"spec":{"url":"oci://evil.example/x"}}`)
	_, err = w.dynamic.Resource(plugins).Namespace(w.a).Patch(ctx, "p", types.MergePatchType, spec, metav1.PatchOptions{})
	w.not("change a plugin's spec", err)
	_, err = w.dynamic.Resource(plugins).Namespace(w.a).Patch(ctx, "p", types.MergePatchType, []byte(`{"status":{"observedGeneration":1}}`), metav1.PatchOptions{}, "status")
	w.allowed("write a plugin's status", err)
	changed, err := w.dynamic.Resource(plugins).Namespace(w.a).Patch(ctx, "p", types.MergePatchType, []byte(`{"spec":{"url":"oci://evil.example/x"},"status":{"observedGeneration":2}}`), metav1.PatchOptions{}, "status")
	w.allowed("write a plugin's status with a spec in it", err)
	if err == nil && strings.Contains(fmt.Sprint(changed.Object["spec"]), "evil") {
		t.Error("a write of the status changed the spec")
	}
	w.not("delete a plugin", w.dynamic.Resource(plugins).Namespace(w.a).Delete(ctx, "p", metav1.DeleteOptions{}))

	_, err = w.client.CoreV1().Pods(w.a).List(ctx, metav1.ListOptions{})
	w.not("list pods", err)
	w.not("patch a pod", w.patchPod(w.a, `{"metadata":{"labels":{"stile.dev/x":"y"}}}`))
	w.not("delete a pod", w.client.CoreV1().Pods(w.a).Delete(ctx, "p", metav1.DeleteOptions{}))

	_, err = w.client.CoordinationV1().Leases(w.b).List(ctx, metav1.ListOptions{})
	w.not("list leases elsewhere", err)
	_, err = w.client.CoreV1().ConfigMaps(w.a).List(ctx, metav1.ListOptions{})
	w.not("list ConfigMaps elsewhere", err)
	_, err = w.client.CoreV1().ConfigMaps(w.own).List(ctx, metav1.ListOptions{LabelSelector: "stile.dev/envoy=true"})
	w.allowed("list ConfigMaps of its own namespace", err)
	_, err = w.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, "stile-rights-webhook", getOptions)
	w.allowed("get its webhook configuration", err)
	_, err = w.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, "another", getOptions)
	w.not("get another's webhook configuration", err)
}

// With placement on, the account may patch pods, and the guard lets it take its own gate off and no more.
func TestWithPlacementTheGuardHoldsTheAccount(t *testing.T) {
	w := installed(t, "stile-placed", "placement: {enabled: true, via: policy, excludeNamespaces: []}\nsecrets: {namespaces: [TEAM-A], resourceNames: [regcred]}")
	ctx := context.Background()
	tries := 0
	kubetest.Eventually(t, func() string {
		if _, err := w.client.CoreV1().Pods("").List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
			return err.Error()
		}
		if err := w.secret(w.a, "regcred"); err != nil {
			return err.Error()
		}
		// The guard is in force once it refuses what RBAC allows.
		tries++
		if err := w.patchPod(w.b, fmt.Sprintf(`{"metadata":{"labels":{"app":"try-%d"}}}`, tries)); err == nil || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy") {
			return fmt.Sprintf("the guard's refusal; got %v", err)
		}
		return ""
	})
	w.not("get a Secret of another name", w.secret(w.a, "other"))
	for what, patch := range map[string]string{
		"an image":      `{"spec":{"containers":[{"name":"c","image":"evil.example/x"}]}}`,
		"a label":       `{"metadata":{"labels":{"app":"x"}}}`,
		"tolerations":   `{"spec":{"tolerations":[{"operator":"Exists"}]}}`,
		"another gate":  `{"spec":{"schedulingGates":[{"name":"stile.dev/architecture"},{"name":"x/y"}]}}`,
		"owners":        `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"x","uid":"y"}]}}`,
		"an annotation": `{"metadata":{"annotations":{"x":"y"}}}`,
	} {
		if err := w.patchPod(w.a, patch); err == nil {
			t.Errorf("change %s: done", what)
		}
	}
	w.not("delete a pod", w.client.CoreV1().Pods(w.a).Delete(ctx, "p", metav1.DeleteOptions{}))
	w.allowed("take its gate off", w.patchPod(w.a, `{"metadata":{"labels":{"stile.dev/placement":"Placed"}},"spec":{"schedulingGates":null}}`))
}

// Every right of the account, as the API server itself lists them, is written down and read in review.
func TestRightsAreWrittenDown(t *testing.T) {
	w := installed(t, "stile-listed", "secrets: {namespaces: [TEAM-A]}")
	names := strings.NewReplacer(w.own, "OWN", w.a, "TEAM-A", w.b, "TEAM-B")
	var page strings.Builder
	for _, ns := range []string{w.own, w.a, w.b} {
		var lines []string
		kubetest.Eventually(t, func() string {
			review, err := w.client.AuthorizationV1().SelfSubjectRulesReviews().Create(context.Background(),
				&authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: ns}}, metav1.CreateOptions{})
			if err != nil {
				return err.Error()
			}
			lines = nil
			for _, r := range review.Status.ResourceRules {
				if slices.Contains(r.APIGroups, "authentication.k8s.io") || slices.Contains(r.APIGroups, "authorization.k8s.io") {
					continue // what every account has: to ask who it is and what it may do
				}
				lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s/%s %s %s", strings.Join(r.APIGroups, ","), strings.Join(r.Resources, ","), strings.Join(r.Verbs, ","), strings.Join(r.ResourceNames, ","))))
			}
			if !strings.Contains(strings.Join(lines, "\n"), "wasmplugins/status") || (ns == w.a && !strings.Contains(strings.Join(lines, "\n"), "secrets")) {
				return "the roles have not arrived"
			}
			return ""
		})
		slices.Sort(lines)
		fmt.Fprintf(&page, "in %s\n  %s\n", names.Replace(ns), strings.Join(slices.Compact(lines), "\n  "))
	}
	golden(t, filepath.Join("testdata", "rights.txt"), page.String())
}
