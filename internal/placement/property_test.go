package placement_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/stileproject/stile/internal/placement"
	"github.com/stileproject/stile/internal/placement/placementtest"
)

var histories = flag.Int("placement.pods", 4000, "pods of the property tests")

// judge holds a decision about a pod to everything that is promised of it, and returns
// what is broken.
func judge(pod *corev1.Pod, images []placement.Image, s placement.Settings) (broken []string) {
	say := func(format string, a ...any) { broken = append(broken, fmt.Sprintf(format, a...)) }
	before, imagesBefore := pod.DeepCopy(), fmt.Sprint(images)
	d := placement.Decide(pod, images, s)
	next := d.Apply(pod)
	if !cmp.Equal(before, pod) || fmt.Sprint(images) != imagesBefore {
		say("the arguments were changed")
	}
	if len(d.Message) > 800 || strings.ContainsFunc(d.Message, func(r rune) bool { return r < ' ' }) {
		say("message of %d bytes: %q", len(d.Message), d.Message)
	}

	// Who writes into what came out writes into nothing that was given.
	scribbled := placement.Decide(pod, images, s)
	if scribbled.Required != nil {
		for _, t := range scribbled.Required.NodeSelectorTerms {
			scribble(t)
		}
	}
	for _, t := range scribbled.Preferred {
		scribble(t.Preference)
	}
	for i := range scribbled.Platforms {
		scribbled.Platforms[i].OS = "scribbled"
	}
	if !cmp.Equal(before, pod) || fmt.Sprint(images) != imagesBefore {
		say("the decision shares memory with the arguments")
	}

	// Where the pod may go.
	unknown := slices.ContainsFunc(images, func(i placement.Image) bool { return i.Unknown })
	for _, n := range placementtest.Nodes() {
		was, is := placementtest.Admits(pod, n), placementtest.Admits(next, n)
		runs := !slices.ContainsFunc(images, func(i placement.Image) bool { return !placementtest.Runs(i, n) })
		systemFits := pod.Spec.OS == nil || n.Labels["kubernetes.io/os"] == string(pod.Spec.OS.Name)
		switch {
		case is && !was:
			say("widened: %s was not admitted and is", n.Name)
		case is && d.Outcome != placement.LeftAlone && !placementtest.Speaks(pod, n) && !runs:
			say("%s is admitted and cannot run all images", n.Name)
		case is && !systemFits && d.Outcome == placement.Placed && !placementtest.Speaks(pod, n):
			say("%s is admitted and has not the pod's system", n.Name)
		case is != was && (d.Outcome == placement.LeftAlone || d.Outcome == placement.NotConstrained || d.Outcome == placement.NotAllowed):
			say("%s: %s, and %s is taken away", d.Outcome, d.Reason, n.Name)
		case was && !is && runs && systemFits && !unknown && widestPossible(pod, n):
			say("%s could run the pod, and is taken away for nothing", n.Name)
		}
	}
	broken = append(broken, legal(pod, next)...)

	// Nothing else is touched.
	rest := next.DeepCopy()
	rest.Labels, rest.Spec.SchedulingGates, rest.Spec.Affinity = pod.Labels, pod.Spec.SchedulingGates, pod.Spec.Affinity
	if !cmp.Equal(rest, pod) {
		say("more than gate, affinity and labels: %s", cmp.Diff(pod, rest))
	}
	if a, b := next.Spec.Affinity, pod.Spec.Affinity; a != nil && b != nil && !(cmp.Equal(a.PodAffinity, b.PodAffinity) && cmp.Equal(a.PodAntiAffinity, b.PodAntiAffinity)) {
		say("the affinity to pods was changed")
	}
	for _, g := range pod.Spec.SchedulingGates {
		if slices.Contains(next.Spec.SchedulingGates, g) != (g.Name != placement.Gate) {
			say("gate %s", g.Name)
		}
	}

	// Again, and in another order.
	if again := placement.Decide(next, images, s).Apply(next); d.Outcome != placement.LeftAlone && !cmp.Equal(again.Spec, next.Spec) {
		say("not idempotent: %s", cmp.Diff(next.Spec, again.Spec))
	}
	shuffled := slices.Clone(images)
	for i := range shuffled {
		shuffled[i].Platforms = slices.Clone(shuffled[i].Platforms)
		slices.Reverse(shuffled[i].Platforms)
	}
	if other := placement.Decide(pod, shuffled, s); !cmp.Equal(other, d) {
		say("depends on the order of platforms: %s", cmp.Diff(d, other))
	}
	slices.Reverse(shuffled)
	if other := placement.Decide(pod, shuffled, s).Apply(pod); !cmp.Equal(other, next) {
		say("depends on the order of images: %s", cmp.Diff(next, other))
	}
	if got, err := merged(pod, d); err != nil || !cmp.Equal(got, jsonOf(next)) {
		say("the patch makes something else of it than Apply: %v\n%s", err, cmp.Diff(jsonOf(next), got))
	}
	return broken
}

