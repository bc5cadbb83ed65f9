package release

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/placement"
)

// The API server of these tests takes very few requests at a time.
func TestMain(m *testing.M) {
	os.Exit(kubetest.Main(m, kubetest.Options{Args: []string{"--max-requests-inflight=16", "--max-mutating-requests-inflight=8"}}))
}

const rights = `
apiVersion: v1
kind: Namespace
metadata: {name: stile-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: stile-release}
rules:
- {apiGroups: [""], resources: [pods], verbs: [list, patch]}
- {apiGroups: [admissionregistration.k8s.io], resources: [mutatingwebhookconfigurations], resourceNames: [stile-webhook], verbs: [delete]}
- {apiGroups: [admissionregistration.k8s.io], resources: [mutatingadmissionpolicybindings], resourceNames: [stile-gate], verbs: [delete]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: stile-release}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: stile-release}
subjects: [{kind: ServiceAccount, namespace: stile-system, name: stile-release}]
`

func client(t *testing.T, c *rest.Config) *kubernetes.Clientset {
	t.Helper()
	k, err := kubernetes.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func pod(t *testing.T, k kubernetes.Interface, ns, name string, gates ...string) {
	t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "registry.example/app:v1"}}}}
	for _, g := range gates {
		p.Spec.SchedulingGates = append(p.Spec.SchedulingGates, corev1.PodSchedulingGate{Name: g})
	}
	if _, err := k.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestNobodyIsStranded: stile is taken away, with the account of the chart's hook, under
// its guard, while the API server is busy, and while pods are still being created.
func TestNobodyIsStranded(t *testing.T) { //nolint:paralleltest // it lets go the pods of all namespaces
	api := kubetest.API(t)
	admin := client(t, api.Config)
	api.Apply(t, nil, rights)
	for _, file := range []string{"guard-policy", "gate-policy", "gate-webhook"} {
		b, err := os.ReadFile("../../../charts/stile/files/" + file + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		api.Apply(t, nil, string(b))
	}
	ns := api.Namespace(t)
	for i := range 100 {
		gates := []string{placement.Gate}
		if i%10 == 0 {
			gates = []string{"kueue.x-k8s.io/admission", placement.Gate, "example.com/other"}
		}
		pod(t, admin, ns, fmt.Sprintf("held-%d", i), gates...)
	}
	hook := client(t, api.ServiceAccount(t, "stile-system", "stile-release"))

	// Many others who ask all the time, and somebody who creates pods.
	ctx, cancel := context.WithCancel(t.Context())
	var others sync.WaitGroup
	for range 8 {
		others.Go(func() {
			for ctx.Err() == nil {
				_, _ = admin.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
			}
		})
	}
	kubetest.Eventually(t, func() string { // the rights have reached the authorizer
		if _, err := hook.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{Limit: 1}); err != nil {
			return err.Error()
		}
		return ""
	})
	if err := Disarm(t.Context(), hook, WebhookName, PolicyName); err != nil {
		t.Fatal(err)
	}
	later := 0
	others.Go(func() {
		for later < 5 {
			pod(t, admin, ns, fmt.Sprintf("later-%d", later), placement.Gate)
			later++
		}
	})
	var log bytes.Buffer
	begin := time.Now()
	n, err := All(t.Context(), hook, slog.New(slog.NewTextHandler(&log, nil)))
	t.Logf("%d pods in %v", n, time.Since(begin))
	cancel()
	others.Wait()
	if err != nil || n != 100+later {
		t.Errorf("released %d, want %d, %v", n, 100+later, err)
	}
	list, err := admin.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	kept := 0
	for i := range list.Items {
		if placement.Gated(&list.Items[i]) {
			t.Errorf("pod %s still carries the gate", list.Items[i].Name)
		}
		if len(list.Items[i].Spec.SchedulingGates) == 2 {
			kept++
		}
	}
	if kept != 10 {
		t.Errorf("%d pods kept the gates of others, want 10", kept)
	}
	for what, err := range map[string]error{
		"webhook": get(admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), WebhookName, metav1.GetOptions{})),
		"policy":  get(admin.AdmissionregistrationV1().MutatingAdmissionPolicyBindings().Get(t.Context(), PolicyName, metav1.GetOptions{})),
	} {
		if err == nil {
			t.Errorf("the %s that gates new pods is still there", what)
		}
	}
	if err := Disarm(t.Context(), hook, WebhookName, PolicyName); err != nil {
		t.Errorf("again, with nothing there: %v", err)
	}
}

func get[T any](_ T, err error) error { return err }

// TestOneThatCannotGoHoldsUpNoOther: somebody's policy refuses the update of one pod.
func TestOneThatCannotGoHoldsUpNoOther(t *testing.T) { //nolint:paralleltest // it lets go the pods of all namespaces
	api := kubetest.API(t)
	admin := client(t, api.Config)
	ns := api.Namespace(t)
	api.Apply(t, nil, strings.ReplaceAll(`
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: stubborn}
spec:
  matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [UPDATE], resources: [pods]}]}
  matchConditions: [{name: here, expression: "request.namespace == 'NS'"}]
  validations: [{expression: "object.metadata.name != 'stubborn'", message: "no"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: stubborn}
spec: {policyName: stubborn, validationActions: [Deny]}
`, "NS", ns))
	pod(t, admin, ns, "stubborn", placement.Gate)
	kubetest.Eventually(t, func() string { // the policy has reached the API server
		if err := get(admin.CoreV1().Pods(ns).Patch(t.Context(), "stubborn", "application/merge-patch+json", []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{DryRun: []string{"All"}})); err == nil {
			return "the policy to act"
		}
		return ""
	})
	for i := range 20 {
		pod(t, admin, ns, fmt.Sprint("other-", i), placement.Gate)
	}
	n, err := All(t.Context(), admin, nil)
	if n != 20 || err == nil || !strings.Contains(err.Error(), "1 pods still carry the gate") || !strings.Contains(err.Error(), ns+"/stubborn") {
		t.Errorf("released %d, %v", n, err)
	}
	if err := admin.CoreV1().Pods(ns).Delete(t.Context(), "stubborn", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
		t.Fatal(err)
	}
}

// TestGivingUpSaysSo: with the API server away, it ends with ctx and an error.
func TestGivingUpSaysSo(t *testing.T) {
	t.Parallel()
	k := client(t, &rest.Config{Host: "http://127.0.0.1:1"})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if n, err := All(ctx, k, nil); n != 0 || err == nil {
		t.Errorf("%d, %v", n, err)
	}
}
