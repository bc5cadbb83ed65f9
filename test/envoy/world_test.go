package envoy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stileproject/stile/test/envoy/envoytest"
)

// world is an Envoy with everything around it: a throw-away control plane, an upstream, a module server.
type world struct {
	*ads
	*envoytest.Envoy
	t       testing.TB
	modules *moduleServer
	up      *upstream
}

// start starts Envoy with the listener given and does not wait until it is ready. configure may change the options.
func start(t *testing.T, configure ...func(*envoytest.Options)) *world {
	t.Helper()
	envoytest.Path(t) // fail or skip before anything is started
	w := &world{t: t, ads: startADS(t), modules: startModules(t), up: startUpstream(t)}
	o := envoytest.Options{
		XDS:      w.address,
		Clusters: map[string]string{"upstream": w.up.address, "modules": w.modules.address},
	}
	for _, c := range configure {
		c(&o)
	}
	w.Envoy = envoytest.Start(t, o)
	return w
}

// serving starts a world whose listener "http" already runs with one plugin, inline, that tags "module-1".
func serving(t *testing.T, configure ...func(*envoytest.Options)) *world {
	t.Helper()
	w := start(t, configure...)
	w.setExtension(plugin, wasm{VM: "v1", Inline: module("module-1")}.any(t))
	w.set(listenerType, "http", httpListener(t, "http", discovered{Default: httpClosed()}))
	w.WaitReady()
	w.wantAnswer("http", answer{Status: 200, Tag: "module-1"})
	return w
}

// answer is what a request through Envoy came back with. The last three are what the plugin told the upstream.
type answer struct {
	Status           int
	Tag, Env, Config string
}

// get sends one request through a listener, on a connection of its own.
func (w *world) get(listener string) (answer, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.Listener(listener)+"/", nil)
	if err != nil {
		return answer{}, err
	}
	response, err := requests.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return answer{}, err
	}
	h := response.Header
	return answer{response.StatusCode, h.Get("Seen-Tag"), h.Get("Seen-Env"), h.Get("Seen-Config")}, nil
}

// wantAnswer sends one request and compares.
func (w *world) wantAnswer(listener string, want answer) {
	w.t.Helper()
	got, err := w.get(listener)
	if err != nil {
		w.t.Fatalf("GET through %s: %v", listener, err)
	}
	if got != want {
		w.t.Errorf("GET through %s: got %+v, want %+v", listener, got, want)
	}
}

// wantSoon sends requests until the answer is as wanted.
func (w *world) wantSoon(listener string, want answer) {
	w.t.Helper()
	w.Eventually(fmt.Sprintf("GET through %s answers %+v", listener, want), func() error {
		got, err := w.get(listener)
		if err == nil && got != want {
			err = fmt.Errorf("got %+v", got)
		}
		return err
	})
}

// waitFetches waits until the module server was asked that often.
func (w *world) waitFetches(want int64) {
	w.t.Helper()
	w.Eventually(fmt.Sprintf("%d modules are asked for", want), func() error {
		if got := w.modules.requests.Load(); got < want {
			return fmt.Errorf("%d so far", got)
		}
		return nil
	})
}

// fetchByNACK brings the code of p into Envoy's cache by way of nack_on_code_cache_miss.
func (w *world) fetchByNACK(p wasm) {
	w.t.Helper()
	p.Nack = true
	before := w.modules.requests.Load()
	w.wantNACK(w.pushExtension(plugin, p.any(w.t)))
	w.waitFetches(before + 1)
	w.settle()
}

// settle gives Envoy time for what it does by itself and shows nowhere, such as taking in a body that was sent,
// or for what it is to be shown not to do.
func (w *world) settle() {
	<-time.After(300 * time.Millisecond)
}

// dial opens a connection to a listener, sends hello if there is any, and returns what came back until the peer
// closed or a second went by.
func (w *world) dial(listener, hello string) string {
	w.t.Helper()
	conn, err := (&net.Dialer{}).DialContext(w.t.Context(), "tcp", w.Listener(listener))
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, hello); err != nil {
		w.t.Logf("write: %v", err) // a filter may have closed already
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		w.t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	var timeout net.Error
	if err != nil && !(errors.As(err, &timeout) && timeout.Timeout()) {
		w.t.Logf("read: %v", err)
	}
	return string(got)
}

var requests = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// upstream answers HTTP with what the plugin put on the request.
type upstream struct{ address string }

func startUpstream(t testing.TB) *upstream {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"Tag", "Env", "Config"} {
			w.Header().Set("Seen-"+name, strings.Join(r.Header.Values("X-"+name), ", "))
		}
	}))
	t.Cleanup(s.Close)
	return &upstream{s.Listener.Addr().String()}
}

// talker is a TCP upstream that speaks first and notes what it was sent.
type talker struct {
	address string
	dialled atomic.Int64

	mu  sync.Mutex // guards got
	got []byte
}

func startTalker(t testing.TB) *talker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &talker{address: l.Addr().String()}
	var connections sync.WaitGroup
	connections.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.dialled.Add(1)
			connections.Go(func() {
				defer conn.Close()
				_, _ = io.WriteString(conn, "welcome") // a peer that is gone shows as nothing received
				buffer := make([]byte, 512)
				for {
					n, err := conn.Read(buffer)
					s.mu.Lock()
					s.got = append(s.got, buffer[:n]...)
					s.mu.Unlock()
					if err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		// Connections end when Envoy does, which was started later and so ends earlier.
		connections.Wait()
	})
	return s
}

func (s *talker) received() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.got)
}

// moduleServer serves modules under any path, holding its answers while it is told to.
type moduleServer struct {
	address  string
	requests atomic.Int64

	mu   sync.Mutex // guards what follows
	code map[string][]byte
	held chan struct{} // answers wait until it is closed; nil = they do not
}

func startModules(t testing.TB) *moduleServer {
	m := &moduleServer{code: map[string][]byte{}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.requests.Add(1)
		m.mu.Lock()
		code, known, held := m.code[r.URL.Path], m.code[r.URL.Path] != nil, m.held
		m.mu.Unlock()
		if held != nil {
			select {
			case <-held:
			case <-r.Context().Done():
				return
			}
		}
		if !known {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(code) // a proxy that went away is no fault of the test
	}))
	m.address = s.Listener.Addr().String()
	t.Cleanup(s.Close)
	return m
}

// serve makes code what path answers with, and returns the URL.
func (m *moduleServer) serve(path string, code []byte) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.code[path] = code
	return "http://modules.test" + path
}

// hold makes answers wait until the function returned is called.
func (m *moduleServer) hold() (release func()) {
	held := make(chan struct{})
	m.mu.Lock()
	m.held = held
	m.mu.Unlock()
	return sync.OnceFunc(func() {
		m.mu.Lock()
		m.held = nil
		m.mu.Unlock()
		close(held)
	})
}
