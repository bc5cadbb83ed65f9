package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Limits of what is taken from an image: no system or architecture has so long a name,
// and what is written into each term of a pod has to fit into a request. What is beyond
// them is left out, which can only narrow.
const (
	maxWord          = 32
	maxSystems       = 8
	maxArchitectures = 32
)

// Other names of architectures, as container runtimes read them. Nodes have Go's.
var architectures = map[string]string{
	"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm", "armel": "arm",
	"i386": "386", "i486": "386", "i586": "386", "i686": "386",
}

// wasm reports an architecture that no node has: what runs such a module is a matter of
// the runtime class, on nodes of any architecture.
func wasm(architecture string) bool {
	return architecture == "wasm" || architecture == "wasm32" || architecture == "wasm64"
}

// normal returns a platform as nodes name it, without its variant, of which nodes say
// nothing. False: no node can have it.
func normal(p Platform) (Platform, bool) {
	os, arch := strings.ToLower(p.OS), strings.ToLower(p.Architecture)
	if other, ok := architectures[arch]; ok {
		arch = other
	}
	return Platform{OS: os, Architecture: arch}, word(os) && word(arch)
}

// word reports whether s may be the value of a node's label that names a system or an
// architecture: letters and digits, and between them also hyphens, dots and underscores.
func word(s string) bool {
	if s == "" || len(s) > maxWord {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case (c == '-' || c == '.' || c == '_') && i > 0 && i < len(s)-1:
		default:
			return false
		}
	}
	return true
}

func unknown(p Platform) bool { return p.OS == "unknown" || p.Architecture == "unknown" }

// platforms returns the pairs of system and architecture on which the image runs, sorted,
// each once, and whether they restrict anything.
func (i Image) platforms() ([]Platform, bool) {
	if i.NoConstraint || i.Unknown {
		return nil, false
	}
	restricts := false
	var all []Platform
	for _, p := range i.Platforms {
		if unknown(p) || wasm(p.Architecture) {
			continue
		}
		restricts = true
		if p, ok := normal(p); ok {
			all = append(all, p)
		}
	}
	return bounded(sorted(all)), restricts
}

func compare(a, b Platform) int {
	return cmp.Or(cmp.Compare(a.OS, b.OS), cmp.Compare(a.Architecture, b.Architecture))
}

func sorted(all []Platform) []Platform {
	slices.SortFunc(all, compare)
	return slices.Compact(all)
}

// bounded holds what an image claims to the limits. Linux and Windows, the systems that
// Kubernetes knows, come before others.
func bounded(all []Platform) []Platform {
	if len(all) <= maxSystems {
		return all
	}
	systems := systemsIn(all)
	slices.SortStableFunc(systems, func(a, b string) int { return cmp.Compare(rank(a), rank(b)) })
	systems = systems[:min(len(systems), maxSystems)]
	count := map[string]int{}
	return slices.DeleteFunc(all, func(p Platform) bool {
		count[p.OS]++
		return count[p.OS] > maxArchitectures || !slices.Contains(systems, p.OS)
	})
}

// rank orders systems by how likely it is that a node has them.
func rank(system string) int {
	switch system {
	case "linux":
		return 0
	case "windows":
		return 1
	}
	return 2
}

// intersect returns the pairs on which all images run, whether any image restricts them
// at all, and the first image that could not be inspected, if there is one.
func intersect(images []Image) (common []Platform, confined bool, unknown string) {
	for _, i := range images {
		if i.Unknown && unknown == "" {
			unknown = i.Name
		}
		have, restricts := i.platforms()
		switch {
		case !restricts:
		case !confined:
			common, confined = have, true
		default:
			common = slices.DeleteFunc(common, func(p Platform) bool { return !slices.Contains(have, p) })
		}
	}
	return common, confined, unknown
}

