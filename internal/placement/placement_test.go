package placement_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/placement"
)

// podOf reads a pod's spec, to which our gate is added.
func podOf(t testing.TB, spec string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(spec), &pod.Spec); err != nil {
		t.Fatal(err)
	}
	pod.Spec.SchedulingGates = append(pod.Spec.SchedulingGates, corev1.PodSchedulingGate{Name: placement.Gate})
	return pod
}

// imagesOf reads images such as "linux/amd64 linux/arm/v7"; "bundle", "unknown" and ""
// are images that restrict nothing, could not be inspected, or name no platform.
func imagesOf(all ...string) []placement.Image {
	var images []placement.Image
	for n, text := range all {
		i := placement.Image{Name: fmt.Sprintf("registry.example/%c:v1", 'a'+n)}
		switch text {
		case "bundle":
			i.NoConstraint, text = true, "linux/amd64"
		case "unknown":
			i.Unknown, text = true, ""
		}
		for _, p := range strings.Fields(text) {
			parts := append(strings.SplitN(p, "/", 3), "", "")
			i.Platforms = append(i.Platforms, placement.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]})
		}
		images = append(images, i)
	}
	return images
}

// text is a node affinity on a line: required terms, then preferred ones with weights.
func text(pod *corev1.Pod) string {
	short := strings.NewReplacer("kubernetes.io/arch", "arch", "kubernetes.io/os", "os", "stile.dev/", "", "metadata.name", "name")
	term := func(t corev1.NodeSelectorTerm) string {
		var parts []string
		for _, e := range append(append([]corev1.NodeSelectorRequirement{}, t.MatchExpressions...), t.MatchFields...) {
			parts = append(parts, strings.TrimSpace(short.Replace(e.Key)+" "+string(e.Operator)+" "+strings.Join(e.Values, ",")))
		}
		return "{" + strings.Join(parts, "; ") + "}"
	}
	var all []string
	for _, t := range required(pod) {
		all = append(all, term(t))
	}
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil {
		for _, t := range a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
			all = append(all, fmt.Sprintf("%d%s", t.Weight, term(t.Preference)))
		}
	}
	return strings.Join(all, " ")
}

// terms is a spec with required terms, each a list of expressions.
func terms(all ...string) string {
	return "affinity: { nodeAffinity: { requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms: [" + strings.Join(all, ", ") + "] } } }"
}

func expressions(all ...string) string {
	return "{ matchExpressions: [" + strings.Join(all, ", ") + "] }"
}

func expression(key, operator string, values ...string) string {
	return fmt.Sprintf("{ key: %s, operator: %s, values: [%s] }", key, operator, strings.Join(values, ", "))
}

const never = "{no-common-platform Exists; no-common-platform DoesNotExist}"

