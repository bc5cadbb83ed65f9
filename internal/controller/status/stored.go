package status

import (
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/stileproject/stile/api/v1alpha1"
)

// object is as much of a stored WasmPlugin as its status takes. It is never changed.
type object struct {
	UID        types.UID
	Version    string // resourceVersion
	Generation int64
	Report     report
	Conditions []any // as they are stored, others' too
}

// read never fails: what somebody else has made of a status is nothing that we wrote.
func read(u *unstructured.Unstructured) object {
	status, _ := u.Object["status"].(map[string]any)
	o := object{UID: u.GetUID(), Version: u.GetResourceVersion(), Generation: u.GetGeneration(), Report: report{
		Generation: integer(status["observedGeneration"]), ServedGeneration: integer(status["servedGeneration"]),
		Digest: text(status["digest"]), ModuleSHA256: text(status["moduleSHA256"]), Resolved: text(status["resolvedDigest"]),
		Size: integer(status["size"]), Epoch: integer(status["epoch"]), ServedEpoch: integer(status["servedEpoch"]),
	}}
	proxies, _ := status["proxies"].(map[string]any)
	o.Report.Proxies = v1alpha1.ProxyCounts{Matched: count32(proxies["matched"]), Accepted: count32(proxies["accepted"]), Rejected: count32(proxies["rejected"])}
	o.Conditions, _ = status["conditions"].([]any)
	for _, raw := range o.Conditions {
		c, ok := raw.(map[string]any)
		if !ok || !slices.Contains(ours, text(c["type"])) {
			continue
		}
		since, _ := time.Parse(time.RFC3339, text(c["lastTransitionTime"]))
		own := condition{Type: text(c["type"]), Status: text(c["status"]), Reason: text(c["reason"]), Message: text(c["message"]), Since: since}
		if g, kept := c["observedGeneration"]; kept {
			own.Generation = integer(g)
		} else {
			// A schema of somebody else may not know the field here, and prunes it. The one above it says the same.
			own.Generation = o.Report.Generation
		}
		o.Report.Conditions = append(o.Report.Conditions, own)
	}
	return o
}

// ours are the conditions that stile writes.
var ours = []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionResolvedRefs, v1alpha1.ConditionProgrammed}

// patch is the merge patch that makes the status say want. It carries the version that it
// was made from, so that the API server refuses it if anybody has written since. It names
// nothing but status, and in it nothing that is not ours: merging keeps all else.
func (o object) patch(want report, now time.Time) []byte {
	status := map[string]any{
		"observedGeneration": orNull(want.Generation),
		"servedGeneration":   orNull(want.ServedGeneration),
		"digest":             orNull(want.Digest),
		"moduleSHA256":       orNull(want.ModuleSHA256),
		"resolvedDigest":     orNull(want.Resolved),
		"size":               orNull(want.Size),
		"epoch":              orNull(want.Epoch),
		"servedEpoch":        orNull(want.ServedEpoch),
		"proxies":            want.Proxies.Summarized(),
		"conditions":         o.conditions(want, now),
	}
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": o.Version},
		"status":   status,
	})
	if err != nil {
		panic(err) // numbers and text
	}
	return body
}

// conditions are the stored ones, ours in their places or at the end.
func (o object) conditions(want report, now time.Time) []any {
	var all []any
	written := map[string]bool{}
	for _, raw := range o.Conditions {
		c, ok := raw.(map[string]any)
		if !ok {
			continue
		}
		kind := text(c["type"])
		if w, mine := want.condition(kind); mine {
			if !written[kind] {
				all = append(all, o.render(w, now))
			}
			written[kind] = true
			continue
		}
		all = append(all, c)
	}
	for _, w := range want.Conditions {
		if !written[w.Type] {
			all = append(all, o.render(w, now))
		}
	}
	return all
}

// render keeps the time of the last transition where there was none.
func (o object) render(w condition, now time.Time) map[string]any {
	since := w.Since
	if h, ok := o.Report.condition(w.Type); ok && !h.Since.IsZero() {
		switch {
		case h.Status == w.Status:
			since = h.Since
		case !since.After(h.Since):
			since = now // the replica that led before saw it turn later
		}
	}
	if since.IsZero() {
		since = now
	}
	return map[string]any{
		"type": w.Type, "status": w.Status, "reason": w.Reason, "message": w.Message,
		"observedGeneration": w.Generation, "lastTransitionTime": since.UTC().Format(time.RFC3339),
	}
}

// orNull is v, or the null that removes a field.
func orNull[T comparable](v T) any {
	var zero T
	if v == zero {
		return nil
	}
	return v
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

// integer reads a number however a schema has it: a number, or text with digits.
func integer(v any) int64 {
	switch v := v.(type) {
	case int64:
		return v
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return int64(v)
		}
	case string:
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			return n
		}
	}
	return 0
}

func count32(v any) int32 {
	return int32(max(math.MinInt32, min(integer(v), math.MaxInt32))) // #nosec G115 -- bounded
}
