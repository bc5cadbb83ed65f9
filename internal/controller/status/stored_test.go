package status

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// merge is RFC 7396.
func merge(target, patch map[string]any) map[string]any {
	out := maps.Clone(target)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range patch {
		if v == nil {
			delete(out, k)
		} else if p, ok := v.(map[string]any); ok {
			t, _ := out[k].(map[string]any)
			out[k] = merge(t, p)
		} else {
			out[k] = v
		}
	}
	return out
}

// Whatever a status holds, one write makes it say what it should, and leaves no reason for another.
func FuzzOneWriteIsEnough(f *testing.F) {
	f.Add(`{}`, "Resolved", "message", int64(1))
	f.Add(`null`, "", "", int64(0))
	f.Add(`{"conditions":[`+theirs+`,{"type":"Programmed","status":"True"},{"type":"Programmed"},7,null,"x"],"epoch":9,"observedGeneration":"12"}`, "Not A Reason", "\xff", int64(12))
	f.Add(`{"conditions":{"type":"Accepted"},"proxies":[],"digest":{"a":1},"size":1e300,"epoch":-4}`, "Pending", strings.Repeat("ä", 5000), int64(3))
	f.Fuzz(func(t *testing.T, stored, reason, message string, generation int64) {
		var status any
		if json.Unmarshal([]byte(stored), &status) != nil {
			t.Skip()
		}
		before := map[string]any{"metadata": map[string]any{"resourceVersion": "1"}, "spec": map[string]any{"url": "u"}, "status": status}
		have := read(&unstructured.Unstructured{Object: before})
		p := programmed("n", "p", max(0, generation))
		p.Conditions[1].Reason, p.Conditions[1].Message = reason, message
		want := reportOf(p)
		want.Epoch = max(want.Epoch, have.Report.Epoch)

		var patch map[string]any
		if err := json.Unmarshal(have.patch(want, time.Now()), &patch); err != nil {
			t.Fatal(err)
		}
		if keys := slices.Sorted(maps.Keys(patch)); !slices.Equal(keys, []string{"metadata", "status"}) {
			t.Fatalf("the patch touches %v", keys)
		}
		after := merge(before, patch)
		if c := read(&unstructured.Unstructured{Object: after}).Report.changeTo(want); c != none {
			t.Fatalf("after the write there is another to make (%v): %s", c, cmp.Diff(want, read(&unstructured.Unstructured{Object: after}).Report))
		}
		if diff := cmp.Diff(before["spec"], after["spec"]); diff != "" {
			t.Fatal(diff)
		}
		for _, c := range want.Conditions {
			if !reasonForm.MatchString(c.Reason) || !utf8.ValidString(c.Message) || len(c.Message) > maxMessage {
				t.Fatalf("the API takes no %+v", c)
			}
		}
	})
}

func TestTheConditionOfAnotherIsLeftAsItIs(t *testing.T) {
	t.Parallel()
	var status map[string]any
	if err := json.Unmarshal([]byte(`{"conditions":[{"type":"Programmed","status":"False","reason":"Pending","lastTransitionTime":"2026-01-02T03:04:05Z","lastProbeTime":null},`+theirs+`]}`), &status); err != nil {
		t.Fatal(err)
	}
	o := read(&unstructured.Unstructured{Object: map[string]any{"status": status}})
	got := o.conditions(reportOf(programmed("n", "p", 1)), time.Now())
	var kinds []string
	for _, c := range got {
		m, _ := c.(map[string]any)
		kinds = append(kinds, text(m["type"]))
	}
	if want := []string{"Programmed", "example.com/Reviewed", "Accepted", "ResolvedRefs"}; !slices.Equal(kinds, want) {
		t.Errorf("order %v, want %v", kinds, want)
	}
	var another map[string]any
	if err := json.Unmarshal([]byte(theirs), &another); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(another, got[1]); diff != "" {
		t.Error(diff)
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		in    string
		limit int
		want  string
	}{
		{"short", 10, "short"}, {"exactly 10", 10, "exactly 10"}, {"more than ten", 10, "more th…"},
		{"ääääääää", 10, "äää…"}, {"a\xffb", 10, "a�b"},
	} {
		if got := cut(test.in, test.limit); got != test.want || len(got) > test.limit {
			t.Errorf("cut(%q, %d) = %q, want %q", test.in, test.limit, got, test.want)
		}
	}
}
