package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/bcrypt"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
)

// gate is a Gate in front of the rig's server, with short times. All that it writes,
// logs, serves and measures is searched for credentials and tokens.
type gate struct {
	*rig
	*access.Gate
	digest string
}

func newGate(t *testing.T, auth string, recheck time.Duration) *gate {
	t.Helper()
	g := &gate{rig: newRig(t, auth)}
	g.digest = g.push("a/p:v1", oci.LayoutArtifact)
	metrics := prometheus.NewRegistry()
	client, err := oci.NewClient(oci.Settings{
		Key: g.key, Log: g.w.Log(), Registerer: metrics, TokenMaxAge: 100 * time.Millisecond,
		Registries: []oci.Registry{{Host: g.host, PlainHTTP: true}},
	})
	must(t, err)
	t.Cleanup(client.Close)
	root, err := secret.NewRoot(make([]byte, secret.Size), nil)
	must(t, err)
	dir := t.TempDir()
	archive, err := access.OpenArchive(dir+"/proofs.db", root, g.w.Log())
	must(t, err)
	audit := &trail{}
	g.Gate = access.New(client, access.Config{
		Recheck: recheck, ConfirmAfter: 50 * time.Millisecond,
		Archive: archive, Audit: audit, Log: g.w.Log(), Registerer: metrics,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		list, err := json.Marshal(g.List())
		must(t, err)
		families, err := metrics.Gather()
		must(t, err)
		cancel()
		must(t, <-done)
		must(t, archive.Close())
		g.w.Add("/api/v1/proofs", list)
		g.w.Add("metrics", fmt.Append(nil, families))
		g.w.Add("the audit stream", audit.text())
		g.w.Dir(dir)
	})
	return g
}

type trail struct {
	mu   sync.Mutex
	buff bytes.Buffer
}

func (t *trail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buff.Write(b)
}

func (t *trail) text() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.buff.Bytes())
}

// of is the request of a plugin of team, whose pull secret is this credential.
func (g *gate) of(team, image string, cred oci.Credential) access.Request {
	return access.Request{
		Image: g.ref(image), Credentials: oci.NewCredentials(g.key, cred), Trust: g.trust,
		Holder: access.Holder{Namespace: team, Name: "plugin"},
	}
}

// requests returns what reached the server since it was last called.
func (g *gate) requests() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	asked := g.asked
	g.asked = nil
	return asked
}

// first returns the first verdict on r.
func (g *gate) first(r access.Request) access.Verdict {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 20*time.Second)
	defer cancel()
	_, v, err := g.Prove(ctx, r)
	must(g.t, err)
	g.w.Add("a verdict", fmt.Appendf(nil, "%+v", v))
	return v
}

// TestTheGateAtARealRegistry: A fills, B misses and learns nothing, A' hits with no
// request; and a right that is taken ends within the interval, though the registry
// takes its token for a day more.
func TestTheGateAtARealRegistry(t *testing.T) {
	t.Parallel()
	for _, mode := range []struct {
		auth   string
		revoke func(*gate)
	}{
		{"htpasswd", func(g *gate) {
			hash, err := bcrypt.GenerateFromPassword([]byte("another"), bcrypt.MinCost)
			must(t, err)
			must(t, os.WriteFile(g.htpasswd, []byte("alice:"+string(hash)+"\n"), 0o600))
		}},
		{"token", func(g *gate) { g.revoked.Store(true) }},
	} {
		t.Run(mode.auth, func(t *testing.T) {
			t.Parallel()
			g := newGate(t, mode.auth, 500*time.Millisecond)
			alice, bob := g.as("alice", g.alice), g.as("bob", g.bob)
			a := g.of("team-a", "a/p:v1", alice)
			if v := g.first(a); v.State != access.Allowed || v.Digest != g.digest || v.Credential != alice.Fingerprint() {
				t.Fatalf("A is told %+v", v)
			}
			pinned := a
			pinned.Image = a.Image.At(g.digest)
			proof, v := g.Hold(pinned)
			if !proof.Stands() {
				t.Fatalf("A holds nothing: %+v", v)
			}

			for name, b := range map[string]oci.Credential{"B": bob, "nobody": {}} {
				for _, r := range []access.Request{g.of("team-b", "a/p:v1", b), g.of("team-b", "a/p@"+g.digest, b)} {
					if v := g.Check(r); v.State != access.Pending || v.Message != "" || v.Digest != "" {
						t.Errorf("%s is told at once %+v", name, v)
					}
					if v := g.first(r); v.State != access.Denied || v.Reason != access.Unauthorized || v.Digest != "" {
						t.Errorf("%s is told %+v", name, v)
					}
				}
			}

			if v := g.Check(g.of("team-c", "a/p:v1", g.as("alice", g.alice))); v.State != access.Allowed || v.Digest != g.digest {
				t.Errorf("A' is told %+v", v)
			}

			start := time.Now()
			mode.revoke(g)
			deadline := time.NewTimer(20 * time.Second)
			defer deadline.Stop()
			for late := false; proof.Stands() && !late; {
				select {
				case <-g.Changes():
				case <-deadline.C:
					late = true
				}
			}
			took := time.Since(start)
			if v := g.Check(pinned); proof.Stands() || v.State != access.Denied || v.Reason != access.Unauthorized {
				t.Errorf("A, whose right was taken %v ago, is told %+v", took, v)
			}
		})
	}
}

// TestTheGateAsksOnce: a hundred plugins of one credential and image cost what one does.
func TestTheGateAsksOnce(t *testing.T) {
	t.Parallel()
	g := newGate(t, "token", time.Hour)
	g.requests()
	alice := g.as("alice", g.alice)
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			r := g.of(fmt.Sprint("team-", i%7), "a/p:v1", alice)
			if v := g.first(r); v.State != access.Allowed {
				t.Errorf("told %+v", v)
			}
		})
	}
	all.Wait()
	if asked := g.requests(); len(asked) != 3 {
		t.Errorf("want a ping, a token and the check: %q", asked)
	}
}
