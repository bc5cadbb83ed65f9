package placement

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/placement"
	"github.com/stileproject/stile/internal/secret"
)

const both = "arch In amd64,arm64; os In linux"

// TestTheStory is where placement comes from: pod A may pull an image, pod B may not. A
// asks the registry and gets its affinity; B gets nothing that A learned and is let go, to
// fail by its own pull; A', a replica of A, costs no request.
func TestTheStory(t *testing.T) {
	t.Parallel()
	w := newWorld(t).run()
	ns := w.namespace()
	image, _ := w.image("team-a/app", "v1", "linux/amd64", "linux/arm64")
	w.pullSecret(ns, "may", "alice", w.user("alice", "team-a/app"))
	w.pullSecret(ns, "may-not", "bob", w.user("bob"))

	if n := w.asked(func() {
		w.pod(ns, "a", image, with("may"))
		wantPod(t, w.went(ns, "a"), placement.Placed, both)
	}); n == 0 {
		t.Error("A cost no request")
	}
	w.pod(ns, "b", image, with("may-not"))
	wantPod(t, w.went(ns, "b"), placement.NotAllowed, "")
	w.event(ns, "b", "NotAllowed")
	w.pod(ns, "nobody", image)
	wantPod(t, w.went(ns, "nobody"), placement.NotAllowed, "")
	if n := w.asked(func() {
		w.pod(ns, "a2", image, with("may"))
		wantPod(t, w.went(ns, "a2"), placement.Placed, both)
	}); n != 0 {
		t.Errorf("A' cost %d requests", n)
	}
	kubetest.Eventually(t, func() string {
		if n := w.metric("stile_placement_gated_pods", ""); n != 0 {
			return "no pod held"
		}
		return ""
	})
}

// TestP5_RevokedAtTheRegistry: once A's right is taken away at the registry, no pod of A's
// gets a predicate later than the re-check interval, though nothing changed in the cluster.
func TestP5_RevokedAtTheRegistry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.access.Recheck = 2 * time.Second
	w.access.ConfirmAfter = 100 * time.Millisecond
	w.run()
	ns := w.namespace()
	image, _ := w.image("team-a/app", "v1", "linux/amd64", "linux/arm64")
	w.pullSecret(ns, "may", "alice", w.user("alice", "team-a/app"))
	w.pod(ns, "a", image, with("may"))
	wantPod(t, w.went(ns, "a"), placement.Placed, both)

	w.registry.Revoke("alice", localregistry.Everywhere)
	w.registry.RevokeTokens()
	n := 0
	took := kubetest.Within(t, 20*time.Second, func() string {
		n++
		name := fmt.Sprint("later-", n)
		w.pod(ns, name, image, with("may"))
		if p := w.went(ns, name); outcomeOf(p) != string(placement.NotAllowed) || where(p) != "" {
			return "no hit for a revoked right, but " + outcomeOf(p)
		}
		return ""
	})
	// The interval with its jitter, and one confirmation of at most six times its delay.
	if most := 2*time.Second*11/10 + 600*time.Millisecond + time.Second; took > most {
		t.Errorf("still a hit after %v", took)
	}
}

// TestP5_SecretEdited: with other content in A's Secret, what was learned with the old one
// is of no use to anybody at once; with the old content back, it is asked anew.
func TestP5_SecretEdited(t *testing.T) {
	t.Parallel()
	w := newWorld(t).run()
	ns := w.namespace()
	image, _ := w.image("team-a/app", "v1", "linux/amd64", "linux/arm64")
	password := w.user("alice", "team-a/app")
	w.pullSecret(ns, "may", "alice", password)
	w.pod(ns, "a", image, with("may"))
	wantPod(t, w.went(ns, "a"), placement.Placed, both)

	w.pullSecret(ns, "may", "alice", w.watch.Credential())
	w.seesSecret(ns, "may")
	w.pod(ns, "edited", image, with("may"))
	wantPod(t, w.went(ns, "edited"), placement.NotAllowed, "")

	must(t, w.client.CoreV1().Secrets(ns).Delete(t.Context(), "may", metav1.DeleteOptions{}))
	w.seesSecret(ns, "may")
	w.pod(ns, "deleted", image, with("may"))
	wantPod(t, w.went(ns, "deleted"), placement.NotAllowed, "")

	w.pullSecret(ns, "may", "alice", password)
	w.seesSecret(ns, "may")
	if n := w.asked(func() {
		w.pod(ns, "back", image, with("may"))
		wantPod(t, w.went(ns, "back"), placement.Placed, both)
	}); n == 0 {
		t.Error("what was proven by a Secret that went was used again")
	}
}