func TestDecide(t *testing.T) {
	t.Parallel()
	zone, both := expressions(expression("zone", "In", "a")), "linux/amd64 linux/arm64/v8"
	for name, row := range map[string]struct {
		spec     string
		images   []placement.Image
		settings string
		outcome  placement.Outcome
		want     string // of the node affinity
	}{
		// Which architectures.
		"one image":                               {"{}", imagesOf(both), "", placement.Placed, "{arch In amd64,arm64; os In linux}"},
		"all images":                              {"{}", imagesOf(both, "linux/arm64 linux/s390x"), "", placement.Placed, "{arch In arm64; os In linux}"},
		"nothing in common":                       {"{}", imagesOf("linux/amd64", "linux/arm64"), "", placement.NoCommonPlatform, never},
		"one architecture on different systems":   {"{}", imagesOf("windows/amd64 linux/arm64", "linux/amd64 linux/arm64"), "", placement.Placed, "{arch In arm64; os In linux}"},
		"one architecture, never on one system":   {"{}", imagesOf("windows/amd64", "linux/amd64"), "", placement.NoCommonPlatform, never},
		"names that runtimes understand":          {"{}", imagesOf("linux/x86_64 Linux/AARCH64 linux/i686 linux/armhf"), "", placement.Placed, "{arch In 386,amd64,arm,arm64; os In linux}"},
		"an older instruction set is another one": {"{}", imagesOf("linux/386", "linux/amd64"), "", placement.NoCommonPlatform, never},
		"variants are nothing that nodes tell":    {"{}", imagesOf("linux/arm/v6", "linux/arm/v7"), "", placement.Placed, "{arch In arm; os In linux}"},
		"unknown entries":                         {"{}", imagesOf("unknown/unknown linux/arm64"), "", placement.Placed, "{arch In arm64; os In linux}"},
		"nothing but unknown entries":             {"{}", imagesOf("unknown/unknown"), "", placement.NotConstrained, ""},
		"an image that names no platform":         {"{}", imagesOf("", "linux/arm64"), "", placement.Placed, "{arch In arm64; os In linux}"},
		"no image that names one":                 {"{}", imagesOf(""), "", placement.NotConstrained, ""},
		"a bundle":                                {"{}", imagesOf("bundle", "linux/arm64"), "", placement.Placed, "{arch In arm64; os In linux}"},
		"a bundle alone":                          {"{}", imagesOf("bundle"), "", placement.NotConstrained, ""},
		"a Wasm module":                           {"{}", imagesOf("wasip1/wasm", "linux/arm64"), "", placement.Placed, "{arch In arm64; os In linux}"},
		"a Wasm module beside machine code":       {"{}", imagesOf("wasip1/wasm linux/amd64"), "", placement.Placed, "{arch In amd64; os In linux}"},
		"names that no node can have":             {"{}", imagesOf("linux/amd64,arm64 linux/-x linux/" + strings.Repeat("a", 64)), "", placement.NoCommonPlatform, never},
		"one name that a node can have":           {"{}", imagesOf("linux/${x} linux/riscv64"), "", placement.Placed, "{arch In riscv64; os In linux}"},
		// Systems.
		"pairs that are no product":                 {"{}", imagesOf("windows/amd64 linux/arm64"), "", placement.Placed, "{arch In arm64; os In linux} {arch In amd64; os In windows}"},
		"systems that have the same":                {"{}", imagesOf("windows/amd64 linux/amd64"), "", placement.Placed, "{arch In amd64; os In linux,windows}"},
		"the pod's system":                          {"os: { name: windows }", imagesOf("windows/amd64 linux/arm64"), "", placement.Placed, "{arch In amd64; os In windows}"},
		"the pod's system, without an image for it": {"os: { name: windows }", imagesOf(both), "", placement.NoCommonPlatform, never},
		"the system by the nodeSelector":            {"nodeSelector: { kubernetes.io/os: linux }", imagesOf("windows/amd64 linux/arm64"), "", placement.Placed, "{arch In arm64}"},
		"the system by its older name":              {"nodeSelector: { beta.kubernetes.io/os: windows }", imagesOf("windows/amd64 linux/arm64"), "", placement.Placed, "{arch In amd64}"},
		"systems that contradict each other":        {"{ os: { name: linux }, nodeSelector: { kubernetes.io/os: windows } }", imagesOf(both), "", placement.NoCommonPlatform, never},
		// Terms that are there.
		"each term is narrowed by itself": {terms(zone, expressions(expression("size", "Gt", `"4"`), expression("gpu", "DoesNotExist"))), imagesOf(both), "", placement.Placed,
			"{zone In a; arch In amd64,arm64; os In linux} {size Gt 4; gpu DoesNotExist; arch In amd64,arm64; os In linux}"},
		"a term that names the architecture":      {terms(zone, expressions(expression("kubernetes.io/arch", "In", "s390x"))), imagesOf(both), "", placement.Placed, "{zone In a; arch In amd64,arm64; os In linux} {arch In s390x}"},
		"an empty term":                           {terms(zone, "{}"), imagesOf(both), "", placement.Placed, "{zone In a; arch In amd64,arm64; os In linux} {}"},
		"a term of fields alone":                  {terms("{ matchFields: [{ key: metadata.name, operator: In, values: [node] }] }"), imagesOf("linux/arm64"), "", placement.Placed, "{arch In arm64; os In linux; name In node}"},
		"no terms in what is required":            {"affinity: { nodeAffinity: { requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms: [] } } }", imagesOf("linux/arm64"), "", placement.Placed, "{arch In arm64; os In linux}"},
		"an empty affinity":                       {"affinity: {}", imagesOf("linux/arm64"), "", placement.Placed, "{arch In arm64; os In linux}"},
		"pairs in a term that takes one":          {terms(zone), imagesOf("windows/amd64 linux/arm64"), "", placement.Placed, "{zone In a; arch In arm64; os In linux}"},
		"pairs in a term that is for Windows":     {terms(expressions(expression("kubernetes.io/os", "In", "windows"))), imagesOf("windows/amd64 linux/arm64"), "", placement.Placed, "{os In windows; arch In amd64}"},
		"pairs in a term that is not for Linux":   {terms(expressions(expression("kubernetes.io/os", "NotIn", "linux"))), imagesOf("windows/amd64 linux/arm64"), "", placement.Placed, "{os NotIn linux; arch In amd64; os In windows}"},
		"pairs, the widest that one term can say": {terms(zone), imagesOf("windows/amd64 linux/amd64 freebsd/amd64 windows/arm64"), "", placement.Placed, "{zone In a; arch In amd64; os In freebsd,linux,windows}"},
		"terms that leave no system":              {terms(expressions(expression("kubernetes.io/os", "In", "windows"))), imagesOf(both), "", placement.NoCommonPlatform, "{os In windows; no-common-platform Exists; no-common-platform DoesNotExist}"},
		"one of two terms leaves no system":       {terms(zone, expressions(expression("kubernetes.io/os", "In", "windows"))), imagesOf(both), "", placement.Placed, "{zone In a; arch In amd64,arm64; os In linux} {os In windows; arch In amd64,arm64; os In linux}"},
		"nothing in common, with terms":           {terms(zone, "{}"), imagesOf("linux/amd64", "linux/arm64"), "", placement.NoCommonPlatform, "{zone In a; no-common-platform Exists; no-common-platform DoesNotExist} {}"},
		// Preferences.
		"preferred":                    {"{}", imagesOf(both), "arm64=30 s390x=5", placement.Placed, "{arch In amd64,arm64; os In linux} 30{arch In arm64}"},
		"preferred, without a choice":  {"{}", imagesOf("linux/arm64"), "arm64=30", placement.Placed, "{arch In arm64; os In linux}"},
		"preferred, where all will do": {"{}", imagesOf("bundle"), "arm64=30", placement.NotConstrained, "30{arch In arm64}"},
		"preferred already": {"affinity: { nodeAffinity: { preferredDuringSchedulingIgnoredDuringExecution: [{ weight: 1, preference: " + expressions(expression("kubernetes.io/arch", "In", "arm64")) + " }] } }",
			imagesOf(both), "arm64=30 amd64=20", placement.Placed, "{arch In amd64,arm64; os In linux} 1{arch In arm64} 20{arch In amd64}"},
		"settings that no server takes": {"{}", imagesOf(both), "arm64=101 amd64=0", placement.Placed, "{arch In amd64,arm64; os In linux}"},
		// What could not be inspected.
		"not inspected":                          {"{}", imagesOf("unknown"), "arm64=30", placement.NotInspected, ""},
		"not inspected, others known":            {"{}", imagesOf("unknown", "linux/arm64"), "", placement.NotInspected, "{arch In arm64; os In linux}"},
		"fallback":                               {"{}", imagesOf("unknown"), "fallback=amd64", placement.FellBack, "{arch In amd64}"},
		"fallback, for the pod's system":         {"os: { name: linux }", imagesOf("unknown"), "fallback=amd64", placement.FellBack, "{arch In amd64; os In linux}"},
		"fallback among what is known":           {"{}", imagesOf("unknown", both), "fallback=amd64", placement.FellBack, "{arch In amd64; os In linux}"},
		"fallback gives way to what is known":    {"{}", imagesOf("unknown", "linux/arm64"), "fallback=amd64", placement.NotInspected, "{arch In arm64; os In linux}"},
		"fallback that is none":                  {"{}", imagesOf("unknown"), "fallback=a/b", placement.NotInspected, ""},
		"the others have nothing in common":      {"{}", imagesOf("unknown", "linux/amd64", "linux/arm64"), "fallback=amd64", placement.NoCommonPlatform, never},
		"fallback, in terms of another system's": {terms(expressions(expression("kubernetes.io/os", "In", "windows"))), imagesOf("unknown", both), "fallback=amd64", placement.NoCommonPlatform, "{os In windows; no-common-platform Exists; no-common-platform DoesNotExist}"},
		// What is left alone.
		"the nodeSelector names the architecture": {"nodeSelector: { kubernetes.io/arch: s390x }", imagesOf(both), "arm64=30", placement.LeftAlone, ""},
		"each term names it":                      {terms(expressions(expression("kubernetes.io/arch", "Exists")), "{}"), imagesOf(both), "arm64=30", placement.LeftAlone, "{arch Exists} {}"},
		"empty terms alone":                       {terms("{}", "{}"), imagesOf(both), "", placement.LeftAlone, "{} {}"},
		"the control plane's":                     {"nodeSelector: { node-role.kubernetes.io/control-plane: '' }", imagesOf(both), "", placement.LeftAlone, ""},
		"on a node already":                       {"nodeName: n", imagesOf(both), "", placement.LeftAlone, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pod := podOf(t, row.spec)
			var s placement.Settings
			for _, one := range strings.Fields(row.settings) {
				key, value, _ := strings.Cut(one, "=")
				if key == "fallback" {
					s.Fallback = value
					continue
				}
				var weight int32
				if _, err := fmt.Sscan(value, &weight); err != nil {
					t.Fatal(err)
				}
				s.Preferred = append(s.Preferred, v1alpha1.ArchitectureWeight{Architecture: key, Weight: weight})
			}
			d := placement.Decide(pod, row.images, s)
			next := d.Apply(pod)
			if got := text(next); got != row.want || d.Outcome != row.outcome {
				t.Errorf("%s: %s\nwant %s: %s\n(%s)", d.Outcome, got, row.outcome, row.want, d.Message)
			}
			if placement.Gated(next) || d.Reason == "" || d.Message == "" {
				t.Errorf("gated %v, reason %q, message %q", placement.Gated(next), d.Reason, d.Message)
			}
			if pod.Spec.NodeName == "" {
				for _, b := range judge(pod, row.images, s) {
					t.Error(b)
				}
			}
		})
	}
}

