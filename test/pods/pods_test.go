package pods

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/stileproject/stile/internal/cli"
	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/placement"
	"github.com/stileproject/stile/internal/placement/placementtest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m, kubetest.Options{})) }

var howMany = flag.Int("placement.pods", 400, "pods that are created, decided about and scheduled")

// client is one of the cluster's administrator.
func client(t *testing.T, s *kubetest.Server) *kubernetes.Clientset {
	t.Helper()
	c := *s.Config
	c.QPS, c.Burst, c.WarningHandler = 1000, 1000, rest.NoWarnings{} // of labels that go by older names
	k, err := kubernetes.NewForConfig(&c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// namespace is a fresh one in which pods can be made.
func namespace(t *testing.T, s *kubetest.Server) string {
	t.Helper()
	ns := s.Namespace(t)
	s.ServiceAccount(t, ns, "default")
	return ns
}

// nodes makes the nodes of the generator, but for the one without labels.
func nodes(t *testing.T, s *kubetest.Server, k kubernetes.Interface) []placementtest.Node {
	t.Helper()
	all := slices.DeleteFunc(placementtest.Nodes(), func(n placementtest.Node) bool { return n.Name == "bare" })
	for _, n := range all {
		s.Node(t, n.Name, n.Labels["kubernetes.io/os"], n.Labels["kubernetes.io/arch"])
		labels, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": n.Labels}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.CoreV1().Nodes().Patch(t.Context(), n.Name, types.MergePatchType, labels, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// placed is a pod that was decided about.
type placed struct {
	seed     int
	images   []placement.Image
	before   *corev1.Pod
	after    *corev1.Pod
	decision placement.Decision
}

// Pods with whatever affinity are created with our gate, decided about and patched. The
// API server takes each patch and makes of the pod what Apply says; a real scheduler then
// puts each pod on a node that can run all its images, or on none if there is none.
func TestPodsLandOnlyWhereTheirImagesRun(t *testing.T) { //nolint:paralleltest // they share one API server, and release lets go all of its pods
	s := kubetest.API(t)
	k := client(t, s)
	all := nodes(t, s, k)
	ns := namespace(t, s)

	pods := make([]placed, *howMany)
	var mu sync.Mutex
	outcomes := map[placement.Outcome]int{}
	var group errgroup.Group
	group.SetLimit(8)
	for i := range pods {
		group.Go(func() error {
			p, err := decided(t.Context(), k, ns, i)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			pods[i] = p
			outcomes[p.decision.Outcome]++
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Log(outcomes)

	s.Scheduler(t)
	landed := 0
	var list *corev1.PodList
	kubetest.Eventually(t, func() string {
		var err error
		if list, err = k.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{}); err != nil {
			return err.Error()
		}
		var open []string
		for _, pod := range list.Items {
			if len(pod.Spec.SchedulingGates) == 0 && pod.Spec.NodeName == "" && !unschedulable(&pod) {
				open = append(open, pod.Name)
			}
		}
		if len(open) > 0 {
			return fmt.Sprintf("%d pods that the scheduler has not looked at, %s first", len(open), open[0])
		}
		return ""
	})
	on := map[string]string{}
	for _, pod := range list.Items {
		on[pod.Name] = pod.Spec.NodeName
	}
	for _, p := range pods {
		name := on[p.after.Name]
		if name == "" {
			if len(p.after.Spec.SchedulingGates) == 0 && slices.ContainsFunc(all, func(n placementtest.Node) bool { return placementtest.Admits(p.after, n) }) {
				t.Errorf("seed %d: %s: no node, though one would do", p.seed, p.decision.Message)
			}
			continue
		}
		landed++
		n := all[slices.IndexFunc(all, func(n placementtest.Node) bool { return n.Name == name })]
		if !placementtest.Admits(p.before, n) {
			t.Errorf("seed %d: on %s, which its author ruled out", p.seed, name)
		}
		runs := !slices.ContainsFunc(p.images, func(i placement.Image) bool { return !placementtest.Runs(i, n) })
		if p.decision.Outcome != placement.LeftAlone && !placementtest.Speaks(p.before, n) && !runs {
			t.Errorf("seed %d: on %s, which cannot run its images: %s", p.seed, name, p.decision.Message)
		}
		if p.decision.Outcome == placement.NoCommonPlatform && !placementtest.Speaks(p.before, n) {
			t.Errorf("seed %d: on %s without a common platform", p.seed, name)
		}
	}
	if landed < *howMany/4 || outcomes[placement.Placed] < *howMany/6 || outcomes[placement.NoCommonPlatform] < *howMany/40 {
		t.Errorf("%d landed, %v: the generator does not reach what it should", landed, outcomes)
	}
}

func unschedulable(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable
	})
}

// decided creates a pod, decides about it and patches it.
func decided(ctx context.Context, k kubernetes.Interface, ns string, seed int) (placed, error) {
	g := placementtest.NewGen(uint64(seed) + 5_000_000)
	pod, images, settings := g.Pod(), g.Images(), g.Settings()
	pod.Namespace, pod.Name = ns, fmt.Sprintf("p%d", seed)
	before, err := k.CoreV1().Pods(ns).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return placed{}, fmt.Errorf("seed %d: create: %w", seed, err)
	}
	d := placement.Decide(before, images, settings)
	patch, err := d.Patch(before)
	if err != nil {
		return placed{}, err
	}
	after, err := k.CoreV1().Pods(ns).Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "stile-placement"})
	if err != nil {
		return placed{}, fmt.Errorf("seed %d: %s: refused: %w\n%s", seed, d.Outcome, err, patch)
	}
	want := d.Apply(before)
	if diff := cmp.Diff(want.Spec, after.Spec) + cmp.Diff(want.Labels, after.Labels); diff != "" {
		return placed{}, fmt.Errorf("seed %d: the server made of it (-want +got):\n%s", seed, diff)
	}
	// Of two who decided about the same pod, the second comes too late, and is told so.
	if _, err := k.CoreV1().Pods(ns).Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}); after.ResourceVersion != before.ResourceVersion && err == nil {
		return placed{}, fmt.Errorf("seed %d: a patch for a pod that has changed was taken", seed)
	}
	return placed{seed, images, before, after, d}, nil
}

