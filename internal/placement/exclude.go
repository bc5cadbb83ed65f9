package placement

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Reasons why placement has no say about a pod.
const (
	NodeNameSet             = "NodeNameSet"             // it is on a node already
	DaemonSetPod            = "DaemonSetPod"            // its controller has chosen the node
	ControlPlanePod         = "ControlPlanePod"         // it asks for the control plane's nodes
	ArchitectureConstrained = "ArchitectureConstrained" // its author speaks of the architecture
	SelectsNothing          = "SelectsNothing"          // its required terms are empty: no node will do
)

// Labels of control-plane nodes.
var controlPlane = []string{"node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"}

// Excluded reports whether placement has no say about a pod, and which reason of the
// list above. Such a pod needs no gate; one that has it is let go as it is. Namespaces
// are the caller's matter.
func Excluded(pod *corev1.Pod) (reason string, yes bool) {
	reason, _, yes = excluded(pod)
	return reason, yes
}

func excluded(pod *corev1.Pod) (reason, message string, yes bool) {
	if pod.Spec.NodeName != "" {
		return NodeNameSet, "the pod is bound to a node already", true
	}
	for _, o := range pod.OwnerReferences {
		if o.Kind == "DaemonSet" && strings.HasPrefix(o.APIVersion, "apps/") {
			return DaemonSetPod, "a DaemonSet has chosen the pod's node", true
		}
	}
	for key := range pod.Spec.NodeSelector {
		if slices.Contains(controlPlane, key) {
			return ControlPlanePod, "the pod asks for nodes of the control plane", true
		}
	}
	for key := range pod.Spec.NodeSelector {
		if isArchitecture(key) {
			return ArchitectureConstrained, "the pod's nodeSelector names the architecture", true
		}
	}
	own := terms(pod)
	if len(own) == 0 || slices.ContainsFunc(own, func(t corev1.NodeSelectorTerm) bool { return !empty(t) && !decided(t) }) {
		return "", "", false
	}
	if !slices.ContainsFunc(own, decided) {
		return SelectsNothing, "the pod's required node affinity is empty, which selects no node and may not be filled", true
	}
	return ArchitectureConstrained, "each term of the pod's required node affinity names the architecture", true
}
