package placement

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/placement"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/source"
)

// memory is a controller without a cluster, a registry or a clock: the test takes its
// passes, and says what became of its patches.
type memory struct {
	*Controller
	t        *testing.T
	now      time.Time
	verdict  access.Verdict // of the gate, on every question
	wanted   map[source.Key]bool
	versions int
}

// newMemory returns one whose registries have not answered yet.
func newMemory(t *testing.T) *memory {
	t.Helper()
	root, err := secret.NewRoot(bytes.Repeat([]byte{7}, 32), nil)
	must(t, err)
	m := &memory{t: t, now: time.Now(), wanted: map[source.Key]bool{}}
	m.Controller, err = New(Config{REST: &rest.Config{Host: "http://127.0.0.1:1"}, Gate: memoryGate{m}, Contents: noContents{},
		Registries: anyRegistry{}, Secrets: memorySecrets{m}, Fingerprints: root.Key(secret.ForFingerprints)})
	must(t, err)
	return m
}

type memoryGate struct{ m *memory }

func (g memoryGate) Check(access.Request) access.Verdict { return g.m.verdict }
func (g memoryGate) Hold(access.Request) (access.Proof, access.Verdict) {
	return access.Proof{}, g.m.verdict
}
func (memoryGate) Release(access.Holder)                    {}
func (memoryGate) Forget(secret.Fingerprint, access.Holder) {}
func (memoryGate) Changed() <-chan struct{}                 { return nil }

type noContents struct{}

func (noContents) KnownFacts(access.Proof) (content.Facts, bool) { return content.Facts{}, false }
func (noContents) Facts(context.Context, access.Proof) (content.Facts, error) {
	return content.Facts{}, errors.New("nothing is here")
}

type anyRegistry struct{}

func (anyRegistry) Trust(string, string) (oci.Trust, error) { return oci.Trust{}, nil }

// memorySecrets have read whatever is wanted: there is none.
type memorySecrets struct{ m *memory }

func (s memorySecrets) Want(_ string, keys []source.Key) {
	clear(s.m.wanted)
	for _, k := range keys {
		s.m.wanted[k] = true
	}
}
func (s memorySecrets) Get(k source.Key) (*document.Secret, bool) { return nil, s.m.wanted[k] }
func (memorySecrets) Why(source.Key) error                        { return nil }
func (memorySecrets) OnChange(func(source.Key))                   {}

// create has the controller see a pod, as a watch would tell it.
func (m *memory) create(ns, name string, change ...func(*corev1.Pod)) {
	m.t.Helper()
	m.versions++
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID(ns + name), ResourceVersion: fmt.Sprint(m.versions), CreationTimestamp: metav1.NewTime(m.now)},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "registry.example/app:v1"}}, SchedulingGates: []corev1.PodSchedulingGate{{Name: placement.Gate}}}}
	for _, f := range change {
		f(p)
	}
	must(m.t, m.inbox.Add(p))
}

// after takes passes, one in a second, until the time is over.
func (m *memory) after(d time.Duration) {
	for end := m.now.Add(d); m.now.Before(end); m.pass(m.now) {
		m.now = m.now.Add(min(look, end.Sub(m.now)))
	}
}

// patch takes the patch that is to be sent, if one is.
func (m *memory) patch() (job, bool) { return m.patches.queue.pop(nil) }

// answered has the API server answer a patch.
func (m *memory) answered(j job, err error) {
	m.patches.results = append(m.patches.results, outcome{j, err})
	m.pass(m.now)
}

// TestAConflictThatIsNone: somebody's admission may answer 409, and nothing about the pod
// has changed: it is tried again, at growing distances, and at once if the pod did change.
func TestAConflictThatIsNone(t *testing.T) {
	t.Parallel()
	conflict := apierrors.NewConflict(schema.GroupResource{Resource: "pods"}, "p", errors.New("the quota webhook is busy"))
	gone := apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, "p")
	leftAlone := func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelArchStable: "amd64"} }
	for name, answer := range map[string]error{"conflict": conflict, "not found": gone} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMemory(t)
			m.create("team-a", "p", leftAlone)
			m.pass(m.now)
			for _, wait := range []time.Duration{watchDelay, 2 * watchDelay, 4 * watchDelay, 8 * watchDelay, retryMax, retryMax} {
				j, ok := m.patch()
				if !ok {
					t.Fatal("the pod is not patched")
				}
				m.answered(j, answer)
				m.after(wait - time.Millisecond)
				if _, ok := m.patch(); ok {
					t.Fatalf("the pod is patched within %s", wait)
				}
				m.after(time.Millisecond)
			}
			j, ok := m.patch()
			if !ok {
				t.Fatal("the pod is not patched")
			}
			m.answered(j, answer)
			m.create("team-a", "p", leftAlone)
			m.pass(m.now)
			if j, ok = m.patch(); !ok {
				t.Fatal("the pod has changed, and is not patched")
			}
			m.answered(j, nil)
			if len(m.waiting) != 0 {
				t.Error("the pod is held")
			}
		})
	}
}