// TestP5_ClusterWideSecretChangedMidFlight: the answer to a question that was under way
// with the old credential is not kept, whatever it is.
func TestP5_ClusterWideSecretChangedMidFlight(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	shared := w.namespace()
	w.pullSecret(shared, "everywhere", "node", w.user("node", "team-a/app"))
	w.run(func(c *Config) { c.PullSecret = key(shared, "everywhere") })
	ns := w.namespace()
	image, _ := w.image("team-a/app", "v1", "linux/amd64", "linux/arm64")
	w.registry.SetFaults(localregistry.Fault{Method: http.MethodHead, Hang: true})
	w.pod(ns, "a", image)
	kubetest.Eventually(t, func() string {
		if len(w.gate.List()) == 0 {
			return "a question under way"
		}
		return ""
	})
	old := w.gate.List()[0].Credential

	nobody := w.watch.Credential()
	w.registry.SetUser("nobody", nobody)
	w.pullSecret(shared, "everywhere", "nobody", nobody)
	kubetest.Eventually(t, func() string {
		for _, e := range w.gate.List() {
			if e.Credential == old {
				return "the question by the old credential to be dropped"
			}
		}
		return ""
	})
	w.registry.SetFaults() // the old question is answered now: yes
	wantPod(t, w.went(ns, "a"), placement.NotAllowed, "")
	for _, e := range w.gate.List() {
		if e.Credential == old {
			t.Errorf("kept: %+v", e)
		}
	}
	// And the other way round: a new credential is used at once.
	w.pullSecret(shared, "everywhere", "node", w.user("node", "team-a/app"))
	w.seesSecret(shared, "everywhere")
	w.pod(ns, "b", image)
	wantPod(t, w.went(ns, "b"), placement.Placed, both)
}

// TestP5_OwnSecretGoneMidFlight: the same for a pod's own Secret that is deleted, or
// edited, while the registry is thinking.
func TestP5_OwnSecretGoneMidFlight(t *testing.T) {
	t.Parallel()
	w := newWorld(t).run()
	for name, change := range map[string]func(ns string){
		"deleted": func(ns string) {
			must(t, w.client.CoreV1().Secrets(ns).Delete(t.Context(), "may", metav1.DeleteOptions{}))
		},
		"edited": func(ns string) { w.pullSecret(ns, "may", "nobody", w.user("nobody")) },
	} {
		ns := w.namespace()
		repository := "team-a/" + name
		image, _ := w.image(repository, "v1", "linux/amd64", "linux/arm64")
		w.pullSecret(ns, "may", "alice-"+name, w.user("alice-"+name, repository))
		w.registry.SetFaults(localregistry.Fault{Method: http.MethodHead, Hang: true})
		w.pod(ns, "a", image, with("may"))
		asking := func() (all []string) {
			for _, e := range w.gate.List() {
				if e.Image == image {
					all = append(all, e.Credential.String())
				}
			}
			return all
		}
		kubetest.Eventually(t, func() string {
			if len(asking()) != 1 {
				return "a question under way"
			}
			return ""
		})
		old := asking()[0]
		change(ns)
		kubetest.Eventually(t, func() string {
			if slices.Contains(asking(), old) {
				return "the question by the old credential to be dropped"
			}
			return ""
		})
		w.registry.SetFaults()
		wantPod(t, w.went(ns, "a"), placement.NotAllowed, "")
		if slices.Contains(asking(), old) {
			t.Errorf("%s: the answer to the old question was kept", name)
		}
	}
}

