package oci

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/secret"
)

// connections counts the connections that a server was dialled.
type connections struct {
	mu   sync.Mutex
	news int
}

func (n *connections) state(_ net.Conn, s http.ConnState) {
	if s == http.StateNew {
		n.mu.Lock()
		n.news++
		n.mu.Unlock()
	}
}

func (n *connections) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.news
}

func TestP2_ConnectionsAreOfOneCredential(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"http", "https with a private CA"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			conns := &connections{}
			version := 1 // of HTTP
			answers := routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: authorized("Basic", challengeBasic, found)})
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if req.ProtoMajor != version {
					t.Errorf("spoken to in %s", req.Proto)
				}
				answers(w, req)
			}))
			srv.Config.ConnState = conns.state
			entry := Registry{Host: srv.Listener.Addr().String()}
			if scheme == "http" {
				entry.PlainHTTP = true
				srv.Start()
			} else {
				entry.CA = testAuthority().pem
				srv.TLS = &tls.Config{Certificates: []tls.Certificate{testAuthority().certificate(t, "127.0.0.1")}}
				srv.EnableHTTP2 = true
				version = 2
				srv.StartTLS()
			}
			t.Cleanup(srv.Close)
			c := newClient(t, Settings{Registries: []Registry{entry}})
			r := ref(t, entry.Host+"/a/p:v1")
			tr := trust(t, c, r)
			a, b := NewCredential(testKey(t), "", "a", "1"), NewCredential(testKey(t), "", "b", "1")
			check := func(cred Credential, want int) {
				t.Helper()
				if _, err := c.Check(t.Context(), r, cred, tr, CheckOptions{}); err != nil {
					t.Fatal(err)
				}
				if got := conns.count(); got != want {
					t.Errorf("%d connections, want %d", got, want)
				}
			}
			check(a, 1)
			check(a, 1)
			check(b, 2) // its own
			check(b, 2)
			check(a, 2)
			c.Forget(a.Fingerprint())
			check(b, 2)
			check(a, 3)
		})
	}
}

func TestTokenAge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &session{client: &Client{settings: Settings{TokenMaxAge: 5 * time.Minute}}, tokens: map[tokenKey]token{}}
		for _, one := range []struct{ life, usable time.Duration }{
			{24 * time.Hour, 5 * time.Minute}, // a JWT for a day is not used for longer than TokenMaxAge
			{time.Minute, 54 * time.Second},
			{10 * time.Minute, 5 * time.Minute},
		} {
			key := tokenKey{scope: one.life.String()}
			s.keep(key, secret.New([]byte("t")), time.Now(), one.life)
			time.Sleep(one.usable - time.Nanosecond)
			if _, ok := s.held(key); !ok {
				t.Errorf("%v: not held just before %v", one.life, one.usable)
			}
			time.Sleep(time.Nanosecond)
			if _, ok := s.held(key); ok {
				t.Errorf("%v: held after %v", one.life, one.usable)
			}
		}
	})
}

func TestTokensAreBounded(t *testing.T) {
	t.Parallel()
	s := &session{client: &Client{settings: Settings{TokenMaxAge: time.Hour}}, tokens: map[tokenKey]token{}}
	for i := range 3 * maxTokens {
		s.keep(tokenKey{scope: fmt.Sprint(i)}, secret.New([]byte("t")), time.Now(), time.Hour)
		if len(s.tokens) > maxTokens {
			t.Fatalf("%d tokens are held", len(s.tokens))
		}
	}
	if _, ok := s.held(tokenKey{scope: fmt.Sprint(3*maxTokens - 1)}); !ok {
		t.Error("the newest is not held")
	}
}

func TestSessionsAreBounded(t *testing.T) {
	t.Parallel()
	c := newClient(t, Settings{})
	for i := range maxSessions + 10 {
		host := fmt.Sprintf("r%d.example", i)
		tr, err := c.Trust(host, "ns")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.session(host, Credential{}, tr); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.sessions) != maxSessions || c.recent.Len() != maxSessions || len(c.hosts) > maxSessions {
		t.Errorf("%d sessions, %d recent, %d hosts", len(c.sessions), c.recent.Len(), len(c.hosts))
	}
}

func TestOneTokenForManyAtOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t, localregistry.Options{}, Settings{})
	var wg sync.WaitGroup
	n := f.requests(t, func(ctx context.Context) {
		for range 20 {
			wg.Go(func() {
				if _, err := f.client.Check(ctx, f.image, f.alice, f.trust, CheckOptions{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
	if n != 22 { // a ping, a token, 20 HEADs
		t.Errorf("%d requests", n)
	}
}

// A registry that never answers holds up those who ask it, up to its places, and
// nobody else; long downloads hold up no check.
func TestInFlightIsBoundedPerRegistry(t *testing.T) {
	t.Parallel()
	const limit = 3
	var mu sync.Mutex
	var now, most int
	arrived := make(chan struct{}, 100)
	release := make(chan struct{})
	tarpit := newServer(t, "127.0.0.1", nil)
	tarpit.serve(func(_ http.ResponseWriter, req *http.Request) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		arrived <- struct{}{}
		select {
		case <-release:
		case <-req.Context().Done():
		}
		mu.Lock()
		now--
		mu.Unlock()
	})
	good := newServer(t, "127.0.0.1", nil)
	good.serve(func(w http.ResponseWriter, req *http.Request) {
		if strings.Contains(req.URL.Path, "/blobs/") {
			_, _ = io.WriteString(w, "beginning")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-release:
			case <-req.Context().Done():
			}
			return
		}
		found(w, req)
	})
	c := newClient(t, Settings{MaxInFlight: limit + 2, Registries: []Registry{
		{Host: tarpit.host, PlainHTTP: true, MaxInFlight: limit}, {Host: good.host, PlainHTTP: true, MaxInFlight: 1},
	}})
	tarpitRef, goodRef := ref(t, tarpit.host+"/a/p:v1"), ref(t, good.host+"/a/p:v1")
	tarpitTrust, goodTrust := trust(t, c, tarpitRef), trust(t, c, goodRef)

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 20 {
		cred := NewCredential(testKey(t), "", "u", fmt.Sprint(i)) // so that each pings for itself
		wg.Go(func() {
			if _, err := c.Check(ctx, tarpitRef, cred, tarpitTrust, CheckOptions{}); !errors.Is(err, Unavailable) {
				t.Errorf("got %v", err)
			}
		})
	}
	for range limit {
		<-arrived
	}
	blob, err := c.Blob(t.Context(), goodRef, Descriptor{Digest: someDigest, Size: 100}, Credential{}, goodTrust)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, err := c.Check(t.Context(), goodRef, Credential{}, goodTrust, CheckOptions{}); err != nil {
			t.Errorf("beside a tarpit and a download: %v", err)
		}
	}
	cancel()
	wg.Wait()
	close(release)
	_ = blob.Close()
	if most != limit {
		t.Errorf("%d requests at once, want %d", most, limit)
	}
}

// The transport lets a dial go on after its request was given up: who accepts and says
// nothing must not keep the connection.
func TestServerThatNeverShakesHandsIsLeft(t *testing.T) {
	t.Parallel()
	var config net.ListenConfig
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := newClient(t, Settings{AllowLoopback: true, RequestTimeout: 50 * time.Millisecond})
	r := ref(t, l.Addr().String()+"/a/p:v1")
	if _, err := c.Check(t.Context(), r, Credential{}, trust(t, c, r), CheckOptions{}); !errors.Is(err, Unavailable) {
		t.Errorf("got %v", err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection is still open")
	}
}

func TestClosedClientAsksNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t, localregistry.Options{}, Settings{})
	f.client.Close()
	n := f.requests(t, func(ctx context.Context) {
		if _, err := f.client.Check(ctx, f.image, f.alice, f.trust, CheckOptions{}); !errors.Is(err, Unavailable) {
			t.Errorf("got %v", err)
		}
	})
	if n != 0 {
		t.Errorf("%d requests", n)
	}
}

// An answer of an ingress while the registry is away must not change how the registry
// is asked when it is back.
func TestWhatAnIngressAsksIsForgotten(t *testing.T) {
	t.Parallel()
	f := newFixture(t, localregistry.Options{}, Settings{})
	check := func() error {
		_, err := f.client.Check(t.Context(), f.image, f.alice, f.trust, CheckOptions{FreshToken: true})
		return err
	}
	basic := http.Header{"Www-Authenticate": {`Basic realm="ingress"`}}
	for name, fault := range map[string]localregistry.Fault{
		"a page":             {Status: 404, Body: "<html>"},
		"401 without a word": {Status: 401},
		"401 basic":          {Status: 401, Header: basic},
		"401 negotiate":      {Status: 401, Header: http.Header{"Www-Authenticate": {"Negotiate"}}},
		"401 bearer":         {Status: 401, Header: http.Header{"Www-Authenticate": {`Bearer realm="http://` + f.registry.Host() + `/elsewhere"`}}},
		"a page that is 200": {Status: 200, Body: "<html>"},
	} {
		for _, forgotten := range []bool{false, true} {
			if forgotten {
				f.client.Forget(f.alice.Fingerprint())
			}
			f.registry.SetFaults(fault)
			if e, ok := errors.AsType[*Error](check()); !ok || e.FromRegistry && !e.TokenEndpoint {
				t.Errorf("%s: got %#v", name, e)
			}
			f.registry.SetFaults()
			if err := check(); err != nil {
				t.Errorf("%s, and the registry is back: %v", name, err)
			}
		}
	}
}

func TestMetrics_ClosedLabels(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	f := newFixture(t, localregistry.Options{}, Settings{Registerer: reg, AllowLoopback: true})
	if _, err := f.client.Check(t.Context(), f.image, f.alice, f.trust, CheckOptions{}); err != nil {
		t.Fatal(err)
	}
	other, err := f.client.Trust("127.0.0.1:1", "ns")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.client.Check(t.Context(), ref(t, "127.0.0.1:1/a/p"), Credential{}, other, CheckOptions{})
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				seen[l.GetName()+"="+l.GetValue()] = true
			}
		}
	}
	for _, want := range []string{"registry=" + f.registry.Host(), "registry=other", "code=200", "code=401", "code=error"} {
		if !seen[want] {
			t.Errorf("%s is not among %v", want, seen)
		}
	}
	for code, want := range map[int]string{200: "200", 418: "4xx", 599: "5xx", 299: "2xx", 999: "error", 0: "error"} {
		if got := codeLabel(&http.Response{StatusCode: code}); got != want {
			t.Errorf("%d: %s", code, got)
		}
	}
}

