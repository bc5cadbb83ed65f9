// Package placementtest makes pods, images and nodes for tests of placement, and judges
// by its own reading of the API, written apart from the code that it judges, which nodes
// a pod may go to and which of them can run it.
package placementtest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/placement"
)

// Node is one to which a pod may go: its name and labels.
type Node struct {
	Name   string
	Labels map[string]string
}

// Nodes are one node for each of some systems, architectures and zones, one with a
// number as a label, and one that lacks the labels of system and architecture.
func Nodes() []Node {
	all := []Node{{Name: "bare", Labels: map[string]string{"kubernetes.io/hostname": "bare", "zone": "a"}}}
	for _, system := range []string{"linux", "windows", "freebsd"} {
		for _, architecture := range []string{"amd64", "arm64", "arm", "ppc64le", "s390x", "riscv64", "386"} {
			for i, zone := range []string{"a", "b"} {
				name := strings.Join([]string{system, architecture, zone}, "-")
				all = append(all, Node{Name: name, Labels: map[string]string{
					"kubernetes.io/os": system, "kubernetes.io/arch": architecture, "kubernetes.io/hostname": name,
					"beta.kubernetes.io/os": system, "beta.kubernetes.io/arch": architecture, "zone": zone, "size": strconv.Itoa(i * 8),
				}})
			}
		}
	}
	return all
}

// Admits reports whether the scheduler's node affinity and node selector let the pod go
// to the node.
func Admits(pod *corev1.Pod, n Node) bool {
	for k, want := range pod.Spec.NodeSelector {
		if have, ok := n.Labels[k]; !ok || have != want {
			return false
		}
	}
	if pod.Spec.Affinity == nil || pod.Spec.Affinity.NodeAffinity == nil {
		return true
	}
	required := pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	if required == nil || len(required.NodeSelectorTerms) == 0 {
		return true // no server takes a pod with a selector without terms; what is to become of one, it leaves open
	}
	return slices.ContainsFunc(required.NodeSelectorTerms, func(t corev1.NodeSelectorTerm) bool { return Selects(t, n) })
}

// Selects reports whether a term selects the node. An empty one selects none.
func Selects(t corev1.NodeSelectorTerm, n Node) bool {
	if len(t.MatchExpressions)+len(t.MatchFields) == 0 {
		return false
	}
	for _, e := range t.MatchExpressions {
		value, there := n.Labels[e.Key]
		if !holds(e, value, there) {
			return false
		}
	}
	for _, e := range t.MatchFields {
		if e.Key != "metadata.name" || !holds(e, n.Name, true) {
			return false
		}
	}
	return true
}

func holds(e corev1.NodeSelectorRequirement, value string, there bool) bool {
	switch e.Operator {
	case "In":
		return there && slices.Contains(e.Values, value)
	case "NotIn":
		return !there || !slices.Contains(e.Values, value)
	case "Exists":
		return there
	case "DoesNotExist":
		return !there
	case "Gt", "Lt":
		have, err := strconv.ParseInt(value, 10, 64)
		if err != nil || len(e.Values) != 1 {
			return false
		}
		than, err := strconv.ParseInt(e.Values[0], 10, 64)
		if err != nil {
			return false
		}
		return e.Operator == "Gt" && have > than || e.Operator == "Lt" && have < than
	}
	return false
}

// Runs reports whether the node can run the image, as far as nodes tell.
func Runs(i placement.Image, n Node) bool {
	if i.NoConstraint || i.Unknown {
		return true
	}
	says := false
	for _, p := range i.Platforms {
		if p.OS == "unknown" || p.Architecture == "unknown" || strings.HasPrefix(p.Architecture, "wasm") {
			continue
		}
		says = true
		architecture := strings.ToLower(p.Architecture)
		switch architecture {
		case "x86_64", "x86-64":
			architecture = "amd64"
		case "aarch64":
			architecture = "arm64"
		case "armhf", "armel":
			architecture = "arm"
		case "i386", "i486", "i586", "i686":
			architecture = "386"
		}
		if p.OS != "" && architecture != "" && n.Labels["kubernetes.io/os"] == strings.ToLower(p.OS) && n.Labels["kubernetes.io/arch"] == architecture {
			return true
		}
	}
	return !says
}

