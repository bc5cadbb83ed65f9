package localregistry

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/stileproject/stile/internal/canary"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// asker asks a registry without any help of a registry client.
type asker struct {
	t testing.TB
	r *Registry
	c *http.Client
}

func start(t testing.TB, o Options) *asker {
	t.Helper()
	r, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		transport.CloseIdleConnections()
	})
	return &asker{t, r, &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

type reply struct {
	status int
	header http.Header
	body   string
}

// try asks with an Authorization header, "user:password" for basic or "Bearer …".
func (a *asker) try(method, path, authorization string) (reply, error) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, "http://"+a.r.Host()+path, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	if user, password, ok := strings.Cut(authorization, ":"); ok {
		req.SetBasicAuth(user, password)
	} else if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := a.c.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(body)}, err
}

func (a *asker) ask(method, path, authorization string) reply {
	a.t.Helper()
	got, err := a.try(method, path, authorization)
	if err != nil {
		a.t.Fatal(err)
	}
	return got
}

// token returns a bearer header for scope.
func (a *asker) token(login, scope string) string {
	a.t.Helper()
	got := a.ask("GET", "/token?service=local+registry&scope="+scope, login)
	var fields struct{ Token string }
	if err := json.Unmarshal([]byte(got.body), &fields); err != nil || fields.Token == "" {
		a.t.Fatalf("no token: %d %s", got.status, got.body)
	}
	return "Bearer " + fields.Token
}

var users = map[string]string{"alice": "wonderland", "bob": "builder"}

const manifest = "/v2/a/p/manifests/v1"

func TestBearer_OnlyTheManifestProves(t *testing.T) {
	t.Parallel()
	a := start(t, Options{Users: users})
	a.r.Allow("alice", "a/p")
	ping := a.ask("GET", "/v2/", "")
	if ping.status != 401 || !strings.HasPrefix(ping.header.Get("WWW-Authenticate"), `Bearer realm="http://`+a.r.Host()+`/token",service=`) {
		t.Errorf("ping: %+v", ping)
	}
	alice, bob := a.token("alice:wonderland", "repository:a/p:pull"), a.token("bob:builder", "repository:a/p:pull")
	for name, one := range map[string]struct {
		with   string
		path   string
		method string
		want   int
		says   string
	}{
		"allowed":          {alice, manifest, "GET", 404, ""}, // and nothing there
		"no right":         {bob, manifest, "GET", 401, `error="insufficient_scope"`},
		"another image":    {alice, "/v2/a/q/manifests/v1", "GET", 401, `scope="repository:a/q:pull",error="insufficient_scope"`},
		"push":             {alice, "/v2/a/p/blobs/uploads/", "POST", 401, `scope="repository:a/p:push",error="insufficient_scope"`},
		"no token":         {"", manifest, "GET", 401, `scope="repository:a/p:pull"`},
		"a made up token":  {"Bearer x", manifest, "GET", 401, `error="invalid_token"`},
		"password instead": {"alice:wonderland", manifest, "GET", 401, "Bearer"},
		"ping":             {bob, "/v2/", "GET", 200, ""},
	} {
		got := a.ask(one.method, one.path, one.with)
		if got.status != one.want || !strings.Contains(got.header.Get("WWW-Authenticate"), one.says) || got.header.Get("Docker-Distribution-Api-Version") != "registry/2.0" {
			t.Errorf("%s: %+v", name, got)
		}
		if got.status == 401 && !strings.Contains(got.body, `"code":"UNAUTHORIZED"`) {
			t.Errorf("%s: body %s", name, got.body)
		}
	}
	if got := a.ask("GET", "/token?scope=repository:a/p:pull", "alice:wrong"); got.status != 401 {
		t.Errorf("wrong password: %+v", got)
	}
}

func TestBearer_TokensKeepTheirRights(t *testing.T) {
	t.Parallel()
	a := start(t, Options{Users: users, TokenMarker: "marked-"})
	a.r.Allow("alice", Everywhere)
	old := a.token("alice:wonderland", "repository:a/p:pull")
	if !strings.HasPrefix(old, "Bearer marked-") {
		t.Errorf("token %q", old)
	}
	a.r.Revoke("alice", Everywhere)
	if got := a.ask("GET", manifest, old); got.status != 404 {
		t.Errorf("the old token: %d", got.status)
	}
	if got := a.ask("GET", manifest, a.token("alice:wonderland", "repository:a/p:pull")); got.status != 401 {
		t.Errorf("a new token: %d", got.status)
	}
	a.r.RevokeTokens()
	if got := a.ask("GET", manifest, old); got.status != 401 {
		t.Errorf("the old token, revoked: %d", got.status)
	}
}

func TestBearer_TokensExpire(t *testing.T) {
	t.Parallel()
	a := start(t, Options{Users: users, TokenLife: time.Nanosecond})
	a.r.Allow("alice", "a/p")
	if got := a.ask("GET", manifest, a.token("alice:wonderland", "repository:a/p:pull")); got.status != 401 || !strings.Contains(got.header.Get("WWW-Authenticate"), "invalid_token") {
		t.Errorf("got %+v", got)
	}
}

func TestAnonymousMayWhatAllMay(t *testing.T) {
	t.Parallel()
	for _, mode := range []Mode{Bearer, Basic} {
		a := start(t, Options{Mode: mode, Users: users})
		a.r.Allow(Anonymous, "public/p")
		for _, login := range []string{"", "bob:builder"} {
			with := login
			if mode == Bearer {
				with = a.token(login, "repository:public/p:pull&scope=repository:a/p:pull")
			}
			if got := a.ask("GET", "/v2/public/p/manifests/v1", with); got.status != 404 {
				t.Errorf("%s, %q: public: %d", mode, login, got.status)
			}
			if got := a.ask("GET", manifest, with); got.status < 401 || got.status > 403 {
				t.Errorf("%s, %q: private: %d", mode, login, got.status)
			}
		}
	}
}

