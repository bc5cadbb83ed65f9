package placement

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/placement"
	"github.com/stileproject/stile/internal/source"
)

// TestManifestsThatFailForAWhile: the right is proven, and the manifest cannot be had: the
// pod waits, the manifest is tried again, and then the pod goes where it runs.
func TestManifestsThatFailForAWhile(t *testing.T) {
	t.Parallel()
	w := public(t).run()
	ns := w.namespace()
	image, digest := w.image("public/app", "v1", "linux/amd64", "linux/arm64")
	w.registry.SetFaults(localregistry.Fault{Method: http.MethodGet, Path: "/v2/public/app/manifests/" + digest, Status: http.StatusServiceUnavailable, Times: 2})
	w.pod(ns, "p", image)
	wantPod(t, w.went(ns, "p"), placement.Placed, both)
}

// TestManifestThatIsRefused: a registry that lets ask for an image but not read it has
// said no.
func TestManifestThatIsRefused(t *testing.T) {
	t.Parallel()
	w := public(t).run()
	ns := w.namespace()
	image, digest := w.image("public/app", "v1", "linux/amd64", "linux/arm64")
	w.registry.SetFaults(localregistry.Fault{Method: http.MethodGet, Path: "/v2/public/app/manifests/" + digest, Status: http.StatusForbidden,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: `{"errors":[{"code":"DENIED","message":"` + w.watch.Credential() + `"}]}`})
	w.pod(ns, "p", image)
	wantPod(t, w.went(ns, "p"), placement.NotAllowed, "")
	w.event(ns, "p", "NotAllowed") // the canary watches that it does not echo the registry
}

// TestAManifestThatSaysNothing that can be read: nobody waits for what will not come.
func TestAManifestThatSaysNothing(t *testing.T) {
	t.Parallel()
	w := public(t).run()
	ns := w.namespace()
	w.registry.SetOpen(true)
	w.put("/v2/public/odd/manifests/v1", "application/vnd.docker.distribution.manifest.v1+json", []byte(`{"schemaVersion":1,"name":"public/odd"}`))
	w.registry.SetOpen(false)
	begin := time.Now()
	w.pod(ns, "p", w.registry.Host()+"/public/odd:v1")
	wantPod(t, w.went(ns, "p"), placement.NotInspected, "")
	if note := w.event(ns, "p", "NotInspected"); !strings.Contains(note, "push it again with a current tool") {
		t.Errorf("the owner is told %q", note)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("held for %v", took)
	}
}

// TestWhatTheServerRefuses: if what was decided is not accepted, the pod goes as it is
// rather than never.
func TestWhatTheServerRefuses(t *testing.T) {
	t.Parallel()
	w := public(t)
	ns := w.namespace()
	w.api.Apply(t, nil, strings.ReplaceAll(`
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-affinity}
spec:
  matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [UPDATE], resources: [pods]}]}
  matchConditions: [{name: here, expression: "request.namespace == 'NS'"}]
  validations: [{expression: "!has(object.spec.affinity)", message: "no affinity here", reason: Invalid}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-affinity}
spec: {policyName: no-affinity, validationActions: [Deny]}
`, "NS", ns))
	image, _ := w.image("public/app", "v1", "linux/amd64", "linux/arm64")
	w.pod(ns, "probe", image)
	kubetest.Eventually(t, func() string {
		_, err := w.client.CoreV1().Pods(ns).Patch(t.Context(), "probe", "application/strategic-merge-patch+json",
			[]byte(`{"spec":{"affinity":{"nodeAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[{"weight":1,"preference":{"matchExpressions":[{"key":"a","operator":"Exists"}]}}]}}}}`), metav1.PatchOptions{DryRun: []string{"All"}})
		if err == nil {
			return "the policy to act"
		}
		return ""
	})
	w.run()
	p := w.went(ns, "probe")
	if where(p) != "" || p.Spec.Affinity != nil {
		t.Errorf("affinity %s", where(p))
	}
	w.event(ns, "probe", ReasonPatchRefused)
	if n := w.metric("stile_placement_patches_total", "refused"); n != 1 {
		t.Errorf("%v patches refused", n)
	}
}

// TestP7_ANoisyNamespace asks a slow registry for 300 images of its own, and somebody
// else's pod of the same registry goes at once.
func TestP7_ANoisyNamespace(t *testing.T) {
	t.Parallel()
	w := public(t).run()
	noisy, quiet := w.namespace(), w.namespace()
	images := make([]string, 300)
	for i := range images {
		images[i], _ = w.image(fmt.Sprintf("noisy/app-%d", i), "v1", "linux/amd64", "linux/arm64")
	}
	image, _ := w.image("quiet/app", "v1", "linux/amd64", "linux/arm64")
	w.registry.SetFaults(localregistry.Fault{Delay: 200 * time.Millisecond})
	each(len(images), func(i int) { w.pod(noisy, fmt.Sprint("p-", i), images[i]) })
	w.pod(quiet, "p", image)
	begin := time.Now()
	wantPod(t, w.went(quiet, "p"), placement.Placed, both)
	took := time.Since(begin)
	held := w.gated([]string{noisy})
	t.Logf("let go after %v, while %d of the noisy namespace were held", took, held)
	if held < 100 {
		t.Error("the noisy namespace was done: nothing was shown")
	}
	w.registry.SetFaults()
	kubetest.Eventually(t, func() string {
		if n := w.gated([]string{noisy}); n > 0 {
			return fmt.Sprintf("%d pods to be let go", n)
		}
		return ""
	})
}