// Speaks reports whether the pod's author speaks of the architecture in what lets the
// pod go to the node: then it is the author's word that counts.
func Speaks(pod *corev1.Pod, n Node) bool {
	about := func(key string) bool { return strings.HasSuffix(key, "kubernetes.io/arch") }
	for k := range pod.Spec.NodeSelector {
		if about(k) {
			return true
		}
	}
	if pod.Spec.Affinity == nil || pod.Spec.Affinity.NodeAffinity == nil || pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return false
	}
	return slices.ContainsFunc(pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms, func(t corev1.NodeSelectorTerm) bool {
		return Selects(t, n) && slices.ContainsFunc(t.MatchExpressions, func(e corev1.NodeSelectorRequirement) bool { return about(e.Key) })
	})
}

// Gen makes things at random, the same for the same seed.
type Gen struct{ *rand.Rand }

// NewGen returns a generator for a seed.
func NewGen(seed uint64) Gen { return Gen{rand.New(rand.NewPCG(seed, 7))} }

func (g Gen) one(of ...string) string { return of[g.IntN(len(of))] }
func (g Gen) chance(percent int) bool { return g.IntN(100) < percent }

func (g Gen) some(most int, of ...string) []string {
	g.Shuffle(len(of), func(i, j int) { of[i], of[j] = of[j], of[i] })
	return slices.Clone(of[:1+g.IntN(min(most, len(of)))])
}

var (
	systems       = []string{"linux", "windows", "freebsd"}
	architectures = []string{"amd64", "arm64", "arm", "ppc64le", "s390x", "riscv64", "386"}
)

// Pod is a pod that the API server would take, with our gate and whatever it may have of
// affinity: none, empty, empty terms, fields, every operator, node selectors, preferences.
func (g Gen) Pod() *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n"},
		Spec: corev1.PodSpec{
			Containers:      []corev1.Container{{Name: "c", Image: "registry.example/a:v1"}},
			SchedulingGates: []corev1.PodSchedulingGate{{Name: placement.Gate}},
		},
	}
	if g.chance(30) {
		pod.Spec.SchedulingGates = append(pod.Spec.SchedulingGates, corev1.PodSchedulingGate{Name: "kueue.x-k8s.io/admission"})
		if g.chance(50) {
			slices.Reverse(pod.Spec.SchedulingGates)
		}
	}
	if g.chance(30) {
		pod.Labels = map[string]string{"app": "a"}
	}
	if g.chance(20) {
		pod.Spec.OS = &corev1.PodOS{Name: corev1.OSName(g.one("linux", "windows"))}
	}
	if g.chance(35) {
		pod.Spec.NodeSelector = map[string]string{}
		for range 1 + g.IntN(2) {
			switch g.IntN(6) {
			case 0:
				pod.Spec.NodeSelector["kubernetes.io/os"] = g.one(systems...)
			case 1:
				pod.Spec.NodeSelector["beta.kubernetes.io/os"] = g.one(systems...)
			case 2:
				pod.Spec.NodeSelector[g.one("kubernetes.io/arch", "beta.kubernetes.io/arch")] = g.one(architectures...)
			case 3:
				if g.chance(20) {
					pod.Spec.NodeSelector["node-role.kubernetes.io/control-plane"] = ""
				}
			default:
				pod.Spec.NodeSelector["zone"] = g.one("a", "b", "c")
			}
		}
	}
	if g.chance(20) {
		return pod
	}
	pod.Spec.Affinity = &corev1.Affinity{}
	if g.chance(20) {
		pod.Spec.Affinity.PodAntiAffinity = &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{
			{Weight: 3, PodAffinityTerm: corev1.PodAffinityTerm{TopologyKey: "zone", LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}}}},
		}}
	}
	if g.chance(10) {
		return pod
	}
	node := &corev1.NodeAffinity{}
	pod.Spec.Affinity.NodeAffinity = node
	if g.chance(75) {
		node.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{}
		for range 1 + g.IntN(4) {
			r := node.RequiredDuringSchedulingIgnoredDuringExecution
			r.NodeSelectorTerms = append(r.NodeSelectorTerms, g.term(15))
		}
	}
	for range g.IntN(3) {
		node.PreferredDuringSchedulingIgnoredDuringExecution = append(node.PreferredDuringSchedulingIgnoredDuringExecution,
			corev1.PreferredSchedulingTerm{Weight: 1 + g.Int32N(100), Preference: g.term(30)})
	}
	return pod
}

