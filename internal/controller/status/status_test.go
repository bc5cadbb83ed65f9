package status

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/engine"
	"github.com/stileproject/stile/internal/kubetest"
)

func TestThePluginSaysWhatHasBecomeOfIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kubetest.API(t))
	w.plugin("auth")
	before := w.get("auth")
	registry := prometheus.NewPedanticRegistry()
	cfg := w.config()
	cfg.Registerer = registry
	w.run(cfg)

	w.engine.say(pending(w.namespace, "auth", before.Generation))
	w.sees("auth", "Accepted=True/Accepted", "ResolvedRefs=Unknown/Pending", "Programmed=Unknown/Pending")
	waited := make(chan error, 1)
	go func() {
		_, stderr, err := w.TryKubectl(t, nil, "wait", "--for=condition=Programmed", "wasmplugin/auth", "--namespace", w.namespace, "--timeout=30s")
		if err != nil {
			err = fmt.Errorf("%w: %s", err, stderr)
		}
		waited <- err
	}()
	w.engine.say(programmed(w.namespace, "auth", before.Generation))
	if err := <-waited; err != nil {
		t.Fatalf("kubectl wait: %v", err)
	}

	after := w.get("auth")
	want := v1alpha1.WasmPluginStatus{ObservedGeneration: before.Generation, Digest: aDigest, ModuleSHA256: aModule, Size: 4711,
		ServedGeneration: before.Generation, ResolvedDigest: aDigest, Epoch: 3, ServedEpoch: 3, Proxies: &v1alpha1.ProxyCounts{Matched: 2, Accepted: 2, Summary: "2/2"}}
	got := after.Status
	got.Conditions = nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	for _, c := range after.Status.Conditions {
		if c.ObservedGeneration != before.Generation || c.LastTransitionTime.IsZero() {
			t.Errorf("condition %+v", c)
		}
	}
	if diff := cmp.Diff(before.Spec, after.Spec); diff != "" || after.Generation != before.Generation {
		t.Errorf("the spec was touched: %s", diff)
	}
	if columns := w.Kubectl(t, "get", "wasmplugins", "auth", "--namespace", w.namespace); !strings.Contains(columns, "Resolved") || !strings.Contains(columns, "Programmed") {
		t.Errorf("columns:\n%s", columns)
	}
	if n := w.network.requests("PATCH status"); n != 2 || written(t, registry, "stile_status_writes_total", resultWritten) != 2 {
		t.Errorf("%d writes for two changes", n)
	}

	// A digest that is no more is taken away, and so are counts that are 0 now.
	w.engine.say(unauthorized(w.namespace, "auth", before.Generation))
	gone := w.sees("auth", "ResolvedRefs=False/Unauthorized", "Programmed=False/Pending").Status
	gone.Conditions = nil
	if diff := cmp.Diff(v1alpha1.WasmPluginStatus{ObservedGeneration: before.Generation, Epoch: 3, Proxies: &v1alpha1.ProxyCounts{Summary: "0/0"}}, gone); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v %v", problems, err)
	}
}

// patch is what somebody else writes into a status.
func (w *world) patch(name, body string) {
	w.t.Helper()
	err := w.admin.CoreV1().RESTClient().Patch(types.MergePatchType).AbsPath(fmt.Sprintf(pluginsPath, w.namespace, name) + "/status").
		Body([]byte(body)).Do(context.Background()).Error()
	if err != nil {
		w.t.Errorf("patch: %v", err)
	}
}

const theirs = `{"type":"example.com/Reviewed","status":"True","reason":"Seen","message":"by a person","lastTransitionTime":"2026-01-02T03:04:05Z","observedGeneration":1}`

