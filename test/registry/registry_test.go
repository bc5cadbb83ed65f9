package registry

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd"
	_ "github.com/distribution/distribution/v3/registry/auth/token"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/sirupsen/logrus"
	"golang.org/x/crypto/bcrypt"

	"github.com/stileproject/stile/internal/canary"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
)

func TestMain(m *testing.M) {
	logrus.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// rig is a distribution server with two users: alice, whom the token server lets do
// everything until her rights are taken, and bob, whom it lets do nothing.
type rig struct {
	t      *testing.T
	w      *canary.Watcher
	host   string
	client *oci.Client
	trust  oci.Trust
	key    secret.Key

	alice, bob string // passwords
	htpasswd   string // the server's file, if it has one
	signer     ed25519.PrivateKey
	revoked    atomic.Bool
	mu         sync.Mutex
	asked      []string
}

func newRig(t *testing.T, auth string) *rig {
	t.Helper()
	r := &rig{t: t, w: canary.Watch(t)}
	r.alice, r.bob = r.w.Credential(), r.w.Credential()
	root, err := secret.NewRoot(make([]byte, secret.Size), nil)
	must(t, err)
	r.key = root.Key(secret.ForFingerprints)

	server := httptest.NewUnstartedServer(nil)
	r.host = server.Listener.Addr().String()
	config := &configuration.Configuration{
		Version: "0.1",
		Storage: configuration.Storage{
			"inmemory":    {},
			"delete":      {"enabled": true},
			"maintenance": {"uploadpurging": map[any]any{"enabled": false}},
		},
		Catalog: configuration.Catalog{MaxEntries: 10},
	}
	config.HTTP.Secret = "only for this test"
	config.Log.AccessLog.Disabled = true
	dir := t.TempDir()
	switch auth {
	case "htpasswd":
		hash, err := bcrypt.GenerateFromPassword([]byte(r.alice), bcrypt.MinCost)
		must(t, err)
		file := filepath.Join(dir, "htpasswd")
		must(t, os.WriteFile(file, []byte("alice:"+string(hash)+"\n"), 0o600))
		r.htpasswd = file
		config.Auth = configuration.Auth{"htpasswd": {"realm": "r", "path": file}}
	case "token":
		public, private, err := ed25519.GenerateKey(rand.Reader)
		must(t, err)
		r.signer = private
		file := filepath.Join(dir, "jwks.json")
		keys := map[string]any{"keys": []any{map[string]string{"kty": "OKP", "crv": "Ed25519", "kid": "k", "use": "sig", "alg": "EdDSA", "x": base64.RawURLEncoding.EncodeToString(public)}}}
		must(t, os.WriteFile(file, encode(keys), 0o600))
		config.Auth = configuration.Auth{"token": {"realm": "http://" + r.host + "/token", "service": "registry", "issuer": "issuer", "jwks": file}}
	}
	app := handlers.NewApp(context.Background(), config)
	server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.asked = append(r.asked, req.Method+" "+req.URL.Path)
		r.mu.Unlock()
		if req.URL.Path == "/token" {
			r.token(w, req)
			return
		}
		app.ServeHTTP(w, req)
	})
	server.Start()
	t.Cleanup(func() {
		server.Close()
		must(t, app.Shutdown())
	})
	r.client, err = oci.NewClient(oci.Settings{Key: r.key, Log: r.w.Log(), Registries: []oci.Registry{{Host: r.host, PlainHTTP: true}}})
	must(t, err)
	t.Cleanup(r.client.Close)
	r.trust, err = r.client.Trust(r.host, "team-a")
	must(t, err)
	return r
}

