package placement

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestADecisionThatNoPodHasRoomFor: long names of architectures in each of thousands of
// terms make more than the API server takes, or more than it can keep. The pod goes as it is.
func TestADecisionThatNoPodHasRoomFor(t *testing.T) {
	t.Parallel()
	w := public(t).run()
	ns := w.namespace()
	var platforms []string
	for i := range 32 {
		platforms = append(platforms, fmt.Sprintf("linux/a%02d%s", i, strings.Repeat("x", 28)))
	}
	image, _ := w.image("public/app", "v1", platforms...)
	for name, n := range map[string]int{"kept": 1500, "passed-on": 2200, "taken": 4000} {
		w.pod(ns, name, image, func(p *corev1.Pod) {
			required := &corev1.NodeSelector{}
			for i := range n {
				required.NodeSelectorTerms = append(required.NodeSelectorTerms, corev1.NodeSelectorTerm{
					MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{fmt.Sprint(i)}}}})
			}
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: required}}
		})
	}
	for _, name := range []string{"kept", "passed-on", "taken"} {
		if p := w.went(ns, name); strings.Contains(where(p), "arch") {
			t.Errorf("pod %s: affinity was set", name)
		}
	}
}