func TestOthersEntriesAreKeptAlsoWhenTheyAreWrittenAtTheSameMoment(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kubetest.API(t))
	w.plugin("auth")
	w.patch("auth", `{"status":{"note":"a field of another controller","conditions":[`+theirs+`]}}`)
	registry := prometheus.NewPedanticRegistry()
	cfg := w.config()
	cfg.Registerer = registry
	// Right before our write, somebody else writes.
	w.network.once(func() { w.patch("auth", `{"status":{"other":7}}`) })
	w.run(cfg)
	w.engine.say(programmed(w.namespace, "auth", 1))
	w.sees("auth", "Programmed=True/Programmed")

	var stored map[string]any
	w.stored("auth", &stored)
	status, _ := stored["status"].(map[string]any)
	if status["note"] != "a field of another controller" || status["other"] != float64(7) {
		t.Errorf("fields of others are gone: %v", status)
	}
	first, _ := status["conditions"].([]any)[0].(map[string]any)
	if first["type"] != "example.com/Reviewed" || first["message"] != "by a person" || first["lastTransitionTime"] != "2026-01-02T03:04:05Z" {
		t.Errorf("another's condition is gone or changed: %v", status["conditions"])
	}
	if n := written(t, registry, "stile_status_writes_total", resultConflict); n != 1 {
		t.Errorf("%v conflicts", n)
	}

	// Whoever takes our word away sees it again.
	w.patch("auth", `{"status":{"conditions":[`+theirs+`]}}`)
	w.sees("auth", "Programmed=True/Programmed", "example.com/Reviewed=True/Seen")
}

func TestAPluginThatIsDeletedMeanwhileIsNoError(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kubetest.API(t))
	w.plugin("auth")
	w.plugin("next")
	registry := prometheus.NewPedanticRegistry()
	cfg := w.config()
	cfg.Registerer = registry
	w.network.once(func() {
		if err := w.admin.CoreV1().RESTClient().Delete().AbsPath(fmt.Sprintf(pluginsPath, w.namespace, "auth")).Do(context.Background()).Error(); err != nil {
			t.Error(err)
		}
	})
	w.run(cfg)
	w.engine.say(programmed(w.namespace, "auth", 1))
	kubetest.Eventually(t, func() string {
		if written(t, registry, "stile_status_writes_total", resultGone) != 1 {
			return "a write that found nothing"
		}
		return ""
	})
	w.engine.say(programmed(w.namespace, "next", 1))
	w.sees("next", "Programmed=True/Programmed")
	if n := written(t, registry, "stile_status_writes_total", resultFailed); n != 0 {
		t.Errorf("%v writes failed", n)
	}

	// One of the same name is another plugin.
	w.plugin("auth")
	w.sees("auth", "Programmed=True/Programmed")
}

func TestItsRightsAreForStatusAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kubetest.API(t))
	w.plugin("auth")
	client, err := kubernetes.NewForConfig(w.account)
	if err != nil {
		t.Fatal(err)
	}
	err = client.CoreV1().RESTClient().Patch(types.MergePatchType).AbsPath(fmt.Sprintf(pluginsPath, w.namespace, "auth")).
		Body([]byte(`{"spec":{"url":"oci://r.example/b"}}`)).Do(t.Context()).Error()
	if !apierrors.IsForbidden(err) {
		t.Errorf("stile may change a spec: %v", err)
	}
	if _, err := client.CoreV1().Secrets(w.namespace).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("stile may list secrets: %v", err)
	}
}

func TestPluginsOfAllNamespacesAreWrittenWhereNoneIsNamed(t *testing.T) {
	t.Parallel()
	a, b := newWorld(t, kubetest.API(t)), newWorld(t, kubetest.API(t))
	a.plugin("auth")
	b.plugin("auth")
	cfg := a.config()
	cfg.REST, cfg.Namespaces = a.Config, nil
	a.run(cfg)
	a.engine.say(programmed(a.namespace, "auth", 1), unauthorized(b.namespace, "auth", 1))
	a.sees("auth", "Programmed=True/Programmed")
	b.sees("auth", "ResolvedRefs=False/Unauthorized")
}

