package placement_test

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/placement"
	"github.com/stileproject/stile/internal/placement/placementtest"
)

func BenchmarkDecide(b *testing.B) {
	usual := []placement.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64", Variant: "v8"}, {OS: "linux", Architecture: "ppc64le"}, {OS: "linux", Architecture: "s390x"}}
	settings := placement.Settings{Preferred: []v1alpha1.ArchitectureWeight{{Architecture: "arm64", Weight: 30}}}
	var hostile []placement.Platform
	for i := range 4096 {
		hostile = append(hostile, placement.Platform{OS: fmt.Sprint("os", i%64), Architecture: fmt.Sprint("arch", i/64)})
	}
	for name, row := range map[string]struct {
		pod    *corev1.Pod
		images []placement.Image
	}{
		"one image":                       {&corev1.Pod{}, []placement.Image{{Name: "registry.example/a:v1", Platforms: usual}}},
		"five images, as generated":       {placementtest.NewGen(7).Pod(), []placement.Image{{Platforms: usual}, {Platforms: usual[1:]}, {Platforms: usual}, {Platforms: usual}, {Platforms: usual}}},
		"an index of 4,096 made-up names": {&corev1.Pod{}, []placement.Image{{Name: "registry.example/a:v1", Platforms: hostile}}},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				placement.Decide(row.pod, row.images, settings)
			}
		})
	}
}

func BenchmarkPatch(b *testing.B) {
	pod := placementtest.NewGen(7).Pod()
	d := placement.Decide(pod, []placement.Image{{Name: "a", Platforms: []placement.Platform{{OS: "linux", Architecture: "amd64"}}}}, placement.Settings{})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Patch(pod); err != nil {
			b.Fatal(err)
		}
	}
}