// systemsOf returns the systems that the pod asks for outside its affinity; none: any.
// Two that differ leave no node, and are both returned.
func systemsOf(pod *corev1.Pod) []string {
	var all []string
	if pod.Spec.OS != nil && pod.Spec.OS.Name != "" {
		all = append(all, string(pod.Spec.OS.Name))
	}
	for key, value := range pod.Spec.NodeSelector {
		if isSystem(key) {
			all = append(all, value)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// restrict returns the pairs that all the systems admit.
func restrict(all []Platform, systems []string) []Platform {
	for _, system := range systems {
		var left []Platform
		for _, p := range all {
			if p.OS == "" || p.OS == system {
				left = append(left, Platform{OS: system, Architecture: p.Architecture})
			}
		}
		all = left
	}
	return all
}

// block is systems and architectures that go together: each pair of them is possible.
// It is what one term can say.
type block struct{ systems, architectures []string }

// blocks cuts pairs into blocks that cover exactly them, one for the systems that have
// the same architectures.
func blocks(all []Platform) []block {
	var cut []block
	for _, system := range systemsIn(all) {
		have := architecturesOf(all, system)
		i := slices.IndexFunc(cut, func(b block) bool { return slices.Equal(b.architectures, have) })
		if i < 0 {
			cut = append(cut, block{architectures: have})
			i = len(cut) - 1
		}
		cut[i].systems = append(cut[i].systems, system)
	}
	return cut
}

// widest returns the one block that stands for pairs where no second term may be made:
// around Linux if the images run there, for a pod that means another system has to say so
// in any case; else around the system with most architectures. Whatever other system has
// all of these is in it, so that nothing could be added to it.
func widest(all []Platform) block {
	systems := systemsIn(all)
	if len(systems) == 0 {
		return block{}
	}
	first := slices.MinFunc(systems, func(a, b string) int {
		if c := cmp.Compare(min(rank(a), 1), min(rank(b), 1)); c != 0 {
			return c
		}
		return cmp.Compare(len(architecturesOf(all, b)), len(architecturesOf(all, a)))
	})
	b := block{architectures: architecturesOf(all, first)}
	for _, system := range systems {
		have := architecturesOf(all, system)
		if !slices.ContainsFunc(b.architectures, func(a string) bool { return !slices.Contains(have, a) }) {
			b.systems = append(b.systems, system)
		}
	}
	return b
}

// pairs returns what the block says, sorted if its lists are.
func (b block) pairs() []Platform {
	var all []Platform
	for _, system := range b.systems {
		for _, architecture := range b.architectures {
			all = append(all, Platform{OS: system, Architecture: architecture})
		}
	}
	return all
}

// systemsIn returns the systems of sorted pairs.
func systemsIn(all []Platform) []string {
	var names []string
	for _, p := range all {
		if len(names) == 0 || names[len(names)-1] != p.OS {
			names = append(names, p.OS)
		}
	}
	return names
}

// architecturesOf returns those that go with a system, of sorted pairs.
func architecturesOf(all []Platform, system string) []string {
	var names []string
	for _, p := range all {
		if p.OS == system {
			names = append(names, p.Architecture)
		}
	}
	return names
}

// notes says of which images only some CPUs of an architecture may run: nodes say
// nothing of variants, so that these cannot be told apart.
func notes(images []Image) []string {
	var all []string
	for _, i := range images {
		if i.NoConstraint || i.Unknown {
			continue
		}
		special, plain := map[Platform][]string{}, map[Platform]bool{}
		for _, p := range i.Platforms {
			n, ok := normal(p)
			variant := strings.ToLower(p.Variant)
			switch {
			case !ok || unknown(p) || wasm(p.Architecture):
			case baseline(n.Architecture, variant):
				plain[n] = true
			case word(variant):
				special[n] = append(special[n], variant)
			}
		}
		for p, variants := range special {
			if !plain[p] {
				slices.Sort(variants)
				all = append(all, fmt.Sprintf("%s is made for %s of variant %s: nodes do not tell their variant, so that each %s node is taken to have it",
					clip(i.Name), p, strings.Join(slices.Compact(variants), ", "), p))
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// baseline reports a variant that each CPU of the architecture has.
func baseline(architecture, variant string) bool {
	return variant == "" || architecture == "amd64" && variant == "v1" || architecture == "arm64" && variant == "v8"
}