// told returns the notes of the events that are to be written.
func (m *memory) told() (notes []string) {
	m.events.mu.Lock()
	defer m.events.mu.Unlock()
	for {
		e, ok := m.events.queue.pop(nil)
		if !ok {
			return notes
		}
		notes = append(notes, e.Reason+" "+e.Note)
	}
}

// TestARegistryThatHangs: a pod's owner is told that it waits before the first question has
// failed, and once.
func TestARegistryThatHangs(t *testing.T) {
	t.Parallel()
	m := newMemory(t)
	m.create("team-a", "p")
	m.after(tellAfter - look)
	if notes := m.told(); len(notes) > 0 {
		t.Errorf("told at once: %q", notes)
	}
	m.after(2 * look)
	notes := m.told()
	if want := "WaitingForRegistry registry.example/app:v1: its registry has not answered; the pod is held for at most 5m0s"; len(notes) != 1 || notes[0] != want {
		t.Errorf("told %q, want %q", notes, want)
	}
	m.verdict = access.Verdict{State: access.Unknown}
	m.after(30 * time.Second)
	if notes := m.told(); len(notes) > 0 {
		t.Errorf("told again: %q", notes)
	}
	m.create("team-a", "q")
	m.after(look)
	if notes := m.told(); len(notes) != 1 {
		t.Errorf("of a question that failed: told %q", notes)
	}
	if _, ok := m.patch(); ok {
		t.Error("the pod is let go")
	}
}

// TestP7_SecretsOfOneNamespace: however many its pods name, so many are followed, those that
// are stay so, and everybody else's are followed besides.
func TestP7_SecretsOfOneNamespace(t *testing.T) {
	t.Parallel()
	m := newMemory(t)
	names := func(pod int) (names []string) {
		for i := range maxNamed {
			names = append(names, fmt.Sprintf("s-%d-%d", pod, i))
		}
		return names
	}
	followed := func(ns string) (keys []source.Key) {
		for k := range m.wanted {
			if k.Namespace == ns {
				keys = append(keys, k)
			}
		}
		return keys
	}
	pods := func(from, to int) {
		for i := from; i < to; i++ {
			m.create("noisy", fmt.Sprint("p-", i), with(names(i)...))
		}
	}
	pods(0, 4)
	m.after(look)
	before := followed("noisy")
	if len(before) != 4*maxNamed {
		t.Fatalf("%d Secrets are followed", len(before))
	}
	pods(4, 50)
	m.create("quiet", "p", with("regcred"))
	m.after(3 * look)
	if n := len(followed("noisy")); n != maxFollowed {
		t.Errorf("%d Secrets are followed", n)
	}
	for _, k := range before {
		if !m.wanted[k] {
			t.Fatalf("%s is followed no more", k)
		}
	}
	if !m.wanted[key("quiet", "regcred")] {
		t.Error("the other namespace's is not followed")
	}
	for _, h := range m.waiting {
		if h.asks == nil {
			t.Fatalf("%s waits for a Secret that nobody reads", h.key)
		}
	}
	// The pods of the first ones go; those that come after them are followed, and count.
	for i := range 4 {
		must(t, m.inbox.Delete(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "noisy", Name: fmt.Sprint("p-", i)}}))
	}
	m.after(3 * look)
	for _, k := range before {
		if m.wanted[k] {
			t.Fatalf("%s is followed, and others wait", k)
		}
	}
	if n := len(followed("noisy")); n != maxFollowed {
		t.Errorf("%d Secrets are followed", n)
	}
	for _, h := range m.waiting {
		all := true
		for _, k := range h.secrets {
			all = all && m.wanted[k]
		}
		if h.asks == nil || h.crowded == all {
			t.Fatalf("%s has not begun anew: all its Secrets are followed: %v", h.key, all)
		}
	}
	// A refusal is none for who names one that is not read.
	m.verdict = access.Verdict{State: access.Denied}
	m.all = true
	m.pass(m.now)
	crowded := 0
	for range 47 {
		j, ok := m.patch()
		if !ok {
			t.Fatal("a pod is held")
		}
		want, why := placement.NotAllowed, hintUnreadable
		if j.held.crowded {
			want, why = placement.NotInspected, hintSecretCrowd
		}
		if j.verdict.Outcome != want || j.verdict.why != why {
			t.Errorf("%s: %s, %s", j.held.key, j.verdict.Outcome, j.verdict.why)
		}
		if j.held.crowded {
			crowded++
		}
		m.answered(j, nil)
	}
	if crowded == 0 || crowded == 47 {
		t.Errorf("%d of 47 pods name one that is not read", crowded)
	}
	// What nobody names any more is not remembered.
	m.after(2 * linger)
	if n := len(m.rings); n > 0 {
		t.Errorf("%d Secrets are remembered", n)
	}
}
