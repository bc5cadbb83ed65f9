package kube

import (
	"context"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stileproject/stile/api/crd"
	"github.com/stileproject/stile/internal/canary"
	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/source"
)

// Definitions come and go in a running cluster: nothing crashes, and what is watched follows.
func TestDefinitionsComeAndGo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.Start(t, kubetest.Options{NoCRD: true}))
	c.watch(Config{})
	kubetest.Eventually(t, func() string {
		if m := c.source.Missing(); len(m) != 1 || !strings.Contains(m[0], "wasmplugins.extensions.istio.io is not installed") {
			return "word of the definition that is missing, have " + strings.Join(m, "; ")
		}
		return ""
	})
	if c.source.Synced() {
		t.Error("synced without WasmPlugins")
	}

	c.apply(string(crd.WasmPlugin))
	kubetest.Eventually(t, func() string {
		if err := c.server.TryApply(nil, c.names(wasmPlugin("A", "auth", `url: "oci://registry.example/auth:v1"`))); err != nil {
			return err.Error()
		}
		return ""
	})
	c.sees(has(c.a + "/auth 1"))
	if m := c.source.Missing(); len(m) != 0 || !c.source.Synced() {
		t.Errorf("missing %q", m)
	}

	gateways, err := os.ReadFile("testdata/gateways.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c.apply(string(gateways))
	kubetest.Eventually(t, func() string {
		if err := c.server.TryApply(nil, c.names("{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: gw, namespace: A}, spec: {gatewayClassName: envoy}}")); err != nil {
			return err.Error()
		}
		return ""
	})
	key := source.Key{Namespace: c.a, Name: "gw"}
	class := func(want string) func(*source.World) string {
		return func(w *source.World) string {
			if g := w.Gateways[key]; g == nil && want != "" || g != nil && g.Class != want {
				return "a Gateway of class " + want
			}
			return ""
		}
	}
	c.sees(class("envoy"))
	gateway := c.last.Gateways[key]
	c.server.Kubectl(t, "patch", "gateways.gateway.networking.k8s.io", "gw", "-n", c.a, "--type=merge", "-p", `{"status":{"addresses":[{"value":"10.0.0.1"}]}}`)
	c.server.Kubectl(t, "label", "wasmplugin", "auth", "-n", c.a, "a=b")
	c.seesSoon(func(w *source.World) string {
		if len(w.Plugins) == 0 || w.Plugins[0].Labels["a"] != "b" {
			return "the label"
		}
		return ""
	})
	if c.last.Gateways[key] != gateway {
		t.Error("a Gateway's status has changed the Gateway")
	}

	c.delete("crd", "gateways.gateway.networking.k8s.io")
	c.sees(class(""))
	c.delete("crd", "wasmplugins.extensions.istio.io")
	c.sees(has())
	kubetest.Eventually(t, func() string {
		if m := c.source.Missing(); len(m) != 1 {
			return "word that the definition is gone"
		}
		return ""
	})
	c.apply(string(crd.WasmPlugin))
	kubetest.Eventually(t, func() string {
		if err := c.server.TryApply(nil, c.names(wasmPlugin("A", "again", `url: "oci://registry.example/auth:v1"`))); err != nil {
			return err.Error()
		}
		return ""
	})
	c.sees(has(c.a + "/again 1"))
}

