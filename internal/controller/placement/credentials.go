package placement

import (
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/source"
)

// user is who wants Secrets, among those who do.
const user = "placement"

// linger is how long a Secret is followed after the last pod that named it, so that a
// burst of replicas reads it once; and maxLinger how many of those at most.
const (
	linger    = 30 * time.Second
	maxLinger = 1000
	maxRings  = 10_000
)

// maxNamed is how many Secrets of one pod are read: each is a watch of its own, and a pod
// has room for tens of thousands of names; maxFollowed how many of one namespace.
const (
	maxNamed    = 100
	maxFollowed = 500
)

// ring is a pull secret as pods use it.
type ring struct {
	key    source.Key
	from   *document.Secret // as it was read last; nil = there is none, or it may not be read
	read   bool
	dark   bool // it may not be read
	broken bool // no kubelet could read it
	ring   oci.Keyring
	// used are the credentials of it that were asked with, each with an image.
	used   map[secret.Fingerprint]oci.Reference
	pods   int  // that wait and name it
	beyond bool // it is one too many of its namespace, and counts as one that is not there
	lastly time.Time
}

// named returns what is kept of a Secret.
func (c *Controller) named(key source.Key) *ring {
	r := c.rings[key]
	if r == nil {
		r = &ring{key: key, used: map[secret.Fingerprint]oci.Reference{}}
		c.rings[key] = r
	}
	return r
}

// ringOf returns what is known of a Secret, and takes up what has changed.
func (c *Controller) ringOf(key source.Key, now time.Time) *ring {
	r := c.named(key)
	r.lastly = now
	s, known := c.config.Secrets.Get(key)
	if !known {
		r.read = false
		return r
	}
	if r.read && r.from == s && s != nil {
		return r
	}
	r.read, r.from, r.broken, r.ring = true, s, false, oci.Keyring{}
	r.dark = s == nil && c.config.Secrets.Why(key) != nil
	if s != nil && oci.IsPullSecret(s.Type, s.Data) {
		var err error
		if r.ring, err = oci.ParsePullSecret(c.config.Fingerprints, "pull secret "+key.String(), s.Type, s.Data); err != nil {
			r.broken = true
		}
	}
	c.forget(r)
	return r
}

// forget ends what was learned with credentials that the Secret no longer has, and what
// is being asked with them. Others who hold proofs by the same credentials keep them.
func (c *Controller) forget(r *ring) {
	for fp, image := range r.used {
		now, err := r.ring.For(image)
		if err == nil && slices.ContainsFunc(now.Candidates(), func(o oci.Credential) bool { return o.Fingerprint() == fp }) {
			continue
		}
		delete(r.used, fp)
		c.config.Gate.Forget(fp, access.Holder{Namespace: r.key.Namespace, Name: "pods"})
	}
}

// secretKeys returns the Secrets that a pod names, each once, then the cluster-wide one. A
// pod may name what no Secret can be called: there is none, and nobody is asked for it.
func (c *Controller) secretKeys(h *held) []source.Key {
	var keys []source.Key
	for _, s := range h.pod.Spec.ImagePullSecrets {
		if k := (source.Key{Namespace: h.key.Namespace, Name: s.Name}); len(validation.IsDNS1123Subdomain(s.Name)) == 0 && !slices.Contains(keys, k) {
			if len(keys) == maxNamed {
				h.many = true
				break
			}
			keys = append(keys, k)
		}
	}
	if k := c.config.PullSecret; k.Name != "" && !slices.Contains(keys, k) {
		keys = append(keys, k)
	}
	return keys
}

// ringsOf returns the pull secrets of a pod, the cluster-wide one last. It is false while
// one has not been read.
func (c *Controller) ringsOf(h *held) (all []*ring, read bool) {
	now := time.Now()
	h.dark, h.crowded, read = false, false, true
	for _, key := range h.secrets {
		if c.named(key).beyond {
			h.crowded = true
			continue
		}
		r := c.ringOf(key, now)
		read = read && r.read
		h.dark = h.dark || r.dark && key != c.config.PullSecret
		all = append(all, r)
	}
	return all, read
}

