package placement

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/placement"
)

// public is a world whose images everybody may pull.
func public(t testing.TB, mode ...localregistry.Mode) *world {
	t.Helper()
	w := newWorld(t, mode...)
	w.registry.Allow(localregistry.Anonymous, localregistry.Everywhere)
	return w
}

func also(image string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: fmt.Sprint("more-", len(p.Spec.Containers)), Image: image})
	}
}

// TestPodsLandWhereTheirImagesRun: by a real scheduler, on Nodes of three architectures
// and two systems.
func TestPodsLandWhereTheirImagesRun(t *testing.T) {
	t.Parallel()
	w := public(t).run()
	w.api.Scheduler(t)
	nodes := map[string]string{"amd": "linux/amd64", "arm": "linux/arm64", "power": "linux/ppc64le", "win": "windows/amd64"}
	for name, platform := range nodes {
		system, arch, _ := strings.Cut(platform, "/")
		w.api.Node(t, name, system, arch)
	}
	ns := w.namespace()
	rows := []struct {
		name      string
		platforms [][]string // of each container's image
		want      []string
	}{
		{"one", [][]string{{"linux/arm64"}}, []string{"linux/arm64"}},
		{"other", [][]string{{"linux/ppc64le"}}, []string{"linux/ppc64le"}},
		{"two", [][]string{{"linux/arm64", "linux/ppc64le"}}, []string{"linux/arm64", "linux/ppc64le"}},
		{"windows", [][]string{{"windows/amd64"}}, []string{"windows/amd64"}},
		{"not-amd64-on-linux", [][]string{{"windows/amd64", "linux/arm64"}}, []string{"windows/amd64", "linux/arm64"}},
		{"common", [][]string{{"linux/amd64", "linux/arm64"}, {"linux/arm64", "linux/ppc64le"}}, []string{"linux/arm64"}},
		{"everywhere", [][]string{{"linux/amd64", "linux/arm64", "linux/ppc64le", "windows/amd64"}}, []string{"linux/amd64", "linux/arm64", "linux/ppc64le", "windows/amd64"}},
	}
	const copies = 5
	for _, row := range rows {
		for n := range copies {
			var images []string
			for i, platforms := range row.platforms {
				image, _ := w.image(fmt.Sprintf("land/%s-%d", row.name, i), "v1", platforms...)
				images = append(images, image)
			}
			w.pod(ns, fmt.Sprintf("%s-%d", row.name, n), images[0], func(p *corev1.Pod) {
				for _, i := range images[1:] {
					also(i)(p)
				}
			})
		}
	}
	amd, _ := w.image("land/amd", "v1", "linux/amd64")
	arm, _ := w.image("land/arm", "v1", "linux/arm64")
	w.pod(ns, "nowhere", amd, also(arm))
	for _, row := range rows {
		for n := range copies {
			name := fmt.Sprintf("%s-%d", row.name, n)
			kubetest.Eventually(t, func() string {
				p, err := w.client.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
				if err != nil {
					return err.Error()
				}
				if p.Spec.NodeName == "" {
					return "pod " + name + " to be scheduled"
				}
				if !slices.Contains(row.want, nodes[p.Spec.NodeName]) {
					t.Errorf("pod %s is on %s, its images run on %v", name, nodes[p.Spec.NodeName], row.want)
				}
				return ""
			})
		}
	}
	wantPod(t, w.went(ns, "nowhere"), placement.NoCommonPlatform, where(w.went(ns, "nowhere")))
	w.event(ns, "nowhere", "NoCommonPlatform")
	kubetest.Eventually(t, func() string {
		p, err := w.client.CoreV1().Pods(ns).Get(t.Context(), "nowhere", metav1.GetOptions{})
		must(t, err)
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonUnschedulable {
				return ""
			}
		}
		return "the pod without a platform to be shown as unschedulable"
	})
}

