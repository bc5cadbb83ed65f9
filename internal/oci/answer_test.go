package oci

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stileproject/stile/internal/canary"
)

// plainRegistry is a registry over plain HTTP that answers as the test says, and a
// client that may ask it.
func plainRegistry(t testing.TB, s Settings, h http.HandlerFunc) (*server, *Client, Reference, Trust) {
	t.Helper()
	srv := newServer(t, "127.0.0.1", nil)
	srv.serve(h)
	c := newClient(t, s, srv.host)
	r := ref(t, srv.host+"/a/p:v1")
	return srv, c, r, trust(t, c, r)
}

const ociError = `{"errors":[{"code":"DENIED","message":"no"},{"code":"made up","message":"x"}]}`

func TestP4_AnswersToACheck(t *testing.T) {
	t.Parallel()
	kinds := map[int]Kind{
		400: Invalid, 401: Unauthorized, 403: Unauthorized, 404: NotFound, 405: Invalid, 406: Invalid, 407: Unavailable, 408: Unavailable, 409: Unavailable,
		410: NotFound, 412: Unauthorized, 415: Invalid, 416: Unavailable, 418: Unavailable, 425: Unavailable, 429: Unavailable, 431: Unavailable, 451: Unauthorized,
		500: Unavailable, 501: Unavailable, 502: Unavailable, 503: Unavailable, 504: Unavailable, 507: Unavailable, 599: Unavailable, 204: Unavailable, 206: Unavailable, 300: Unavailable, 304: Unavailable,
	}
	asksAgain := func(status int) bool { return kinds[status] == Invalid || status == 501 }
	for status, kind := range kinds {
		for _, from := range []string{"registry by header", "registry by body", "ingress"} {
			t.Run(fmt.Sprint(status, " ", from), func(t *testing.T) {
				t.Parallel()
				srv, c, r, tr := plainRegistry(t, Settings{}, func(w http.ResponseWriter, req *http.Request) {
					if req.URL.Path == "/v2/" {
						return
					}
					body := "<html>no</html>"
					switch from {
					case "registry by header":
						w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
					case "registry by body":
						body = ociError
					}
					w.WriteHeader(status)
					if status != 204 && status != 304 {
						_, _ = io.WriteString(w, body)
					}
				})
				_, err := c.Check(t.Context(), r, Credential{}, tr, CheckOptions{})
				e, ok := errors.AsType[*Error](err)
				if !ok || e.Kind != kind || e.Status != status {
					t.Fatalf("got %#v, want %v", err, kind)
				}
				// By HEAD alone a registry shows only by its header; then a refusal is asked again.
				want := []string{"GET /v2/", "HEAD " + manifestPath}
				refused := kind == Unauthorized || kind == NotFound
				if asksAgain(status) || refused && from != "registry by header" {
					want = append(want, "GET "+manifestPath)
				}
				if diff := cmp.Diff(want, srv.got()); diff != "" {
					t.Error(diff)
				}
				if (refused || kind == Invalid) && e.FromRegistry != (from != "ingress") {
					t.Errorf("FromRegistry is %v for the %s", e.FromRegistry, from)
				}
				if strings.Contains(err.Error(), "made up") || strings.Contains(err.Error(), "html") {
					t.Errorf("the message repeats what was answered: %v", err)
				}
			})
		}
	}
}