func TestFlights(t *testing.T) {
	t.Parallel()
	const takes = time.Minute
	wait := func(ctx context.Context) error {
		select {
		case <-time.After(takes):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	synctest.Test(t, func(t *testing.T) {
		var f flights[string, int]
		flown := 0
		failed := errors.New("no answer")
		fly := func(err error) func(context.Context) (int, error) {
			return func(ctx context.Context) (int, error) {
				flown++
				if gone := wait(ctx); gone != nil {
					return 0, gone
				}
				return flown, err
			}
		}
		var wg sync.WaitGroup
		began := time.Now()

		// Success and failure are shared: ten callers wait as long as one.
		for _, want := range []error{nil, failed} {
			for range 10 {
				wg.Go(func() {
					if _, err := f.do(t.Context(), "a", fly(want)); !errors.Is(err, want) {
						t.Errorf("got %v", err)
					}
				})
			}
			wg.Wait()
		}
		if took := time.Since(began); took != 2*takes || flown != 2 {
			t.Errorf("%d flights in %v", flown, took)
		}

		// One who gives up fails nobody else: whoever waits flies again.
		leaving, leave := context.WithCancel(t.Context())
		wg.Go(func() {
			if _, err := f.do(leaving, "a", fly(nil)); !errors.Is(err, context.Canceled) {
				t.Errorf("who left: %v", err)
			}
		})
		synctest.Wait()
		for range 5 {
			wg.Go(func() {
				if _, err := f.do(t.Context(), "a", fly(nil)); err != nil {
					t.Errorf("who stayed: %v", err)
				}
			})
		}
		synctest.Wait()
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := f.do(impatient, "a", fly(nil)); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, Unavailable) {
			t.Errorf("who waited in vain: %v", err)
		}
		leave()
		wg.Wait()
		if flown != 4 || len(f.under) != 0 {
			t.Errorf("%d flights, %d still under way", flown, len(f.under))
		}
	})
}

// pipes is a network of its own, whose waiting a synctest bubble understands.
type pipes chan net.Conn

func (p pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// A token that was asked for before a call began is not fresh for that call, even if
// it came after.
func TestFreshTokenIsNotSharedWithThePast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		network := make(pipes)
		var mu sync.Mutex // guards minted and used
		minted := 0
		var used []string
		server := &http.Server{ReadHeaderTimeout: time.Hour, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			switch req.URL.Path {
			case "/v2/":
				challengeBearer("http://r.example:5000/token")(w, req)
			case "/token":
				time.Sleep(10 * time.Second)
				mu.Lock()
				defer mu.Unlock()
				minted++
				give(fmt.Sprint("token", minted))(w, req)
			default:
				mu.Lock()
				defer mu.Unlock()
				used = append(used, req.Header.Get("Authorization"))
				found(w, req)
			}
		})}
		var wg sync.WaitGroup
		wg.Go(func() { _ = server.Serve(network) })
		c := newClient(t, Settings{RequestTimeout: time.Hour}, "r.example:5000")
		r := ref(t, "r.example:5000/a/p:v1")
		tr := trust(t, c, r)
		s, err := c.session(r.Host(), Credential{}, tr)
		if err != nil {
			t.Fatal(err)
		}
		s.transport.DialContext = network.dial
		var checks sync.WaitGroup
		check := func() {
			checks.Go(func() {
				if _, err := c.Check(t.Context(), r, Credential{}, tr, CheckOptions{FreshToken: true}); err != nil {
					t.Error(err)
				}
			})
		}
		check()
		time.Sleep(5 * time.Second)
		check() // two who begin while the first one's token is on its way
		check()
		checks.Wait()
		if want := []string{"Bearer token1", "Bearer token2", "Bearer token2"}; !slices.Equal(used, want) {
			t.Errorf("used %q, want %q", used, want)
		}
		c.Close()
		_ = server.Close()
		wg.Wait()
	})
}
