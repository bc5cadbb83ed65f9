// Package proxytest holds what a proxy must do with what an xDS server tells it: the
// same stories for the sandbox and for a real Envoy. Its one rule: a story that Envoy
// contradicts is wrong, and the sandbox with it.
package proxytest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/stileproject/stile/internal/xds/sandbox"
	"github.com/stileproject/stile/internal/xds/sandbox/adstest"
)

// Start starts a proxy that ends with the test.
type Start func(t *testing.T, xdsAddress string, node sandbox.Node) sandbox.Proxy

// Run runs every story, each with a proxy and a server of its own.
func Run(t *testing.T, start Start) {
	t.Helper()
	for _, s := range stories {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			w := &world{T: t, start: start, Server: adstest.Start(t)}
			w.upstream()
			w.clusters()
			s.tell(w)
		})
	}
}

type story struct {
	name string
	tell func(*world)
}

// world is one story's server, upstream and proxy.
type world struct {
	*testing.T
	*adstest.Server

	start  Start
	proxy  sandbox.Proxy
	client *http.Client

	upstreamAddress string
}

const (
	listenerName = "in"
	patience     = 45 * time.Second // with which a story waits on a busy machine
)

// upstream answers with what it was sent.
func (w *world) upstream() {
	w.Helper()
	echo := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		rw.Header().Set("x-upstream", "yes")
		_, _ = fmt.Fprintf(rw, "%s %s trail=%s toll=%s id=%d proto=%s body=%s", r.Method, r.URL.RequestURI(), strings.Join(r.Header.Values("x-stile-trail"), "|"), r.Header.Get("x-stile-toll"), len(r.Header.Get("x-request-id")), r.Header.Get("x-forwarded-proto"), body)
	}))
	w.Cleanup(echo.Close)
	w.client = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	w.upstreamAddress = echo.Listener.Addr().String()
}

// clusters sets the cluster of the upstream.
func (w *world) clusters() {
	w.Helper()
	host, port := split(w.T, w.upstreamAddress)
	w.Set(adstest.ClusterType, "c1", adstest.Cluster("upstream", host, port))
}

func split(t *testing.T, address string) (string, int) {
	t.Helper()
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return host, port
}

// connect starts the proxy.
func (w *world) connect() {
	w.Helper()
	w.proxy = w.start(w.T, w.Server.Address(), sandbox.Node{
		ID: "gw-0", Cluster: "edge", Namespace: "team-a", Labels: map[string]string{"app": "gateway"},
	})
}

// filter sets an extension of the same content under a version of its own.
func (w *world) filter(name, version string, config proto.Message) {
	w.SetExtension(name, version, config)
}

// address waits for the listener.
func (w *world) address() string {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	a, err := w.proxy.Address(ctx, listenerName)
	if err != nil {
		w.Fatal(err)
	}
	return a
}

// answer is what a client of the proxy got.
type answer struct {
	status int
	badge  string // of the response
	body   string
}

// ask sends a request with these headers ("name: value").
func (w *world) ask(headers ...string) answer {
	w.Helper()
	return w.post("", headers...)
}

func (w *world) post(body string, headers ...string) answer {
	w.Helper()
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(w.Context(), method, "http://"+w.address()+"/path?q=1", strings.NewReader(body))
	if err != nil {
		w.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		w.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.Fatal(err)
	}
	return answer{status: resp.StatusCode, badge: resp.Header.Get("x-stile-badge"), body: string(b)}
}

// sees asks and compares the status, and that the body has the words.
func (w *world) sees(status int, words string, headers ...string) {
	w.Helper()
	if got := w.ask(headers...); got.status != status || !strings.Contains(got.body, words) {
		w.Errorf("want %d with %q, got %d: %s", status, words, got.status, got.body)
	}
}

// soon asks until the answer is right.
func (w *world) soon(status int, words string, headers ...string) {
	w.Helper()
	deadline := time.Now().Add(patience)
	for {
		got := w.ask(headers...)
		if got.status == status && strings.Contains(got.body, words) {
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("want %d with %q in time, got %d: %s", status, words, got.status, got.body)
		}
		w.pause(50 * time.Millisecond)
	}
}

// until waits until the proxy's own state is as wanted.
func (w *world) until(what string, ok func(sandbox.State) bool) {
	w.Helper()
	deadline := time.Now().Add(patience)
	for {
		state, err := w.proxy.State(w.Context())
		if err == nil && ok(state) {
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("the proxy's state never said %s: %+v, %v", what, state, err)
		}
		w.pause(20 * time.Millisecond)
	}
}

// pause lets a process that is not ours go on; it waits for nothing in this one.
func (w *world) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-w.Context().Done():
	}
}

// state returns the proxy's state.
func (w *world) state() sandbox.State {
	w.Helper()
	s, err := w.proxy.State(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	return s
}

// reaches reports whether something answers at an address.
func (w *world) reaches(address string) bool {
	req, err := http.NewRequestWithContext(w.Context(), http.MethodGet, "http://"+address, nil)
	if err != nil {
		w.Fatal(err)
	}
	client := &http.Client{Timeout: 200 * time.Millisecond, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return true
}
