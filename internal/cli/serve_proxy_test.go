package cli

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/xds/sandbox"
)

// proxied is a service with a plugin of team-a on a private image, and a proxy before an
// upstream that shows the request's trail.
type proxied struct {
	*registry
	folder, listener string
	at               serveAddresses
	proxy            *sandbox.Sandbox
}

func startProxied(t *testing.T, more string) *proxied {
	t.Helper()
	p := &proxied{registry: newRegistry(t, localregistry.Options{Mode: localregistry.Bearer, TokenLife: time.Second})}
	p.push()
	var config string
	p.folder, config = serveFolder(t, "registries: [{ host: '"+p.Host()+"', plainHTTP: true }]\n"+more)
	secret, err := os.ReadFile(p.pullSecret)
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.folder, "resources/a.yaml", `apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: { name: badge, namespace: team-a }
spec: { url: "oci://`+p.image(":v1")+`", imagePullSecret: regcred, phase: AUTHN, pluginConfig: { name: badge } }
---
`+string(secret))
	edge, err := os.ReadFile("testdata/scene/envoy/edge.yaml")
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.folder, "envoy/edge.yaml", string(edge))
	p.watch.Dir(p.folder + "/data")
	p.at = started(t, config)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "trail "+r.Header.Get("X-Stile-Trail"))
	}))
	t.Cleanup(upstream.Close)
	p.proxy = sandbox.Start(sandbox.Options{
		XDSAddress: p.at.XDS, Node: sandbox.Node{ID: "gw-0", Cluster: "edge", Namespace: "team-a"},
		Upstream: strings.TrimPrefix(upstream.URL, "http://"),
	})
	t.Cleanup(func() {
		if err := p.proxy.Stop(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if p.listener, err = p.proxy.Address(ctx, "http"); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestServe_ModulesReachProxies(t *testing.T) {
	t.Parallel()
	for delivery, more := range map[string]string{"inline": "", "remote": "xds: { address: '127.0.0.1:0', inlineMaxModule: 0 }\n"} {
		t.Run(delivery, func(t *testing.T) {
			t.Parallel()
			p := startProxied(t, more)
			eventually(t, "http://"+p.listener, func(status int, body string) bool { return status == http.StatusOK && body == "trail badge" })
			arrived := `"reason":"Programmed"`
			if delivery == "remote" {
				arrived = `"downloads":1` // that it was loaded is known later: the ACK alone does not say so
			}
			body := eventually(t, "http://"+p.at.Admin+"/api/v1/plugins", func(_ int, body string) bool { return strings.Contains(body, arrived) })
			if !strings.Contains(body, `"delivery":"`+delivery+`"`) {
				t.Errorf("plugins: %s", body)
			}
			_, metrics := get(t, "http://"+p.at.Admin+"/metrics")
			if fetched := strings.Contains(metrics, `stile_module_requests_total{code="200"} 1`); fetched != (delivery == "remote") {
				t.Errorf("fetched by URL: %v", fetched)
			}
			problems, err := promlint.New(strings.NewReader(metrics)).Lint()
			if err != nil {
				t.Error(err)
			}
			for _, one := range problems {
				if strings.HasPrefix(one.Metric, "stile_") {
					t.Errorf("metric %s: %s", one.Metric, one.Text)
				}
			}
			_, proofs := get(t, "http://"+p.at.Admin+"/api/v1/proofs")
			_, proxies := get(t, "http://"+p.at.Admin+"/api/v1/proxies")
			if !strings.Contains(proofs, `"team-a/badge"`) || !strings.Contains(proxies, `"gw-0"`) {
				t.Errorf("proofs: %s\nproxies: %s", proofs, proxies)
			}
			for name, text := range map[string]string{"plugins": body, "metrics": metrics, "proofs": proofs, "proxies": proxies} {
				p.watch.Add(name, []byte(text))
			}
			out := stile(t, nil, "status", "--server", p.at.Admin, "-o", "wide").want(t, OK).stdout
			if delivery == "inline" && (!strings.Contains(out, "True (Programmed)") || !strings.Contains(out, "1/1")) {
				t.Errorf("status: %s", out)
			}
		})
	}
}

func TestServe_RecheckOnce(t *testing.T) {
	t.Parallel()
	p := startProxied(t, "access: { denied: { confirmAfter: 10ms } }\n")
	eventually(t, "http://"+p.listener, func(status int, body string) bool { return status == http.StatusOK && body == "trail badge" })
	order := func(body string) (int, string) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.at.Admin+"/api/v1/recheck", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		text, _ := io.ReadAll(response.Body)
		return response.StatusCode, string(text)
	}
	for _, row := range []struct {
		body   string
		status int
	}{
		{`{"plugin":"team-a/nobody"}`, 404},
		{`{"plugin":"nobody"}`, 400},
		{`{"image":"UPPER"}`, 400},
		{`{"image":"r.example/nobody:v1"}`, 404},
		{`{"plugin":"team-a/badge"}`, 202},
		{`{"plugin":"team-a/badge"}`, 429},
		{`{"image":"` + p.image(":v1") + `"}`, 429},
	} {
		if status, text := order(row.body); status != row.status {
			t.Errorf("%s: want %d, got %d: %s", row.body, row.status, status, text)
		}
	}
}

func TestStatus_WatchPrintsWhatChanges(t *testing.T) {
	t.Parallel()
	folder, config := serveFolder(t, "")
	at := started(t, config)
	ctx, cancel := context.WithCancelCause(t.Context())
	log := &watchedLog{want: "team-a/auth", seen: make(chan struct{})}
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"status", "--server", at.Admin, "--watch"}, strings.NewReader(""), log, log, nil)
	}()
	write(t, folder, "resources/a.yaml", somePlugin)
	<-log.seen
	cancel(interruption{os.Interrupt})
	if code := <-ended; code != Interrupted {
		t.Errorf("want 130, got %d: %s", code, log)
	}
}

func TestAccess_FingerprintIsTheServices(t *testing.T) {
	t.Parallel()
	p := startProxied(t, "")
	config := write(t, p.folder, "cli.yaml", "store: { directory: ./data }\n")
	var report accessReport
	if err := json.Unmarshal([]byte(p.stile("access", p.image(":v1"), "--authfile", p.good, "--config", config, "-o", "json").want(t, OK).stdout), &report); err != nil {
		t.Fatal(err)
	}
	eventually(t, "http://"+p.at.Admin+"/api/v1/proofs", func(_ int, body string) bool { return strings.Contains(body, `"Allowed"`) })
	if !strings.HasPrefix(report.Credential, "fp:") {
		t.Errorf("%+v", report)
	}
}
