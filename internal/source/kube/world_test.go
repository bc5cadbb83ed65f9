package kube

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/stileproject/stile/internal/canary"
	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/source"
)

func TestMain(m *testing.M) {
	klog.LogToStderr(false)
	klog.SetOutput(&klogged) // what client-go itself says is searched, too
	os.Exit(kubetest.Main(m, kubetest.Options{}))
}

// klogged is what client-go has logged.
var klogged lockedBuffer

type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) Bytes() []byte {
	klog.Flush()
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.text.Bytes())
}

// cluster is stile's ServiceAccount on a real API server, with the rights that the chart gives it and no other.
type cluster struct {
	*testing.T
	server      *kubetest.Server
	own, a, b   string // namespaces: stile's, and two tenants'
	account     *rest.Config
	canary      *canary.Watcher
	requests    *recorder
	registry    *prometheus.Registry
	source      *Source
	last        *source.World
	worlds      int
	stop        func()
	firstAnswer time.Duration
}

const roles = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: stile-source}
rules:
- {apiGroups: [extensions.istio.io], resources: [wasmplugins], verbs: [list, watch]}
- {apiGroups: [gateway.networking.k8s.io], resources: [gateways], verbs: [list, watch]}
- {apiGroups: [apiextensions.k8s.io], resources: [customresourcedefinitions], verbs: [get, watch],
   resourceNames: [wasmplugins.extensions.istio.io, gateways.gateway.networking.k8s.io]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: stile-secrets}
