// Package placement decides where a pod may go: a pod and the platforms of its images in,
// node affinity out. Its one rule: what comes out only ever narrows what the pod's author
// wrote, in ways that the API server lets a gated pod be narrowed, and leaves in no node
// that is known to be unable to run one of the images.
package placement

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"

	"github.com/stileproject/stile/api/v1alpha1"
)

// Gate is the scheduling gate that holds a pod until it has been decided about.
const Gate = "stile.dev/architecture"

// Label is put on a pod that was decided about; its value is the Outcome.
const Label = "stile.dev/placement"

// Platform is one that an image was made for, as its manifest says: a stranger's words.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

// String returns os/architecture, or the architecture alone where any system will do.
func (p Platform) String() string {
	if p.OS == "" {
		return p.Architecture
	}
	return p.OS + "/" + p.Architecture
}

// Image is one image of a pod and what is known of it.
type Image struct {
	// Name is the image as the pod names it, for messages.
	Name string
	// Platforms that it was made for. None: it names none, which restricts nothing.
	Platforms []Platform
	// NoConstraint reports that its platforms do not count: an operator bundle runs nowhere.
	NoConstraint bool
	// Unknown reports that it could not be inspected: the fallback counts.
	Unknown bool
}

// Settings are what the operator wants. The zero value prefers nothing and falls back on
// nothing.
type Settings struct {
	// Preferred architectures, for pods that have a choice. What is no label value or no
	// weight from 1 to 100 is passed over.
	Preferred []v1alpha1.ArchitectureWeight
	// Fallback is the architecture that is assumed of an image that is Unknown; empty: none is.
	Fallback string
}

// Outcome is how a decision came out: a closed list, fit for a metric's label.
type Outcome string

// The outcomes.
const (
	// Placed: the pod may go where all its images run.
	Placed Outcome = "Placed"
	// NotConstrained: the images run anywhere, or do not say where.
	NotConstrained Outcome = "NotConstrained"
	// NoCommonPlatform: no node can run all images; the pod stays, visibly unschedulable.
	NoCommonPlatform Outcome = "NoCommonPlatform"
	// FellBack: an image could not be inspected, and the fallback architecture was taken.
	FellBack Outcome = "FellBack"
	// NotInspected: an image could not be inspected, and no fallback applied. What is
	// known of the other images still counts.
	NotInspected Outcome = "NotInspected"
	// NotAllowed: the pod's credentials may not read an image; nothing is set.
	NotAllowed Outcome = "NotAllowed"
	// LeftAlone: placement has no say about such a pod (see Excluded); nothing is set.
	LeftAlone Outcome = "LeftAlone"
)

// Decision is what becomes of a pod. Its zero value changes nothing but the gate.
type Decision struct {
	Outcome Outcome
	// Reason is the Outcome, or of LeftAlone why: a closed list, fit for an event.
	Reason string
	// Message says it to people. It holds image names of the pod and checked platform
	// names; at most 800 bytes.
	Message string
	// Platforms are the pairs of system and architecture that the pod may go to, sorted.
	// None: any, or no node at all if the outcome is NoCommonPlatform.
	Platforms []Platform
	// Required and Preferred are what the pod's node affinity becomes where it changes;
	// nil: as it is.
	Required  *corev1.NodeSelector
	Preferred []corev1.PreferredSchedulingTerm
	// Labels are set on the pod; nil: none.
	Labels map[string]string
	// Notes are what one should know besides, for "stile placement explain".
	Notes []string
}

// Decide says what becomes of a pod whose images are these, of all its containers, init
// containers and image volumes. Equal arguments give equal decisions; the arguments are
// not changed and nothing in the decision is shared with them. Deciding again about what
// was applied changes nothing more.
func Decide(pod *corev1.Pod, images []Image, s Settings) Decision {
	if reason, message, out := excluded(pod); out {
		return Decision{Outcome: LeftAlone, Reason: reason, Message: message}
	}
	common, confined, unknown := intersect(images)
	common = restrict(common, systemsOf(pod))
	d := Decision{Notes: notes(images)}
	switch {
	case confined && len(common) == 0:
		return d.stranded(pod, noneInCommon(pod, images))
	case unknown != "":
		return d.withoutInspection(pod, common, confined, unknown, s.Fallback)
	case !confined:
		d.Preferred = prefer(pod, nil, s.Preferred)
		return d.end(NotConstrained, "its images restrict nothing: none of them names a platform")
	}
	if !d.confine(pod, common) {
		return d.stranded(pod, fmt.Sprintf("its images run on %s, and the pod's own node affinity leaves none of these", list(common)))
	}
	d.Preferred = prefer(pod, d.Platforms, s.Preferred)
	return d.end(Placed, fmt.Sprintf("%s on %s", runs(images), list(common))+d.narrower(common))
}