// While the API server is away, what was known stays; what happened meanwhile is seen when it is back.
func TestP8_APIServerRestarts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.Start(t, kubetest.Options{}))
	c.apply(wasmPlugin("A", "auth", `url: "oci://registry.example/auth:v1", imagePullSecret: regcred`) + c.pullSecret("A", "regcred", c.canary.Credential()) +
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: edge, namespace: OWN, labels: {stile.dev/envoy: 'true'}}\ndata: {edge.yaml: 'listeners: []'}\n")
	c.watchFirst()
	before := c.last
	c.server.Restart(t)
	select {
	case w := <-c.source.Worlds():
		t.Errorf("a World out of an outage: %+v", *w)
	default:
	}
	c.apply(wasmPlugin("A", "auth", `url: "oci://registry.example/auth:v2", imagePullSecret: regcred`) + c.pullSecret("A", "regcred", c.canary.Credential()))
	took := c.sees(has(c.a + "/auth 2"))
	key := source.Key{Namespace: c.a, Name: "regcred"}
	took += c.sees(func(w *source.World) string {
		if w.Secrets[key] == nil || w.Secrets[key] == before.Secrets[key] {
			return "the new content of the Secret"
		}
		return ""
	})
	t.Logf("seen %v after the API server was ready again", took)
	if len(c.last.EnvoyFiles) != 1 || len(c.last.UnreadableSecrets) != 0 {
		t.Errorf("%+v", *c.last)
	}

	// An outage is said, and keeps nobody from ending.
	c.server.Down(t)
	kubetest.Eventually(t, func() string {
		if !strings.Contains(c.canary.Logged(), `"fault":"the API server cannot be reached: connection refused"`) {
			return "word of the outage in the log"
		}
		return ""
	})
	begin := time.Now()
	c.stop()
	if took := time.Since(begin); took > time.Second {
		t.Errorf("it ended %v after it was asked to", took)
	}
}

// Without an API server there is word of it, no World, and an end when it is asked for.
func TestNoAPIServerAtAll(t *testing.T) {
	t.Parallel()
	w := canary.Watch(t)
	config := kubetestConfig()
	config.BearerToken = w.Credential()
	s, err := New(Config{REST: config, Namespace: "stile-system", Log: w.Log()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	kubetest.Eventually(t, func() string {
		if got := strings.Join(s.Missing(), "\n"); strings.Count(got, "connection refused: it is tried again") != 2 {
			return "word of definitions and ConfigMaps that cannot be read: " + got
		}
		return ""
	})
	if len(s.Worlds()) > 0 || s.Synced() {
		t.Error("a World out of nothing")
	}
	begin := time.Now()
	cancel()
	if err := <-ended; err != nil || time.Since(begin) > time.Second {
		t.Errorf("it ended %v after it was asked to: %v", time.Since(begin), err)
	}
}

// Watches that break, are refused or have missed too much begin anew; nothing is lost and nothing flickers.
func TestBrokenWatches(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t))
	c.apply(wasmPlugin("A", "auth", `url: "oci://registry.example/auth:v1", imagePullSecret: regcred`) + c.pullSecret("A", "regcred", c.canary.Credential()))
	leak := c.canary.Credential()
	cut := c.cuttable()
	var mu sync.Mutex
	answers := []string{} // what watches of Secrets and plugins get next
	c.requests.mu.Lock()
	c.requests.spoil = func(r *http.Request) (*http.Response, error) {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Query().Get("watch") == "" || len(answers) == 0 {
			return nil, nil
		}
		code, text := http.StatusOK, answers[0]
		answers = answers[1:]
		if strings.Contains(text, `"kind":"Status","status"`) && !strings.Contains(text, "ERROR") {
			code = http.StatusInternalServerError
		}
		return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(text)), Request: r}, nil
	}
	c.requests.mu.Unlock()
	c.watchFirst()

	const gone = `{"type":"ERROR","object":{"apiVersion":"v1","kind":"Status","status":"Failure","reason":"Expired","code":410,"message":"too old resource version"}}`
	failure := `{"apiVersion":"v1","kind":"Status","status":"Failure","reason":"InternalError","code":500,"message":"` + leak + `"}`
	for i, spoiled := range [][]string{nil, {gone, gone, gone, gone}, {failure, failure, failure, failure, "nonsense " + leak, ""}} {
		mu.Lock()
		answers = spoiled
		mu.Unlock()
		cut()
		before := c.last.Secrets[source.Key{Namespace: c.a, Name: "regcred"}]
		c.apply(wasmPlugin("A", "auth", `url: "oci://registry.example/auth:v1", imagePullSecret: regcred, priority: `+string(rune('1'+i))) + c.pullSecret("A", "regcred", c.canary.Credential()))
		c.sees(func(w *source.World) string {
			s := w.Secrets[source.Key{Namespace: c.a, Name: "regcred"}]
			switch {
			case len(w.Plugins) != 1 || s == nil || len(w.UnreadableSecrets) > 0:
				t.Fatalf("something has flickered: %+v", *w)
			case w.Plugins[0].Generation != int64(i+2):
				return "the new generation"
			case s == before:
				return "the new content"
			}
			return ""
		})
	}
}

