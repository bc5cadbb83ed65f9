package status

import (
	"github.com/stileproject/stile/api/v1alpha1"
)

// told is what an event last said of a condition.
type told struct {
	reason     string
	generation int64
}

// actions are what stile was at when it found a condition.
var actions = map[string]string{
	v1alpha1.ConditionAccepted:     "Validate",
	v1alpha1.ConditionResolvedRefs: "Resolve",
	v1alpha1.ConditionProgrammed:   "Program",
}

// The types of events.
const (
	normal  = "Normal"
	warning = "Warning"
)

// eventType says whether a condition is worth an event, and of which type. What only waits
// is not, and neither is what comes and goes with the proxies that are connected.
func eventType(c condition, proxies v1alpha1.ProxyCounts) (string, bool) {
	switch c.Reason {
	case v1alpha1.ReasonPending, v1alpha1.ReasonNoMatchingProxies:
		return "", false
	case v1alpha1.ReasonPartiallyProgrammed:
		return warning, proxies.Rejected > 0
	case v1alpha1.ReasonServingLastGood, v1alpha1.ReasonTagGone:
		return warning, true
	}
	switch c.Status {
	case "True":
		return normal, true
	case "False":
		return warning, true
	}
	return "", false
}

// tell tells in events what has turned, after the status says it.
func (t *term) tell(k key, o object, want report, p *progress) {
	for _, c := range want.Conditions {
		kind, worth := eventType(c, want.Proxies)
		now, before := told{c.Reason, c.Generation}, p.told[c.Type]
		if !worth || now == before {
			continue
		}
		p.told[c.Type] = now
		if c.Reason == v1alpha1.ReasonAccepted && (before.reason == "" || before.reason == c.Reason) {
			continue // that a valid document is valid is no news
		}
		t.events.tell(subject{k, o.UID}, kind, c.Reason, actions[c.Type], note(c, want))
	}
}

// note is what the event says: it is never empty.
func note(c condition, want report) string {
	switch {
	case c.Message != "":
		return c.Message
	case c.Reason == v1alpha1.ReasonAccepted:
		return "the plugin is valid again"
	case c.Reason == v1alpha1.ReasonResolved && want.Digest != "":
		return "resolved to " + want.Digest
	}
	return c.Type + " is " + c.Status
}
