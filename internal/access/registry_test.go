package access_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/canary"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/secret"
)

// house is a real registry, a real client and a Gate, in which every credential is a
// canary and everything that is logged, served, measured or written is searched.
type house struct {
	t        *testing.T
	watch    *canary.Watcher
	registry *localregistry.Registry
	client   *oci.Client
	gate     *access.Gate
	key      secret.Key
	trust    oci.Trust
	users    map[string]string
	module   string // digest
}

func openHouse(t *testing.T, mode localregistry.Mode) *house {
	t.Helper()
	h := &house{t: t, watch: canary.Watch(t)}
	marker := h.watch.Credential()
	h.users = map[string]string{"alice": h.watch.Credential(), "bob": h.watch.Credential(), "pusher": h.watch.Credential()}
	root, err := secret.NewRoot(bytes.Repeat([]byte{9}, secret.Size), nil)
	h.must(err)
	h.key = root.Key(secret.ForFingerprints)

	// Tokens are good for a day, whatever becomes of the right.
	h.registry, err = localregistry.Start(localregistry.Options{Mode: mode, Users: h.users, TokenMarker: marker, TokenLife: 24 * time.Hour})
	h.must(err)
	t.Cleanup(func() { h.must(h.registry.Close()) })
	host := h.registry.Host()
	h.registry.Allow("pusher", localregistry.Everywhere, localregistry.Pull, localregistry.Push)
	h.registry.Allow("alice", "a/p")

	metrics := prometheus.NewRegistry()
	h.client, err = oci.NewClient(oci.Settings{
		Registries: []oci.Registry{{Host: host, PlainHTTP: true}}, Key: h.key, Log: h.watch.Log(), Registerer: metrics,
		TokenMaxAge: 100 * time.Millisecond,
	})
	h.must(err)
	t.Cleanup(h.client.Close)
	h.trust, err = h.client.Trust(host, oci.Operator)
	h.must(err)
	h.module, err = h.client.Push(t.Context(), []byte("\x00asm\x01\x00\x00\x00"), h.image("a/p:v1"), oci.LayoutArtifact, h.credential("pusher"), h.trust)
	h.must(err)

	dir := t.TempDir()
	archive, err := access.OpenArchive(dir+"/proofs.db", root, h.watch.Log())
	h.must(err)
	trail := &lines{}
	h.gate = access.New(h.client, access.Config{
		Recheck: 500 * time.Millisecond, Attempts: 1, ConfirmAfter: 50 * time.Millisecond, DeniedFirst: 100 * time.Millisecond, DeniedMax: 300 * time.Millisecond,
		UnauthorizedFirst: 200 * time.Millisecond, UnauthorizedMax: 400 * time.Millisecond,
		Archive: archive, Audit: trail, Log: h.watch.Log(), Registerer: metrics,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.gate.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		h.must(<-done)
		h.must(archive.Close())
		h.watch.Dir(dir)
		h.watch.Add("the audit stream", trail.bytes())
		list, err := json.Marshal(h.gate.List())
		h.must(err)
		h.watch.Add("/api/v1/proofs", list)
		families, err := metrics.Gather()
		h.must(err)
		h.watch.Add("metrics", fmt.Append(nil, families))
	})
	return h
}

func (h *house) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) image(name string) oci.Reference {
	h.t.Helper()
	r, err := oci.ParseReference(h.registry.Host() + "/" + name)
	h.must(err)
	return r
}

func (h *house) credential(user string) oci.Credential {
	return oci.NewCredential(h.key, "pull secret of "+user, user, h.users[user])
}

// request is that of a plugin of a team whose pull secret names the users.
func (h *house) request(team, image string, users ...string) access.Request {
	h.t.Helper()
	var c []oci.Credential
	for _, u := range users {
		c = append(c, h.credential(u))
	}
	return access.Request{
		Image: h.image(image), Credentials: oci.NewCredentials(h.key, c...), Trust: h.trust,
		Holder: access.Holder{Namespace: team, Name: "plugin"},
	}
}