func TestExcluded_Reasons(t *testing.T) {
	t.Parallel()
	owned := func(apiVersion, kind string) *corev1.Pod {
		pod := podOf(t, "{}")
		if err := yaml.Unmarshal([]byte("- { apiVersion: "+apiVersion+", kind: "+kind+", name: o, uid: u }"), &pod.OwnerReferences); err != nil {
			t.Fatal(err)
		}
		return pod
	}
	arch := expressions(expression("kubernetes.io/arch", "In", "amd64"))
	for name, row := range map[string]struct {
		pod  *corev1.Pod
		want string
	}{
		"a plain pod":                       {podOf(t, "{}"), ""},
		"on a node":                         {podOf(t, "nodeName: n"), placement.NodeNameSet},
		"a DaemonSet's":                     {owned("apps/v1", "DaemonSet"), placement.DaemonSetPod},
		"another's DaemonSet":               {owned("other.example/v1", "DaemonSet"), ""},
		"a ReplicaSet's":                    {owned("apps/v1", "ReplicaSet"), ""},
		"the control plane's":               {podOf(t, "nodeSelector: { node-role.kubernetes.io/control-plane: '' }"), placement.ControlPlanePod},
		"the control plane's, older":        {podOf(t, "nodeSelector: { node-role.kubernetes.io/master: '' }"), placement.ControlPlanePod},
		"nodeSelector names architecture":   {podOf(t, "nodeSelector: { kubernetes.io/arch: amd64 }"), placement.ArchitectureConstrained},
		"nodeSelector, older":               {podOf(t, "nodeSelector: { beta.kubernetes.io/arch: amd64 }"), placement.ArchitectureConstrained},
		"nodeSelector names the system":     {podOf(t, "nodeSelector: { kubernetes.io/os: linux }"), ""},
		"each term":                         {podOf(t, terms(arch, arch)), placement.ArchitectureConstrained},
		"one of two terms":                  {podOf(t, terms(arch, expressions(expression("zone", "Exists")))), ""},
		"each term that is not empty":       {podOf(t, terms("{}", arch)), placement.ArchitectureConstrained},
		"empty terms":                       {podOf(t, terms("{}")), placement.SelectsNothing},
		"preferred terms are no constraint": {podOf(t, "affinity: { nodeAffinity: { preferredDuringSchedulingIgnoredDuringExecution: [{ weight: 1, preference: "+arch+" }] } }"), ""},
	} {
		if reason, yes := placement.Excluded(row.pod); reason != row.want || yes != (row.want != "") {
			t.Errorf("%s: %q, %v; want %q", name, reason, yes, row.want)
		}
	}
}