// forgetful are Contents whose store keeps nothing: its disk is full.
type forgetful struct{ Contents }

func (forgetful) KnownFacts(access.Proof) (content.Facts, bool) { return content.Facts{}, false }

// TestFactsThatCannotBeKept are used all the same, and fetched once.
func TestFactsThatCannotBeKept(t *testing.T) {
	t.Parallel()
	w := public(t).run(func(c *Config) { c.Contents = forgetful{c.Contents} })
	ns := w.namespace()
	image, _ := w.image("public/app", "v1", "linux/amd64", "linux/arm64")
	w.pod(ns, "p", image)
	wantPod(t, w.went(ns, "p"), placement.Placed, both)
	if n := w.asked(func() {
		w.pod(ns, "q", image)
		wantPod(t, w.went(ns, "q"), placement.Placed, both)
	}); n != 0 {
		t.Errorf("%d requests", n)
	}
}

// TestP7_PodsOfOneNamespaceDoNotHoldUpAnothers: a thousand that are to be patched are
// taken in turn with everybody else's.
func TestP7_PodsOfOneNamespaceDoNotHoldUpAnothers(t *testing.T) {
	t.Parallel()
	var q turns[int]
	for i := range 1000 {
		q.push("noisy", i)
	}
	q.push("quiet", 1)
	q.push("other", 2)
	var order []int
	for range 4 {
		v, _ := q.pop(nil)
		order = append(order, v)
	}
	if got, want := fmt.Sprint(order), fmt.Sprint([]int{0, 1, 2, 1}); got != want {
		t.Errorf("in turn: %s, want %s", got, want)
	}
	if v, ok := q.pop(func(tenant string) bool { return tenant != "noisy" }); ok {
		t.Errorf("%d of one that may not go", v)
	}
	for n := 998; n > 0; n-- {
		if _, ok := q.pop(nil); !ok {
			t.Fatalf("%d are left", n)
		}
	}
	if _, ok := q.pop(nil); ok || !q.empty() || len(q.waiting) != 0 {
		t.Error("more came out than went in")
	}
}

// TestLittleIsKeptOfAPod: of a gated one what is decided by, of others the name.
func TestLittleIsKeptOfAPod(t *testing.T) {
	t.Parallel()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Annotations: map[string]string{"a": "b"}, ManagedFields: []metav1.ManagedFieldsEntry{{}}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i", Env: []corev1.EnvVar{{Name: "PASSWORD", Value: "x"}}}}}}
	if got := stripped(p); len(got.Spec.Containers) != 0 || got.Annotations != nil {
		t.Errorf("of a pod without the gate: %+v", got)
	}
	p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: placement.Gate}}
	got := stripped(p)
	if len(got.Spec.Containers) != 1 || got.Spec.Containers[0].Env != nil || got.Annotations != nil || got.ManagedFields != nil {
		t.Errorf("of a gated pod: %+v", got)
	}
	if again := stripped(got); fmt.Sprint(again) != fmt.Sprint(got) {
		t.Error("stripped twice is not stripped once")
	}
}

// TestItEndsAtOnce also while there is no API server, and has said so.
func TestItEndsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t).run(func(c *Config) { c.REST = &rest.Config{Host: "http://127.0.0.1:1"} })
	kubetest.Eventually(t, func() string {
		if !strings.Contains(w.watch.Logged(), "pods cannot be read") {
			return "a word in the log"
		}
		return ""
	})
	begin := time.Now()
	w.stop()
	if took := time.Since(begin); took > time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestEventsHaveNames that the API takes, whatever the pod is called.
func TestEventsHaveNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"p", strings.Repeat("a", 253), strings.Repeat("a", 179) + "-" + strings.Repeat("b", 60), strings.Repeat("a", 178) + ".b." + strings.Repeat("c", 60)} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "6cd2569d-635d-daa4"}}
		for _, reason := range []string{ReasonWaiting, ReasonPatchRefused, string(placement.NotAllowed)} {
			if faults := validation.IsDNS1123Subdomain(eventName(pod, reason)); len(faults) > 0 {
				t.Errorf("%s: %v", eventName(pod, reason), faults)
			}
		}
	}
}

// unread are Secrets that nobody has read yet.
type unread struct{ Secrets }

func (unread) Get(source.Key) (*document.Secret, bool) { return nil, false }

// TestSecretsThatAreNotReadInTime hold a pod for maxWait and no longer, and what is told of
// it holds no password that stands where an image's name ought to.
func TestSecretsThatAreNotReadInTime(t *testing.T) {
	t.Parallel()
	w := public(t).run(func(c *Config) { c.Secrets, c.MaxWait = unread{c.Secrets}, time.Second })
	ns := w.namespace()
	// Its owner wrote it; whoever may read events need not be one who may read pods.
	password := "stands-for-a-password"
	w.pod(ns, "odd", "user:"+password+"@registry.example/a", with("regcred"))
	w.pod(ns, "plain", w.registry.Host()+"/public/app:v1", with("regcred"))
	for name, says := range map[string]string{"odd": "an image could not", "plain": "/public/app:v1 could not"} {
		wantPod(t, w.went(ns, name), placement.NotInspected, "")
		note := w.event(ns, name, "NotInspected")
		if strings.Contains(note, password) || !strings.Contains(note, says) || !strings.Contains(note, "imagePullSecrets could not be read in time") {
			t.Errorf("the owner of %s is told %q", name, note)
		}
	}
}
