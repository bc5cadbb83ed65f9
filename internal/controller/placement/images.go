package placement

import (
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/placement"
	"github.com/stileproject/stile/internal/source"
)

// ask is what a pod wants to know of one image: whether its credentials may read it, and
// then its platforms.
type ask struct {
	name    string // the image as the pod names it
	request access.Request
	always  bool   // imagePullPolicy Always
	settled answer // set once it needs no asking, whatever the registry says
	proof   access.Proof
	facts   placement.Image // with a proof that stands
	known   bool            // facts are set
}

// state is how far an ask is.
type state uint8

const (
	waits  state = iota // for an answer
	ready               // the image is known, or known to be of no account
	denied              // the pod's credentials may not read it
	cannot              // it cannot be inspected, and waiting would not help
)

// answer is what became of an ask.
type answer struct {
	state state
	image placement.Image
	why   hint
	slow  bool // the registry was asked and has not answered in a way that counts
}

// hint is why an image cannot be inspected or read: a closed list, each with what to do.
type hint string

const (
	hintNone        hint = ""
	hintUnreadable  hint = "the credentials of the pod may not read it"
	hintNotFound    hint = "the registry has no such image for the credentials of the pod: correct its name, or its imagePullSecrets"
	hintPullSecret  hint = "one of the pod's imagePullSecrets has an entry for its registry that cannot be read: correct that Secret"
	hintInvalid     hint = "the registry cannot make sense of its name: correct it"
	hintName        hint = "its name cannot be read: correct it"
	hintNotAllowed  hint = "stile may not ask its registry: the operator allows registries by fetch.allow and registries"
	hintSecretDark  hint = "stile may not read a pull secret of the pod, without which it is refused: the operator allows namespaces by the chart's secrets values"
	hintSecretMany  hint = "the pod names more pull secrets than are read, and is refused with the first 100: name fewer"
	hintSecretCrowd hint = "the held pods of its namespace name more pull secrets than are read, and it is refused with those of the first 500: have them share Secrets"
	hintUnreachable hint = "its registry has not answered"
	hintTooMany     hint = "the namespace has as many proofs as it may: the operator sets access.maxPerNamespace"
	hintManifest    hint = "its manifest is none that stile can read: push it again with a current tool"
	hintSecretSlow  hint = "the pod's imagePullSecrets could not be read in time"
)

// asksOf returns what the pod wants to know. It is false while a Secret that the pod
// names has not been read.
func (c *Controller) asksOf(h *held) (asks []ask, read bool) {
	keys, read := c.ringsOf(h)
	if !read {
		return nil, false
	}
	for n, p := range placement.Pulls(h.pod) {
		asks = append(asks, c.ask(h, p.Image, p.Policy, n, keys))
	}
	return asks, true
}

// ask prepares the question about one image.
func (c *Controller) ask(h *held, image string, policy corev1.PullPolicy, n int, keys []*ring) ask {
	a := ask{name: image, always: policy == corev1.PullAlways}
	if policy == corev1.PullNever {
		// It is never pulled: what runs is what a node has, whatever a registry says.
		a.settled = answer{state: ready, image: placement.Image{Name: image, NoConstraint: true}}
		return a
	}
	ref, err := oci.ParseReference(image)
	if err != nil {
		a.name = shownName(image)
		a.settled = a.cannot(hintName)
		return a
	}
	credentials, why := c.credentials(ref, keys)
	if why != hintNone {
		a.settled = answer{state: denied, why: why}
		return a
	}
	trust, err := c.config.Registries.Trust(ref.Host(), h.key.Namespace)
	if err != nil {
		a.settled = a.cannot(hintNotAllowed)
		return a
	}
	a.request = access.Request{Image: ref, Credentials: credentials, Trust: trust, Holder: holderOf(h.key, n)}
	return a
}

// shownName is an image's name as its owner is told it: what cannot be read may hold a
// password, and is no name.
func shownName(image string) string {
	if _, err := oci.ParseReference(image); err != nil {
		return "an image"
	}
	return image
}