// TestOneProofForAPublicImage: 300 namespaces whose Secrets are for other registries pull
// one public image: they have one right, and it is asked for once. A registry that wants a
// token even of the anonymous costs one request more, for that.
func TestOneProofForAPublicImage(t *testing.T) {
	t.Parallel()
	for mode, most := range map[localregistry.Mode]int{localregistry.Open: 3, localregistry.Bearer: 4} {
		t.Run(string(mode), func(t *testing.T) {
			w := public(t, mode).run()
			image, _ := w.image("public/app", "v1", "linux/amd64", "linux/arm64")
			const spaces = 300
			names := make([]string, spaces)
			each(spaces, func(i int) {
				names[i] = w.api.Namespace(t)
				w.rawSecret(names[i], "mine", dockerConfig("elsewhere.example", fmt.Sprint("user-", i), w.watch.Credential()))
			})
			pulls := w.asked(func() {
				each(spaces, func(i int) { w.pod(names[i], "p", image, with("mine")) })
				each(spaces, func(i int) { wantPod(t, w.went(names[i], "p"), placement.Placed, both) })
			})
			t.Logf("%d requests to the registry in all", pulls)
			if pulls > most {
				t.Errorf("%d requests, want at most %d", pulls, most)
			}
			entries := 0
			for _, e := range w.gate.List() {
				if e.Image == image {
					entries++
				}
			}
			if entries != 1 {
				t.Errorf("%d proofs of one image by one right", entries)
			}
			each(spaces, func(i int) {
				if err := w.client.CoreV1().Pods(names[i]).Delete(t.Context(), "p", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestP7_ARegistryThatNeverAnswers holds back its own pods alone, for as long as is
// configured, of whatever namespace; then they go as they are, and are told why.
func TestP7_ARegistryThatNeverAnswers(t *testing.T) {
	t.Parallel()
	w := public(t)
	w.access.Timeout = time.Second
	tarpit, err := localregistry.Start(localregistry.Options{Mode: localregistry.Open})
	must(t, err)
	t.Cleanup(func() { _ = tarpit.Close() })
	w.hosts = []string{tarpit.Host()}
	w.run(func(c *Config) { c.MaxWait = 4 * time.Second })
	tarpit.SetFaults(localregistry.Fault{Hang: true})

	ns, other := w.namespace(), w.namespace()
	image, _ := w.image("public/app", "v1", "linux/amd64", "linux/arm64")
	for i := range 50 {
		w.pod(ns, fmt.Sprint("stuck-", i), fmt.Sprintf("%s/app-%d:v1", tarpit.Host(), i))
	}
	for _, space := range []string{ns, other} {
		begin := time.Now()
		w.pod(space, "quick", image)
		wantPod(t, w.went(space, "quick"), placement.Placed, both)
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("held back for %v by another's registry", took)
		}
	}
	p, err := w.client.CoreV1().Pods(ns).Get(t.Context(), "stuck-49", metav1.GetOptions{})
	must(t, err)
	if !placement.Gated(p) {
		t.Error("not held although nothing is known")
	}
	for i := range 50 {
		wantPod(t, w.went(ns, fmt.Sprint("stuck-", i)), placement.NotInspected, "")
	}
	if note := w.event(ns, "stuck-0", "NotInspected"); !strings.Contains(note, "its registry has not answered") {
		t.Errorf("the owner is told %q", note)
	}
	w.event(ns, "stuck-0", ReasonWaiting)
}

// TestFallback: what cannot be inspected in time is taken for the fallback architecture.
func TestFallback(t *testing.T) {
	t.Parallel()
	w := public(t)
	w.access.Timeout = time.Second
	w.run(func(c *Config) {
		c.MaxWait = time.Second
		c.Settings = placement.Settings{Fallback: "amd64"}
	})
	ns := w.namespace()
	w.registry.SetFaults(localregistry.Fault{Status: http.StatusServiceUnavailable})
	w.pod(ns, "p", w.registry.Host()+"/team/app:v1")
	if got := w.went(ns, "p"); outcomeOf(got) != string(placement.FellBack) || !strings.Contains(where(got), "arch In amd64") {
		t.Errorf("%s, %s", outcomeOf(got), where(got))
	}
	if note := w.event(ns, "p", "FellBack"); !strings.Contains(note, "amd64") {
		t.Errorf("the owner is told %q", note)
	}
	// A registry that may not be asked at all is not waited for.
	begin := time.Now()
	w.pod(ns, "private", "10.1.2.3:5000/app:v1")
	if got := w.went(ns, "private"); outcomeOf(got) != string(placement.FellBack) {
		t.Errorf("%s, %s", outcomeOf(got), where(got))
	}
	if took := time.Since(begin); took > time.Second {
		t.Logf("a registry that may not be asked: %v", took)
	}
}

// TestOthersGatesStay: of several gates only ours goes, and what another controller does
// to the pod meanwhile is not undone.
func TestOthersGatesStay(t *testing.T) {
	t.Parallel()
	w := public(t).run()
	ns := w.namespace()
	image, _ := w.image("public/app", "v1", "linux/amd64", "linux/arm64")
	w.registry.SetFaults(localregistry.Fault{Delay: 300 * time.Millisecond})
	w.pod(ns, "p", image, func(p *corev1.Pod) {
		p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "kueue.x-k8s.io/admission"}, {Name: placement.Gate}, {Name: "example.com/other"}}
	})
	// Kueue, meanwhile, narrows the pod and takes its own gate away; somebody labels it all the time.
	for i := range 30 {
		_, err := w.client.CoreV1().Pods(ns).Patch(t.Context(), "p", types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"labels":{"n":"%d"}}}`, i), metav1.PatchOptions{})
		must(t, err)
	}
	_, err := w.client.CoreV1().Pods(ns).Patch(t.Context(), "p", types.StrategicMergePatchType,
		[]byte(`{"spec":{"nodeSelector":{"zone":"a"},"schedulingGates":[{"$patch":"delete","name":"kueue.x-k8s.io/admission"}]}}`), metav1.PatchOptions{})
	must(t, err)
	p := w.went(ns, "p")
	wantPod(t, p, placement.Placed, both)
	if len(p.Spec.SchedulingGates) != 1 || p.Spec.SchedulingGates[0].Name != "example.com/other" || p.Spec.NodeSelector["zone"] != "a" || p.Labels["n"] != "29" {
		t.Errorf("gates %v, selector %v, labels %v", p.Spec.SchedulingGates, p.Spec.NodeSelector, p.Labels)
	}
}

// TestPullPolicies: Always costs one HEAD for each pod, IfNotPresent none once it is
// known; a digest needs none once proven, whatever the policy; Never is not asked about.
func TestPullPolicies(t *testing.T) {
	t.Parallel()
	w := public(t)
	w.run()
	ns := w.namespace()
	image, digest := w.image("public/app", "v1", "linux/amd64", "linux/arm64")
	pinned := strings.TrimSuffix(image, ":v1") + "@" + digest
	first := w.pod(ns, "first", image)
	w.went(ns, "first")
	// The API server keeps times of creation in whole seconds: within one, an answer is as
	// young as the pod.
	kubetest.Eventually(t, func() string {
		if time.Now().Unix() == first.CreationTimestamp.Unix() {
			return "the next second"
		}
		return ""
	})
	heads := func(f func()) (n int) {
		before := len(w.registry.Requests())
		f()
		for _, r := range w.registry.Requests()[before:] {
			if strings.Contains(r.Path, "/manifests/") {
				if r.Method != http.MethodHead {
					t.Errorf("a %s", r.Method)
				}
				n++
			}
		}
		return n
	}
	for _, row := range []struct {
		name, image string
		policy      corev1.PullPolicy
		want        int
		outcome     placement.Outcome
	}{
		{"again", image, corev1.PullIfNotPresent, 0, placement.Placed},
		{"always", image, corev1.PullAlways, 1, placement.Placed},
		{"pinned", pinned, corev1.PullIfNotPresent, 0, placement.Placed},
		{"pinned-always", pinned, corev1.PullAlways, 0, placement.Placed},
		{"never", w.registry.Host() + "/nobody/knows:v1", corev1.PullNever, 0, placement.NotConstrained},
	} {
		if n := heads(func() {
			p := w.pod(ns, row.name, row.image, func(p *corev1.Pod) { p.Spec.Containers[0].ImagePullPolicy = row.policy })
			if got := w.went(ns, p.Name); outcomeOf(got) != string(row.outcome) {
				t.Errorf("%s: %s", row.name, outcomeOf(got))
			}
		}); n != row.want {
			t.Errorf("%s: %d requests, want %d", row.name, n, row.want)
		}
	}
}

// TestAllImagesCount: those of init containers and of image volumes, and a pod that may
// not read one of them is told nothing of the others.
func TestAllImagesCount(t *testing.T) {
	t.Parallel()
	w := newWorld(t).run()
	ns := w.namespace()
	w.registry.Allow(localregistry.Anonymous, "public/all")
	w.registry.Allow(localregistry.Anonymous, "public/init")
	w.registry.Allow(localregistry.Anonymous, "public/volume")
	all, _ := w.image("public/all", "v1", "linux/amd64", "linux/arm64", "linux/s390x", "windows/amd64")
	initial, _ := w.image("public/init", "v1", "linux/amd64", "linux/arm64", "linux/s390x")
	volume, _ := w.image("public/volume", "v1", "linux/arm64", "linux/s390x")
	private, _ := w.image("private/app", "v1", "linux/amd64")
	more := func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{{Name: "init", Image: initial}}
		p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: volume, PullPolicy: corev1.PullIfNotPresent}}}}
	}
	w.pod(ns, "all", all, more)
	wantPod(t, w.went(ns, "all"), placement.Placed, "arch In arm64,s390x; os In linux")
	w.pod(ns, "one-private", all, more, also(private))
	wantPod(t, w.went(ns, "one-private"), placement.NotAllowed, "")
	w.pod(ns, "no-name", "NOT an image::")
	wantPod(t, w.went(ns, "no-name"), placement.NotInspected, "")
	w.pod(ns, "user-info", "alice:"+w.watch.Credential()+"@"+w.registry.Host()+"/app:v1")
	w.went(ns, "user-info")
	if note := w.event(ns, "user-info", "NotInspected"); strings.Contains(note, "alice") {
		t.Errorf("the event repeats what is no image name: %q", note)
	}
	// The pod holds the credential because a person wrote it there: it is not ours to search.
	must(t, w.client.CoreV1().Pods(ns).Delete(t.Context(), "user-info", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
}

// TestPodsThatNeedNoGate carry it all the same, pasted into a template: they are let go
// as they are, at once.
func TestPodsThatNeedNoGate(t *testing.T) {
	t.Parallel()
	w := newWorld(t).run()
	ns := w.namespace()
	for name, change := range map[string]func(*corev1.Pod){
		"chosen": func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelArchStable: "arm64"} },
		"control": func(p *corev1.Pod) {
			p.Spec.NodeSelector = map[string]string{"node-role.kubernetes.io/control-plane": ""}
		},
		"daemonset": func(p *corev1.Pod) {
			p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "DaemonSet", Name: "d", UID: "u"}}
		},
	} {
		before := w.pod(ns, name, "registry.example/app:v1", change)
		after := w.went(ns, name)
		if outcomeOf(after) != "" || where(after) != where(before) {
			t.Errorf("%s: %q, %s", name, outcomeOf(after), where(after))
		}
	}
	for _, reserved := range []string{"kube-system", own} {
		w.pod(reserved, "gated", "registry.example/app:v1")
		if after := w.went(reserved, "gated"); outcomeOf(after) != "" {
			t.Errorf("in %s: %q", reserved, outcomeOf(after))
		}
		must(t, w.client.CoreV1().Pods(reserved).Delete(t.Context(), "gated", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
	}
	if n := w.registry.RequestCount(); n != 0 {
		t.Errorf("%d requests for pods that need none", n)
	}
}

// TestASecretThatMayNotBeRead: what is refused for want of it is not taken for denied.
func TestASecretThatMayNotBeRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.api.Apply(t, nil, strings.Replace(rights, `- {apiGroups: [""], resources: [secrets], verbs: [get, watch]}`, "", 1))
	t.Cleanup(func() { w.api.Apply(t, nil, rights) })
	w.run()
	ns := w.namespace()
	image, _ := w.image("team-a/app", "v1", "linux/amd64", "linux/arm64")
	w.pullSecret(ns, "may", "alice", w.user("alice", "team-a/app"))
	kubetest.Eventually(t, func() string {
		name := fmt.Sprint("p-", w.names.Add(1))
		w.pod(ns, name, image, with("may"))
		if p := w.went(ns, name); outcomeOf(p) != string(placement.NotInspected) {
			return "the right to be gone: " + outcomeOf(p)
		}
		if note := w.event(ns, name, "NotInspected"); !strings.Contains(note, "the operator allows namespaces") {
			t.Errorf("the owner is told %q", note)
		}
		return ""
	})
}

// TestDeletedWhileHeld: a pod that goes while it is held, and one of the same name that
// comes after it, are two.
func TestDeletedWhileHeld(t *testing.T) {
	t.Parallel()
	w := public(t).run()
	ns := w.namespace()
	image, _ := w.image("public/app", "v1", "linux/amd64", "linux/arm64")
	other, _ := w.image("public/other", "v1", "linux/arm64")
	w.registry.SetFaults(localregistry.Fault{Hang: true})
	w.pod(ns, "p", image)
	kubetest.Eventually(t, func() string {
		if w.metric("stile_placement_gated_pods", "") != 1 {
			return "one pod held"
		}
		return ""
	})
	must(t, w.client.CoreV1().Pods(ns).Delete(t.Context(), "p", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
	w.pod(ns, "p", other)
	w.pod(ns, "gone", image)
	must(t, w.client.CoreV1().Pods(ns).Delete(t.Context(), "gone", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
	w.registry.SetFaults()
	wantPod(t, w.went(ns, "p"), placement.Placed, "arch In arm64; os In linux")
	kubetest.Eventually(t, func() string {
		if n := w.metric("stile_placement_gated_pods", ""); n != 0 {
			return fmt.Sprintf("no pod held, but %v", n)
		}
		for _, e := range w.gate.List() {
			if len(e.Users) > 0 {
				return "nobody to hold a proof, but " + strings.Join(e.Users, " ")
			}
		}
		return ""
	})
}

// TestOnlyTheLeaderLetsGo, and whoever becomes it takes up what is held.
func TestOnlyTheLeaderLetsGo(t *testing.T) {
	t.Parallel()
	w := public(t)
	var leads atomic.Bool
	w.run(func(c *Config) { c.Leads = leads.Load })
	ns := w.namespace()
	image, _ := w.image("public/app", "v1", "linux/amd64", "linux/arm64")
	n := w.asked(func() {
		w.pod(ns, "p", image)
		kubetest.Eventually(t, func() string {
			if w.metric("stile_placement_gated_pods", "") != 1 {
				return "the pod to be seen"
			}
			return ""
		})
	})
	if n != 0 || w.count("PATCH pods") != 0 {
		t.Errorf("%d requests to the registry, %d patches without leading", n, w.count("PATCH pods"))
	}
	leads.Store(true)
	wantPod(t, w.went(ns, "p"), placement.Placed, both)
}

// TestTheAPIServerGoesAway for a while: what was held goes when it is back.
func TestTheAPIServerGoesAway(t *testing.T) {
	t.Parallel()
	w := public(t).at(kubetest.Start(t, kubetest.Options{})).run()
	ns := w.api.Namespace(t)
	image, _ := w.image("public/app", "v1", "linux/amd64", "linux/arm64")
	w.registry.SetFaults(localregistry.Fault{Hang: true})
	for i := range 20 {
		w.pod(ns, fmt.Sprint("p-", i), image)
	}
	kubetest.Eventually(t, func() string {
		if w.metric("stile_placement_gated_pods", "") != 20 {
			return "20 pods held"
		}
		return ""
	})
	w.api.Down(t)
	w.registry.SetFaults()
	kubetest.Eventually(t, func() string {
		if w.metric("stile_placement_patches_total", "failed") == 0 {
			return "patches that fail"
		}
		return ""
	})
	w.api.Up(t)
	for i := range 20 {
		wantPod(t, w.went(ns, fmt.Sprint("p-", i)), placement.Placed, both)
	}
}