func TestCheck_HeadAnsweredBadly(t *testing.T) {
	t.Parallel()
	manifest := `{"schemaVersion":2}`
	digest := newBlob("", []byte(manifest)).Digest
	for name, one := range map[string]struct {
		head  http.HandlerFunc
		get   string
		image string // what is asked; empty = by tag
		kind  Kind
		asked int // GETs of the manifest
	}{
		"without a digest":            {head: empty, get: manifest, asked: 1},
		"another algorithm":           {head: digestHeader("sha512:ab"), get: manifest, asked: 1},
		"no digest at all":            {head: digestHeader("latest"), get: manifest, asked: 1},
		"a digest, by tag":            {head: digestHeader(digest), get: "never asked"},
		"405":                         {head: status(405), get: manifest, asked: 1},
		"another digest than asked":   {head: digestHeader(someDigest), image: digest, get: manifest, asked: 1},
		"the digest asked":            {head: digestHeader(digest), image: digest, get: "never asked"},
		"other bytes than asked":      {head: empty, image: digest, get: manifest + " ", kind: Mismatch, asked: 1},
		"a page that answers all":     {head: empty, get: "<html>login</html>", kind: Unavailable, asked: 1},
		"JSON that is no manifest":    {head: empty, get: `{"login":"please"}`, kind: Unavailable, asked: 1},
		"larger than any manifest is": {head: empty, get: strings.Repeat(" ", MaxManifest+1), kind: TooLarge, asked: 1},
		"as large as a manifest may be": {
			head: empty, get: manifest + strings.Repeat(" ", MaxManifest-len(manifest)), asked: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv, c, r, tr := plainRegistry(t, Settings{}, func(w http.ResponseWriter, req *http.Request) {
				switch {
				case req.URL.Path == "/v2/":
				case req.Method == http.MethodHead:
					one.head(w, req)
				default:
					_, _ = io.WriteString(w, one.get)
				}
			})
			if one.image != "" {
				r = r.At(one.image)
			}
			d, err := c.Check(t.Context(), r, Credential{}, tr, CheckOptions{})
			if KindOf(err) != one.kind {
				t.Fatalf("got %v, want %v", err, one.kind)
			}
			if one.kind == 0 && !digestForm.MatchString(d.Digest) {
				t.Errorf("digest %q", d.Digest)
			}
			if n := len(srv.got()); n != 2+one.asked {
				t.Errorf("asked %q", srv.got())
			}
		})
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func digestHeader(d string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Docker-Content-Digest", d) }
}

func TestTokenEndpointAnswers(t *testing.T) {
	t.Parallel()
	for name, one := range map[string]struct {
		answer  http.HandlerFunc
		kind    Kind
		account bool
	}{
		"401":                    {answer: status(401), kind: Unauthorized, account: true},
		"403":                    {answer: status(403), kind: Unauthorized},
		"404 of an ingress":      {answer: status(404), kind: Unavailable},
		"400":                    {answer: status(400), kind: Unavailable},
		"429":                    {answer: status(429), kind: Unavailable},
		"500":                    {answer: status(500), kind: Unavailable},
		"200 without a token":    {answer: give(""), kind: Unavailable},
		"200 and a page":         {answer: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, kind: Unavailable},
		"200 without end":        {answer: give(strings.Repeat("x", maxTokenAnswer)), kind: Unavailable},
		"a token with line feed": {answer: give(`a\r\nHost: evil`), kind: Unavailable},
		"access_token": {answer: func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"access_token":"TOKEN","expires_in":300}`)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv, c, r, tr := plainRegistry(t, Settings{}, nil)
			srv.serve(routes(map[string]http.HandlerFunc{
				"/v2/": challengeBearer("http://" + srv.host + "/token"), "/token": one.answer, manifestPath: found,
			}))
			_, err := c.Check(t.Context(), r, NewCredential(testKey(t), "s", "u", "p"), tr, CheckOptions{})
			e, _ := errors.AsType[*Error](err)
			if KindOf(err) != one.kind || e != nil && (!e.TokenEndpoint || e.Account != one.account) {
				t.Errorf("got %#v", err)
			}
		})
	}
}

func TestIdentityTokenIsExchanged(t *testing.T) {
	t.Parallel()
	for name, one := range map[string]struct {
		answer http.HandlerFunc
		kind   Kind
	}{
		"good": {answer: give("TOKEN")},
		"no use": {answer: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(400)
			_, _ = io.WriteString(w, `{"error":"invalid_grant"}`)
		}, kind: Unauthorized},
		"odd": {answer: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(400)
			_, _ = io.WriteString(w, `{"error":"invalid_scope"}`)
		}, kind: Unavailable},
	} {
		srv, c, r, tr := plainRegistry(t, Settings{}, nil)
		challenge := challengeBearer("http://" + srv.host + "/token")
		srv.serve(routes(map[string]http.HandlerFunc{"/v2/": challenge, "/token": one.answer, manifestPath: authorized("Bearer TOKEN", challenge, found)}))
		k := keyring(t, "s", fmt.Appendf(nil, `{"auths":{%q:{"auth":%q,"identitytoken":"idtoken"}}}`, srv.host, base64.StdEncoding.EncodeToString([]byte("<token>:"))))
		creds, err := k.For(r)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Check(t.Context(), r, creds.Candidates()[0], tr, CheckOptions{})
		e, _ := errors.AsType[*Error](err)
		if KindOf(err) != one.kind || e != nil && e.Account != (one.kind == Unauthorized) {
			t.Errorf("%s: got %#v", name, err)
		}
		if got := srv.got()[1]; got != "POST /token refresh idtoken" {
			t.Errorf("%s: asked %q", name, got)
		}
	}
}

func TestRegistryTokenIsSentAsItIs(t *testing.T) {
	t.Parallel()
	srv, c, r, tr := plainRegistry(t, Settings{}, nil)
	srv.serve(routes(map[string]http.HandlerFunc{manifestPath: authorized("Bearer mine", challengeBearer("http://"+srv.host+"/token"), found)}))
	creds, err := keyring(t, "s", fmt.Appendf(nil, `{"auths":{%q:{"registrytoken":"mine"}}}`, srv.host)).For(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Check(t.Context(), r, creds.Candidates()[0], tr, CheckOptions{}); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"HEAD " + manifestPath + " Bearer mine"}, srv.got()); diff != "" {
		t.Error(diff)
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "-7": 0, "soon": 0, "1e3": 0,
		"900": MaxRetryAfter, "901": MaxRetryAfter, "9223372036854775807": MaxRetryAfter, "99999999999999999999": 0,
		now.Add(time.Minute).Format(http.TimeFormat): time.Minute,
		now.Add(time.Hour).Format(http.TimeFormat):   MaxRetryAfter,
		now.Add(-time.Hour).Format(http.TimeFormat):  0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {value}}, now); got != want {
			t.Errorf("%q: got %v, want %v", value, got, want)
		}
	}
	_, c, r, tr := plainRegistry(t, Settings{}, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/v2/" {
			w.Header().Set("Retry-After", "42")
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"errors":[{"code":"TOOMANYREQUESTS"}]}`)
		}
	})
	_, err := c.Check(t.Context(), r, Credential{}, tr, CheckOptions{Get: true})
	if e, ok := errors.AsType[*Error](err); !ok || e.Kind != Unavailable || e.RetryAfter != 42*time.Second {
		t.Errorf("a limit that is answered as 403: %#v", err)
	}
}