// The policy that gates pods within the API server is CEL, the decision is Go: of pods with
// whatever affinity, both leave alone the same.
func TestThePolicyGatesWhatIsNotExcluded(t *testing.T) { //nolint:paralleltest // they share one API server, and release lets go all of its pods
	s := kubetest.API(t)
	k := client(t, s)
	ns := namespace(t, s)
	policy, err := os.ReadFile("../../charts/stile/files/gate-policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s.Apply(t, nil, strings.ReplaceAll(string(policy), "namespaceSelector: {}", "namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: "+ns+"}}"))
	t.Cleanup(func() {
		s.Kubectl(t, "delete", "mutatingadmissionpolicybinding,mutatingadmissionpolicy", "stile-gate")
	})
	create := func(ctx context.Context, name string, pod *corev1.Pod, options metav1.CreateOptions) (*corev1.Pod, error) {
		pod.Namespace, pod.Name = ns, name
		pod.Spec.SchedulingGates = slices.DeleteFunc(pod.Spec.SchedulingGates, func(g corev1.PodSchedulingGate) bool { return g.Name == placement.Gate })
		return k.CoreV1().Pods(ns).Create(ctx, pod, options)
	}
	plain := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	kubetest.Eventually(t, func() string {
		if got, err := create(t.Context(), "probe", plain.DeepCopy(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil || !placement.Gated(got) {
			return fmt.Sprintf("a plain pod that is gated (%v)", err)
		}
		return ""
	})
	var group errgroup.Group
	group.SetLimit(8)
	var mu sync.Mutex
	count := map[bool]int{}
	for i := range *howMany / 2 {
		group.Go(func() error {
			pod := placementtest.NewGen(uint64(i) + 9_000_000).Pod()
			if i%7 == 0 {
				yes := true
				pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: []string{"DaemonSet", "ReplicaSet"}[i%2], Name: "o", UID: "u", Controller: &yes}}
			}
			reason, out := placement.Excluded(pod)
			got, err := create(t.Context(), fmt.Sprintf("new%d", i), pod, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			if placement.Gated(got) == out {
				t.Errorf("pod %d: gated %v, excluded %v (%s): %v %v", i, placement.Gated(got), out, reason, pod.Spec.NodeSelector, pod.Spec.Affinity)
			}
			mu.Lock()
			defer mu.Unlock()
			count[out]++
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if count[true] < *howMany/20 || count[false] < *howMany/20 {
		t.Errorf("%d excluded, %d not", count[true], count[false])
	}
}

// Before stile is taken away, every pod is let go: only our gate, wherever it came from.
func TestRelease_StrandsNobody(t *testing.T) { //nolint:paralleltest // they share one API server, and release lets go all of its pods
	s := kubetest.API(t)
	k := client(t, s)
	var spaces []string
	for range 4 {
		spaces = append(spaces, namespace(t, s))
	}
	var group errgroup.Group
	group.SetLimit(8)
	for i := range 100 {
		group.Go(func() error {
			pod := placementtest.NewGen(uint64(i)).Pod()
			pod.Namespace, pod.Name = spaces[i%len(spaces)], fmt.Sprintf("held%d", i)
			_, err := k.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	// What puts the gate on new pods is taken away first, whatever it is called.
	s.Apply(t, nil, `{apiVersion: admissionregistration.k8s.io/v1, kind: MutatingWebhookConfiguration, metadata: {name: mine-webhook}}`)
	var stdout, stderr bytes.Buffer
	args := []string{"placement", "release", "--all", "--webhook", "mine-webhook", "--policy", "mine-gate", "--kubeconfig", s.Kubeconfig(t, nil), "-o", "json"}
	if code := cli.Main(args, strings.NewReader(""), &stdout, &stderr, []string{"HOME=" + t.TempDir()}); code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr.String())
	}
	var report struct{ Released int }
	if err := json.NewDecoder(&stdout).Decode(&report); err != nil || report.Released < 100 {
		t.Errorf("%+v, %v", report, err)
	}
	if _, err := k.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), "mine-webhook", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the webhook's configuration: %v", err)
	}
	for _, ns := range spaces {
		list, err := k.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, pod := range list.Items {
			want := placementtest.NewGen(seedOf(t, pod.Name)).Pod()
			if placement.Gated(&pod) || len(pod.Spec.SchedulingGates) != len(want.Spec.SchedulingGates)-1 || !equality.Semantic.DeepEqual(pod.Spec.Affinity, want.Spec.Affinity) {
				t.Errorf("%s: gates %v, affinity %v", pod.Name, pod.Spec.SchedulingGates, pod.Spec.Affinity)
			}
		}
	}
	// Whoever may not is told so, and what may be left.
	nobody := s.Kubeconfig(t, s.User(t, "nobody"))
	stderr.Reset()
	if code := cli.Main([]string{"placement", "release", "--all", "--kubeconfig", nobody}, strings.NewReader(""), io.Discard, &stderr, []string{"HOME=" + t.TempDir()}); code != cli.Failed || !strings.Contains(stderr.String(), "list and patch pods") {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
}

func seedOf(t *testing.T, name string) uint64 {
	t.Helper()
	var seed uint64
	if _, err := fmt.Sscanf(name, "held%d", &seed); err != nil {
		t.Fatal(err)
	}
	return seed
}