// Who may not read an image learns nothing of any, and is let go.
func TestP2_DeniedSaysNothingOfTheImage(t *testing.T) {
	t.Parallel()
	pod := podOf(t, "{ schedulingGates: [{ name: kueue.x-k8s.io/admission }], affinity: { podAntiAffinity: {} } }")
	d := placement.Denied("registry.example/a:v1")
	next := d.Apply(pod)
	if next.Spec.Affinity.NodeAffinity != nil || len(next.Spec.SchedulingGates) != 1 || next.Spec.SchedulingGates[0].Name != "kueue.x-k8s.io/admission" {
		t.Errorf("%+v", next.Spec)
	}
	if d.Outcome != placement.NotAllowed || strings.Contains(d.Message, "linux") || d.Platforms != nil || d.Notes != nil {
		t.Errorf("%+v", d)
	}
}

func TestDecision_SaysWhy(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		spec    string
		images  []placement.Image
		message string
		notes   []string
	}{
		{"{}", imagesOf("linux/amd64 linux/arm64"), "its image runs on linux/amd64, linux/arm64", nil},
		{"{}", imagesOf("linux/amd64", "linux/arm64"), "registry.example/a:v1 runs on linux/amd64, registry.example/b:v1 runs on linux/arm64: no node can run the pod as it is", nil},
		{"os: { name: windows }", imagesOf("linux/amd64"), "registry.example/a:v1 runs on linux/amd64, the pod asks for windows: no node can run the pod as it is", nil},
		{terms(expressions(expression("zone", "Exists"))), imagesOf("windows/amd64 linux/arm64"), "its image runs on linux/arm64, windows/amd64; within the pod's own node affinity that is linux/arm64", nil},
		{terms(expressions(expression("kubernetes.io/os", "In", "windows"))), imagesOf("linux/arm64"), "its images run on linux/arm64, and the pod's own node affinity leaves none of these: no node can run the pod as it is", nil},
		{"{}", imagesOf("linux/\x1b[31m"), "registry.example/a:v1 runs on no platform that a node can have: no node can run the pod as it is", nil},
		{"{}", imagesOf("unknown", "linux/arm64"), "registry.example/a:v1 could not be inspected; the other images run on linux/arm64", nil},
		{"{}", imagesOf("linux/arm/v7 linux/arm/v6 linux/arm64/v8 linux/amd64 linux/amd64/v3"), "its image runs on linux/amd64, linux/arm, linux/arm64",
			[]string{"registry.example/a:v1 is made for linux/arm of variant v6, v7: nodes do not tell their variant, so that each linux/arm node is taken to have it"}},
	} {
		d := placement.Decide(podOf(t, row.spec), row.images, placement.Settings{})
		if d.Message != row.message {
			t.Errorf("message %q\nwant    %q", d.Message, row.message)
		}
		if diff := cmp.Diff(row.notes, d.Notes); diff != "" {
			t.Errorf("notes (-want +got):\n%s", diff)
		}
	}
}

