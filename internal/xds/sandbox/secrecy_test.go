package sandbox_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"

	"github.com/stileproject/stile/internal/xds/sandbox"
	"github.com/stileproject/stile/internal/xds/sandbox/adstest"
)

// safeBuffer is a log that several goroutines write.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// A module's URL is a capability: however its fetch fails, it is in no log, no state
// and no rejection.
func TestP3_TheModuleURLIsSaidNowhere(t *testing.T) {
	t.Parallel()
	const canary = "CANARY-module-token"
	for name, answer := range map[string]http.HandlerFunc{
		"not found":     http.NotFound,
		"another sum":   func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("another")) },
		"a broken body": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "100") },
		"a redirect":    func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/"+canary+"/2", http.StatusFound) },
		"no server":     nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files := httptest.NewServer(answer)
			t.Cleanup(files.Close)
			if answer == nil {
				files.Close()
			}
			log := &safeBuffer{}
			p, server := proxy(t, sandbox.Options{Upstream: echo(t), Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
			server.Set(adstest.ClusterType, "c2", cluster(t, "files", files.Listener.Addr().String()))
			remote := adstest.Remote("vm", files.URL+"/"+canary, "files", strings.Repeat("0", 64), "")
			remote.Config.FailurePolicy = wasmv3.FailurePolicy_FAIL_CLOSED
			server.SetExtension("a", "a1", remote)
			server.Set(adstest.ListenerType, "l1", adstest.HTTPListener("in", adstest.Discovered("a", time.Minute, nil)))
			if status, body := ask(t, p, ""); status != 503 || strings.Contains(body, canary) {
				t.Errorf("%d %s", status, body)
			}
			state, err := p.State(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if x, _ := state.Extension("a"); strings.Contains(x.Rejected, canary) {
				t.Error(x.Rejected)
			}
			if !strings.Contains(log.String(), "plugin without code") || strings.Contains(log.String(), canary) {
				t.Errorf("log: %s", log)
			}
		})
	}
}
