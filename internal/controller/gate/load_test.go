package gate

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/stileproject/stile/internal/kubetest"
)

// timed measures a handler from within its server.
type timed struct {
	next http.Handler
	mu   sync.Mutex
	took []time.Duration
}

func (h *timed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	h.next.ServeHTTP(w, r)
	d := time.Since(begin)
	h.mu.Lock()
	h.took = append(h.took, d)
	h.mu.Unlock()
}

// TestLoad creates 200 pods a second for 15 s, as dry runs so that no disk is measured:
// without anything, with the webhook, with the policy. It runs where STILE_LOAD is set.
func TestLoad(t *testing.T) { //nolint:paralleltest // it measures
	if os.Getenv("STILE_LOAD") == "" {
		t.Skip("set STILE_LOAD=1 to measure")
	}
	api := kubetest.API(t)
	client, err := kubernetes.NewForConfig(api.Config)
	if err != nil {
		t.Fatal(err)
	}
	h, err := New(Config{Namespace: "stile-system"})
	if err != nil {
		t.Fatal(err)
	}
	handler := &timed{next: h}
	for _, way := range []struct {
		name string
		on   func(t testing.TB) string
	}{
		{"nothing", func(t testing.TB) string { return api.Namespace(t) }},
		{"webhook", func(t testing.TB) string { return serveWebhook(t, api, handler) }},
		{"policy", func(t testing.TB) string { return withPolicy(t, api) }},
	} {
		t.Run(way.name, func(t *testing.T) {
			ns := way.on(t)
			create := func() (time.Duration, bool) {
				begin := time.Now()
				p, err := client.CoreV1().Pods(ns).Create(t.Context(), large(t), metav1.CreateOptions{DryRun: []string{"All"}})
				return time.Since(begin), err == nil && gatesOf(p) != ""
			}
			if way.name != "nothing" {
				kubetest.Eventually(t, func() string {
					if _, gated := create(); !gated {
						return "a gate"
					}
					return ""
				})
			}
			const rate, length, atATime = 200, 15 * time.Second, 32
			var mu sync.Mutex
			var took []time.Duration
			var all sync.WaitGroup
			slots := make(chan struct{}, atATime) // a machine that is too slow is not buried
			tick := time.NewTicker(time.Second / rate)
			defer tick.Stop()
			wrong, begin := 0, time.Now()
			for time.Since(begin) < length {
				<-tick.C
				slots <- struct{}{}
				all.Go(func() {
					d, gated := create()
					<-slots
					mu.Lock()
					defer mu.Unlock()
					took = append(took, d)
					if gated != (way.name != "nothing") {
						wrong++
					}
				})
			}
			all.Wait()
			t.Logf("%s: %.0f pods/s, creation p50 %v, p99 %v, max %v", way.name, float64(len(took))/time.Since(begin).Seconds(), at(took, 50), at(took, 99), at(took, 100))
			if wrong > 0 {
				t.Errorf("%d of %d pods not as they should be", wrong, len(took))
			}
			if way.name == "webhook" {
				handler.mu.Lock()
				defer handler.mu.Unlock()
				t.Logf("handler: p50 %v, p99 %v, max %v", at(handler.took, 50), at(handler.took, 99), at(handler.took, 100))
			}
		})
	}
	metrics, err := client.RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(metrics), "\n") {
		if strings.HasPrefix(line, "apiserver_admission_webhook_admission_duration_seconds_") && strings.Contains(line, "gate-pod") ||
			strings.HasPrefix(line, "apiserver_mutating_admission_policy_check_duration_seconds_") && strings.Contains(line, "stile-gate") {
			t.Log(line)
		}
	}
}

// The webhook by itself: 200 reviews a second over TLS on connections that stay, as an API
// server keeps them, seen by the caller.
func TestLoadOfTheWebhookAlone(t *testing.T) { //nolint:paralleltest // it measures
	if os.Getenv("STILE_LOAD") == "" {
		t.Skip("STILE_LOAD is not set: this measures for half a minute")
	}
	h, err := New(Config{Namespace: "stile-system"})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(h)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	body := reviewOf(t, "team-a", large(t))
	const rate, length = 200, 30 * time.Second
	var mu sync.Mutex
	var took []time.Duration
	var all sync.WaitGroup
	tick := time.NewTicker(time.Second / rate)
	defer tick.Stop()
	for begin := time.Now(); time.Since(begin) < length; {
		<-tick.C
		all.Go(func() {
			begin := time.Now()
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+Path, bytes.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			request.Header.Set("Content-Type", "application/json")
			answer, err := server.Client().Do(request)
			if err != nil {
				t.Error(err)
				return
			}
			n, err := io.Copy(io.Discard, answer.Body)
			_ = answer.Body.Close()
			d := time.Since(begin)
			if err != nil || n == 0 {
				t.Errorf("%d bytes, %v", n, err)
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, d)
		})
	}
	all.Wait()
	t.Logf("%d reviews: p50 %v, p99 %v, max %v", len(took), at(took, 50), at(took, 99), at(took, 100))
}

func at(all []time.Duration, percent int) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)-1, len(sorted)*percent/100)].Round(10 * time.Microsecond)
}
