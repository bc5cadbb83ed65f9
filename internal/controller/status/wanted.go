package status

import (
	"math"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/engine"
)

// maxMessage is the longest message of a condition, in bytes. The API takes 32,768
// characters; nobody reads them, and each write carries all of them.
const maxMessage = 4096

// report is what a status says, or should say, in the words of the API.
type report struct {
	UID                            types.UID // "": not known, and not compared
	Generation, ServedGeneration   int64
	Digest, ModuleSHA256, Resolved string
	Size, Epoch, ServedEpoch       int64
	Proxies                        v1alpha1.ProxyCounts
	Conditions                     []condition // Accepted, ResolvedRefs, Programmed, in that order
}

// condition is one of ours. Since is when Status last changed.
type condition struct {
	Type, Status, Reason, Message string
	Generation                    int64
	Since                         time.Time
}

// reportOf says what the status of a plugin should be. Whatever the engine says becomes
// something that the API takes: one word that it refuses would cost the whole status.
func reportOf(s engine.PluginStatus) report {
	r := report{
		UID:        types.UID(s.UID),
		Generation: s.Generation, ServedGeneration: s.ServedGeneration,
		Digest: s.Digest, ModuleSHA256: s.ModuleSHA256, Resolved: s.Resolved,
		Size: s.Size, Epoch: signed(s.Epoch), ServedEpoch: signed(s.ServedEpoch),
		Proxies: v1alpha1.ProxyCounts{Matched: count(s.Proxies.Matched), Accepted: count(s.Proxies.Accepted), Rejected: count(s.Proxies.Rejected)},
	}
	for _, c := range s.Conditions {
		r.Conditions = append(r.Conditions, condition{
			Type: c.Type, Status: legalStatus(c.Status), Reason: legalReason(c.Reason),
			Message: cut(c.Message, maxMessage), Generation: c.ObservedGeneration, Since: c.LastTransitionTime,
		})
	}
	return r
}

// of reports whether the report is about the object as it is stored. One that was deleted
// and made anew is another, whatever its name and its generation.
func (r report) of(o object) bool {
	return r.Generation == o.Generation && (r.UID == "" || r.UID == o.UID)
}

// same reports whether two reports say the same; when that began is no part of it.
func (r report) same(o report) bool {
	a, b := r.facts(), o.facts()
	a.Proxies, b.Proxies = r.Proxies, o.Proxies
	return a.equal(b) && slices.EqualFunc(r.Conditions, o.Conditions, func(a, b condition) bool {
		a.Since, b.Since = time.Time{}, time.Time{}
		return a == b
	})
}

// facts are what is left of a report without conditions and counts.
func (r report) facts() report {
	r.Conditions, r.Proxies = nil, v1alpha1.ProxyCounts{}
	return r
}

func (r report) equal(o report) bool {
	return r.Generation == o.Generation && r.ServedGeneration == o.ServedGeneration && r.Digest == o.Digest &&
		r.ModuleSHA256 == o.ModuleSHA256 && r.Resolved == o.Resolved && r.Size == o.Size && r.Epoch == o.Epoch &&
		r.ServedEpoch == o.ServedEpoch && r.Proxies == o.Proxies
}

func (r report) condition(kind string) (condition, bool) {
	i := slices.IndexFunc(r.Conditions, func(c condition) bool { return c.Type == kind })
	if i < 0 {
		return condition{}, false
	}
	return r.Conditions[i], true
}

// change is how much a report differs from what is stored: it decides how soon that is
// written.
type change int

const (
	none  change = iota
	minor        // counts, and words: proxies come and go all day
	flip         // Programmed alone turned, as it does with each proxy that connects
	major        // everything else
)

// changeTo compares what is stored with what should be.
func (r report) changeTo(want report) change {
	if !r.facts().equal(want.facts()) {
		return major
	}
	worst := none
	if r.Proxies != want.Proxies {
		worst = minor
	}
	for _, w := range want.Conditions {
		h, ok := r.condition(w.Type)
		switch {
		case !ok || h.Generation != w.Generation:
			return major
		case h.Status != w.Status || h.Reason != w.Reason:
			if w.Type != v1alpha1.ConditionProgrammed {
				return major
			}
			worst = flip
		case h.Message != w.Message:
			worst = max(worst, minor)
		}
	}
	return worst
}

// legalStatus and legalReason give what the API takes.
func legalStatus(s string) string {
	switch metav1.ConditionStatus(s) {
	case metav1.ConditionTrue, metav1.ConditionFalse:
		return s
	}
	return string(metav1.ConditionUnknown)
}

var reasonForm = regexp.MustCompile(`^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$`)

const maxReason = 128 // what an event takes; a condition would take 1,024

func legalReason(s string) string {
	if len(s) > maxReason || !reasonForm.MatchString(s) {
		return "Unspecified"
	}
	return s
}

// cut returns s as text of at most limit bytes; what was cut off leaves an ellipsis.
func cut(s string, limit int) string {
	const ellipsis = "…"
	s = strings.ToValidUTF8(s, "�")
	if len(s) <= limit {
		return s
	}
	end := limit - len(ellipsis)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + ellipsis
}

func signed(n uint64) int64 { return int64(min(n, math.MaxInt64)) } // #nosec G115 -- bounded

func count(n int) int32 { return int32(max(0, min(n, math.MaxInt32))) } // #nosec G115 -- bounded
