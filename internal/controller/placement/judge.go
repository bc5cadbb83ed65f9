package placement

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/stileproject/stile/internal/controller/gate"
	"github.com/stileproject/stile/internal/placement"
	"github.com/stileproject/stile/internal/source"
)

// held is one pod that carries the gate.
type held struct {
	key     source.Key
	pod     *corev1.Pod // stripped, as it was seen last
	since   time.Time   // since when this replica, leading, has known it
	secrets []source.Key
	dark    bool // a Secret that it names may not be read
	many    bool // it names more Secrets than are read
	crowded bool // its namespace does, and one of its own is among those that are not
	asks    []ask
	told    bool // that it waits

	patching bool      // its patch is under way
	plain    bool      // the API server refused what was decided: nothing but the gate goes
	conflict string    // the resourceVersion for which a patch came too late, as the answer had it
	repeated int       // times that the answer was the same for that resourceVersion
	againAt  time.Time // when it is patched anew, though the watch shows no other version
	retryAt  time.Time // when a patch that failed is tried again
	failures int
	done     bool // it was let go: what still comes of it is from before
}

// minWait is how long a pod is held at least that was there before the controller began:
// whoever starts anew asks before giving up.
const minWait = time.Minute

// tellAfter is how long a pod waits at most until its owner is told, though no registry
// has failed to answer yet: one question may take three times as long.
const tellAfter = 10 * time.Second

// deadline is until when the pod waits for answers.
func (c *Controller) deadline(h *held) time.Time {
	end := h.pod.CreationTimestamp.Add(c.config.MaxWait)
	if least := h.since.Add(min(minWait, c.config.MaxWait)); least.After(end) {
		return least
	}
	return end
}

// pass takes what is new and decides about the pods that it concerns. It returns how long
// there is nothing to do if nothing changes.
func (c *Controller) pass(now time.Time) time.Duration {
	leads := c.config.Leads == nil || c.config.Leads()
	if leads != c.leading {
		c.lead(leads)
	}
	news, synced := c.inbox.take()
	for key, pod := range news {
		c.see(key, pod, now)
	}
	c.takeResults(now)
	defer c.measure(synced)
	c.followSecrets(now)
	c.takeChangedSecrets(now)
	if !c.leading {
		clear(c.dirty)
		return look
	}
	// Every second all that wait are looked at, for what comes with time alone: deadlines,
	// and what failed and may be tried again.
	next := look
	if c.facts.moved() || c.all || now.Sub(c.swept) >= look {
		c.all, c.swept = false, now
		for _, h := range c.waiting {
			next = min(next, c.judge(h, now))
		}
	} else {
		for key := range c.dirty {
			if h := c.waiting[key]; h != nil {
				next = min(next, c.judge(h, now))
			}
		}
	}
	clear(c.dirty)
	return next
}

// lead begins or ends letting pods go.
func (c *Controller) lead(leads bool) {
	c.leading, c.all = leads, true
	now := time.Now()
	for _, h := range c.pods {
		h.since = now
		if !leads {
			c.release(h)
			h.asks = nil
		}
	}
}

// see takes what is new of a pod; nil = it is gone, or carries our gate no more.
func (c *Controller) see(key source.Key, pod *corev1.Pod, now time.Time) {
	h := c.pods[key]
	if h != nil && (pod == nil || pod.UID != h.pod.UID) {
		c.untrack(h)
		h = nil
	}
	if pod == nil || pod.DeletionTimestamp != nil {
		// One that is being deleted runs nowhere any more, whatever holds up its end.
		if h != nil {
			c.untrack(h)
		}
		return
	}
	if h == nil {
		h = &held{key: key, pod: pod, since: now}
		h.secrets = c.secretKeys(h)
		for _, k := range h.secrets {
			c.named(k).pods++
		}
		c.pods[key], c.waiting[key] = h, h
	}
	h.pod = pod
	c.dirty[key] = struct{}{}
}

// untrack forgets a pod.
func (c *Controller) untrack(h *held) {
	c.release(h)
	delete(c.pods, h.key)
	delete(c.waiting, h.key)
	if !h.done {
		c.leaveSecrets(h)
	}
}

