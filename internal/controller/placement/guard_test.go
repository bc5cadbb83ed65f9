package placement

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/placement"
)

// TestTheAccountMayDoNothingElse: whoever has our account's token, and even every right
// on pods that RBAC can give, may remove our gate, narrow where a gated pod goes and set
// labels of ours; and nothing more.
func TestTheAccountMayDoNothingElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.api.Apply(t, nil, `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: much-too-much}
rules: [{apiGroups: [""], resources: [pods, pods/status, pods/binding, pods/exec, pods/eviction, pods/ephemeralcontainers, pods/resize, bindings], verbs: ["*"]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: much-too-much}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: much-too-much}
subjects: [{kind: ServiceAccount, namespace: stile-system, name: stile}]
`)
	t.Cleanup(func() {
		must(t, w.client.RbacV1().ClusterRoleBindings().Delete(context.Background(), "much-too-much", metav1.DeleteOptions{}))
	})
	ns := w.namespace()
	us, err := kubernetes.NewForConfig(w.as)
	must(t, err)
	pods := us.CoreV1().Pods(ns)
	const image = "registry.example/app:v1"
	made := func(name string, change ...func(*corev1.Pod)) *corev1.Pod {
		return w.pod(ns, name, image, append(change, func(p *corev1.Pod) {
			p.Labels = map[string]string{"app": "a", "stile.dev/old": "x"}
			p.Annotations = map[string]string{"note": "a"}
			p.Finalizers = []string{"example.com/keep"}
			p.Spec.InitContainers = []corev1.Container{{Name: "init", Image: image}}
			p.Spec.SchedulingGates = append(p.Spec.SchedulingGates, corev1.PodSchedulingGate{Name: "kueue.x-k8s.io/admission"})
		})...)
	}
	made("p")
	kubetest.Eventually(t, func() string { // right and guard have reached the API server
		if _, err := pods.Patch(t.Context(), "p", types.MergePatchType, []byte(`{"metadata":{"labels":{"stile.dev/probe":"x"}}}`), metav1.PatchOptions{DryRun: []string{"All"}}); err != nil {
			return err.Error()
		}
		if _, err := pods.Patch(t.Context(), "p", types.MergePatchType, []byte(`{"metadata":{"labels":{"probe":"x"}}}`), metav1.PatchOptions{DryRun: []string{"All"}}); err == nil {
			return "the guard"
		}
		return ""
	})
	const required = `{"spec":{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"kubernetes.io/arch","operator":"In","values":["arm64"]}]}]}}}}}`
	gates := func(names ...string) string {
		var all []string
		for _, n := range names {
			all = append(all, `{"name":"`+n+`"}`)
		}
		return `{"spec":{"schedulingGates":[` + strings.Join(all, ",") + `]}}`
	}
	const kueue = "kueue.x-k8s.io/admission"
	for _, row := range []struct{ name, patch, refused string }{
		{"our gate goes", gates(kueue), ""},
		{"affinity", required, ""},
		{"node selector", `{"spec":{"nodeSelector":{"kubernetes.io/arch":"arm64"}}}`, ""},
		{"a label of ours", `{"metadata":{"labels":{"stile.dev/placement":"Placed"}}}`, ""},
		{"a label of ours goes", `{"metadata":{"labels":{"stile.dev/old":null}}}`, ""},
		{"an annotation of ours", `{"metadata":{"annotations":{"stile.dev/x":"y"}}}`, ""},
		{"an image", `{"spec":{"containers":[{"name":"main","image":"evil.example/x"}]}}`, "containers"},
		{"an init container's image", `{"spec":{"initContainers":[{"name":"init","image":"evil.example/x"}]}}`, "init containers"},
		{"another's gate", gates(placement.Gate), "its own gate alone"},
		{"all gates", gates(), "its own gate alone"},
		{"a toleration", `[{"op":"add","path":"/spec/tolerations/-","value":{"operator":"Exists"}}]`, "tolerations"},
		{"a deadline", `{"spec":{"activeDeadlineSeconds":5}}`, "activeDeadlineSeconds"},
		{"a label", `{"metadata":{"labels":{"app":"b"}}}`, "labels"},
		{"a new label", `{"metadata":{"labels":{"b":"b"}}}`, "labels"},
		{"a label goes", `{"metadata":{"labels":{"app":null}}}`, "labels"},
		{"all labels go", `{"metadata":{"labels":null}}`, "labels"},
		{"an annotation", `{"metadata":{"annotations":{"note":"b"}}}`, "annotations"},
		{"annotations go", `{"metadata":{"annotations":null}}`, "annotations"},
		{"a finalizer goes", `{"metadata":{"finalizers":null}}`, "finalizers"},
		{"a finalizer", `{"metadata":{"finalizers":["example.com/keep","example.com/more"]}}`, "finalizers"},
		{"an owner", `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"ConfigMap","name":"x","uid":"u"}]}}`, "owner"},
	} {
		t.Run(row.name, func(t *testing.T) {
			kind := types.StrategicMergePatchType
			if strings.Contains(row.patch, "schedulingGates") || strings.Contains(row.patch, "finalizers") || strings.Contains(row.patch, "ownerReferences") {
				kind = types.MergePatchType
			}
			if strings.HasPrefix(row.patch, "[") {
				kind = types.JSONPatchType
			}
			_, err := pods.Patch(t.Context(), "p", kind, []byte(row.patch), metav1.PatchOptions{DryRun: []string{"All"}})
			switch {
			case row.refused == "" && err != nil:
				t.Errorf("refused: %v", err)
			case row.refused != "" && err == nil:
				t.Error("not refused")
			case row.refused != "" && (!strings.Contains(err.Error(), "stile-pods") || !strings.Contains(err.Error(), row.refused)):
				t.Errorf("refused by another hand: %v", err)
			}
		})
	}
	// What is no update of a gated pod.
	free := w.pod(ns, "free", image, func(p *corev1.Pod) { p.Spec.SchedulingGates = nil })
	for name, do := range map[string]func() error{
		"of a pod that is not gated": func() error {
			_, err := pods.Patch(t.Context(), free.Name, types.MergePatchType, []byte(`{"metadata":{"labels":{"stile.dev/placement":"x"}}}`), metav1.PatchOptions{})
			return err
		},
		"create": func() error {
			_, err := pods.Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "new"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}}}, metav1.CreateOptions{})
			return err
		},
		"delete": func() error { return pods.Delete(t.Context(), "free", metav1.DeleteOptions{}) },
		"bind": func() error {
			return pods.Bind(t.Context(), &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "free"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}, metav1.CreateOptions{})
		},
		"status": func() error {
			_, err := pods.Patch(t.Context(), "free", types.MergePatchType, []byte(`{"status":{"message":"x"}}`), metav1.PatchOptions{}, "status")
			return err
		},
		"an ephemeral container": func() error {
			_, err := pods.Patch(t.Context(), "free", types.StrategicMergePatchType, []byte(`{"spec":{"ephemeralContainers":[{"name":"e","image":"evil.example/x"}]}}`), metav1.PatchOptions{}, "ephemeralcontainers")
			return err
		},
		"exec": func() error {
			return us.CoreV1().RESTClient().Post().Namespace(ns).Resource("pods").Name("free").SubResource("exec").Param("command", "sh").Do(t.Context()).Error()
		},
	} {
		if err := do(); err == nil || !strings.Contains(err.Error(), "stile-pods") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Others are not held by it.
	if _, err := w.client.CoreV1().Pods(ns).Patch(t.Context(), "p", types.MergePatchType, []byte(`{"metadata":{"labels":{"app":"b"},"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
		t.Error(err)
	}
}

// TestTheAccountAsTheChartMakesIt: it may not list Secrets, nor touch pods but by patch.
func TestTheAccountAsTheChartMakesIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ns := w.namespace()
	us, err := kubernetes.NewForConfig(w.as)
	must(t, err)
	for name, do := range map[string]func() error{
		"list secrets": func() error {
			_, err := us.CoreV1().Secrets(ns).List(t.Context(), metav1.ListOptions{})
			return err
		},
		"delete pods": func() error { return us.CoreV1().Pods(ns).Delete(t.Context(), "x", metav1.DeleteOptions{}) },
		"read ServiceAccounts": func() error {
			_, err := us.CoreV1().ServiceAccounts(ns).Get(t.Context(), "x", metav1.GetOptions{})
			return err
		},
	} {
		kubetest.Eventually(t, func() string { // what another test gave it is taken away by a watch
			if err := do(); err == nil || !strings.Contains(err.Error(), "forbidden") {
				return fmt.Sprintf("%s to be forbidden: %v", name, err)
			}
			return ""
		})
	}
}