func TestBasic(t *testing.T) {
	t.Parallel()
	a := start(t, Options{Mode: Basic, Users: users})
	a.r.Allow("alice", "a/p")
	a.r.SetUser("carol", "new")
	a.r.SetUser("bob", "")
	for with, want := range map[string]int{"": 401, "alice:wonderland": 404, "alice:wrong": 401, "nobody:x": 401, "carol:new": 403, "bob:builder": 401, "Bearer x": 401} {
		if got := a.ask("GET", manifest, with); got.status != want {
			t.Errorf("%q: %d, want %d", with, got.status, want)
		}
	}
	if got := a.ask("GET", "/v2/", "carol:new"); got.status != 200 {
		t.Errorf("ping: %d", got.status)
	}
	if got := a.ask("GET", "/token", "alice:wonderland"); got.status == 200 && strings.Contains(got.body, "token") {
		t.Errorf("a basic registry has no token endpoint: %+v", got)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	a := start(t, Options{Users: users})
	a.r.SetOpen(true)
	if got := a.ask("GET", manifest, ""); got.status != 404 {
		t.Errorf("open: %d", got.status)
	}
	a.r.SetOpen(false)
	if got := a.ask("GET", manifest, ""); got.status != 401 {
		t.Errorf("closed again: %d", got.status)
	}
	if got := start(t, Options{Mode: Open}).ask("GET", manifest, ""); got.status != 404 {
		t.Errorf("in mode open: %d", got.status)
	}
}

func TestDownAndUp(t *testing.T) {
	t.Parallel()
	a := start(t, Options{Mode: Open})
	host := a.r.Host()
	for range 3 {
		a.ask("GET", "/v2/", "")
		a.r.Down()
		if got, err := a.try("GET", "/v2/", ""); err == nil {
			t.Errorf("it answers: %+v", got)
		}
		a.r.Up()
		if got := a.ask("GET", "/v2/", ""); got.status != 200 || a.r.Host() != host {
			t.Errorf("%s: %+v", a.r.Host(), got)
		}
	}
	a.r.Down()
	if _, err := Start(Options{Address: host}); err == nil {
		t.Error("the port is free while the registry is down")
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	a := start(t, Options{Mode: Open})
	a.r.SetFaults(
		Fault{Path: "/v2/a/", Method: "GET", Times: 2, Status: 503, Header: http.Header{"Retry-After": {"7"}}, Body: "busy"},
		Fault{Path: "/v2/b/", Drop: true},
		Fault{Path: "/v2/c/", Delay: time.Millisecond},
	)
	for i, want := range []int{503, 503, 404} {
		if got := a.ask("GET", manifest, ""); got.status != want || want == 503 && (got.header.Get("Retry-After") != "7" || got.body != "busy") {
			t.Errorf("%d: %+v", i, got)
		}
	}
	if got, err := a.try("GET", "/v2/b/p/manifests/v1", ""); err == nil {
		t.Errorf("dropped: %+v", got)
	}
	if got := a.ask("GET", "/v2/c/p/manifests/v1", ""); got.status != 404 {
		t.Errorf("delayed: %+v", got)
	}
	a.r.SetFaults(Fault{Hang: true})
	before, done := a.r.RequestCount(), make(chan error)
	go func() {
		_, err := a.try("POST", "/v2/", "") // which net/http does not send again by itself
		done <- err
	}()
	for a.r.RequestCount() == before { // until it has arrived
		select {
		case err := <-done:
			t.Fatalf("it did not hang: %v", err)
		default:
		}
	}
	a.r.SetFaults()
	if err := <-done; err == nil {
		t.Error("what hung was answered")
	}
	if got := a.ask("GET", "/v2/", ""); got.status != 200 {
		t.Errorf("the faults are over: %+v", got)
	}
}

func TestRequestsAreRecordedWithoutCredentials(t *testing.T) {
	t.Parallel()
	w := canary.Watch(t)
	pass := w.Credential()
	a := start(t, Options{Users: map[string]string{"alice": pass}, TokenMarker: w.Credential()})
	a.r.Allow("alice", "a/p")
	a.ask("GET", "/v2/", "")
	a.ask("HEAD", manifest, a.token("alice:"+pass, "repository:a/p:pull"))
	want := []Recorded{
		{Method: "GET", Path: "/v2/", Status: 401},
		{Method: "GET", Path: "/token", Query: "service=local+registry&scope=repository:a/p:pull", User: "alice", Credential: "Basic", Status: 200},
		{Method: "HEAD", Path: manifest, User: "alice", Credential: "Bearer", Status: 404},
	}
	if diff := cmp.Diff(want, a.r.Requests(), cmpopts.IgnoreFields(Recorded{}, "Time")); diff != "" {
		t.Error(diff)
	}
	if a.r.RequestCount() != 3 {
		t.Errorf("%d requests", a.r.RequestCount())
	}
	w.Add("requests", fmt.Appendf(nil, "%+v", a.r.Requests()))
	w.Add("registry", fmt.Appendf(nil, "%+v", a.r.users))
}

func TestStart_PortInUse(t *testing.T) {
	t.Parallel()
	a := start(t, Options{})
	if _, err := Start(Options{Address: a.r.Host()}); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v", err)
	}
}
