package engine

import (
	"fmt"
	"strings"
	"time"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
)

// Condition is one condition of a plugin, as Kubernetes writes them.
type Condition struct {
	Type               string    `json:"type"`
	Status             string    `json:"status"` // True, False or Unknown
	Reason             string    `json:"reason"`
	Message            string    `json:"message"`
	ObservedGeneration int64     `json:"observedGeneration"`
	LastTransitionTime time.Time `json:"lastTransitionTime"` // when Status last changed
}

// PluginStatus is what has become of one plugin: an item of /api/v1/plugins.
type PluginStatus struct {
	Namespace       string      `json:"namespace"`
	Name            string      `json:"name"`
	Generation      int64       `json:"generation"`
	URL             string      `json:"url"` // query values shown as "…"
	Conditions      []Condition `json:"conditions"`
	Digest          string      `json:"digest"`       // manifest digest of what is served, "" if none
	ModuleSHA256    string      `json:"moduleSHA256"` // of what is served, "" if none
	Size            int64       `json:"size"`         // bytes of the module that is served
	ServingLastGood bool        `json:"servingLastGood"`
	Pending         *Wanted     `json:"pending,omitempty"` // beside ServingLastGood
	Delivery        string      `json:"delivery"`          // inline, remote, file or standin: what proxies have that have the plugin
	Proxies         xds.Counts  `json:"proxies"`
	Downloads       int64       `json:"downloads"` // of the module that is served, since the start
	LastCheckedTime *time.Time  `json:"lastCheckedTime"`
	NextCheckTime   *time.Time  `json:"nextCheckTime"`

	// Resolved is what the tag of the plugin's url was resolved to, "" if it has none.
	Resolved string `json:"resolved,omitempty"`
	// ServedGeneration is the generation of the spec that what is served was made from.
	ServedGeneration int64 `json:"servedGeneration,omitempty"`
	// Epoch is part of what module URLs are made from, and ServedEpoch that of what is
	// served: an earlier one where the right to it has ended.
	Epoch       uint64 `json:"epoch,omitempty"`
	ServedEpoch uint64 `json:"servedEpoch,omitempty"`

	// UID is of the object that all this is said of: one that is deleted and made anew has the
	// same name and the same generation. "" where there are no such objects.
	UID string `json:"-"`

	images []oci.Reference // for Images
}

// Wanted is the version that cannot be had while the last good one is served.
type Wanted struct {
	Digest string `json:"digest"`
	Reason string `json:"reason"`
}

// Plugins returns the status of every plugin, sorted by namespace and name. The
// counts of proxies are those of now.
func (e *Engine) Plugins() []PluginStatus {
	list := *e.status.Load()
	out := make([]PluginStatus, len(list))
	copy(out, list)
	for i := range out {
		s := &out[i]
		s.Downloads = e.tokens.count(download{plugin.Key{Namespace: s.Namespace, Name: s.Name}, s.ModuleSHA256}, 0)
	}
	return out
}

