package placement

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/stileproject/stile/api/v1alpha1"
)

// Labels of nodes, which the kubelet sets and keeps set. The older names still are.
const (
	keyArchitecture     = corev1.LabelArchStable
	keySystem           = corev1.LabelOSStable
	keyArchitectureBeta = "beta.kubernetes.io/arch"
	keySystemBeta       = "beta.kubernetes.io/os"
)

// keyNone is in a term that no node satisfies: it must be there, and must not.
const keyNone = "stile.dev/no-common-platform"

func isArchitecture(key string) bool { return key == keyArchitecture || key == keyArchitectureBeta }
func isSystem(key string) bool       { return key == keySystem || key == keySystemBeta }

// terms returns the required terms of the pod's node affinity.
func terms(pod *corev1.Pod) []corev1.NodeSelectorTerm {
	a := pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil
	}
	return a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
}

// empty reports a term that selects nothing, and that the API server lets nobody fill.
func empty(t corev1.NodeSelectorTerm) bool {
	return len(t.MatchExpressions) == 0 && len(t.MatchFields) == 0
}

// decided reports a term whose author speaks of the architecture: it is left as it is.
func decided(t corev1.NodeSelectorTerm) bool {
	return slices.ContainsFunc(t.MatchExpressions, func(e corev1.NodeSelectorRequirement) bool { return isArchitecture(e.Key) })
}

// confine sets what keeps the pod to these pairs, as far as terms that exist can say it.
// It is false, and sets nothing, if the pod's own terms then leave no node.
func (d *Decision) confine(pod *corev1.Pod, all []Platform) bool {
	own := terms(pod)
	if len(own) == 0 {
		d.Required, d.Platforms = &corev1.NodeSelector{}, all
		for _, b := range blocks(all) {
			d.Required.NodeSelectorTerms = append(d.Required.NodeSelectorTerms, extended(pod, corev1.NodeSelectorTerm{}, b))
		}
		return true
	}
	// Terms can be neither added nor taken away, nor an empty one filled: each of the
	// others is narrowed by itself, to the one block of pairs that it can say.
	var reached []Platform
	left := false
	next := &corev1.NodeSelector{}
	for _, t := range own {
		switch {
		case empty(t):
			next.NodeSelectorTerms = append(next.NodeSelectorTerms, *t.DeepCopy())
			continue
		case decided(t):
			next.NodeSelectorTerms = append(next.NodeSelectorTerms, *t.DeepCopy())
			left = true
			continue
		}
		possible := admitted(t, all)
		b := widest(possible)
		if len(possible) == 0 {
			b = widest(all) // which contradicts what the term says of systems
		} else {
			reached, left = append(reached, b.pairs()...), true
		}
		next.NodeSelectorTerms = append(next.NodeSelectorTerms, extended(pod, t, b))
	}
	if !left {
		return false
	}
	d.Required, d.Platforms = next, sorted(reached)
	return true
}

// admitted returns the pairs that a term leaves, by what it says of systems.
func admitted(t corev1.NodeSelectorTerm, all []Platform) []Platform {
	return slices.DeleteFunc(slices.Clone(all), func(p Platform) bool {
		if p.OS == "" {
			return false
		}
		return slices.ContainsFunc(t.MatchExpressions, func(e corev1.NodeSelectorRequirement) bool {
			return isSystem(e.Key) && !admits(e, p.OS)
		})
	})
}

// admits reports whether a node whose label has this value satisfies the expression.
// Systems are no numbers: nothing is more or less than one.
func admits(e corev1.NodeSelectorRequirement, value string) bool {
	switch e.Operator {
	case corev1.NodeSelectorOpIn:
		return slices.Contains(e.Values, value)
	case corev1.NodeSelectorOpNotIn:
		return !slices.Contains(e.Values, value)
	case corev1.NodeSelectorOpExists:
		return true
	}
	return false
}

// extended returns the term with the block's expressions after its own.
func extended(pod *corev1.Pod, t corev1.NodeSelectorTerm, b block) corev1.NodeSelectorTerm {
	more := []corev1.NodeSelectorRequirement{{Key: keyArchitecture, Operator: corev1.NodeSelectorOpIn, Values: b.architectures}}
	if !slices.Contains(b.systems, "") && !keepsTo(pod, t, b.systems) {
		more = append(more, corev1.NodeSelectorRequirement{Key: keySystem, Operator: corev1.NodeSelectorOpIn, Values: b.systems})
	}
	return with(t, more)
}