// scribble writes over a term.
func scribble(t corev1.NodeSelectorTerm) {
	for _, list := range [][]corev1.NodeSelectorRequirement{t.MatchExpressions, t.MatchFields} {
		for i := range list {
			list[i].Key = "scribbled"
			for k := range list[i].Values {
				list[i].Values[k] = "scribbled"
			}
		}
	}
}

// widestPossible reports whether the node could have been kept: there were no terms, so
// that any could be made, or the pod is for one system by its own word.
func widestPossible(pod *corev1.Pod, n placementtest.Node) bool {
	a := pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return true
	}
	return pod.Spec.OS != nil && string(pod.Spec.OS.Name) == n.Labels["kubernetes.io/os"]
}

// legal holds next to what the API server lets become of a gated pod.
func legal(pod, next *corev1.Pod) (broken []string) {
	say := func(format string, a ...any) { broken = append(broken, fmt.Sprintf(format, a...)) }
	for k, v := range pod.Spec.NodeSelector {
		if next.Spec.NodeSelector[k] != v {
			say("nodeSelector %s", k)
		}
	}
	was, is := required(pod), required(next)
	if len(was) > 0 && len(was) != len(is) {
		say("%d terms became %d", len(was), len(is))
		return broken
	}
	for i := range was {
		if len(was[i].MatchExpressions)+len(was[i].MatchFields) == 0 {
			if len(is[i].MatchExpressions)+len(is[i].MatchFields) > 0 {
				say("the empty term %d was filled", i)
			}
			continue
		}
		if n := len(was[i].MatchExpressions); len(is[i].MatchExpressions) < n || n > 0 && !cmp.Equal(is[i].MatchExpressions[:n], was[i].MatchExpressions) {
			say("expressions of term %d", i)
		}
		if !cmp.Equal(is[i].MatchFields, was[i].MatchFields) {
			say("fields of term %d", i)
		}
		if slices.ContainsFunc(was[i].MatchExpressions, func(e corev1.NodeSelectorRequirement) bool {
			return strings.HasSuffix(e.Key, "kubernetes.io/arch")
		}) && !cmp.Equal(was[i], is[i]) {
			say("term %d names the architecture and was changed", i)
		}
	}
	return broken
}

func required(pod *corev1.Pod) []corev1.NodeSelectorTerm {
	a := pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil
	}
	return a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
}

// merged is the pod with the decision's patch, as RFC 7396 has it.
func merged(pod *corev1.Pod, d placement.Decision) (any, error) {
	raw, err := d.Patch(pod)
	if err != nil {
		return nil, err
	}
	var p any
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, err
	}
	return merge(jsonOf(pod), p), nil
}

func merge(target, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	t, ok := target.(map[string]any)
	if !ok {
		t = map[string]any{}
	}
	for k, v := range p {
		if v == nil {
			delete(t, k)
		} else {
			t[k] = merge(t[k], v)
		}
	}
	return t
}

func jsonOf(pod *corev1.Pod) any {
	b, err := json.Marshal(pod)
	if err != nil {
		panic(err)
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		panic(err)
	}
	return v
}

func TestDecide_AlwaysALegalNarrowing(t *testing.T) {
	t.Parallel()
	outcomes := map[placement.Outcome]int{}
	n := *histories
	if testing.Short() {
		n /= 10
	}
	for seed := range n {
		g := placementtest.NewGen(uint64(seed))
		pod, images, s := g.Pod(), g.Images(), g.Settings()
		outcomes[placement.Decide(pod, images, s).Outcome]++
		if broken := judge(pod, images, s); len(broken) > 0 {
			d := placement.Decide(pod, images, s)
			t.Fatalf("seed %d: %s\npod %+v\nimages %+v\nsettings %+v\n%s: %s", seed, strings.Join(broken, "\n"), jsonOf(pod), images, s, d.Outcome, d.Message)
		}
	}
	t.Log(outcomes)
	for _, o := range []placement.Outcome{placement.Placed, placement.NotConstrained, placement.NoCommonPlatform, placement.FellBack, placement.NotInspected, placement.LeftAlone} {
		if outcomes[o] < n/200 {
			t.Errorf("%s came up %d times in %d: the generator does not reach it", o, outcomes[o], n)
		}
	}
}

func FuzzDecide(f *testing.F) {
	f.Add(uint64(1), "linux", "amd64", "v2", "arm64", "amd64")
	f.Add(uint64(2), "Linux", "X86_64", "", "", "")
	f.Add(uint64(3), "wasip1", "wasm", "", "s390x", "\x00")
	f.Add(uint64(4), "linux\n", "amd64,arm64", "${}", "a b", "-")
	f.Fuzz(func(t *testing.T, seed uint64, os, architecture, variant, preferred, fallback string) {
		g := placementtest.NewGen(seed)
		pod, images, s := g.Pod(), g.Images(), g.Settings()
		for range rand.New(rand.NewPCG(seed, 1)).IntN(3) {
			images = append(images, placement.Image{Name: variant, Platforms: []placement.Platform{{OS: os, Architecture: architecture, Variant: variant}}})
		}
		s.Fallback = fallback
		for i := range s.Preferred {
			s.Preferred[i].Architecture = preferred
		}
		for _, b := range judge(pod, images, s) {
			t.Error(b)
		}
	})
}