// until waits until the verdict on r is as wanted, and hands every one to the watcher.
func (h *house) until(r access.Request, want access.State, reason access.Reason) access.Verdict {
	h.t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		v := h.gate.Check(r)
		h.watch.Add("a verdict", fmt.Appendf(nil, "%+v", v))
		if v.State == want && v.Reason == reason {
			return v
		}
		select {
		case <-h.gate.Changes():
		case <-tick.C:
		case <-deadline.C:
			h.t.Fatalf("got %v %q (%s), want %v %q", v.State, v.Reason, v.Message, want, reason)
		}
	}
}

// lines is an audit stream in memory.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.buf.Bytes())
}

// TestStoryAtARegistry is the story of the seed, of revocation and of an outage, at a
// registry that asks for passwords.
func TestStoryAtARegistry(t *testing.T) {
	t.Parallel()
	for _, mode := range []localregistry.Mode{localregistry.Bearer, localregistry.Basic} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			h := openHouse(t, mode)
			tag := h.request("team-a", "a/p:v1", "alice")
			if v := h.gate.Check(tag); v.State != access.Pending {
				t.Errorf("at first sight %v", v.State)
			}
			if v := h.until(tag, access.Allowed, ""); v.Digest != h.module {
				t.Errorf("resolved to %s, pushed %s", v.Digest, h.module)
			}
			pinned := h.request("team-a", "a/p@"+h.module, "alice")
			proof, v := h.gate.Hold(pinned)
			if v.State != access.Allowed || !proof.Stands() {
				t.Fatalf("told %+v", v)
			}
			h.until(h.request("team-b", "a/p:v1", "bob"), access.Denied, access.Unauthorized)
			h.until(h.request("team-c", "a/p:v1"), access.Denied, access.Unauthorized)

			// The registry is gone and comes back: nobody changes.
			h.registry.Down()
			for h.gate.Check(pinned).StaleSince.IsZero() {
				<-h.gate.Changes()
			}
			if v := h.gate.Check(pinned); v.State != access.Allowed || !proof.Stands() {
				t.Errorf("the registry is down and %+v", v)
			}
			h.registry.Up()
			for !h.gate.Check(pinned).StaleSince.IsZero() {
				<-h.gate.Changes()
			}

			// An ingress's page instead of the registry: nobody changes.
			h.registry.SetFaults(localregistry.Fault{Status: http.StatusNotFound, Body: "<html>default backend</html>"})
			for h.gate.Check(pinned).StaleSince.IsZero() {
				<-h.gate.Changes()
			}
			if !proof.Stands() {
				t.Error("an ingress's 404 ended a yes")
			}
			h.registry.SetFaults()
			for !h.gate.Check(pinned).StaleSince.IsZero() {
				<-h.gate.Changes()
			}

			// The right is taken while a token that grants it is good for a day.
			h.registry.Revoke("alice", "a/p")
			h.until(pinned, access.Denied, access.Unauthorized)
			if proof.Stands() {
				t.Error("revoked and still standing")
			}
			h.registry.Allow("alice", "a/p")
			h.until(pinned, access.Allowed, "")
			h.until(tag, access.Allowed, "")

			// A wrong password is the account's, and is corrected.
			h.registry.SetUser("alice", "changed-"+h.users["alice"])
			h.until(pinned, access.Denied, access.Unauthorized)
			h.registry.SetUser("alice", h.users["alice"])
			h.until(pinned, access.Allowed, "")

			// [good, always refused], whatever their order.
			both := h.request("team-d", "a/p@"+h.module, "alice", "bob")
			if v := h.until(both, access.Allowed, ""); v.Credential != h.credential("alice").Fingerprint() {
				t.Errorf("earned by %v", v.Credential)
			}
		})
	}
}

// TestOneRequestACheck: two for a new repository once the registry is known, one for a
// re-check while a token is held.
func TestOneRequestACheck(t *testing.T) {
	t.Parallel()
	h := openHouse(t, localregistry.Basic)
	h.until(h.request("team-a", "a/p:v1", "alice"), access.Allowed, "")
	before := h.registry.RequestCount()
	pinned := h.request("team-a", "a/p@"+h.module, "alice")
	_, v := h.gate.Hold(pinned)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for at := v.CheckedAt; v.CheckedAt.Equal(at); v = h.gate.Check(pinned) {
		<-tick.C
	}
	if n := h.registry.RequestCount() - before; n != 1 {
		t.Errorf("a re-check took %d requests, want 1: %v", n, h.registry.Requests()[before:])
	}
}