// with returns a copy of the term with expressions after its own.
func with(t corev1.NodeSelectorTerm, more []corev1.NodeSelectorRequirement) corev1.NodeSelectorTerm {
	next := *t.DeepCopy()
	next.MatchExpressions = append(next.MatchExpressions, more...)
	return next
}

// keepsTo reports whether what the author wrote already keeps to these systems.
func keepsTo(pod *corev1.Pod, t corev1.NodeSelectorTerm, systems []string) bool {
	for key, value := range pod.Spec.NodeSelector {
		if isSystem(key) && slices.Contains(systems, value) {
			return true
		}
	}
	return slices.ContainsFunc(t.MatchExpressions, func(e corev1.NodeSelectorRequirement) bool {
		return isSystem(e.Key) && e.Operator == corev1.NodeSelectorOpIn &&
			!slices.ContainsFunc(e.Values, func(v string) bool { return !slices.Contains(systems, v) })
	})
}

// unsatisfiable returns required terms that no node satisfies, but for those whose author
// speaks of the architecture; nil if that is so already.
func unsatisfiable(pod *corev1.Pod) *corev1.NodeSelector {
	never := []corev1.NodeSelectorRequirement{
		{Key: keyNone, Operator: corev1.NodeSelectorOpExists},
		{Key: keyNone, Operator: corev1.NodeSelectorOpDoesNotExist},
	}
	own := terms(pod)
	if len(own) == 0 {
		return &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: never}}}
	}
	next, changed := &corev1.NodeSelector{}, false
	for _, t := range own {
		done := slices.ContainsFunc(t.MatchExpressions, func(e corev1.NodeSelectorRequirement) bool {
			return e.Key == keyNone && e.Operator == corev1.NodeSelectorOpDoesNotExist
		})
		if empty(t) || decided(t) || done {
			next.NodeSelectorTerms = append(next.NodeSelectorTerms, *t.DeepCopy())
			continue
		}
		next.NodeSelectorTerms = append(next.NodeSelectorTerms, with(t, never))
		changed = true
	}
	if !changed {
		return nil
	}
	return next
}

// prefer returns the preferred terms that the pod then has, nil if they stay as they are.
// The architectures that the pod can go to are all if may is nil; where there is but one,
// there is nothing to prefer.
func prefer(pod *corev1.Pod, may []Platform, wanted []v1alpha1.ArchitectureWeight) []corev1.PreferredSchedulingTerm {
	possible := map[string]bool{}
	for _, p := range may {
		possible[p.Architecture] = true
	}
	if len(possible) == 1 {
		return nil
	}
	var own []corev1.PreferredSchedulingTerm
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil {
		own = a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution
	}
	var more []corev1.PreferredSchedulingTerm
	for _, w := range wanted {
		if !word(w.Architecture) || w.Weight < 1 || w.Weight > 100 || len(possible) > 0 && !possible[w.Architecture] ||
			prefers(own, w.Architecture) || prefers(more, w.Architecture) {
			continue
		}
		more = append(more, corev1.PreferredSchedulingTerm{
			Weight: w.Weight,
			Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{
				{Key: keyArchitecture, Operator: corev1.NodeSelectorOpIn, Values: []string{w.Architecture}},
			}},
		})
	}
	if len(more) == 0 {
		return nil
	}
	all := make([]corev1.PreferredSchedulingTerm, 0, len(own)+len(more))
	for i := range own {
		all = append(all, *own[i].DeepCopy())
	}
	return append(all, more...)
}

// prefers reports whether one of the terms names the architecture.
func prefers(terms []corev1.PreferredSchedulingTerm, architecture string) bool {
	return slices.ContainsFunc(terms, func(t corev1.PreferredSchedulingTerm) bool {
		return slices.ContainsFunc(t.Preference.MatchExpressions, func(e corev1.NodeSelectorRequirement) bool {
			return isArchitecture(e.Key) && e.Operator == corev1.NodeSelectorOpIn && slices.Contains(e.Values, architecture)
		})
	})
}
