package status

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	events "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/engine"
	"github.com/stileproject/stile/internal/kubetest"
)

// tells waits until the events of a plugin are as given: Type/Reason, in the order of reasons.
func (w *world) tells(name string, want ...string) []events.Event {
	w.t.Helper()
	var all []events.Event
	kubetest.Eventually(w.t, func() string {
		all = w.events(name)
		var got []string
		for _, e := range all {
			got = append(got, e.Type+"/"+e.Reason)
		}
		if !slices.Equal(got, want) {
			return fmt.Sprintf("events %v, got %v", want, got)
		}
		return ""
	})
	return all
}

func TestWhatHasBecomeOfAPluginIsToldOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kubetest.API(t))
	w.plugin("auth")
	p := w.get("auth")
	stop := w.run(w.config())
	w.engine.say(pending(w.namespace, "auth", 1)) // nothing has happened yet
	w.sees("auth", "Programmed=Unknown/Pending")
	w.engine.say(programmed(w.namespace, "auth", 1))
	all := w.tells("auth", "Normal/Programmed", "Normal/Resolved")
	e := all[1]
	regards := corev1.ObjectReference{APIVersion: "extensions.istio.io/v1alpha1", Kind: "WasmPlugin", Namespace: w.namespace, Name: "auth", UID: p.UID}
	if diff := cmp.Diff(regards, e.Regarding); diff != "" {
		t.Error(diff)
	}
	if e.Note != "resolved to "+aDigest || e.ReportingController != "stile.dev/status" || e.ReportingInstance != "stile-0" || e.Action != "Resolve" || e.Series != nil {
		t.Errorf("event %+v", e)
	}
	if described := w.Kubectl(t, "describe", "wasmplugin", "auth", "--namespace", w.namespace); !strings.Contains(described, "resolved to "+aDigest) {
		t.Errorf("kubectl describe shows no event:\n%s", described)
	}

	// It flaps; and the process ends before the minute is over: what was told again is told in the end.
	for range 2 {
		w.engine.say(unauthorized(w.namespace, "auth", 1))
		w.sees("auth", "ResolvedRefs=False/Unauthorized")
		w.engine.say(programmed(w.namespace, "auth", 1))
		w.sees("auth", "ResolvedRefs=True/Resolved")
	}
	w.tells("auth", "Normal/Programmed", "Normal/Resolved", "Warning/Unauthorized")
	stop()
	all = w.events("auth")
	if len(all) != 3 || all[1].Series == nil || all[1].Series.Count != 3 || all[2].Series == nil || all[2].Series.Count != 2 {
		t.Errorf("want three events, of which Resolved was told three times and Unauthorized twice: %+v", all)
	}
	if all[0].Series != nil {
		t.Errorf("Programmed was told again, without a fault in between: %+v", all[0])
	}
}

func TestAnInvalidPluginIsToldAndSoIsItsRecovery(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kubetest.API(t))
	w.plugin("auth")
	w.run(w.config())
	w.engine.say(status(w.namespace, "auth", 1, "Accepted=False/Invalid/spec.url: must name a host", "ResolvedRefs=Unknown/Pending", "Programmed=False/Pending/"))
	w.tells("auth", "Warning/Invalid")
	w.engine.say(status(w.namespace, "auth", 1, "Accepted=True/Accepted", "ResolvedRefs=True/TagGone/the tag is gone: what runs is pinned", "Programmed=True/ServingLastGood/"))
	w.tells("auth", "Normal/Accepted", "Warning/Invalid", "Warning/ServingLastGood", "Warning/TagGone")
}

// Whatever the engine says, the API takes it: a status that is refused would be no status at all.
func TestNoWordOfTheEngineIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kubetest.API(t))
	w.run(w.config())
	for name, change := range map[string]func(*engine.PluginStatus){
		"long":     func(s *engine.PluginStatus) { s.Conditions[1].Message = strings.Repeat("ä", 100_000) },
		"no-text":  func(s *engine.PluginStatus) { s.Conditions[1].Message = "a\xff\x00b" },
		"spaces":   func(s *engine.PluginStatus) { s.Conditions[1].Reason = "not a reason" },
		"unsaid":   func(s *engine.PluginStatus) { s.Conditions[1].Reason, s.Conditions[1].Message = "", "" },
		"maybe":    func(s *engine.PluginStatus) { s.Conditions[1].Status = "Maybe" },
		"far":      func(s *engine.PluginStatus) { s.Epoch, s.ServedEpoch, s.Proxies.Matched = 1<<63, 1<<64-1, 1<<40 },
		"negative": func(s *engine.PluginStatus) { s.Proxies.Accepted = -1 },
	} {
		w.plugin(name)
		s := programmed(w.namespace, name, 1)
		change(&s)
		w.engine.say(s)
		p := w.sees(name, "Programmed=True/Programmed")
		if c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionResolvedRefs); c == nil || len(c.Message) > maxMessage {
			t.Errorf("%s: %+v", name, c)
		}
		kubetest.Eventually(t, func() string {
			n := len(w.events(name))
			if want := 2; n != want && (name != "maybe" || n != 1) {
				return fmt.Sprintf("%s: two events, got %d", name, n)
			}
			return ""
		})
	}
}
