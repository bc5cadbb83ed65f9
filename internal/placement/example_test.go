package placement_test

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/placement"
)

// A pod of two images is confined to what both run on, and drawn to what is preferred.
func ExampleDecide() {
	pod := &corev1.Pod{Spec: corev1.PodSpec{
		Containers:      []corev1.Container{{Name: "app", Image: "registry.example/app:v1"}, {Name: "proxy", Image: "registry.example/proxy:v1"}},
		SchedulingGates: []corev1.PodSchedulingGate{{Name: placement.Gate}},
	}}
	d := placement.Decide(pod, []placement.Image{
		{Name: "registry.example/app:v1", Platforms: []placement.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64", Variant: "v8"}}},
		{Name: "registry.example/proxy:v1", Platforms: []placement.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}, {OS: "linux", Architecture: "s390x"}}},
	}, placement.Settings{Preferred: []v1alpha1.ArchitectureWeight{{Architecture: "arm64", Weight: 30}}})
	fmt.Println(d.Outcome, "-", d.Message)
	fmt.Println(text(d.Apply(pod)))
	// Output:
	// Placed - its 2 images run on linux/amd64, linux/arm64
	// {arch In amd64,arm64; os In linux} 30{arch In arm64}
}

// Images that have nothing in common leave the pod in sight, where no node will take it.
func ExampleDecide_noCommonPlatform() {
	pod := &corev1.Pod{}
	d := placement.Decide(pod, []placement.Image{
		{Name: "registry.example/app:v1", Platforms: []placement.Platform{{OS: "windows", Architecture: "amd64"}}},
		{Name: "registry.example/proxy:v1", Platforms: []placement.Platform{{OS: "linux", Architecture: "amd64"}}},
	}, placement.Settings{})
	fmt.Println(d.Outcome, "-", d.Message)
	// Output:
	// NoCommonPlatform - registry.example/app:v1 runs on windows/amd64, registry.example/proxy:v1 runs on linux/amd64: no node can run the pod as it is
}

// The patch lets the pod go and names what it was made for; other gates stay.
func ExampleDecision_Patch() {
	pod := &corev1.Pod{}
	pod.UID, pod.ResourceVersion = "7d0f", "41"
	pod.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: placement.Gate}, {Name: "kueue.x-k8s.io/admission"}}
	patch, err := placement.Decide(pod, nil, placement.Settings{}).Patch(pod)
	fmt.Println(string(patch), err)
	// Output:
	// {"metadata":{"uid":"7d0f","resourceVersion":"41","labels":{"stile.dev/placement":"NotConstrained"}},"spec":{"schedulingGates":[{"name":"kueue.x-k8s.io/admission"}]}} <nil>
}

func ExampleExcluded() {
	pod := &corev1.Pod{Spec: corev1.PodSpec{NodeSelector: map[string]string{"kubernetes.io/arch": "arm64"}}}
	fmt.Println(placement.Excluded(pod))
	// Output: ArchitectureConstrained true
}

func ExampleDenied() {
	fmt.Println(placement.Denied("registry.example/private:v1").Message)
	// Output: the pod's credentials may not read registry.example/private:v1: nothing is set, and its pull will fail the same way; correct its imagePullSecrets
}