func (a *ask) cannot(why hint) answer {
	return answer{state: cannot, why: why, image: placement.Image{Name: a.name, Unknown: true}}
}

// holderOf names the n-th image of a pod among the holders of proofs. No plugin has a
// name with a slash.
func holderOf(key source.Key, n int) access.Holder {
	return access.Holder{Namespace: key.Namespace, Name: fmt.Sprintf("pods/%s/%d", key.Name, n)}
}

// inspect answers an ask from memory. What is not there is asked for in the background.
func (c *Controller) inspect(h *held, a *ask, now time.Time) answer {
	if a.settled.state != waits {
		return a.settled
	}
	if a.known && a.proof.Stands() {
		return answer{state: ready, image: a.facts}
	}
	a.known = false
	if !a.proof.Stands() {
		if no, ok := c.prove(h, a, now); !ok {
			return no
		}
	}
	facts, err := c.facts.of(a.proof, now)
	if err != nil {
		return c.withoutFacts(a, err)
	}
	a.facts, a.known = imageOf(a.name, facts), true
	return answer{state: ready, image: a.facts}
}

// prove gets the ask a proof that stands, or says why there is none.
func (c *Controller) prove(h *held, a *ask, now time.Time) (answer, bool) {
	r := a.request
	if r.Image.Digest() == "" {
		r.NotBefore = now.Add(-c.config.TagAge)
		if a.always {
			r.NotBefore = h.pod.CreationTimestamp.Time
		}
		v := c.config.Gate.Check(r)
		if v.State != access.Allowed {
			return c.refused(h, a, v), false
		}
		r.Image = r.Image.At(v.Digest)
	}
	r.NotBefore = time.Time{}
	proof, v := c.config.Gate.Hold(r)
	if v.State != access.Allowed {
		return c.refused(h, a, v), false
	}
	a.proof = proof
	return answer{}, true
}

// refused says what a verdict other than a yes means for a pod.
func (c *Controller) refused(h *held, a *ask, v access.Verdict) answer {
	switch {
	case v.Reason == access.SourceNotAllowed:
		return a.cannot(hintNotAllowed)
	case v.State == access.Denied && h.dark:
		// What was refused may be for want of a Secret that the kubelet can read.
		return a.cannot(hintSecretDark)
	case v.State == access.Denied && h.many:
		return a.cannot(hintSecretMany)
	case v.State == access.Denied && h.crowded:
		return a.cannot(hintSecretCrowd)
	case v.State == access.Denied && v.Reason == access.ImageNotFound:
		return answer{state: denied, why: hintNotFound}
	case v.State == access.Denied && v.Reason == access.Invalid:
		return answer{state: denied, why: hintInvalid}
	case v.State == access.Denied:
		return answer{state: denied, why: hintUnreadable}
	case v.Reason == access.TooManyProofs:
		return answer{why: hintTooMany, slow: true}
	}
	return answer{why: hintUnreachable, slow: v.State == access.Unknown}
}

// withoutFacts says what it means for a pod that the facts are not there.
func (c *Controller) withoutFacts(a *ask, err error) answer {
	problem, ok := errors.AsType[*content.Problem](err)
	if !ok {
		return answer{why: hintUnreachable}
	}
	switch problem.Reason {
	case content.ReasonUnauthorized:
		return answer{state: denied, why: hintUnreadable}
	case content.ReasonImageNotFound:
		return answer{state: denied, why: hintNotFound}
	case content.ReasonModuleInvalid, content.ReasonModuleTooLarge:
		return a.cannot(hintManifest)
	case content.ReasonSourceNotAllowed:
		return a.cannot(hintNotAllowed)
	}
	return answer{why: hintUnreachable, slow: true}
}

func imageOf(name string, f content.Facts) placement.Image {
	image := placement.Image{Name: name, NoConstraint: f.Bundle}
	for _, p := range f.Platforms {
		image.Platforms = append(image.Platforms, placement.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant})
	}
	return image
}