// Denied is the decision about a pod whose credentials may not read an image: its gate
// goes, and nothing is said of any image. Its own pull will tell.
func Denied(image string) Decision {
	return Decision{}.end(NotAllowed, fmt.Sprintf("the pod's credentials may not read %s: nothing is set, and its pull will fail the same way; correct its imagePullSecrets", clip(image)))
}

// withoutInspection decides where an image could not be looked into. The fallback is a
// guess: it gives way to what is known, and never leaves a pod without any node.
func (d Decision) withoutInspection(pod *corev1.Pod, common []Platform, confined bool, unknown, fallback string) Decision {
	could := fmt.Sprintf("%s could not be inspected", clip(unknown))
	guess, usable := normal(Platform{OS: "linux", Architecture: fallback})
	var wanted []Platform
	switch {
	case !usable:
	case !confined:
		wanted = restrict([]Platform{{Architecture: guess.Architecture}}, systemsOf(pod))
	default:
		wanted = slices.DeleteFunc(slices.Clone(common), func(p Platform) bool { return p.Architecture != guess.Architecture })
	}
	if len(wanted) > 0 && d.confine(pod, wanted) {
		return d.end(FellBack, fmt.Sprintf("%s: the fallback architecture %s is assumed of it", could, guess.Architecture))
	}
	if !confined {
		return d.end(NotInspected, could+": nothing is set")
	}
	if !d.confine(pod, common) {
		return d.stranded(pod, fmt.Sprintf("the other images run on %s, and the pod's own node affinity leaves none of these", list(common)))
	}
	return d.end(NotInspected, fmt.Sprintf("%s; the other images run on %s", could, list(common))+d.narrower(common))
}

// stranded ends in a term that no node satisfies, so that the pod stays in sight.
func (d Decision) stranded(pod *corev1.Pod, why string) Decision {
	d.Required, d.Platforms = unsatisfiable(pod), nil
	return d.end(NoCommonPlatform, why+": no node can run the pod as it is")
}

func (d Decision) end(o Outcome, message string) Decision {
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "") + "…"
	}
	d.Outcome, d.Reason, d.Message = o, string(o), message
	d.Labels = map[string]string{Label: string(o)}
	return d
}

// narrower says it where the pod's own terms could not hold all that is possible.
func (d Decision) narrower(common []Platform) string {
	if slices.Equal(d.Platforms, common) {
		return ""
	}
	return fmt.Sprintf("; within the pod's own node affinity that is %s", list(d.Platforms))
}

// Limits of messages.
const (
	maxListed  = 8
	maxName    = 80
	maxMessage = 790 // an event's note has room for 1,024
)

// runs begins the message about a pod that is placed.
func runs(images []Image) string {
	if len(images) == 1 {
		return "its image runs"
	}
	return fmt.Sprintf("its %d images run", len(images))
}

// noneInCommon says of each image where it runs.
func noneInCommon(pod *corev1.Pod, images []Image) string {
	const most = 4
	var parts []string
	for _, i := range images {
		if have, restricts := i.platforms(); restricts {
			parts = append(parts, fmt.Sprintf("%s runs on %s", clip(i.Name), list(have)))
		}
	}
	slices.Sort(parts)
	parts = slices.Compact(parts)
	if n := len(parts); n > most {
		parts = append(parts[:most], fmt.Sprintf("%d more images run elsewhere", n-most))
	}
	if systems := systemsOf(pod); len(systems) > 0 {
		parts = append(parts, "the pod asks for "+strings.Join(systems, " and "))
	}
	return strings.Join(parts, ", ")
}

// list names platforms for a message.
func list(all []Platform) string {
	if len(all) == 0 {
		return "no platform that a node can have"
	}
	var names []string
	for _, p := range all[:min(len(all), maxListed)] {
		names = append(names, p.String())
	}
	if n := len(all) - maxListed; n > 0 {
		names = append(names, fmt.Sprintf("%d more", n))
	}
	return strings.Join(names, ", ")
}

// clip makes an image's name, which may be any text, fit for a message.
func clip(s string) string {
	if len(s) > maxName {
		s = s[:maxName] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsGraphic(r) {
			return '?'
		}
		return r
	}, s)
}
