package oci

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
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

func redirectRows() []row {
	return []row{{
		name: "cross-host redirect of a manifest",
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://" + s.cdn.host + "/m?signature=x")}))
			s.cdn.serve(found)
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}, s.cdn: {"HEAD /m"}}
		},
	}, {
		name: "cross-host redirect of a blob, bearer",
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{
				"/v2/": challengeBearer("https://" + s.registry.host + "/token"), "/token": give("TOKEN"), blobPath: redirect("https://" + s.cdn.host + "/b"),
			}))
			s.cdn.serve(empty)
		},
		do: readBlob,
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "GET /token USER", "GET " + blobPath + " Bearer TOKEN"}, s.cdn: {"GET /b"}}
		},
	}, {
		name: "redirect to a name beneath the registry's",
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://" + s.sub.host + "/m")}))
			s.sub.serve(found)
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}, s.sub: {"HEAD /m"}}
		},
	}, {
		name: "redirect to another port of the host",
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://" + s.port.host + "/m")}))
			s.port.serve(found)
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}, s.port: {"HEAD /m"}}
		},
	}, {
		name: "redirect within the host",
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("/elsewhere"), "/elsewhere": found}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER", "HEAD /elsewhere USER"}}
		},
	}, {
		name: "redirect away and back",
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://" + s.cdn.host + "/m"), "/back": found}))
			s.cdn.serve(redirect("https://" + s.registry.host + "/back"))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER", "HEAD /back"}, s.cdn: {"HEAD /m"}}
		},
	}, {
		name: "redirect from https to http",
		kind: Blocked,
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("http://" + s.plain.host + "/m")}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}}
		},
	}, {
		name: "redirect to a link-local address",
		kind: Blocked,
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://169.254.169.254/latest/meta-data")}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}}
		},
	}, {
		name: "redirect with a user in it",
		kind: Blocked,
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://u:p@" + s.cdn.host + "/m")}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}}
		},
	}, {
		name: "basic challenge after a redirect",
		kind: Unauthorized,
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://" + s.evil.host + "/m")}))
			s.evil.serve(challengeBasic)
		},
		want: func(s *stage) map[*server][]string {
			// A refusal that does not look like a registry's is asked once more, by GET.
			return map[*server][]string{
				s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER", "GET " + manifestPath + " USER"},
				s.evil:     {"HEAD /m", "GET /m"},
			}
		},
	}, {
		name: "bearer challenge after a redirect names a realm over verified TLS",
		kind: Unauthorized,
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": empty, manifestPath: redirect("https://" + s.cdn.host + "/m")}))
			s.cdn.serve(challengeBearer("https://" + s.evil.host + "/token"))
			s.evil.serve(give("TOKEN"))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{
				s.registry: {"GET /v2/", "HEAD " + manifestPath, "GET " + manifestPath}, s.cdn: {"HEAD /m", "GET /m"},
			}
		},
	}, {
		name: "the ping redirects to a host that challenges",
		kind: NotFound,
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": redirect("https://" + s.evil.host + "/v2/")}))
			s.evil.serve(challengeBearer("https://" + s.evil.host + "/token"))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath, "GET " + manifestPath}}
		},
	}, {
		name: "endless redirects",
		kind: Unavailable,
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": empty, manifestPath: redirect("https://" + s.cdn.host + "/m")}))
			s.cdn.serve(redirect("/m"))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath}, s.cdn: {"HEAD /m", "HEAD /m", "HEAD /m", "HEAD /m", "HEAD /m"}}
		},
	}, {
		name: "upload to another host",
		set: func(s *stage) {
			blobs := func(w http.ResponseWriter, r *http.Request) {
				switch r.Method {
				case http.MethodPost:
					w.Header().Set("Location", "https://"+s.cdn.host+"/upload")
					w.WriteHeader(http.StatusAccepted)
				case http.MethodPut:
					w.WriteHeader(http.StatusCreated)
				default:
					http.NotFound(w, r)
				}
			}
			s.registry.serve(authorized("Basic", challengeBasic, blobs))
			s.cdn.serve(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) })
		},
		do: func(ctx context.Context, s *stage, c *Client, t Trust) error {
			_, err := c.Push(ctx, []byte("x"), s.image, LayoutArtifact, s.credential, t)
			return err
		},
		want: func(s *stage) map[*server][]string {
			im, _ := lay([]byte("x"), LayoutArtifact)
			return map[*server][]string{
				s.registry: {
					"GET /v2/",
					"HEAD /v2/a/p/blobs/" + im.blobs[0].Digest + " USER", "POST /v2/a/p/blobs/uploads/ USER",
					"HEAD /v2/a/p/blobs/" + im.blobs[1].Digest + " USER", "POST /v2/a/p/blobs/uploads/ USER",
					"PUT " + manifestPath + " USER",
				},
				s.cdn: {"PUT /upload", "PUT /upload"},
			}
		},
	}, {
		name: "client certificate is for its host alone",
		set: func(s *stage) {
			cert := testAuthority().certificate(s.t, "stile-client")
			s.settings.Registries[0].Certificate, s.settings.Registries[0].Namespaces = &cert, []string{"team-a"}
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": empty, manifestPath: redirect("https://" + s.cdn.host + "/m")}))
			s.cdn.serve(found)
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/ as stile-client", "HEAD " + manifestPath + " as stile-client"}, s.cdn: {"HEAD /m"}}
		},
	}, {
		name: "client certificate is not for every namespace",
		set: func(s *stage) {
			cert := testAuthority().certificate(s.t, "stile-client")
			s.settings.Registries[0].Certificate = &cert // and no namespaces
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": empty, manifestPath: found}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath}}
		},
	}, {
		name: "plaintext answer on the TLS port",
		kind: Unavailable,
		set: func(s *stage) {
			s.settings.Registries = nil
			s.image = ref(s.t, s.plain.host+"/a/p:v1")
		},
		want: func(*stage) map[*server][]string { return nil },
	}, {
		name: "private by literal address: no plain HTTP because of it",
		kind: Unavailable,
		set: func(s *stage) {
			_, port, _ := net.SplitHostPort(s.plain.host)
			s.settings.Registries = nil
			s.image = ref(s.t, "127.0.0.1:"+port+"/a/p:v1")
		},
		want: func(*stage) map[*server][]string { return nil },
	}, {
		name: "named, private, by DNS: no plain HTTP because of it",
		kind: Unavailable,
		set: func(s *stage) {
			s.settings.Registries = []Registry{{Host: s.plain.host}}
			s.image = ref(s.t, s.plain.host+"/a/p:v1")
		},
		want: func(*stage) map[*server][]string { return nil },
	}, {
		name: "loopback by DNS, not named",
		kind: Blocked,
		set: func(s *stage) {
			s.settings.AllowLoopback, s.settings.Registries = false, nil
			s.registry.serve(challengeBasic)
		},
		want: func(*stage) map[*server][]string { return nil },
	}, {
		name: "a redirect to a name that leads to loopback",
		kind: Blocked,
		set: func(s *stage) {
			s.settings.AllowLoopback = false // the registry itself is named
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://" + s.cdn.host + "/m")}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}}
		},
	}, {
		name: "DNS rebinding: the named registry moves to the metadata service",
		kind: Blocked,
		set: func(s *stage) {
			s.names.answers["registry.test"] = []string{"127.0.0.1", "169.254.169.254"}
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: found}))
		},
		do: func(ctx context.Context, s *stage, c *Client, t Trust) error {
			if err := checkIt(ctx, s, c, t); err != nil {
				return fmt.Errorf("the first time: %w", err)
			}
			s.registry.http.CloseClientConnections()
			c.Forget(s.credential.Fingerprint())
			return checkIt(ctx, s, c, t)
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}}
		},
	}, {
		name: "a certificate that nobody signed",
		kind: Unavailable,
		set: func(s *stage) {
			s.image = ref(s.t, s.untrusted.host+"/a/p:v1")
			s.untrusted.serve(challengeBasic)
		},
		want: func(*stage) map[*server][]string { return nil },
	}}
}

