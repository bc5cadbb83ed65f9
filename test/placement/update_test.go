package placement

import (
	"flag"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	"k8s.io/kubernetes/pkg/apis/core/validation"

	"github.com/stileproject/stile/internal/placement"
	"github.com/stileproject/stile/internal/placement/placementtest"
)

var pods = flag.Int("placement.pods", 5000, "pods that are decided about")

// internal is the pod as the API server has it: with defaults, in its own types.
func internal(t *testing.T, pod *corev1.Pod) *core.Pod {
	t.Helper()
	pod = pod.DeepCopy()
	legacyscheme.Scheme.Default(pod)
	var c core.Pod
	if err := legacyscheme.Scheme.Convert(pod, &c, nil); err != nil {
		t.Fatal(err)
	}
	c.ResourceVersion, c.UID = "1", "u"
	if c.Spec.TerminationGracePeriodSeconds == nil {
		t.Fatal("no defaults")
	}
	return &c
}

// refused returns what the API server says against making next of was.
func refused(t *testing.T, was, next *corev1.Pod) string {
	t.Helper()
	o, n := internal(t, was), internal(t, next)
	options := podutil.GetValidationOptionsFromPodSpecAndMeta(&n.Spec, &o.Spec, &n.ObjectMeta, &o.ObjectMeta)
	var all []string
	for _, e := range validation.ValidatePodUpdate(n, o, options) {
		all = append(all, e.Error())
	}
	return strings.Join(all, "\n")
}

func TestEveryDecisionIsAcceptedByTheAPIServersValidation(t *testing.T) {
	t.Parallel()
	set := 0
	for seed := range *pods {
		g := placementtest.NewGen(uint64(seed) + 1_000_000)
		pod, images, s := g.Pod(), g.Images(), g.Settings()
		if why := created(t, pod); why != "" {
			t.Fatalf("seed %d: no server would have taken the pod, the generator is at fault: %s", seed, why)
		}
		d := placement.Decide(pod, images, s)
		if d.Required != nil {
			set++
		}
		if why := refused(t, pod, d.Apply(pod)); why != "" {
			t.Fatalf("seed %d: refused: %s\n%s: %s", seed, why, d.Outcome, d.Message)
		}
	}
	if set < *pods/4 {
		t.Errorf("required terms were set for %d of %d pods", set, *pods)
	}
}

// created returns what the API server says against creating the pod.
func created(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	c := internal(t, pod)
	options := podutil.GetValidationOptionsFromPodSpecAndMeta(&c.Spec, nil, &c.ObjectMeta, nil)
	if errs := validation.ValidatePodCreate(c, options); len(errs) > 0 {
		return errs.ToAggregate().Error()
	}
	return ""
}

// The validation is really asked: what it is there to refuse, it refuses.
func TestTheValidationBites(t *testing.T) {
	t.Parallel()
	in := func(key string, values ...string) corev1.NodeSelectorRequirement {
		return corev1.NodeSelectorRequirement{Key: key, Operator: corev1.NodeSelectorOpIn, Values: values}
	}
	was := placementtest.NewGen(1).Pod()
	was.Spec.NodeSelector = map[string]string{"zone": "a"}
	was.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{in("zone", "a")}}, {}},
	}}}
	if why := created(t, was) + refused(t, was, was); why != "" {
		t.Fatal(why)
	}
	for name, change := range map[string]func(terms *[]corev1.NodeSelectorTerm, pod *corev1.Pod){
		"a term more":          func(terms *[]corev1.NodeSelectorTerm, _ *corev1.Pod) { *terms = append(*terms, (*terms)[0]) },
		"a term less":          func(terms *[]corev1.NodeSelectorTerm, _ *corev1.Pod) { *terms = (*terms)[:1] },
		"an empty term filled": func(terms *[]corev1.NodeSelectorTerm, _ *corev1.Pod) { (*terms)[1] = (*terms)[0] },
		"before, not after": func(terms *[]corev1.NodeSelectorTerm, _ *corev1.Pod) {
			(*terms)[0].MatchExpressions = []corev1.NodeSelectorRequirement{in("kubernetes.io/arch", "arm64"), in("zone", "a")}
		},
		"no label value": func(terms *[]corev1.NodeSelectorTerm, _ *corev1.Pod) {
			(*terms)[0].MatchExpressions = append((*terms)[0].MatchExpressions, in("kubernetes.io/arch", "a b"))
		},
		"a nodeSelector changed": func(_ *[]corev1.NodeSelectorTerm, pod *corev1.Pod) { pod.Spec.NodeSelector["zone"] = "b" },
		"another image's name":   func(_ *[]corev1.NodeSelectorTerm, pod *corev1.Pod) { pod.Spec.Containers[0].Command = []string{"x"} },
		"another gate": func(_ *[]corev1.NodeSelectorTerm, pod *corev1.Pod) {
			pod.Spec.SchedulingGates = append(pod.Spec.SchedulingGates, corev1.PodSchedulingGate{Name: "a.example/b"})
		},
	} {
		next := was.DeepCopy()
		change(&next.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms, next)
		if refused(t, was, next) == "" {
			t.Errorf("%s: not refused", name)
		}
	}
}