// cuttable makes watches that can be cut off, and returns what cuts all that are open.
func (c *cluster) cuttable() (cut func()) {
	var mu sync.Mutex
	var bodies []*cutBody
	c.requests.mu.Lock()
	defer c.requests.mu.Unlock()
	c.requests.after = func(r *http.Request, a *http.Response) {
		if r.URL.Query().Get("watch") != "" {
			mu.Lock()
			defer mu.Unlock()
			b := &cutBody{ReadCloser: a.Body, cut: make(chan struct{})}
			a.Body = b
			bodies = append(bodies, b)
		}
	}
	return func() {
		mu.Lock()
		defer mu.Unlock()
		for _, b := range bodies {
			close(b.cut)
			_ = b.Close()
		}
		bodies = nil
	}
}

// cutBody is an answer that can be cut off.
type cutBody struct {
	io.ReadCloser
	cut chan struct{}
}

func (b *cutBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	select {
	case <-b.cut:
		return 0, io.ErrUnexpectedEOF
	default:
		return n, err
	}
}

// Where get is allowed and watch is not, Secrets are read all the same, and again within the bound.
func TestASecretThatMayNotBeWatchedIsRead(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t))
	c.server.Apply(t, nil, strings.NewReplacer("NS", c.b, "OWN", c.own).Replace(`
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: get-only, namespace: NS}
rules: [{apiGroups: [""], resources: [secrets], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: get-only, namespace: NS}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: get-only}
subjects: [{kind: ServiceAccount, name: stile, namespace: OWN}]
`))
	c.apply(wasmPlugin("B", "auth", `url: "oci://registry.example/auth:v1", imagePullSecret: regcred`) + c.pullSecret("B", "regcred", c.canary.Credential()))
	c.watchFirst()
	c.sees(secretIs(c.b, "regcred", "kubernetes.io/dockerconfigjson", true))
	before := c.last.Secrets[source.Key{Namespace: c.b, Name: "regcred"}]
	c.apply(c.pullSecret("B", "regcred", c.canary.Credential()))
	c.sees(func(w *source.World) string {
		if w.Secrets[source.Key{Namespace: c.b, Name: "regcred"}] == before {
			return "the new content"
		}
		return ""
	})
}

// An API server that does not answer about one Secret holds up the first World for a bound, and then says so.
func TestASecretThatIsNotAnswered(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t))
	c.firstAnswer = 200 * time.Millisecond
	c.apply(wasmPlugin("A", "auth", `url: "oci://registry.example/auth:v1", imagePullSecret: regcred`) + c.pullSecret("A", "regcred", c.canary.Credential()))
	open := make(chan struct{})
	c.requests.mu.Lock()
	c.requests.spoil = func(r *http.Request) (*http.Response, error) {
		if strings.HasSuffix(r.URL.Path, "/secrets/regcred") {
			<-open
		}
		return nil, nil
	}
	c.requests.mu.Unlock()
	c.watchFirst()
	u, ok := c.last.UnreadableSecrets[source.Key{Namespace: c.a, Name: "regcred"}]
	if !ok || !u.Unsure || has(c.a+"/auth 1")(c.last) != "" {
		t.Errorf("%+v", *c.last)
	}
	close(open)
	c.seesSoon(secretIs(c.a, "regcred", "kubernetes.io/dockerconfigjson", true))
}