rules: [{apiGroups: [""], resources: [secrets], verbs: [get, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: stile-listeners}
rules: [{apiGroups: [""], resources: [configmaps], verbs: [list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: "stile-source-OWN"}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: stile-source}
subjects: [{kind: ServiceAccount, name: stile, namespace: OWN}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: stile-listeners, namespace: OWN}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: stile-listeners}
subjects: [{kind: ServiceAccount, name: stile, namespace: OWN}]
`

const secretsRole = `
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: stile-secrets, namespace: NS}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: stile-secrets}
subjects: [{kind: ServiceAccount, name: stile, namespace: OWN}]
`

func newCluster(t *testing.T, s *kubetest.Server) *cluster {
	t.Helper()
	c := &cluster{T: t, canary: canary.Watch(t), server: s, requests: &recorder{}, registry: prometheus.NewRegistry()}
	c.own, c.a, c.b = s.Namespace(t), s.Namespace(t), s.Namespace(t)
	c.account = s.ServiceAccount(t, c.own, "stile")
	c.canary.Track(c.account.BearerToken)
	c.account.Wrap(func(next http.RoundTripper) http.RoundTripper {
		c.requests.next = next
		return c.requests
	})
	c.apply(roles)
	c.mayReadSecrets(c.a)
	return c
}

// apply applies documents in which A, B and OWN stand for the namespaces.
func (c *cluster) apply(yaml string) {
	c.Helper()
	c.server.Apply(c, nil, c.names(yaml))
}

func (c *cluster) names(yaml string) string {
	r := strings.NewReplacer("namespace: A", "namespace: "+c.a, "namespace: B", "namespace: "+c.b, "OWN", c.own)
	return r.Replace(yaml)
}

func (c *cluster) mayReadSecrets(namespace string) {
	c.Helper()
	c.server.Apply(c, nil, strings.NewReplacer("NS", namespace, "OWN", c.own).Replace(secretsRole))
}

func (c *cluster) delete(args ...string) {
	c.Helper()
	c.server.Kubectl(c, append([]string{"delete", "--wait=false"}, args...)...)
}

// watch begins to watch, with the namespaces of the two tenants unless the Config names others.
func (c *cluster) watch(config Config) {
	c.Helper()
	config.REST, config.Log, config.Registerer = c.account, c.canary.Log(), c.registry
	if config.Namespaces == nil {
		config.Namespaces = []string{c.a, c.b}
	}
	config.Namespace = c.own
	s, err := New(config)
	if err != nil {
		c.Fatal(err)
	}
	if c.firstAnswer > 0 {
		s.firstAnswer = c.firstAnswer
	}
	c.source = s
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := s.Run(ctx); err != nil {
			c.Error(err)
		}
	}()
	c.stop = func() { cancel(); <-ended }
	c.Cleanup(func() {
		c.stop()
		families, err := c.registry.Gather()
		c.canary.Add("metrics", []byte(fmt.Sprint(families, err)))
		c.canary.Add("klog", klogged.Bytes())
	})
}

// watchFirst begins and waits for a first World.
func (c *cluster) watchFirst() {
	c.Helper()
	c.watch(Config{})
	c.sees(func(*source.World) string { return "" })
}

// sees waits until a World lacks nothing, which is "", and returns how long that took.
func (c *cluster) sees(lacks func(*source.World) string) time.Duration {
	c.Helper()
	begin := time.Now()
	deadline := time.After(30 * time.Second)
	for {
		lack := "any World"
		if c.last != nil {
			if lack = lacks(c.last); lack == "" {
				return time.Since(begin)
			}
		}
		select {
		case w := <-c.source.Worlds():
			c.take(w)
		case <-deadline:
			c.Fatalf("not seen: %s; missing %q\n%s", lack, c.source.Missing(), tail(c.canary.Logged()))
		}
	}
}

func (c *cluster) take(w *source.World) {
	c.last = w
	c.worlds++
	c.canary.Add("world", fmt.Appendf(nil, "%v\n%+v\n%#v", *w, *w, *w))
	for _, s := range w.Secrets {
		c.canary.Add("secret", fmt.Appendf(nil, "%v\n%+v\n%#v", *s, *s, *s))
	}
}

// seesSoon is sees within the second that people are promised.
func (c *cluster) seesSoon(lacks func(*source.World) string) {
	c.Helper()
	if took := c.sees(lacks); took > soon {
		c.Errorf("seen after %v, want at most %v", took, soon)
	}
}

// soon is the second that people are promised, and what a busy machine with the race detector takes on top.
const soon = time.Second + 500*time.Millisecond

func tail(text string) string { return text[max(0, len(text)-4000):] }

func wasmPlugin(namespace, name, spec string) string {
	return fmt.Sprintf("apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: %s, namespace: %s}\nspec: {%s}\n---\n", name, namespace, spec)
}

func (c *cluster) pullSecret(namespace, name, password string) string {
	auth := base64.StdEncoding.EncodeToString([]byte("robot:" + password))
	config := fmt.Sprintf(`{"auths":{"registry.example":{"auth":"%s"}}}`, auth)
	return fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: %s}\ntype: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: '%s'}\n---\n", name, namespace, config)
}

// has wants these plugins, as "namespace/name generation".
func has(want ...string) func(*source.World) string {
	return func(w *source.World) string {
		got := []string{}
		for _, p := range w.Plugins {
			got = append(got, fmt.Sprintf("%s/%s %d", p.Namespace, p.Name, p.Generation))
		}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			return fmt.Sprintf("plugins %q, have %q", want, got)
		}
		return ""
	}
}

// secret wants a Secret of that type, with or without content; "" is none at all.
func secretIs(namespace, name, kind string, content bool) func(*source.World) string {
	return func(w *source.World) string {
		s := w.Secrets[source.Key{Namespace: namespace, Name: name}]
		switch {
		case s == nil && kind == "":
			return ""
		case s == nil || kind == "":
			return fmt.Sprintf("Secret %s of type %q, have %v", name, kind, s)
		case s.Type != kind || (len(s.Data) > 0) != content:
			return fmt.Sprintf("Secret %s of type %q with content %v, have %q with %v", name, kind, content, s.Type, slices.Collect(maps.Keys(s.Data)))
		}
		return ""
	}
}

// recorder counts requests, and can be made to spoil them.
type recorder struct {
	next http.RoundTripper

	mu    sync.Mutex
	seen  []string // "verb path?query"
	spoil func(r *http.Request) (*http.Response, error)
	after func(r *http.Request, a *http.Response)
}

func (r *recorder) RoundTrip(request *http.Request) (*http.Response, error) {
	r.mu.Lock()
	r.seen = append(r.seen, request.Method+" "+request.URL.RequestURI())
	spoil, after := r.spoil, r.after
	r.mu.Unlock()
	if spoil != nil {
		if answer, err := spoil(request); answer != nil || err != nil {
			return answer, err
		}
	}
	answer, err := r.next.RoundTrip(request)
	if err == nil && after != nil {
		after(request, answer)
	}
	return answer, err
}

// count returns how many requests so far have all these words.
func (r *recorder) count(words ...string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, s := range r.seen {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(s, word) }) {
			n++
		}
	}
	return n
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.seen)
}

func kubetestConfig() *rest.Config { return &rest.Config{Host: "https://127.0.0.1:1"} }
