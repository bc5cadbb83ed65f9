package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/secret"
)

// TestMain names a proxy in the environment that nobody may use: what is asked through
// it could be led anywhere. Every test of this package runs under it.
func TestMain(m *testing.M) {
	var used atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { used.Add(1) }))
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"} {
		if err := os.Setenv(name, proxy.URL); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	proxy.Close()
	if n := used.Load(); n > 0 {
		fmt.Fprintf(os.Stderr, "the proxy in the environment was used %d times\n", n)
		code = 1
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// testKey is a key for fingerprints.
func testKey(t testing.TB) secret.Key {
	t.Helper()
	root, err := secret.NewRoot(bytes.Repeat([]byte{7}, secret.Size), nil)
	if err != nil {
		t.Fatal(err)
	}
	return root.Key(secret.ForFingerprints)
}

// newClient returns a client that may speak plain HTTP to hosts.
func newClient(t testing.TB, s Settings, hosts ...string) *Client {
	t.Helper()
	s.Key = testKey(t)
	for _, h := range hosts {
		s.Registries = append(s.Registries, Registry{Host: h, PlainHTTP: true})
	}
	c, err := NewClient(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func startRegistry(t testing.TB, o localregistry.Options) *localregistry.Registry {
	t.Helper()
	r, err := localregistry.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func ref(t testing.TB, s string) Reference {
	t.Helper()
	r, err := ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func trust(t testing.TB, c *Client, r Reference) Trust {
	t.Helper()
	tr, err := c.Trust(r.Host(), "team-a")
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// fixture is a registry with user alice, who may push to and pull from a/plugin, and bob,
// who may do nothing.
type fixture struct {
	registry   *localregistry.Registry
	client     *Client
	image      Reference
	trust      Trust
	alice, bob Credential
	digest     string
	module     []byte
}

func newFixture(t testing.TB, o localregistry.Options, s Settings) *fixture {
	t.Helper()
	o.Users = map[string]string{"alice": "wonderland", "bob": "builder"}
	f := &fixture{registry: startRegistry(t, o), module: []byte("\x00asm\x01\x00\x00\x00")}
	f.registry.Allow("alice", localregistry.Everywhere, localregistry.Pull, localregistry.Push)
	f.client = newClient(t, s, f.registry.Host())
	f.image = ref(t, f.registry.Host()+"/a/plugin:v1")
	f.trust = trust(t, f.client, f.image)
	f.alice = NewCredential(testKey(t), "test", "alice", "wonderland")
	f.bob = NewCredential(testKey(t), "test", "bob", "builder")
	var err error
	f.digest, err = f.client.Push(t.Context(), f.module, f.image, LayoutArtifact, f.alice, f.trust)
	if err != nil {
		t.Fatal(err)
	}
	f.client.Forget(f.alice.Fingerprint())
	return f
}

// requests returns how many requests do makes, by the counter and by the registry.
func (f *fixture) requests(t testing.TB, do func(context.Context)) int {
	t.Helper()
	before := f.registry.RequestCount()
	var n atomic.Int64
	do(WithCounter(t.Context(), &n))
	if seen := f.registry.RequestCount() - before; seen != int(n.Load()) {
		t.Errorf("counted %d requests, the registry saw %d", n.Load(), seen)
	}
	return int(n.Load())
}

func TestCheck_OneRequestOnceATokenIsHeld(t *testing.T) {
	t.Parallel()
	for _, mode := range []struct {
		mode                     localregistry.Mode
		first, again, other, bob int
	}{
		{localregistry.Bearer, 3, 1, 2, 3}, // ping, token, HEAD; HEAD; token, HEAD
		{localregistry.Basic, 2, 1, 1, 2},  // ping, HEAD; HEAD; HEAD
		{localregistry.Open, 2, 1, 1, 2},
	} {
		t.Run(string(mode.mode), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, localregistry.Options{Mode: mode.mode}, Settings{})
			other := ref(t, f.registry.Host()+"/a/other:v1")
			if _, err := f.client.Push(t.Context(), f.module, other, LayoutOCI, f.alice, f.trust); err != nil {
				t.Fatal(err)
			}
			f.client.Forget(f.alice.Fingerprint())
			check := func(r Reference, c Credential) func(context.Context) {
				return func(ctx context.Context) {
					_, err := f.client.Check(ctx, r, c, f.trust, CheckOptions{})
					if denied := c.Fingerprint() == f.bob.Fingerprint() && mode.mode != localregistry.Open; denied != errors.Is(err, Unauthorized) || !denied && err != nil {
						t.Errorf("check %v as %v: %v", r, c, err)
					}
				}
			}
			for _, step := range []struct {
				name string
				do   func(context.Context)
				want int
			}{
				{"first", check(f.image, f.alice), mode.first},
				{"again", check(f.image, f.alice), mode.again},
				{"by digest", check(f.image.At(f.digest), f.alice), mode.again},
				{"other repository", check(other, f.alice), mode.other},
				{"denied", check(f.image, f.bob), mode.bob},
			} {
				if got := f.requests(t, step.do); got != step.want {
					t.Errorf("%s: %d requests, want %d", step.name, got, step.want)
				}
			}
		})
	}
}

func TestCheck_Answers(t *testing.T) {
	t.Parallel()
	f := newFixture(t, localregistry.Options{}, Settings{})
	d, err := f.client.Check(t.Context(), f.image, f.alice, f.trust, CheckOptions{})
	if err != nil || d.Digest != f.digest || d.MediaType != "application/vnd.oci.image.manifest.v1+json" || d.Size == 0 {
		t.Errorf("got %+v, %v", d, err)
	}
	d, err = f.client.Check(t.Context(), f.image, f.alice, f.trust, CheckOptions{Get: true, FreshToken: true})
	if err != nil || d.Digest != f.digest {
		t.Errorf("by GET: got %+v, %v", d, err)
	}
	for name, one := range map[string]struct {
		ref     Reference
		cred    Credential
		kind    Kind
		account bool
	}{
		"no right":       {f.image, f.bob, Unauthorized, false},
		"anonymous":      {f.image, Credential{}, Unauthorized, false},
		"wrong password": {f.image, NewCredential(testKey(t), "", "alice", "wrong"), Unauthorized, true},
		"no such tag":    {ref(t, f.registry.Host()+"/a/plugin:v2"), f.alice, NotFound, false},
		"no such image":  {ref(t, f.registry.Host()+"/a/none:v2"), f.alice, NotFound, false},
	} {
		_, err := f.client.Check(t.Context(), one.ref, one.cred, f.trust, CheckOptions{})
		e, ok := errors.AsType[*Error](err)
		if !ok || !errors.Is(err, one.kind) || !e.FromRegistry || e.Account != one.account {
			t.Errorf("%s: got %#v, want %v from the registry", name, err, one.kind)
		}
	}
}

func TestCheck_ZeroOrForeignTrustIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t, localregistry.Options{}, Settings{})
	foreign, err := f.client.Trust("registry.example", "team-a")
	if err != nil {
		t.Fatal(err)
	}
	for _, tr := range []Trust{{}, foreign} {
		if _, err := f.client.Check(t.Context(), f.image, f.alice, tr, CheckOptions{}); !errors.Is(err, Blocked) {
			t.Errorf("trust %+v: got %v", tr, err)
		}
	}
}

func TestRevocationShowsWithAFreshToken(t *testing.T) {
	t.Parallel()
	f := newFixture(t, localregistry.Options{TokenLife: 24 * time.Hour}, Settings{})
	check := func(o CheckOptions) error {
		_, err := f.client.Check(t.Context(), f.image, f.alice, f.trust, o)
		return err
	}
	if err := check(CheckOptions{}); err != nil {
		t.Fatal(err)
	}
	f.registry.Revoke("alice", localregistry.Everywhere)
	if err := check(CheckOptions{}); err != nil {
		t.Errorf("with the token that is held: %v", err)
	}
	if err := check(CheckOptions{FreshToken: true}); !errors.Is(err, Unauthorized) {
		t.Errorf("with a fresh token: %v", err)
	}
}

func TestTokenThatTheRegistryForgotIsAskedAgain(t *testing.T) {
	t.Parallel()
	f := newFixture(t, localregistry.Options{}, Settings{})
	check := func(ctx context.Context) {
		if _, err := f.client.Check(ctx, f.image, f.alice, f.trust, CheckOptions{}); err != nil {
			t.Error(err)
		}
	}
	check(t.Context())
	f.registry.RevokeTokens()
	if n := f.requests(t, check); n != 3 { // HEAD, token, HEAD
		t.Errorf("%d requests", n)
	}
}

func TestForget_DropsTokensAndConnections(t *testing.T) {
	t.Parallel()
	f := newFixture(t, localregistry.Options{}, Settings{})
	check := func(ctx context.Context) {
		_, _ = f.client.Check(ctx, f.image, f.alice, f.trust, CheckOptions{})
	}
	check(t.Context())
	f.client.Forget(f.bob.Fingerprint())
	if n := f.requests(t, check); n != 1 {
		t.Errorf("after another's Forget: %d requests", n)
	}
	f.client.Forget(f.alice.Fingerprint())
	if n := f.requests(t, check); n != 3 {
		t.Errorf("after its own: %d requests", n)
	}
}

func TestManifestAndBlob(t *testing.T) {
	t.Parallel()
	f := newFixture(t, localregistry.Options{}, Settings{})
	m, err := f.client.Manifest(t.Context(), f.image.At(f.digest), f.alice, f.trust)
	if err != nil || m.Digest != f.digest || int64(len(m.Raw)) != m.Size {
		t.Fatalf("manifest: %+v, %v", m.Descriptor, err)
	}
	sum := sha256.Sum256(f.module)
	d := Descriptor{Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(len(f.module))}
	b, err := f.client.Blob(t.Context(), f.image, d, f.alice, f.trust)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, f.module) {
		t.Errorf("got %q, %v", got, err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := f.client.Blob(t.Context(), f.image, d, f.bob, f.trust); !errors.Is(err, Unauthorized) {
		t.Errorf("bob: %v", err)
	}
}

func TestReferrers(t *testing.T) {
	t.Parallel()
	f := newFixture(t, localregistry.Options{}, Settings{})
	pinned := f.image.At(f.digest)
	m, err := f.client.Referrers(t.Context(), pinned, f.alice, f.trust)
	if err != nil || m.MediaType != "application/vnd.oci.image.index.v1+json" || !bytes.Contains(m.Raw, []byte("manifests")) {
		t.Errorf("%s %s, %v", m.MediaType, m.Raw, err)
	}
	if _, err := f.client.Referrers(t.Context(), f.image, f.alice, f.trust); !errors.Is(err, Invalid) {
		t.Errorf("without a digest: %v", err)
	}
	if _, err := f.client.Referrers(t.Context(), pinned, f.bob, f.trust); !errors.Is(err, Unauthorized) {
		t.Errorf("bob: %v", err)
	}
	for status, kind := range map[int]Kind{404: NotFound, 503: Unavailable, 200: Unavailable} {
		f.registry.SetFaults(localregistry.Fault{Path: "/v2/a/plugin/referrers/", Status: status, Body: "<html>"})
		if _, err := f.client.Referrers(t.Context(), pinned, f.alice, f.trust); !errors.Is(err, kind) {
			t.Errorf("%d: %v", status, err)
		}
	}
}

func TestOutageIsUnavailable(t *testing.T) {
	t.Parallel()
	f := newFixture(t, localregistry.Options{}, Settings{})
	hasty := newClient(t, Settings{RequestTimeout: 50 * time.Millisecond}, f.registry.Host())
	for name, one := range map[string]struct {
		client *Client
		set    func()
	}{
		"down":    {f.client, f.registry.Down},
		"dropped": {f.client, func() { f.registry.SetFaults(localregistry.Fault{Drop: true}) }},
		"hangs":   {hasty, func() { f.registry.SetFaults(localregistry.Fault{Hang: true}) }},
		"503":     {f.client, func() { f.registry.SetFaults(localregistry.Fault{Status: 503, Body: "busy wonderland"}) }},
	} {
		one.set()
		_, err := one.client.Check(t.Context(), f.image, f.alice, f.trust, CheckOptions{})
		if !errors.Is(err, Unavailable) || strings.Contains(err.Error(), "wonderland") {
			t.Errorf("%s: %v", name, err)
		}
		f.registry.Up()
		f.registry.SetFaults()
		if _, err := f.client.Check(t.Context(), f.image, f.alice, f.trust, CheckOptions{}); err != nil {
			t.Errorf("%s is over: %v", name, err)
		}
	}
}
