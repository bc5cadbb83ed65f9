package oci

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stileproject/stile/internal/canary"
)

// stage is what the rows of TestCredentialGoesOnlyToItsHost play on: hosts that write
// down what they receive, and a client that the row may configure.
type stage struct {
	t testing.TB

	registry, auth, cdn, sub, evil *server // over TLS, with good certificates
	port                           *server // the registry's name on another port
	plain                          *server // plain HTTP, and named so
	untrusted                      *server // a certificate that nobody signed
	names                          *names
	settings                       Settings
	user, password                 string
	image                          Reference
	credential                     Credential
}

const (
	manifestPath = "/v2/a/p/manifests/v1"
	someDigest   = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // of nothing
	blobPath     = "/v2/a/p/blobs/" + someDigest
)

// challengeBearer answers 401 and names a realm.
func challengeBearer(realm string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="s"`)
		w.WriteHeader(http.StatusUnauthorized)
	}
}

func challengeBasic(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
	w.WriteHeader(http.StatusUnauthorized)
}

func redirect(to string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", to)
		w.Header().Set("Set-Cookie", "a=b")
		w.WriteHeader(http.StatusTemporaryRedirect)
	}
}

// give answers with a token.
func give(token string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"token":"`+token+`"}`) }
}

func found(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Docker-Content-Digest", someDigest)
	w.WriteHeader(http.StatusOK)
}

// routes answers each path in its own way; the ping of a registry is "/v2/".
func routes(m map[string]http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if h := m[r.URL.Path]; h != nil {
			h(w, r)
			return
		}
		http.NotFound(w, r)
	}
}

// authorized answers with h if the request brings what begins with scheme, else challenges.
func authorized(scheme string, challenge, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Authorization"), scheme) {
			h(w, r)
			return
		}
		challenge(w, r)
	}
}

type row struct {
	name string
	// set prepares the hosts and settings.
	set func(s *stage)
	// do is what is asked; nil = Check.
	do func(ctx context.Context, s *stage, c *Client, t Trust) error
	// kind is that of the error; 0 = none.
	kind Kind
	// want is what each host must have received: no more, no less. USER and TOKEN stand
	// for the credential and the token.
	want func(s *stage) map[*server][]string
}

func checkIt(ctx context.Context, s *stage, c *Client, t Trust) error {
	_, err := c.Check(ctx, s.image, s.credential, t, CheckOptions{})
	return err
}

func readBlob(ctx context.Context, s *stage, c *Client, t Trust) error {
	b, err := c.Blob(ctx, s.image, Descriptor{Digest: someDigest}, s.credential, t)
	if err != nil {
		return err
	}
	_, err = io.ReadAll(b)
	return errors.Join(err, b.Close())
}

var empty = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }

// A credential is sent to the host that it was written for, to the token endpoint that
// this host itself names over verified TLS, and to nobody else.
func TestCredentialGoesOnlyToItsHost(t *testing.T) {
	t.Parallel()
	for _, row := range append(redirectRows(), realmRows()...) {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			row.play(t)
		})
	}
}

func (row row) play(t *testing.T) {
	w := canary.Watch(t)
	ca := testAuthority()
	signed := func(names ...string) *tls.Certificate {
		c := ca.certificate(t, names...)
		return &c
	}
	stranger := newAuthority().certificate(t, "untrusted.test")
	s := &stage{
		t:         t,
		registry:  newServer(t, "registry.test", signed("registry.test", "127.0.0.1")),
		port:      newServer(t, "registry.test", signed("registry.test")),
		auth:      newServer(t, "auth.test", signed("auth.test")),
		cdn:       newServer(t, "cdn.test", signed("cdn.test")),
		sub:       newServer(t, "sub.registry.test", signed("sub.registry.test")),
		evil:      newServer(t, "evil.test", signed("evil.test")),
		plain:     newServer(t, "plain.test", nil),
		untrusted: newServer(t, "untrusted.test", &stranger),
		names:     &names{answers: map[string][]string{}},
		user:      w.Credential(),
		password:  w.Credential(),
	}
	all := []*server{s.registry, s.port, s.auth, s.cdn, s.sub, s.evil, s.plain, s.untrusted}
	for _, one := range all {
		s.names.answers[one.name] = []string{"127.0.0.1"}
	}
	s.image = ref(t, s.registry.host+"/a/p:v1")
	s.settings = Settings{
		Key: testKey(t), Log: w.Log(), AllowLoopback: true, RequestTimeout: 5 * time.Second,
		Registries: []Registry{{Host: s.registry.host, CA: ca.pem}, {Host: s.plain.host, PlainHTTP: true}},
	}
	s.credential = NewCredential(s.settings.Key, "pull secret ns/s", s.user, s.password)
	row.set(s)
	c, err := NewClient(s.settings)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.guard.resolver = s.names.resolver()
	c.roots = ca.pool
	tr, err := c.Trust(s.image.Host(), "team-a")
	if err != nil {
		t.Fatal(err)
	}
	do := row.do
	if do == nil {
		do = checkIt
	}
	err = do(t.Context(), s, c, tr)
	w.Errors(err)
	if row.kind == 0 && err != nil || row.kind != 0 && !errors.Is(err, row.kind) {
		t.Errorf("got %v, want %v", err, row.kind)
	}
	want := row.want(s)
	basic := strings.NewReplacer("USER", "basic "+s.user+":"+s.password)
	for _, one := range all {
		lines := want[one]
		for i := range lines {
			lines[i] = basic.Replace(lines[i])
		}
		if diff := cmp.Diff(lines, one.got()); diff != "" {
			t.Errorf("%s received (-want +got):\n%s", one.host, strings.NewReplacer(s.user, "USER", s.password, "PASSWORD").Replace(diff))
		}
	}
}