// token is the token server: a JWT for a day, with the rights of its making.
func (r *rig) token(w http.ResponseWriter, req *http.Request) {
	user, password, given := req.BasicAuth()
	if want := map[string]string{"alice": r.alice, "bob": r.bob}[user]; given && (want == "" || password != want) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"details":"incorrect username or password"}`)
		return
	}
	access := []any{}
	for _, scope := range req.URL.Query()["scope"] {
		parts := strings.Split(scope, ":")
		if user == "alice" && !r.revoked.Load() && len(parts) == 3 {
			access = append(access, map[string]any{"type": parts[0], "name": parts[1], "actions": strings.Split(parts[2], ",")})
		}
	}
	now := time.Now()
	claims := map[string]any{
		"iss": "issuer", "sub": user, "aud": "registry", "jti": rand.Text(), "access": access,
		"nbf": now.Add(-time.Minute).Unix(), "iat": now.Unix(), "exp": now.Add(24 * time.Hour).Unix(),
	}
	signed := base64.RawURLEncoding.EncodeToString(encode(map[string]string{"alg": "EdDSA", "typ": "JWT", "kid": "k"})) + "." + base64.RawURLEncoding.EncodeToString(encode(claims))
	jwt := signed + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(r.signer, []byte(signed)))
	r.w.Track(jwt)
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(encode(map[string]any{"token": jwt, "expires_in": 86400}))
}

func (r *rig) as(user, password string) oci.Credential {
	return oci.NewCredential(r.key, "pull secret ns/s", user, password)
}

func (r *rig) ref(s string) oci.Reference {
	r.t.Helper()
	ref, err := oci.ParseReference(r.host + "/" + s)
	must(r.t, err)
	return ref
}

func (r *rig) push(s string, layout oci.Layout) string {
	r.t.Helper()
	digest, err := r.client.Push(r.t.Context(), []byte("\x00asm\x01\x00\x00\x00"+s), r.ref(s), layout, r.as("alice", r.alice), r.trust)
	must(r.t, err)
	return digest
}

// check asks, hands the error to the canary and returns what was requested meanwhile.
func (r *rig) check(s string, cred oci.Credential, o oci.CheckOptions) (oci.Descriptor, []string, error) {
	r.t.Helper()
	return r.checkRef(r.ref(s), cred, o)
}

func (r *rig) checkRef(ref oci.Reference, cred oci.Credential, o oci.CheckOptions) (oci.Descriptor, []string, error) {
	r.t.Helper()
	r.mu.Lock()
	r.asked = nil
	r.mu.Unlock()
	d, err := r.client.Check(r.t.Context(), ref, cred, r.trust, o)
	r.w.Errors(err)
	r.mu.Lock()
	defer r.mu.Unlock()
	return d, slices.Clone(r.asked), err
}

func (r *rig) wantRefused(err error, kind oci.Kind, account bool) {
	r.t.Helper()
	e, ok := errors.AsType[*oci.Error](err)
	if !ok || e.Kind != kind || !e.FromRegistry || e.Account != account {
		r.t.Errorf("got %#v, want %v from the registry, account %v", err, kind, account)
	}
}

func TestTokenAuthentication(t *testing.T) {
	t.Parallel()
	r := newRig(t, "token")
	alice, bob := r.as("alice", r.alice), r.as("bob", r.bob)
	digest := r.push("a/p:v1", oci.LayoutArtifact)
	r.push("a/q:v1", oci.LayoutOCI)
	r.client.Forget(alice.Fingerprint())
	for _, step := range []struct {
		name string
		ref  string
		want int
	}{{"first", "a/p:v1", 3}, {"again", "a/p:v1", 1}, {"other repository", "a/q:v1", 2}} {
		if _, asked, err := r.check(step.ref, alice, oci.CheckOptions{}); err != nil || len(asked) != step.want {
			t.Errorf("%s: %q, %v; want %d requests", step.name, asked, err, step.want)
		}
	}
	if d, _, err := r.check("a/p:v1", alice, oci.CheckOptions{}); err != nil || d.Digest != digest {
		t.Errorf("got %+v, %v", d, err)
	}
	_, asked, err := r.check("a/p:v1", bob, oci.CheckOptions{})
	if r.wantRefused(err, oci.Unauthorized, false); len(asked) != 3 {
		t.Errorf("a denied credential costs %q", asked)
	}
	_, _, err = r.check("a/p:v1", r.as("bob", "wrong"), oci.CheckOptions{})
	r.wantRefused(err, oci.Unauthorized, true)
	_, _, err = r.check("a/p:v1", oci.Credential{}, oci.CheckOptions{})
	r.wantRefused(err, oci.Unauthorized, false)
	_, _, err = r.check("a/p:none", alice, oci.CheckOptions{})
	r.wantRefused(err, oci.NotFound, false)
	_, _, err = r.check("a/none:v1", alice, oci.CheckOptions{Get: true})
	r.wantRefused(err, oci.NotFound, false)
}

// A JWT is good for a day; the right behind it may end sooner.
func TestP5_RevokedRightShowsWithAFreshToken(t *testing.T) {
	t.Parallel()
	r := newRig(t, "token")
	alice := r.as("alice", r.alice)
	r.push("a/p:v1", oci.LayoutArtifact)
	if _, _, err := r.check("a/p:v1", alice, oci.CheckOptions{}); err != nil {
		t.Fatal(err)
	}
	r.revoked.Store(true)
	if _, _, err := r.check("a/p:v1", alice, oci.CheckOptions{}); err != nil {
		t.Errorf("the token that is held: %v", err)
	}
	for _, o := range []oci.CheckOptions{{FreshToken: true}, {FreshToken: true, Get: true}} {
		_, _, err := r.check("a/p:v1", alice, o)
		r.wantRefused(err, oci.Unauthorized, false)
	}
	r.revoked.Store(false)
	if _, _, err := r.check("a/p:v1", alice, oci.CheckOptions{FreshToken: true}); err != nil {
		t.Errorf("the right is back: %v", err)
	}
}

func TestDeletedTagAndManifest(t *testing.T) {
	t.Parallel()
	r := newRig(t, "htpasswd")
	alice := r.as("alice", r.alice)
	digest := r.push("a/p:v1", oci.LayoutArtifact)
	remove := func(what string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, "http://"+r.host+"/v2/a/p/manifests/"+what, nil)
		must(t, err)
		req.SetBasicAuth("alice", r.alice)
		resp, err := http.DefaultTransport.RoundTrip(req)
		must(t, err)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusAccepted {
			t.Fatalf("delete %s: %d", what, resp.StatusCode)
		}
	}
	pinned := r.ref("a/p:v1").At(digest)
	remove("v1")
	_, _, err := r.check("a/p:v1", alice, oci.CheckOptions{})
	r.wantRefused(err, oci.NotFound, false)
	if _, _, err := r.checkRef(pinned, alice, oci.CheckOptions{}); err != nil {
		t.Errorf("the tag is gone, the manifest is there: %v", err)
	}
	remove(digest)
	_, _, err = r.checkRef(pinned, alice, oci.CheckOptions{})
	r.wantRefused(err, oci.NotFound, false)
}

func TestHtpasswd(t *testing.T) {
	t.Parallel()
	r := newRig(t, "htpasswd")
	alice := r.as("alice", r.alice)
	digest := r.push("a/p:v1", oci.LayoutDocker)
	r.client.Forget(alice.Fingerprint())
	for _, want := range []int{2, 1} {
		if d, asked, err := r.check("a/p:v1", alice, oci.CheckOptions{}); err != nil || len(asked) != want || d.Digest != digest {
			t.Errorf("%+v, %q, %v; want %d requests", d, asked, err, want)
		}
	}
	_, _, err := r.check("a/p:v1", r.as("alice", "wrong"), oci.CheckOptions{})
	r.wantRefused(err, oci.Unauthorized, true)
	_, _, err = r.check("a/p:v1", oci.Credential{}, oci.CheckOptions{})
	r.wantRefused(err, oci.Unauthorized, false)
}

// What was pushed comes back byte for byte, in every layout.
func TestPushAndReadBack(t *testing.T) {
	t.Parallel()
	for _, auth := range []string{"token", "htpasswd"} {
		r := newRig(t, auth)
		alice := r.as("alice", r.alice)
		for _, layout := range []oci.Layout{oci.LayoutArtifact, oci.LayoutOCI, oci.LayoutDocker} {
			name := fmt.Sprintf("a/%s:v1", layout)
			digest := r.push(name, layout)
			if again := r.push(name, layout); again != digest {
				t.Errorf("%s: pushed again it is %s, not %s", layout, again, digest)
			}
			m, err := r.client.Manifest(t.Context(), r.ref(name).At(digest), alice, r.trust)
			must(t, err)
			var fields struct {
				MediaType string
				Layers    []oci.Descriptor
			}
			must(t, json.Unmarshal(m.Raw, &fields))
			if m.Digest != digest || m.MediaType != fields.MediaType || len(fields.Layers) != 1 {
				t.Errorf("%s: %+v", layout, m.Descriptor)
			}
			blob, err := r.client.Blob(t.Context(), r.ref(name), fields.Layers[0], alice, r.trust)
			must(t, err)
			content, err := io.ReadAll(blob)
			must(t, errors.Join(err, blob.Close()))
			if layout == oci.LayoutArtifact && string(content) != "\x00asm\x01\x00\x00\x00"+name {
				t.Errorf("%s: %q", layout, content)
			}
		}
	}
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