// report makes the statuses anew.
func (e *Engine) report(now time.Time) {
	list := make([]PluginStatus, 0, len(e.order))
	for _, key := range e.order {
		list = append(list, e.pluginStatus(e.plugins[key], now))
	}
	e.status.Store(&list)
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

func (e *Engine) pluginStatus(ps *pluginState, now time.Time) PluginStatus {
	s := PluginStatus{
		Namespace: ps.key.Namespace, Name: ps.key.Name, Generation: ps.latest.Generation, UID: string(ps.latest.UID),
		URL:             ps.displayURL(),
		Delivery:        ps.deliveryName(),
		Proxies:         e.counts(ps.key),
		Resolved:        ps.pin.digest,
		Epoch:           ps.epoch,
		LastCheckedTime: timeOrNil(ps.outcome.verdict.CheckedAt),
		NextCheckTime:   timeOrNil(ps.outcome.verdict.NextCheck),
	}
	for _, image := range []oci.Reference{ps.claim.url.Image, ps.outcome.image} {
		if !image.IsZero() {
			s.images = append(s.images, image)
		}
	}
	// Proxies that all refused what is resolved run something else, or the stand-in.
	refused := s.Proxies.Rejected > 0 && s.Proxies.Accepted == 0
	running := ps.good != nil && (!ps.ended || ps.delivery.Keep && !refused)
	if running {
		s.Digest, s.ModuleSHA256, s.Size = ps.good.image.Digest(), ps.good.module.SHA256, ps.good.module.Size
		s.ServedGeneration, s.ServedEpoch = ps.good.spec.Generation, ps.served
		if !ps.good.image.IsZero() {
			s.images = append(s.images, ps.good.image)
		}
	}
	if running && !refused && ps.outcome.progress != ready {
		s.ServingLastGood = true
		s.Pending = &Wanted{Digest: ps.outcome.image.Digest(), Reason: ps.outcome.reason}
	}
	e.setConditions(ps, s, now)
	s.Conditions = append([]Condition(nil), ps.conditions...)
	return s
}

// displayURL is the plugin's url as it may be shown. Statuses are made often, and urls change seldom.
func (ps *pluginState) displayURL() string {
	if url := ps.latest.Spec.URL; url != ps.shownOf {
		ps.shownURL, ps.shownOf = v1alpha1.DisplayURL(url), url
	}
	return ps.shownURL
}

// counts are the proxies of all replicas.
func (e *Engine) counts(k plugin.Key) xds.Counts {
	n := e.rooms.Proxies.Counts(k)
	if e.cfg.Others != nil {
		o := e.cfg.Others(k)
		n.Matched += o.Matched
		n.Sent += o.Sent
		n.Accepted += o.Accepted
		n.Rejected += o.Rejected
		n.Unproven += o.Unproven
	}
	return n
}

// deliveryName says how what runs reached the proxies that run it; a proxy that waits
// has the stand-in.
func (ps *pluginState) deliveryName() string {
	d := ps.delivery
	if ps.good != nil && d.Keep {
		d = how(ps.good)
	}
	if d.Mode == xds.Hold {
		d.Mode = xds.StandIn
	}
	return d.Mode.String()
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// setConditions says how it stands; a condition keeps its time while its status stays.
func (e *Engine) setConditions(ps *pluginState, s PluginStatus, now time.Time) {
	for i, c := range []Condition{accepted(ps), resolved(ps), programmed(ps, s)} {
		c.ObservedGeneration = ps.latest.Generation
		c.LastTransitionTime = now.UTC().Truncate(time.Second)
		if i == len(ps.conditions) {
			ps.conditions = append(ps.conditions, c)
			continue
		}
		if ps.conditions[i].Status == c.Status {
			c.LastTransitionTime = ps.conditions[i].LastTransitionTime
		}
		ps.conditions[i] = c
	}
}

func accepted(ps *pluginState) Condition {
	c := Condition{Type: v1alpha1.ConditionAccepted, Status: "True", Reason: v1alpha1.ReasonAccepted}
	if len(ps.invalid) == 0 {
		return c
	}
	faults := make([]string, 0, len(ps.invalid))
	for _, f := range ps.invalid {
		faults = append(faults, f.Field+": "+f.Message)
	}
	c.Status, c.Reason, c.Message = "False", v1alpha1.ReasonInvalid, strings.Join(faults, "; ")
	if ps.valid {
		c.Message += "; the last valid generation stays in force"
	}
	return c
}

func resolved(ps *pluginState) Condition {
	c := Condition{Type: v1alpha1.ConditionResolvedRefs, Reason: ps.outcome.reason, Message: ps.outcome.message}
	switch ps.outcome.progress {
	case ready:
		c.Status = "True"
	case refused:
		c.Status = "False"
		if ps.takesNoPart() {
			c.Status = "Unknown"
		}
	case pending:
		c.Status = "Unknown"
	default:
		c.Status = "False"
	}
	return c
}

func programmed(ps *pluginState, s PluginStatus) Condition {
	c := Condition{Type: v1alpha1.ConditionProgrammed}
	set := func(status, reason, format string, args ...any) Condition {
		c.Status, c.Reason, c.Message = status, reason, fmt.Sprintf(format, args...)
		return c
	}
	n := s.Proxies
	switch {
	case s.ServingLastGood:
		return set("True", v1alpha1.ReasonServingLastGood, "proxies run the last good version: %s", ps.outcome.message)
	case ps.delivery.Mode == xds.Hold:
		return set("Unknown", v1alpha1.ReasonPending, "proxies wait for the module")
	case ps.delivery.Keep && n.Rejected > 0:
		return set("False", v1alpha1.ReasonPartiallyProgrammed, "%d of %d proxies refused it and run what they had before: %s", n.Rejected, n.Matched, ps.outcome.message)
	case ps.delivery.Mode == xds.StandIn:
		return set("False", v1alpha1.ReasonPending, "proxies run the stand-in of %s: %s", ps.spec.Spec.EffectiveFailStrategy(), ps.outcome.message)
	case n.Matched == 0:
		return set("True", v1alpha1.ReasonNoMatchingProxies, "no connected proxy should run it")
	case n.Accepted == n.Matched:
		return set("True", v1alpha1.ReasonProgrammed, "%d of %d proxies have loaded it", n.Accepted, n.Matched)
	case n.Accepted == 0 && n.Rejected == 0 && n.Sent > 0 && ps.delivery.Mode == xds.Remote:
		// Envoy has the same words for "not fetched yet" and "refused": see xds.
		return set("Unknown", v1alpha1.ReasonPending, "0 of %d proxies have loaded it yet: they fetch it by its URL, and one that refuses it cannot be told from one that fetches for up to 45 s; "+
			`"stile status -o wide" has their words`, n.Matched)
	case n.Accepted == 0 && n.Rejected == 0:
		return set("Unknown", v1alpha1.ReasonPending, "0 of %d proxies have answered yet", n.Matched)
	default:
		return set("False", v1alpha1.ReasonPartiallyProgrammed, "%d of %d proxies have loaded it, %d refused it", n.Accepted, n.Matched, n.Rejected)
	}
}