// A registry may write what it was sent into everything that it answers.
func TestP3_EchoOfTheCredentialIsNotRepeated(t *testing.T) {
	t.Parallel()
	for _, code := range []int{200, 307, 400, 401, 403, 404, 429, 500} {
		for _, kind := range []string{"basic", "bearer"} {
			t.Run(fmt.Sprint(code, " ", kind), func(t *testing.T) {
				t.Parallel()
				w := canary.Watch(t)
				user, pass, tok := w.Credential(), w.Credential(), w.Credential()
				srv, c, r, tr := plainRegistry(t, Settings{Log: w.Log()}, nil)
				echo := func(rw http.ResponseWriter, req *http.Request) {
					sent := req.Header.Get("Authorization")
					_, decoded, _ := req.BasicAuth()
					all := fmt.Sprint(sent, decoded, user, pass, tok)
					for _, h := range []string{"Docker-Content-Digest", "Content-Type", "Retry-After", "Docker-Distribution-Api-Version", "X-Any", "Warning"} {
						rw.Header().Set(h, all)
					}
					rw.Header().Set("Location", "http://"+srv.host+"/"+user+"?"+all)
					rw.WriteHeader(code)
					_, _ = fmt.Fprintf(rw, `{"errors":[{"code":%q,"message":%q,"detail":%q}],"error":%q,"schemaVersion":2}`, all, all, all, all)
				}
				ping := challengeBasic
				if kind == "bearer" {
					ping = challengeBearer("http://" + srv.host + "/token")
				}
				srv.serve(func(rw http.ResponseWriter, req *http.Request) {
					switch req.URL.Path {
					case "/v2/":
						ping(rw, req)
					case "/token":
						if code == 200 || code == 404 {
							give(tok)(rw, req)
							return
						}
						echo(rw, req)
					default:
						echo(rw, req)
					}
				})
				cred := NewCredential(testKey(t), "pull secret ns/s", user, pass)
				for _, o := range []CheckOptions{{}, {Get: true, FreshToken: true}} {
					d, err := c.Check(t.Context(), r, cred, tr, o)
					w.Errors(err)
					w.Add("descriptor", fmt.Appendf(nil, "%+v", d))
				}
				_, err := c.Blob(t.Context(), r, Descriptor{Digest: someDigest}, cred, tr)
				w.Errors(err)
				_, err = c.Push(t.Context(), []byte("x"), r, LayoutOCI, cred, tr)
				w.Errors(err)
			})
		}
	}
}