// leaveSecrets notes that the pod no longer waits for what its Secrets say.
func (c *Controller) leaveSecrets(h *held) {
	for _, k := range h.secrets {
		if r := c.rings[k]; r != nil {
			r.pods--
			r.lastly = time.Now()
		}
	}
}

// release gives back the pod's proofs: they stand no longer.
func (c *Controller) release(h *held) {
	for i := range h.asks {
		if a := &h.asks[i]; a.request.Holder.Name != "" {
			c.config.Gate.Release(a.request.Holder)
		}
	}
}

// judge decides about one pod, if it can be decided, and returns in what time it is to be
// looked at again at the latest.
func (c *Controller) judge(h *held, now time.Time) time.Duration {
	switch {
	case h.done || h.patching:
		return look
	case now.Before(h.retryAt):
		return h.retryAt.Sub(now)
	case h.conflict != "" && h.conflict == h.pod.ResourceVersion && now.Before(h.againAt):
		return h.againAt.Sub(now) // until then the watch brings what the API server has by now
	}
	if gate.Reserved(h.key.Namespace, c.config.Namespace) {
		c.letGo(h, verdict{Decision: leftAlone("ReservedNamespace")})
		return look
	}
	if reason, out := placement.Excluded(h.pod); out {
		c.letGo(h, verdict{Decision: leftAlone(reason)})
		return look
	}
	left := c.deadline(h).Sub(now)
	v, decided := c.decide(h, now, left <= 0)
	if !decided {
		return max(0, left)
	}
	c.letGo(h, v)
	return look
}

func leftAlone(reason string) placement.Decision {
	return placement.Decision{Outcome: placement.LeftAlone, Reason: reason}
}

// verdict is a decision and why it is none better.
type verdict struct {
	placement.Decision
	why hint
}

// decide says what becomes of a pod. Whoever is refused one image is let go at once:
// nothing that is known of any image is for a pod that cannot run. late takes what is not
// known by now for unknown.
func (c *Controller) decide(h *held, now time.Time, late bool) (verdict, bool) {
	if h.asks == nil {
		asks, read := c.asksOf(h)
		if !read && !late {
			return verdict{}, false
		}
		if !read {
			unknown := []placement.Image{{Name: shownName(h.pod.Spec.Containers[0].Image), Unknown: true}}
			return verdict{placement.Decide(h.pod, unknown, c.config.Settings), hintSecretSlow}, true
		}
		h.asks = asks
	}
	var images []placement.Image
	var open, slow, why hint
	var first, asked *ask // of those that wait, and of those whose registry is slow
	for i := range h.asks {
		a := &h.asks[i]
		got := c.inspect(h, a, now)
		switch got.state {
		case denied:
			return verdict{placement.Denied(a.name), got.why}, true
		case waits:
			if first == nil {
				first, open = a, got.why
			}
			if got.slow && asked == nil {
				asked, slow = a, got.why
			}
			images = append(images, placement.Image{Name: a.name, Unknown: true})
		case cannot:
			why = got.why
			images = append(images, got.image)
		case ready:
			images = append(images, got.image)
		}
	}
	if open != hintNone {
		if !late {
			if asked == nil && now.Sub(h.since) >= tellAfter {
				asked, slow = first, open // the first answer is still to come
			}
			if asked != nil && !h.told {
				h.told = true
				c.events.tell(h.pod, corev1.EventTypeNormal, ReasonWaiting,
					fmt.Sprintf("%s: %s; the pod is held for at most %s", asked.name, slow, c.config.MaxWait))
			}
			return verdict{}, false
		}
		why = open
		if asked != nil {
			why = slow
		}
	}
	return verdict{placement.Decide(h.pod, images, c.config.Settings), why}, true
}

// standing reports whether the proofs that a decision rests on still stand.
func standing(asks []ask) bool {
	for i := range asks {
		if asks[i].known && !asks[i].proof.Stands() {
			return false
		}
	}
	return true
}

// measure tells the metrics what is held.
func (c *Controller) measure(synced bool) {
	if !synced {
		return
	}
	var n int
	var oldest time.Time
	for _, h := range c.waiting {
		if h.done {
			continue
		}
		n++
		if at := h.pod.CreationTimestamp.Time; oldest.IsZero() || at.Before(oldest) {
			oldest = at
		}
	}
	c.metrics.holds(n, oldest)
}