// credentials returns what is tried for an image: of the pod's own Secrets what the
// kubelet would try, then what the cluster-wide one has. A Secret that lacks is passed
// over; one of the pod's own with an entry for this registry that cannot be read is what
// the kubelet fails on.
func (c *Controller) credentials(ref oci.Reference, rings []*ring) (oci.Credentials, hint) {
	var own []oci.Keyring
	var shared *ring
	for _, r := range rings {
		switch {
		case r.key == c.config.PullSecret:
			shared = r
		case r.broken:
			return oci.Credentials{}, hintPullSecret
		default:
			own = append(own, r.ring)
		}
	}
	all, err := oci.JoinKeyrings(own...).For(ref)
	if err != nil {
		return oci.Credentials{}, hintPullSecret
	}
	list := slices.Clone(all.Candidates())
	if shared != nil && !shared.broken {
		if more, err := shared.ring.For(ref); err == nil {
			list = append(list, more.Candidates()...)
		} else {
			c.log.Warn("the cluster-wide pull secret has an entry that cannot be used", "secret", shared.key.String(), "host", ref.Host())
		}
	}
	for _, r := range rings {
		if r.broken {
			continue
		}
		if has, err := r.ring.For(ref); err == nil {
			for _, candidate := range has.Candidates() {
				if !candidate.Anonymous() {
					r.used[candidate.Fingerprint()] = ref
				}
			}
		}
	}
	return oci.NewCredentials(c.config.Fingerprints, list...), hintNone
}

// takeChangedSecrets has the pods that name a changed Secret begin anew: what they were
// told on the credentials before is not kept.
func (c *Controller) takeChangedSecrets(now time.Time) {
	c.secrets.Lock()
	var changed map[source.Key]struct{}
	if len(c.secrets.changed) > 0 {
		changed, c.secrets.changed = c.secrets.changed, map[source.Key]struct{}{}
	}
	c.secrets.Unlock()
	if changed == nil {
		return
	}
	for _, h := range c.pods {
		if slices.ContainsFunc(h.secrets, func(k source.Key) bool { _, ok := changed[k]; return ok }) {
			c.release(h)
			h.asks = nil
			c.dirty[h.key] = struct{}{}
		}
	}
	for key := range changed {
		if r := c.rings[key]; r != nil {
			lastly := r.lastly
			c.ringOf(key, now)
			r.lastly = lastly
		}
	}
}

// toFollow returns which Secrets are to be followed: the cluster-wide one, those of pods
// that wait, and those that pods named lately; of each namespace so many, and those first
// that are followed already, so that nobody's is dropped for another's.
func (c *Controller) toFollow(now time.Time) map[source.Key]struct{} {
	want := map[source.Key]struct{}{}
	if !c.leading {
		return want
	}
	if k := c.config.PullSecret; k.Name != "" {
		want[k] = struct{}{}
	}
	share := map[string]int{}
	follow := func(key source.Key) bool {
		if _, ok := want[key]; ok {
			return true
		}
		if share[key.Namespace] >= maxFollowed {
			return false
		}
		share[key.Namespace]++
		want[key] = struct{}{}
		return true
	}
	for key := range c.wanted {
		if r := c.rings[key]; r != nil && r.pods > 0 {
			follow(key)
		}
	}
	for _, h := range c.waiting { // pod by pod, so that there are some that lack none
		for _, key := range h.secrets {
			follow(key)
		}
	}
	for key, r := range c.rings {
		if r.pods == 0 {
			if r.beyond && len(r.used) == 0 {
				delete(c.rings, key) // nothing was read of it
			}
			r.beyond = false
			continue
		}
		before := r.beyond
		_, followed := want[key]
		if r.beyond = !followed; before && followed {
			c.secretChanged(key) // whoever names it begins anew, and now it counts
		}
	}
	lingering := 0
	for key, r := range c.rings {
		if _, ok := c.wanted[key]; ok && r.pods == 0 && now.Sub(r.lastly) < linger && lingering < maxLinger && follow(key) {
			lingering++
		}
	}
	return want
}

// followSecrets has the Secrets followed that are to be.
func (c *Controller) followSecrets(now time.Time) {
	want := c.toFollow(now)
	same := len(want) == len(c.wanted)
	for key := range want {
		if _, ok := c.wanted[key]; !ok {
			same = false
		}
	}
	if same {
		return
	}
	keys := make([]source.Key, 0, len(want))
	for key := range want {
		keys = append(keys, key)
	}
	c.wanted = want
	c.config.Secrets.Want(user, keys)
	for key, r := range c.rings {
		switch _, ok := want[key]; {
		case ok:
		case r.pods == 0 && (len(r.used) == 0 || len(c.rings) > maxRings):
			delete(c.rings, key)
		default:
			r.read = false // it is read anew when it is named again, or this replica leads again
		}
	}
}