// lead is who leads, as a test says.
type lead struct {
	on      atomic.Bool
	changes chan struct{}
}

func (l *lead) set(on bool) {
	l.on.Store(on)
	select {
	case l.changes <- struct{}{}:
	default:
	}
}

func TestTheLeaderAloneWritesAndWhoFollowsWritesNothingThatIsWritten(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kubetest.API(t))
	w.plugin("auth")
	a, b := &lead{changes: make(chan struct{}, 1)}, &lead{changes: make(chan struct{}, 1)}
	others := newSaid()
	run := func(l *lead, statuses Statuses) {
		cfg := w.config()
		cfg.Leads, cfg.LeadChanges, cfg.Statuses = l.on.Load, l.changes, statuses
		w.run(cfg)
	}
	run(a, w.engine)
	run(b, others)
	// Who does not lead says what it likes.
	others.say(unauthorized(w.namespace, "auth", 1))
	a.set(true)
	w.engine.say(programmed(w.namespace, "auth", 1))
	first := w.sees("auth", "Programmed=True/Programmed")
	kubetest.Eventually(t, func() string {
		if n := w.network.requests("POST event"); n != 2 {
			return fmt.Sprintf("two events, got %d", n)
		}
		return ""
	})

	// The other replica sees the same, and saw it turn at another time.
	same := programmed(w.namespace, "auth", 1)
	for i := range same.Conditions {
		same.Conditions[i].LastTransitionTime = time.Now().Add(time.Hour)
	}
	others.say(same)
	a.set(false)
	w.engine.say(unauthorized(w.namespace, "auth", 1))
	writes, told := w.network.requests("PATCH status"), w.network.requests("POST event")
	b.set(true)
	w.plugin("another") // by the time this one is written, the first has been looked at
	others.say(programmed(w.namespace, "another", 1))
	w.sees("another", "Programmed=True/Programmed")
	after := w.get("auth")
	if after.ResourceVersion != first.ResourceVersion {
		t.Errorf("something was written: %+v", after.Status)
	}
	if n := w.network.requests("PATCH status"); n != writes+1 {
		t.Errorf("%d writes for one plugin", n-writes)
	}
	if len(w.events("auth")) != 2 || w.network.requests("POST event") > told+2 {
		t.Errorf("events were told again: %+v", w.events("auth"))
	}
}

// An epoch is part of what module URLs are made from: one that went back would open what was closed.
func TestP5_AnEpochNeverGoesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kubetest.API(t))
	w.plugin("auth")
	w.plugin("beyond")
	w.patch("auth", `{"status":{"epoch":7}}`)
	w.patch("beyond", `{"status":{"epoch":9007199254740993}}`)
	w.run(w.config())
	w.engine.say(programmed(w.namespace, "auth", 1), programmed(w.namespace, "beyond", 1))
	if p := w.sees("auth", "Programmed=True/Programmed"); p.Status.Epoch != 7 || p.Status.ServedEpoch != 3 {
		t.Errorf("epoch %d, served %d", p.Status.Epoch, p.Status.ServedEpoch)
	}
	if p := w.sees("beyond", "Programmed=True/Programmed"); p.Status.Epoch >= v1alpha1.MaxEpoch {
		t.Errorf("an epoch that nobody believes is kept: %d", p.Status.Epoch)
	}
}

func TestWhatTheEngineSaysOfAnotherGenerationIsNotWritten(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kubetest.API(t))
	w.plugin("auth")
	w.plugin("next")
	w.run(w.config())
	w.engine.say(programmed(w.namespace, "auth", 5), programmed(w.namespace, "next", 1), programmed(w.namespace, "unknown", 1))
	w.sees("next", "Programmed=True/Programmed")
	if p := w.get("auth"); len(p.Status.Conditions) != 0 {
		t.Errorf("status of generation 5 in one of generation %d: %+v", p.Generation, p.Status)
	}
	w.engine.say(programmed(w.namespace, "auth", 1))
	w.sees("auth", "Programmed=True/Programmed")
}