// TestAsTheKubeletTries: two Secrets for one registry in turn, one that lacks passed over,
// user name and password without auth, a pod's own Secret that does not hide a working
// cluster-wide one, a legacy one; and a ServiceAccount's Secrets are not read.
func TestAsTheKubeletTries(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	shared := w.namespace()
	w.pullSecret(shared, "everywhere", "node", w.user("node", "shared/app"))
	w.run(func(c *Config) { c.PullSecret = key(shared, "everywhere") })
	ns := w.namespace()
	image, _ := w.image("team-a/app", "v1", "linux/arm64")
	common, _ := w.image("shared/app", "v1", "linux/amd64")
	alice := w.user("alice", "team-a/app")
	w.pullSecret(ns, "alice", "alice", alice)
	w.pullSecret(ns, "bob", "bob", w.user("bob"))
	w.rawSecret(ns, "plain", fmt.Appendf(nil, `{"auths":{%q:{"username":"alice","password":%q}}}`, w.registry.Host(), alice))
	w.rawSecret(ns, "elsewhere", dockerConfig("other.example", "carol", w.watch.Credential()))
	w.rawSecret(ns, "broken", fmt.Appendf(nil, `{"auths":{%q:{"auth":"%%%%"}}}`, w.registry.Host()))
	_, err := w.client.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "legacy"}, Type: corev1.SecretTypeDockercfg,
		Data: map[string][]byte{corev1.DockerConfigKey: fmt.Appendf(nil, `{%q:{"username":"alice","password":%q}}`, w.registry.Host(), alice)}}, metav1.CreateOptions{})
	must(t, err)
	_, err = w.client.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "opaque"}, Data: map[string][]byte{"x": []byte("y")}}, metav1.CreateOptions{})
	must(t, err)
	w.api.Apply(t, nil, fmt.Sprintf(`{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: %q, name: rich}, imagePullSecrets: [{name: alice}]}`, ns))

	const amd64, arm64 = "arch In amd64; os In linux", "arch In arm64; os In linux"
	for _, row := range []struct {
		name, image string
		change      func(*corev1.Pod)
		outcome     placement.Outcome
		affinity    string
	}{
		{"two-in-turn", image, with("bob", "alice"), placement.Placed, arm64},
		{"one-lacks", image, with("no-such", "alice"), placement.Placed, arm64},
		{"no-auth-field", image, with("plain"), placement.Placed, arm64},
		{"legacy", image, with("legacy"), placement.Placed, arm64},
		{"wrong-type-is-passed-over", image, with("opaque", "alice"), placement.Placed, arm64},
		{"own-does-not-hide-shared", common, with("bob"), placement.Placed, amd64},
		{"shared-alone", common, func(*corev1.Pod) {}, placement.Placed, amd64},
		{"malformed", common, with("broken"), placement.NotAllowed, ""},
		{"another-registrys", image, with("elsewhere"), placement.NotAllowed, ""},
		{"a-service-accounts", image, func(p *corev1.Pod) { p.Spec.ServiceAccountName = "rich" }, placement.NotAllowed, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			w.pod(ns, row.name, row.image, row.change)
			wantPod(t, w.went(ns, row.name), row.outcome, row.affinity)
		})
	}
}

// seesSecret waits until the controller's reader of Secrets has what the API server has.
func (w *world) seesSecret(ns, name string) {
	w.t.Helper()
	var want secret.Fingerprint
	if s, err := w.client.CoreV1().Secrets(ns).Get(w.t.Context(), name, metav1.GetOptions{}); err == nil {
		want = secret.New(s.Data[corev1.DockerConfigJsonKey]).Fingerprint(w.prints)
	}
	kubetest.Eventually(w.t, func() string {
		s, followed := w.secrets.Get(key(ns, name))
		var have secret.Fingerprint
		if s != nil {
			have = s.Data[corev1.DockerConfigJsonKey].Fingerprint(w.prints)
		}
		if followed && have != want { // one that is not followed is read when a pod names it
			return "Secret " + ns + "/" + name + " to be seen as it is"
		}
		return ""
	})
}