func realmRows() []row {
	registry := func(s *stage, realm string) {
		challenge := challengeBearer(realm)
		s.registry.serve(routes(map[string]http.HandlerFunc{
			"/v2/": challenge, manifestPath: authorized("Bearer TOKEN", challenge, found), "/token": give("TOKEN"),
		}))
		for _, one := range []*server{s.auth, s.evil, s.plain, s.untrusted, s.port} {
			one.serve(give("TOKEN"))
		}
	}
	pingOnly := func(s *stage) map[*server][]string { return map[*server][]string{s.registry: {"GET /v2/"}} }
	return []row{{
		name: "realm on the registry itself",
		set:  func(s *stage) { registry(s, "https://"+s.registry.host+"/token") },
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "GET /token USER", "HEAD " + manifestPath + " Bearer TOKEN"}}
		},
	}, {
		name: "realm on another host over verified TLS",
		set:  func(s *stage) { registry(s, "https://"+s.auth.host+"/token") },
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " Bearer TOKEN"}, s.auth: {"GET /token USER"}}
		},
	}, {
		name: "realm on another port of the host over verified TLS",
		set:  func(s *stage) { registry(s, "https://"+s.port.host+"/token") },
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " Bearer TOKEN"}, s.port: {"GET /token USER"}}
		},
	}, {
		name: "realm on another host that tokenHosts lists",
		set: func(s *stage) {
			s.settings.Registries[0].TokenHosts = []string{s.auth.host}
			registry(s, "https://"+s.auth.host+"/token")
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " Bearer TOKEN"}, s.auth: {"GET /token USER"}}
		},
	}, {
		name: "realm on another host that tokenHosts does not list",
		kind: Blocked,
		set: func(s *stage) {
			s.settings.Registries[0].TokenHosts = []string{s.auth.host}
			registry(s, "https://"+s.evil.host+"/token")
		},
		want: pingOnly,
	}, {
		name: "realm on another host with a certificate that nobody signed",
		kind: Unavailable,
		set:  func(s *stage) { registry(s, "https://"+s.untrusted.host+"/token") },
		want: pingOnly,
	}, {
		name: "realm over plain HTTP, on a host named for it",
		kind: Blocked,
		set:  func(s *stage) { registry(s, "http://"+s.plain.host+"/token") },
		want: pingOnly,
	}, {
		name: "realm over plain HTTP on the registry's own host",
		kind: Blocked,
		set:  func(s *stage) { registry(s, "http://"+s.registry.host+"/token") },
		want: pingOnly,
	}, {
		name: "realm on a link-local host",
		kind: Blocked,
		set:  func(s *stage) { registry(s, "https://169.254.169.254/token") },
		want: pingOnly,
	}, {
		name: "realm on a link-local host, in IPv6 clothes",
		kind: Blocked,
		set:  func(s *stage) { registry(s, "https://[::ffff:a9fe:a9fe]/token") },
		want: pingOnly,
	}, {
		name: "realm on a name that leads to the metadata service",
		kind: Blocked,
		set: func(s *stage) {
			s.names.answers["auth.test"] = []string{"169.254.169.254"}
			registry(s, "https://"+s.auth.host+"/token")
		},
		want: pingOnly,
	}, {
		name: "realm on a loopback host that is not named",
		kind: Blocked,
		set: func(s *stage) {
			s.settings.AllowLoopback = false
			registry(s, "https://"+s.auth.host+"/token")
		},
		want: pingOnly,
	}, {
		name: "realm with a user in it",
		kind: Blocked,
		set:  func(s *stage) { registry(s, "https://u:p@"+s.auth.host+"/token") },
		want: pingOnly,
	}, {
		name: "realm that is no URL",
		kind: Blocked,
		set:  func(s *stage) { registry(s, "/token") },
		want: pingOnly,
	}, {
		name: "realm of a plain HTTP registry on another host",
		kind: Blocked,
		set: func(s *stage) {
			s.image = ref(s.t, s.plain.host+"/a/p:v1")
			registry(s, "")
			s.plain.serve(challengeBearer("https://" + s.auth.host + "/token"))
		},
		want: func(s *stage) map[*server][]string { return map[*server][]string{s.plain: {"GET /v2/"}} },
	}, {
		name: "token endpoint redirects to another host",
		kind: Blocked,
		set: func(s *stage) {
			registry(s, "https://"+s.auth.host+"/token")
			s.auth.serve(redirect("https://" + s.evil.host + "/token"))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/"}, s.auth: {"GET /token USER"}}
		},
	}, {
		name: "token endpoint redirects an identity token",
		kind: Blocked,
		set: func(s *stage) {
			k, err := ParseDockerConfigJSON(s.settings.Key, "s", fmt.Appendf(nil, `{"auths":{%q:{"identitytoken":%q}}}`, s.registry.host, s.password))
			if err != nil {
				panic(err)
			}
			all, err := k.For(s.image)
			if err != nil {
				panic(err)
			}
			s.credential = all.Candidates()[0]
			registry(s, "https://"+s.auth.host+"/token")
			s.auth.serve(redirect("https://" + s.evil.host + "/token"))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/"}, s.auth: {"POST /token refresh " + s.password}}
		},
	}, {
		name: "the realm changes to another host, which tokenHosts does not list, when a token is refused",
		kind: Blocked,
		set: func(s *stage) {
			s.settings.Registries[0].TokenHosts = []string{s.auth.host}
			registry(s, "")
			s.registry.serve(routes(map[string]http.HandlerFunc{
				"/v2/": challengeBearer("https://" + s.auth.host + "/token"), manifestPath: challengeBearer("https://" + s.evil.host + "/token"),
			}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " Bearer TOKEN"}, s.auth: {"GET /token USER"}}
		},
	}, {
		name: "a challenge of two schemes prefers bearer",
		set: func(s *stage) {
			registry(s, "https://"+s.auth.host+"/token")
			s.registry.serve(routes(map[string]http.HandlerFunc{
				"/v2/": func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Add("WWW-Authenticate", `Basic realm="x"`)
					w.Header().Add("WWW-Authenticate", `Bearer service="s",realm="https://`+s.auth.host+`/token"`)
					w.WriteHeader(http.StatusUnauthorized)
				}, manifestPath: found,
			}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " Bearer TOKEN"}, s.auth: {"GET /token USER"}}
		},
	}}
}