// A plugin that is deleted and made anew has its old name and generation 1 again. What the
// engine still says of the old one would be a lie, and a lasting one: a leader that reads
// the new one takes over what its status says was resolved.
func TestWhatTheEngineSaysOfADeletedPluginIsNotWrittenToTheNextOfThatName(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kubetest.API(t))
	w.plugin("auth")
	w.plugin("other")
	old := programmed(w.namespace, "auth", 1)
	old.UID = string(w.get("auth").UID)
	w.run(w.config())
	w.engine.say(old)
	w.sees("auth", "Programmed=True/Programmed")

	w.Kubectl(t, "delete", "wasmplugin", "auth", "--namespace", w.namespace)
	w.plugin("auth")
	w.engine.say(programmed(w.namespace, "other", 1)) // what is written later shows that the writer has looked
	w.sees("other", "Programmed=True/Programmed")
	if got := w.get("auth").Status; len(got.Conditions) > 0 || got.Digest != "" {
		t.Errorf("the new plugin says what the old one was: %+v", got)
	}
	next := old
	next.UID = string(w.get("auth").UID)
	w.engine.say(next) // the same words, of the new one
	w.sees("auth", "Programmed=True/Programmed")

	// Made anew in the moment of a write.
	late := make(chan struct{})
	w.network.once(func() {
		w.Kubectl(t, "delete", "wasmplugin", "auth", "--namespace", w.namespace)
		w.plugin("auth")
		close(late)
	})
	refused := unauthorized(w.namespace, "auth", 1)
	refused.UID = next.UID
	w.engine.say(refused)
	<-late
	w.engine.say(status(w.namespace, "other", 1, "Programmed=False/Pending"))
	w.sees("other", "Programmed=False/Pending")
	if got := w.get("auth").Status; len(got.Conditions) > 0 {
		t.Errorf("the new plugin says what the old one was: %+v", got)
	}
}

func TestTheTimeOfATransitionIsThatOfTheTransition(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kubetest.API(t))
	w.plugin("auth")
	stop := w.run(w.config())
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(s engine.PluginStatus, when time.Time) engine.PluginStatus {
		for i := range s.Conditions {
			s.Conditions[i].LastTransitionTime = when
		}
		return s
	}
	w.engine.say(at(pending(w.namespace, "auth", 1), begin))
	w.sees("auth", "Programmed=Unknown/Pending")
	w.engine.say(at(unauthorized(w.namespace, "auth", 1), begin.Add(time.Minute)))
	p := w.sees("auth", "ResolvedRefs=False/Unauthorized")
	// A replica that started later knows later times only.
	stop()
	w.engine.say(at(programmed(w.namespace, "auth", 1), begin.Add(time.Hour)))
	w.run(w.config())
	q := w.sees("auth", "Programmed=True/Programmed")
	for i, want := range []time.Time{begin, begin.Add(time.Minute), begin.Add(time.Minute)} {
		if !p.Status.Conditions[i].LastTransitionTime.Time.Equal(want) {
			t.Errorf("first %+v, want %v", p.Status.Conditions[i], want)
		}
	}
	for i, want := range []time.Time{begin, begin.Add(time.Hour), begin.Add(time.Hour)} {
		if !q.Status.Conditions[i].LastTransitionTime.Time.Equal(want) {
			t.Errorf("then %+v, want %v", q.Status.Conditions[i], want)
		}
	}
}

