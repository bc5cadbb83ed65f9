package content

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/canary"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/store"
	"github.com/stileproject/stile/internal/wasm/wasmtest"
)

func TestP7_ANamespaceWithoutRoomHurtsItselfAlone(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	w := newWorldIn(t, store.Options{MaxPerNamespace: 300_000}, Config{}, r.host())
	push := func(i uint64) string {
		return r.host() + "/p@" + r.artifact("p", wasmtest.Sized(200_000, i))
	}
	first, second := push(1), push(2)
	kept := w.prove("noisy", first)
	m := w.mustFetch(kept)
	w.contents.Retain([]string{m.SHA256}) // a live plugin has it: it cannot give way
	p := w.prove("noisy", second)
	_, err := w.fetch(p)
	if problem := wantProblem(t, err, ReasonStoreFull); !problem.Retry {
		t.Errorf("problem %+v", problem)
	}
	// Its neighbour gets the very same image, and then it is still the noisy one's share
	// that has no room.
	w.mustFetch(w.prove("quiet", second))
	_, err = w.fetch(p)
	wantProblem(t, err, ReasonStoreFull)
	if m, err := w.fetch(kept); err != nil || m.Inline == nil {
		t.Errorf("what it had is gone: %v", err)
	}
	// The plugin goes, and there is room at the next try.
	w.contents.Retain(nil)
	if _, err := w.contents.Fetch(testContext(t), p); err != nil {
		t.Error(err)
	}
}

// One whose credential the registry refuses at the wrong moment does not spoil it for
// those whose credential is good.
func TestModule_ARefusedCredentialDoesNotSpoilItForOthers(t *testing.T) {
	t.Parallel()
	for _, mode := range []localregistry.Mode{localregistry.Basic, localregistry.Bearer} {
		r, err := localregistry.Start(localregistry.Options{Mode: mode, TokenLife: time.Second, Users: map[string]string{"alice": "password-of-alice", "bob": "password-of-bob"}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		r.Allow("alice", "p", localregistry.Pull, localregistry.Push)
		r.Allow("bob", "p", localregistry.Pull)
		w := newWorld(t, t.TempDir(), Config{}, r.Host())
		module := wasmtest.Named("for both")
		digest, err := w.client.Push(testContext(t), module, parse(t, r.Host()+"/p:v1"), oci.LayoutOCI, testCredential(t, "alice"), w.trust(r.Host()))
		if err != nil {
			t.Fatal(err)
		}
		image := r.Host() + "/p@" + digest
		alice, bob := w.prove("team-a", image, testCredential(t, "alice")), w.prove("team-b", image, testCredential(t, "bob"))
		r.Revoke("alice", "p") // the gate does not know yet
		r.RevokeTokens()
		_, err = w.fetch(alice)
		wantProblem(t, err, ReasonUnauthorized)
		if m := w.mustFetch(bob); !bytes.Equal(m.Inline, module) {
			t.Error("other bytes")
		}
		// Her proof still stands, and what she may read is here now: the gate ends it, not we.
		if _, err := w.fetch(alice); err != nil {
			t.Error(err)
		}
	}
}

func TestP3_NoCredentialAndNoQueryIsWrittenAnywhere(t *testing.T) {
	t.Parallel()
	watch := canary.Watch(t)
	password, token := watch.Credential(), watch.Credential()
	r, f := newRegistry(t), newFiles(t)
	registry := prometheus.NewRegistry()
	w := newWorldIn(t, store.Options{Log: watch.Log(), Registerer: registry}, Config{Log: watch.Log(), Registerer: registry}, r.host(), f.host())
	watch.Dir(w.dir)
	key := testRoot(t).Key(secret.ForFingerprints)
	p := w.prove("team-a", r.host()+"/p@"+r.artifact("p", wasmtest.Named("p")), oci.NewCredential(key, "test", "alice", password))
	w.mustFetch(p)
	f.put("/good", wasmtest.Named("g"))
	f.put("/bad", []byte("no module"))
	var errs []error
	for _, path := range []string{"/good", "/bad", "/missing"} {
		_, err := w.fetchURL(URLRequest{URL: fmt.Sprintf("%s%s?sig=%s", f.URL, path, token), Trust: w.trust(f.host()), Namespace: "team-a"})
		errs = append(errs, err)
	}
	_, err := w.contents.URL(URLRequest{URL: "https://alice:" + password + "@example.test/m"})
	errs = append(errs, err)
	watch.Errors(errs...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		watch.Add("metrics", []byte(family.String()))
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v, %v", problems, err)
	}
}

func TestRedact(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"https://host/a/b.wasm":              "https://host/a/b.wasm",
		"https://u:p@host/a?sig=x&se=y#frag": "https://host/a?sig=…&se=…",
		"https://host/?secret":               "https://host/?secret=…",
		"https://ho st/":                     "(a url that cannot be read)",
	} {
		if got := Redact(raw); got != want {
			t.Errorf("Redact(%q) = %q, want %q", raw, got, want)
		}
	}
}

// Many who ask for what cannot be had do not make it be asked for without pause.
func TestModule_ManyAskersKeepTheBackoff(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	w := newWorld(t, t.TempDir(), Config{}, r.host())
	image := r.host() + "/p@" + r.artifact("p", wasmtest.Named("wanted"))
	var proofs []access.Proof
	for i := range 3 * maxAskers {
		user := fmt.Sprint("user", i)
		proofs = append(proofs, w.prove("ns-"+user, image, testCredential(t, user)))
	}
	r.set(func() { r.refuse = func(*http.Request) int { return http.StatusForbidden } })
	for range 20 {
		for _, p := range proofs {
			if _, err := w.fetch(p); err == nil {
				t.Fatal("fetched from a registry that refuses")
			}
		}
	}
	// Each of those who are remembered may have been tried when it came; then it is over.
	if n := r.count("GET /v2/p/manifests/"); n > maxAskers*maxAskers {
		t.Errorf("%d requests for %d asks", n, 20*len(proofs))
	}
	before := r.count("GET /v2/p/manifests/")
	for _, p := range proofs {
		if _, err := w.contents.Module(p); err == nil || errors.Is(err, ErrPending) {
			t.Errorf("error %v", err)
		}
	}
	if n := r.count("GET /v2/p/manifests/"); n != before {
		t.Errorf("%d requests more", n-before)
	}
}