// What breaks a connection in the middle quotes bytes of the server in the errors of
// net/http: none of it may come through.
func TestP3_BrokenAnswersAreNotQuoted(t *testing.T) {
	t.Parallel()
	for name, raw := range map[string]string{
		"no HTTP":         "SECRETWORD\r\n\r\n",
		"bad header":      "HTTP/1.1 200 OK\r\nSECRETWORD\r\n\r\n",
		"bad length":      "HTTP/1.1 200 OK\r\nContent-Length: SECRETWORD\r\n\r\n",
		"bad encoding":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: SECRETWORD\r\n\r\n",
		"too many bytes":  "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("SECRETWORD", 40_000) + "\r\n\r\n",
		"breaks off":      "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{SECRETWORD",
		"bad redirect":    "HTTP/1.1 307 SECRETWORD\r\nLocation: http://%zzSECRETWORD\r\nContent-Length: 0\r\n\r\n",
		"another scheme":  "HTTP/1.1 307 x\r\nLocation: file:///SECRETWORD\r\nContent-Length: 0\r\n\r\n",
		"unknown address": "HTTP/1.1 307 x\r\nLocation: https://secretword.invalid./SECRETWORD\r\nContent-Length: 0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, c, r, tr := plainRegistry(t, Settings{}, func(w http.ResponseWriter, req *http.Request) {
				if req.URL.Path == "/v2/" {
					return
				}
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.WriteString(conn, raw)
				_ = conn.Close()
			})
			c.guard.resolver = (&names{}).resolver()
			_, err := c.Check(t.Context(), r, Credential{}, tr, CheckOptions{Get: true})
			if err == nil || strings.Contains(strings.ToLower(fmt.Sprintf("%v %+v", err, err)), "secretword") {
				t.Errorf("got %v", err)
			}
			if KindOf(err) != Unavailable && KindOf(err) != Blocked {
				t.Errorf("got %#v", err)
			}
		})
	}
}

func TestCancelledCheckSaysSo(t *testing.T) {
	t.Parallel()
	started := make(chan struct{})
	_, c, r, tr := plainRegistry(t, Settings{}, func(_ http.ResponseWriter, req *http.Request) {
		close(started)
		<-req.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	if _, err := c.Check(ctx, r, Credential{}, tr, CheckOptions{}); !errors.Is(err, context.Canceled) || !errors.Is(err, Unavailable) {
		t.Errorf("got %v", err)
	}
}

// A refusal that names no challenge must not make the client forget the one of the
// ping: from then on it would ask as nobody.
func TestRefusalWithoutAChallengeUnlearnsNothing(t *testing.T) {
	t.Parallel()
	srv, c, r, tr := plainRegistry(t, Settings{}, nil)
	refuse := true
	srv.serve(routes(map[string]http.HandlerFunc{
		"/v2/": challengeBearer("http://" + srv.host + "/token"), "/token": give("TOKEN"),
		manifestPath: func(w http.ResponseWriter, req *http.Request) {
			if refuse || req.Header.Get("Authorization") != "Bearer TOKEN" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			found(w, req)
		},
	}))
	cred := NewCredential(testKey(t), "s", "u", "p")
	if _, err := c.Check(t.Context(), r, cred, tr, CheckOptions{}); !errors.Is(err, Unauthorized) {
		t.Fatalf("got %v", err)
	}
	refuse = false
	if _, err := c.Check(t.Context(), r, cred, tr, CheckOptions{}); err != nil {
		t.Errorf("the right is back: %v", err)
	}
}