func TestAnAPIServerThatGoesAndComesBackIsWrittenTo(t *testing.T) {
	t.Parallel()
	s := kubetest.Start(t, kubetest.Options{})
	w := newWorld(t, s)
	w.plugin("auth")
	stop := w.run(w.config())
	w.engine.say(pending(w.namespace, "auth", 1))
	w.sees("auth", "Programmed=Unknown/Pending")
	s.Down(t)
	w.engine.say(programmed(w.namespace, "auth", 1))
	kubetest.Eventually(t, func() string {
		if !strings.Contains(w.canary.Logged(), "status cannot be written") {
			return "a write that fails"
		}
		return ""
	})
	s.Up(t)
	w.sees("auth", "Programmed=True/Programmed")
	kubetest.Eventually(t, func() string {
		if len(w.events("auth")) != 2 {
			return fmt.Sprintf("the events of it, got %d", len(w.events("auth")))
		}
		return ""
	})

	// Without an API server, it ends when it is asked to.
	s.Down(t)
	w.engine.say(unauthorized(w.namespace, "auth", 1))
	kubetest.Eventually(t, func() string {
		if strings.Count(w.canary.Logged(), "status cannot be written") < 2 {
			return "another write that fails"
		}
		return ""
	})
	begin := time.Now()
	stop()
	if took := time.Since(begin); took > lastWords+time.Second {
		t.Errorf("it ended %v after it was asked to", took)
	}
}

// A write that hangs, as behind a slow webhook of somebody else, holds back its own plugin.
func TestP7_AWriteThatHangsHoldsBackItsOwnPluginAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kubetest.API(t))
	w.plugin("slow")
	for i := range 20 {
		w.plugin(fmt.Sprint("p", i))
	}
	hanging, let := make(chan struct{}), make(chan struct{})
	w.network.once(func() { close(hanging); <-let })
	w.run(w.config())
	w.engine.say(programmed(w.namespace, "slow", 1))
	<-hanging
	for i := range 20 {
		w.engine.say(programmed(w.namespace, fmt.Sprint("p", i), 1))
	}
	for i := range 20 {
		w.sees(fmt.Sprint("p", i), "Programmed=True/Programmed")
	}
	if p := w.get("slow"); len(p.Status.Conditions) != 0 {
		t.Error("the write did not hang")
	}
	close(let)
	w.sees("slow", "Programmed=True/Programmed")
}

// A schema of somebody else: Istio's keeps what it does not know in a status, but not in the entries of conditions.
func TestASchemaThatPrunesConditionsIsWrittenToOnce(t *testing.T) {
	t.Parallel()
	s := kubetest.Start(t, kubetest.Options{NoCRD: true})
	s.Kubectl(t, "apply", "--filename", "testdata/foreign-crd.yaml")
	s.Kubectl(t, "wait", "--for=condition=Established", "crd/wasmplugins.extensions.istio.io", "--timeout=30s")
	w := newWorld(t, s)
	w.plugin("auth")
	w.plugin("next")
	stop := w.run(w.config())
	w.engine.say(programmed(w.namespace, "auth", 1))
	p := w.sees("auth", "Programmed=True/Programmed")
	if p.Status.Conditions[0].ObservedGeneration != 0 || p.Status.Digest != aDigest {
		t.Fatalf("this schema prunes conditions alone: %+v", p.Status)
	}
	w.Kubectl(t, "wait", "--for=condition=Programmed", "wasmplugin/auth", "--namespace", w.namespace, "--timeout=10s")
	stop()
	w.run(w.config()) // nor does the next leader
	for range 3 {
		w.engine.poke()
	}
	w.engine.say(programmed(w.namespace, "next", 1))
	w.sees("next", "Programmed=True/Programmed")
	if n := w.network.requests("PATCH status"); n != 2 {
		t.Errorf("%d writes for two plugins", n)
	}
	if q := w.get("auth"); q.ResourceVersion != p.ResourceVersion {
		t.Error("it was written again")
	}
}

