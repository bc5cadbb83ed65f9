package placement

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Gated reports whether the pod carries our gate.
func Gated(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.SchedulingGates, ours)
}

func ours(g corev1.PodSchedulingGate) bool { return g.Name == Gate }

// others returns the gates of the pod that are not ours.
func others(pod *corev1.Pod) []corev1.PodSchedulingGate {
	left := slices.DeleteFunc(slices.Clone(pod.Spec.SchedulingGates), ours)
	if len(left) == 0 {
		return nil
	}
	return left
}

// Apply returns what the pod becomes: a copy with the decision's affinity and labels,
// without our gate and with all others. The pod itself is not changed.
func (d Decision) Apply(pod *corev1.Pod) *corev1.Pod {
	next := pod.DeepCopy()
	next.Spec.SchedulingGates = others(pod)
	if d.Required != nil || d.Preferred != nil {
		if next.Spec.Affinity == nil {
			next.Spec.Affinity = &corev1.Affinity{}
		}
		if next.Spec.Affinity.NodeAffinity == nil {
			next.Spec.Affinity.NodeAffinity = &corev1.NodeAffinity{}
		}
		a := next.Spec.Affinity.NodeAffinity
		if d.Required != nil {
			a.RequiredDuringSchedulingIgnoredDuringExecution = d.Required.DeepCopy()
		}
		if d.Preferred != nil {
			a.PreferredDuringSchedulingIgnoredDuringExecution = preferredCopy(d.Preferred)
		}
	}
	if len(d.Labels) > 0 {
		if next.Labels == nil {
			next.Labels = map[string]string{}
		}
		maps.Copy(next.Labels, d.Labels)
	}
	return next
}

func preferredCopy(all []corev1.PreferredSchedulingTerm) []corev1.PreferredSchedulingTerm {
	next := make([]corev1.PreferredSchedulingTerm, len(all))
	for i := range all {
		all[i].DeepCopyInto(&next[i])
	}
	return next
}

// patch is the part of a pod that a decision may change. Null takes a field away.
type patch struct {
	Metadata struct {
		UID             string            `json:"uid,omitempty"`
		ResourceVersion string            `json:"resourceVersion,omitempty"`
		Labels          map[string]string `json:"labels,omitempty"`
	} `json:"metadata"`
	Spec struct {
		SchedulingGates *[]corev1.PodSchedulingGate `json:"schedulingGates"`
		Affinity        *struct {
			NodeAffinity corev1.NodeAffinity `json:"nodeAffinity"`
		} `json:"affinity,omitempty"`
	} `json:"spec"`
}

// Patch returns what makes of the pod what Apply does, as a JSON merge patch
// (types.MergePatchType). It names the pod's uid and resourceVersion: the API server
// answers Conflict if the pod is no longer the one that was decided about.
func (d Decision) Patch(pod *corev1.Pod) ([]byte, error) {
	var p patch
	p.Metadata.UID, p.Metadata.ResourceVersion, p.Metadata.Labels = string(pod.UID), pod.ResourceVersion, d.Labels
	if left := others(pod); len(left) > 0 {
		p.Spec.SchedulingGates = &left
	}
	if d.Required != nil || d.Preferred != nil {
		p.Spec.Affinity = &struct {
			NodeAffinity corev1.NodeAffinity `json:"nodeAffinity"`
		}{corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: d.Required, PreferredDuringSchedulingIgnoredDuringExecution: d.Preferred,
		}}
	}
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode the patch of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return b, nil
}