// An image may claim as many platforms as an index holds: what is made of them stays
// small, and what nodes really have is not crowded out.
func TestDecide_WhatAnImageClaimsIsBounded(t *testing.T) {
	t.Parallel()
	image := placement.Image{Name: "registry.example/" + strings.Repeat("long/", 100) + "a:v1", Platforms: []placement.Platform{{OS: "windows", Architecture: "amd64"}}}
	for i := range 64 {
		for k := range 64 {
			image.Platforms = append(image.Platforms, placement.Platform{OS: fmt.Sprintf("a-long-made-up-operating-%d", i), Architecture: fmt.Sprintf("a-long-made-up-architecture-%d", k)})
		}
	}
	for _, spec := range []string{"{}", terms(strings.TrimSuffix(strings.Repeat(expressions(expression("zone", "Exists"))+", ", 100), ", "))} {
		pod := podOf(t, spec)
		d := placement.Decide(pod, []placement.Image{image}, placement.Settings{})
		patch, err := d.Patch(pod)
		if err != nil || len(patch) > 200<<10 || len(d.Message) > 800 {
			t.Errorf("a patch of %d bytes, a message of %d: %v", len(patch), len(d.Message), err)
		}
		if spec == "{}" && !strings.Contains(text(d.Apply(pod)), "{arch In amd64; os In windows}") {
			t.Errorf("Windows was crowded out: %s", d.Message)
		}
	}
}

func TestPulls(t *testing.T) {
	t.Parallel()
	pod := podOf(t, `
initContainers: [{ name: i, image: init:v1 }, { name: s, image: app:v1, imagePullPolicy: Always }]
containers: [{ name: a, image: app:v1 }, { name: b, image: app:v1 }, { name: c, image: never:v1, imagePullPolicy: Never }]
volumes: [{ name: v, image: { reference: model:v1, pullPolicy: IfNotPresent } }, { name: w, image: {} }, { name: x, emptyDir: {} }]
`)
	want := []placement.Pull{{"init:v1", ""}, {"app:v1", "Always"}, {"app:v1", ""}, {"never:v1", "Never"}, {"model:v1", "IfNotPresent"}}
	if d := cmp.Diff(want, placement.Pulls(pod)); d != "" {
		t.Error(d)
	}
}