// What an API server never keeps as it was written is written once, whatever the cause.
func TestAStatusThatIsNotKeptIsNotWrittenForEver(t *testing.T) {
	t.Parallel()
	s := kubetest.Start(t, kubetest.Options{NoCRD: true})
	s.Kubectl(t, "apply", "--filename", "testdata/deaf-crd.yaml")
	s.Kubectl(t, "wait", "--for=condition=Established", "crd/wasmplugins.extensions.istio.io", "--timeout=30s")
	w := newWorld(t, s)
	w.plugin("auth")
	w.plugin("next")
	w.run(w.config())
	w.engine.say(programmed(w.namespace, "auth", 1))
	w.sees("auth", "Programmed=True/Programmed")
	w.patch("auth", `{"status":{"other":1}}`)
	for range 3 {
		w.engine.poke()
	}
	w.engine.say(programmed(w.namespace, "next", 1))
	w.sees("next", "Programmed=True/Programmed")
	if n := w.network.requests("PATCH status"); n != 2 {
		t.Errorf("%d writes for two plugins", n)
	}
	if !strings.Contains(w.canary.Logged(), "keeps another status than was written") {
		t.Error("nobody was told")
	}

	// A schema that takes no status at all is asked seldom.
	s.Kubectl(t, "patch", "crd", "wasmplugins.extensions.istio.io", "--type=json", "--patch", `[{"op":"remove","path":"/spec/versions/0/subresources"}]`)
	generation, writes := int64(1), 0
	kubetest.Eventually(t, func() string { // until the API server goes by the new schema
		w.Kubectl(t, "patch", "wasmplugin", "next", "--namespace", w.namespace, "--type=merge", "--patch", fmt.Sprintf(`{"spec":{"priority":%d}}`, generation))
		generation = w.get("next").Generation
		writes = w.network.requests("PATCH status")
		w.engine.say(unauthorized(w.namespace, "next", generation))
		kubetest.Eventually(t, func() string {
			if w.network.requests("PATCH status") == writes {
				return "a write"
			}
			return ""
		})
		if !strings.Contains(w.canary.Logged(), "takes no status of stile") {
			return "a refusal"
		}
		return ""
	})
	w.engine.poke()
	if n := w.network.requests("PATCH status"); n > writes+1 {
		t.Errorf("%d writes of what is refused", n-writes)
	}
}

func TestAThousandPluginsAreProgrammedSoon(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kubetest.API(t))
	const n = 1000
	var making sync.WaitGroup
	for part := range 4 {
		making.Go(func() {
			for i := part; i < n; i += 4 {
				w.plugin(fmt.Sprintf("p%03d", i))
			}
		})
	}
	making.Wait()
	var first, then []engine.PluginStatus
	for i := range n {
		name := fmt.Sprintf("p%03d", i)
		first, then = append(first, pending(w.namespace, name, 1)), append(then, programmed(w.namespace, name, 1))
	}
	done := func() string {
		out, err := w.admin.CoreV1().RESTClient().Get().AbsPath(fmt.Sprintf(pluginsPath, w.namespace, "")).Do(context.Background()).Raw()
		if err != nil {
			return err.Error()
		}
		if got := strings.Count(string(out), `"reason":"Programmed"`); got != n {
			return fmt.Sprintf("%d plugins of %d", got, n)
		}
		return ""
	}
	w.run(w.config())
	begin := time.Now()
	w.engine.say(first...)
	w.engine.say(then...)
	kubetest.Within(t, 2*time.Minute, done)
	took := time.Since(begin)
	kubetest.Eventually(t, func() string {
		if told := w.network.requests("POST event"); told != 2*n {
			return fmt.Sprintf("%d events", told)
		}
		return ""
	})
	writes := w.network.requests("PATCH status")
	t.Logf("%d plugins programmed in %v: %.2f status writes a plugin, %d lists and watches, %d reads, %.2f events a plugin, told after %v", n, took,
		float64(writes)/n, w.network.requests("GET")+w.network.requests("WATCH"), w.network.requests("GET"), float64(w.network.requests("POST event"))/n, time.Since(begin))
	if writes > 2*n {
		t.Errorf("%d writes for %d plugins that changed twice", writes, n)
	}
}
