package placement

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Pull is one image that a pod has pulled.
type Pull struct {
	Image  string
	Policy corev1.PullPolicy // empty: not given
}

// Pulls returns the images of init containers, containers and image volumes, each with
// its policy once, in that order. An image volume without a reference pulls nothing.
func Pulls(pod *corev1.Pod) []Pull {
	var all []Pull
	add := func(image string, policy corev1.PullPolicy) {
		if p := (Pull{image, policy}); image != "" && !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	for _, c := range pod.Spec.InitContainers {
		add(c.Image, c.ImagePullPolicy)
	}
	for _, c := range pod.Spec.Containers {
		add(c.Image, c.ImagePullPolicy)
	}
	for _, v := range pod.Spec.Volumes {
		if v.Image != nil {
			add(v.Image.Reference, v.Image.PullPolicy)
		}
	}
	return all
}
