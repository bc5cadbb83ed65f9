package admin

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

type rechecker struct{}

func (rechecker) RecheckPlugin(name string) error {
	switch name {
	case "team-a/auth":
		return nil
	case "team-a/again":
		return fmt.Errorf("plugin %s %w", name, ErrTooSoon)
	case "broken/broken":
		return errors.New("the disk is on fire")
	}
	return fmt.Errorf("plugin %s: %w", name, ErrUnknown)
}

func (rechecker) RecheckImage(image string) error {
	if image == "UPPER" {
		return fmt.Errorf("image %s: %w", image, ErrInvalid)
	}
	return nil
}

func options(ready *bool) Options {
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "stile_test_total", Help: "A test."}))
	return Options{
		Plugins:  func() any { return []map[string]string{{"name": "auth"}} },
		Proofs:   func() any { return []string(nil) },
		Recheck:  rechecker{},
		Gatherer: registry,
		Ready: []Check{
			{Name: "plan", Fault: func() error {
				if ready != nil && *ready {
					return nil
				}
				return errors.New("no complete plan yet")
			}},
			{Name: "store", Fault: func() error { return nil }},
		},
	}
}

// ask sends one request as a program on this host would.
func ask(h http.Handler, method, target, body string, change func(*http.Request)) (int, string) {
	r := httptest.NewRequest(method, "http://127.0.0.1:18002"+target, strings.NewReader(body))
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func TestAdmin_Answers(t *testing.T) {
	t.Parallel()
	ready := true
	for name, row := range map[string]struct {
		method, target, body string
		status               int
		want                 string
	}{
		"plugins":            {"GET", "/api/v1/plugins", "", 200, `{"items":[{"name":"auth"}]}`},
		"nil is empty":       {"GET", "/api/v1/proofs", "", 200, `{"items":[]}`},
		"nobody to ask":      {"GET", "/api/v1/proxies", "", 200, `{"items":[]}`},
		"livez":              {"GET", "/livez", "", 200, "ok\n"},
		"readyz":             {"GET", "/readyz", "", 200, "ok\n"},
		"readyz verbose":     {"GET", "/readyz?verbose", "", 200, "[+]plan ok\n[+]store ok\nok\n"},
		"metrics":            {"GET", "/metrics", "", 200, "stile_test_total 0"},
		"unknown":            {"GET", "/api/v1/secrets", "", 404, ""},
		"write to a list":    {"POST", "/api/v1/plugins", "", 405, ""},
		"recheck plugin":     {"POST", "/api/v1/recheck", `{"plugin":"team-a/auth"}`, 202, "{}"},
		"recheck image":      {"POST", "/api/v1/recheck", `{"image":"r.example/a:v1"}`, 202, "{}"},
		"recheck nobody":     {"POST", "/api/v1/recheck", `{"plugin":"team-a/nobody"}`, 404, "team-a/nobody"},
		"recheck too soon":   {"POST", "/api/v1/recheck", `{"plugin":"team-a/again"}`, 429, "10 s"},
		"recheck malformed":  {"POST", "/api/v1/recheck", `{"image":"UPPER"}`, 400, "malformed"},
		"recheck neither":    {"POST", "/api/v1/recheck", `{}`, 400, "one of plugin and image"},
		"recheck both":       {"POST", "/api/v1/recheck", `{"plugin":"a/b","image":"c"}`, 400, "one of plugin and image"},
		"recheck unknown":    {"POST", "/api/v1/recheck", `{"plugins":"a/b"}`, 400, "not an order"},
		"recheck two values": {"POST", "/api/v1/recheck", `{"plugin":"team-a/auth"} {}`, 400, "not an order"},
		"recheck not JSON":   {"POST", "/api/v1/recheck", `plugin=a`, 400, "not an order"},
		"recheck huge":       {"POST", "/api/v1/recheck", `{"plugin":"` + strings.Repeat("a", maxOrder) + `"}`, 400, "not an order"},
		"recheck breaks":     {"POST", "/api/v1/recheck", `{"plugin":"broken/broken"}`, 500, "the log says why"},
		"recheck by GET":     {"GET", "/api/v1/recheck", "", 405, ""},
		"profiles":           {"GET", "/debug/pprof/goroutine?debug=1", "", 200, "goroutine profile"},
		"no command line":    {"GET", "/debug/pprof/cmdline", "", 404, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			status, body := ask(New(options(&ready)), row.method, row.target, row.body, nil)
			if status != row.status || !strings.Contains(body, row.want) {
				t.Errorf("want %d with %q, got %d: %s", row.status, row.want, status, body)
			}
		})
	}
}

