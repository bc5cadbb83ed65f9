package placement_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/stileproject/stile/internal/placement"
)

func TestDecide_NoTermsTakeExactlyThePairs(t *testing.T) {
	t.Parallel()
	pod := &corev1.Pod{}
	d := placement.Decide(pod, []placement.Image{{Name: "a", Platforms: []placement.Platform{
		{OS: "windows", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64", Variant: "v8"},
	}}}, placement.Settings{})
	if d.Outcome != placement.Placed || len(d.Required.NodeSelectorTerms) != 2 {
		t.Fatalf("%+v", d)
	}
}