// term is one with arch expressions in so many of a hundred.
func (g Gen) term(architecture int) corev1.NodeSelectorTerm {
	var t corev1.NodeSelectorTerm
	for range g.IntN(4) {
		e := corev1.NodeSelectorRequirement{Operator: corev1.NodeSelectorOperator(g.one("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"))}
		var values []string
		switch kind := g.IntN(100); {
		case kind < architecture:
			e.Key, values = g.one("kubernetes.io/arch", "kubernetes.io/arch", "beta.kubernetes.io/arch"), slices.Clone(architectures)
		case kind < 50:
			e.Key, values = g.one("kubernetes.io/os", "kubernetes.io/os", "beta.kubernetes.io/os"), slices.Clone(systems)
		case kind < 75:
			e.Key, values = "zone", []string{"a", "b", "c"}
		default:
			e.Key, values = "size", []string{"0", "4", "8"}
		}
		switch e.Operator {
		case "In", "NotIn":
			e.Values = g.some(3, values...)
		case "Gt", "Lt":
			e.Values = []string{g.one("0", "4", "8")}
		}
		t.MatchExpressions = append(t.MatchExpressions, e)
	}
	if g.chance(15) {
		nodes := Nodes()
		t.MatchFields = []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOperator(g.one("In", "NotIn")), Values: []string{nodes[g.IntN(len(nodes))].Name}}}
	}
	if g.chance(10) {
		t = corev1.NodeSelectorTerm{}
		if g.chance(50) {
			t.MatchExpressions = []corev1.NodeSelectorRequirement{}
		}
	}
	return t
}

// Images are those of one pod: what registries really say, and what a hostile one might.
func (g Gen) Images() []placement.Image {
	var all []placement.Image
	for i := range 1 + g.IntN(3) {
		image := placement.Image{Name: fmt.Sprintf("registry.example/image-%d:v1", i)}
		switch g.IntN(20) {
		case 0:
			image.NoConstraint = true
		case 1:
			image.Unknown = true
		case 2: // says nothing
		default:
			for range 1 + g.IntN(8) {
				image.Platforms = append(image.Platforms, g.platform())
			}
		}
		all = append(all, image)
	}
	return all
}

func (g Gen) platform() placement.Platform {
	p := placement.Platform{OS: "linux", Architecture: g.one(architectures[:5]...)}
	switch g.IntN(12) {
	case 0, 1, 2:
		p.OS = "windows"
	case 3:
		p.OS = "freebsd"
	case 4:
		return placement.Platform{OS: "unknown", Architecture: "unknown"}
	case 5:
		return placement.Platform{OS: g.one("wasip1", "wasi", "linux"), Architecture: "wasm"}
	case 6:
		return placement.Platform{OS: g.one("linux", "Linux"), Architecture: g.one("x86_64", "aarch64", "armhf", "i386", "AMD64")}
	case 7:
		return placement.Platform{OS: g.one("linux", "", "\x00", "-", strings.Repeat("o", 70)), Architecture: g.one("", "amd64 ", "a/b", "-arm", "ä", "arm,arm64", strings.Repeat("x", 64), "${x}", "\n")}
	}
	p.Variant = g.one("", "", "v8", "v7", "v6", "v2", "\x00")
	return p
}

// Settings are an operator's.
func (g Gen) Settings() placement.Settings {
	var s placement.Settings
	for _, a := range []string{"arm64", "amd64", "s390x", "not a label"} {
		if g.chance(30) {
			s.Preferred = append(s.Preferred, weight(a, g.Int32N(120)-5))
		}
	}
	if g.chance(50) {
		s.Fallback = g.one("amd64", "arm64", "no such thing", "x86_64")
	}
	return s
}

func weight(architecture string, weight int32) v1alpha1.ArchitectureWeight {
	return v1alpha1.ArchitectureWeight{Architecture: architecture, Weight: weight}
}