func TestReadyz_503UntilTheFirstPlan(t *testing.T) {
	t.Parallel()
	ready := false
	h := New(options(&ready))
	status, body := ask(h, "GET", "/readyz", "", nil)
	if status != 503 || body != "[-]plan: no complete plan yet\nnot ready\n" {
		t.Errorf("got %d: %s", status, body)
	}
	if status, _ := ask(h, "GET", "/livez", "", nil); status != 200 {
		t.Errorf("livez: got %d", status)
	}
	ready = true
	if status, _ := ask(h, "GET", "/readyz", "", nil); status != 200 {
		t.Errorf("ready: got %d", status)
	}
}

func TestReadyz_NotesAreSaidAndMakeNothingUnready(t *testing.T) {
	t.Parallel()
	ready := true
	o := options(&ready)
	o.Notes = func() []string { return []string{"envoy file edge: broken"} }
	for target, want := range map[string]string{"/readyz?verbose": "[+]plan ok\n[+]store ok\n[!]envoy file edge: broken\nok\n", "/readyz": "ok\n", "/livez?verbose": "ok\n"} {
		if status, body := ask(New(o), "GET", target, "", nil); status != 200 || body != want {
			t.Errorf("%s: %d %q, want %q", target, status, body, want)
		}
	}
}

func TestAdmin_RefusesWhatABrowserWasLedTo(t *testing.T) {
	t.Parallel()
	host := func(h string) func(*http.Request) { return func(r *http.Request) { r.Host = h } }
	header := func(k, v string) func(*http.Request) { return func(r *http.Request) { r.Header.Set(k, v) } }
	for name, row := range map[string]struct {
		method string
		change func(*http.Request)
		status int
	}{
		"address":               {"GET", host("127.0.0.1:18002"), 200},
		"address without port":  {"GET", host("127.0.0.1"), 200},
		"IPv6":                  {"GET", host("[::1]:18002"), 200},
		"IPv6 without port":     {"GET", host("[::1]"), 200},
		"localhost":             {"GET", host("LocalHost:1"), 200},
		"rebound name":          {"GET", host("evil.example:18002"), 421},
		"name like an address":  {"GET", host("127.0.0.1.evil.example"), 421},
		"no host":               {"GET", host(""), 421},
		"order from a page":     {"POST", header("Sec-Fetch-Site", "cross-site"), 403},
		"order by origin":       {"POST", header("Origin", "https://evil.example"), 403},
		"order from a program":  {"POST", nil, 202},
		"order from own origin": {"POST", header("Sec-Fetch-Site", "same-origin"), 202},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target, body := "/api/v1/plugins", ""
			if row.method == "POST" {
				target, body = "/api/v1/recheck", `{"plugin":"team-a/auth"}`
			}
			if status, text := ask(New(options(nil)), row.method, target, body, row.change); status != row.status {
				t.Errorf("want %d, got %d: %s", row.status, status, text)
			}
		})
	}
}

func TestHealth_ShowsNothingOfTheAPI(t *testing.T) {
	t.Parallel()
	ready := true
	h := Health(options(&ready))
	for target, want := range map[string]int{
		"/livez": 200, "/readyz": 200, "/metrics": 200, "/api/v1/plugins": 404, "/api/v1/recheck": 404, "/debug/pprof/": 404,
	} {
		if got, _ := ask(h, "GET", target, "", func(r *http.Request) { r.Host = "stile.example" }); got != want {
			t.Errorf("%s: want %d, got %d", target, want, got)
		}
	}
}

func TestAdmin_AsksWhoTheCallerIsWhereOthersReachIt(t *testing.T) {
	t.Parallel()
	ready := true
	o := options(&ready)
	var refused error
	o.Admit = func(*http.Request) error { return refused }
	h := New(o)
	byName := func(r *http.Request) { r.Host = "stile.example" }
	for _, row := range []struct {
		refused error
		target  string
		want    int
	}{
		{nil, "/api/v1/plugins", 200},
		{ErrNobody, "/api/v1/plugins", 401},
		{fmt.Errorf("a token: %w", ErrForbidden), "/api/v1/plugins", 403},
		{errors.New("no answer"), "/api/v1/plugins", 503},
		{ErrNobody, "/metrics", 401},
		{ErrNobody, "/debug/pprof/", 401},
		{ErrNobody, "/readyz?verbose", 401},
		{ErrNobody, "/readyz", 200},
		{ErrNobody, "/livez", 200},
	} {
		refused = row.refused
		if got, _ := ask(h, "GET", row.target, "", byName); got != row.want {
			t.Errorf("%s with %v: want %d, got %d", row.target, row.refused, row.want, got)
		}
	}
}
