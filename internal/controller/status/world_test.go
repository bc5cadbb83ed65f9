package status

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	events "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/canary"
	"github.com/stileproject/stile/internal/engine"
	"github.com/stileproject/stile/internal/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m, kubetest.Options{})) }

// said is an engine that says what a test tells it.
type said struct {
	mu      sync.Mutex
	plugins map[key]engine.PluginStatus
	changed chan struct{}
}

func newSaid() *said {
	return &said{plugins: map[key]engine.PluginStatus{}, changed: make(chan struct{}, 1)}
}

func (s *said) Plugins() []engine.PluginStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []engine.PluginStatus
	for _, p := range s.plugins {
		p.Conditions = slices.Clone(p.Conditions)
		all = append(all, p)
	}
	return all
}

func (s *said) Changed() <-chan struct{} { return s.changed }

func (s *said) say(all ...engine.PluginStatus) {
	s.mu.Lock()
	for _, p := range all {
		s.plugins[key{p.Namespace, p.Name}] = p
	}
	s.mu.Unlock()
	s.poke()
}

func (s *said) poke() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

const (
	aDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	aModule = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// status is one of the engine's: conditions are given as Type=Status/Reason/Message.
func status(namespace, name string, generation int64, conditions ...string) engine.PluginStatus {
	s := engine.PluginStatus{Namespace: namespace, Name: name, Generation: generation}
	for _, text := range conditions {
		kind, rest, _ := strings.Cut(text, "=")
		parts := strings.SplitN(rest, "/", 3)
		s.Conditions = append(s.Conditions, engine.Condition{Type: kind, Status: parts[0], Reason: parts[1], Message: strings.Join(parts[2:], ""),
			ObservedGeneration: generation, LastTransitionTime: time.Now().UTC().Truncate(time.Second)})
	}
	return s
}

func programmed(namespace, name string, generation int64) engine.PluginStatus {
	s := status(namespace, name, generation, "Accepted=True/Accepted", "ResolvedRefs=True/Resolved", "Programmed=True/Programmed/2 of 2 proxies have loaded it")
	s.Digest, s.ModuleSHA256, s.Size, s.ServedGeneration, s.Resolved, s.Epoch, s.ServedEpoch = aDigest, aModule, 4711, generation, aDigest, 3, 3
	s.Proxies.Matched, s.Proxies.Accepted = 2, 2
	return s
}

func pending(namespace, name string, generation int64) engine.PluginStatus {
	return status(namespace, name, generation, "Accepted=True/Accepted", "ResolvedRefs=Unknown/Pending/asking", "Programmed=Unknown/Pending/proxies wait for the module")
}

func unauthorized(namespace, name string, generation int64) engine.PluginStatus {
	return status(namespace, name, generation, "Accepted=True/Accepted", "ResolvedRefs=False/Unauthorized/the registry refuses it: check the pull secret", "Programmed=False/Pending/proxies run the stand-in of FAIL_CLOSE")
}

// world is a namespace with plugins, and stile's account.
type world struct {
	*kubetest.Server
	t         *testing.T
	namespace string
	account   *rest.Config // exactly the rights of the package comment, in that namespace
	admin     kubernetes.Interface
	canary    *canary.Watcher
	engine    *said
	network   *network
}

func newWorld(t *testing.T, s *kubetest.Server) *world {
	t.Helper()
	w := &world{t: t, canary: canary.Watch(t), Server: s, engine: newSaid(), network: &network{}}
	w.namespace = w.Namespace(t)
	w.account = w.ServiceAccount(t, w.namespace, "stile")
	w.canary.Track(w.account.BearerToken)
	w.account.Wrap(func(next http.RoundTripper) http.RoundTripper { w.network.next = next; return w.network })
	w.Apply(t, nil, strings.ReplaceAll(`
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {namespace: NS, name: status}, rules: [
  {apiGroups: [extensions.istio.io], resources: [wasmplugins], verbs: [get, list, watch]},
  {apiGroups: [extensions.istio.io], resources: [wasmplugins/status], verbs: [patch]},
  {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {namespace: NS, name: status},
 roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: status}, subjects: [{kind: ServiceAccount, namespace: NS, name: stile}]}`, "NS", w.namespace))
	var err error
	if w.admin, err = kubernetes.NewForConfig(w.Config); err != nil {
		t.Fatal(err)
	}
	return w
}

// network counts requests, and lets a test do something right before one.
type network struct {
	next http.RoundTripper

	mu     sync.Mutex
	count  map[string]int
	before func(*http.Request)
}

func (n *network) RoundTrip(r *http.Request) (*http.Response, error) {
	what := r.Method
	switch {
	case strings.Contains(r.URL.Path, "/events.k8s.io/"):
		what += " event"
	case strings.HasSuffix(r.URL.Path, "/status"):
		what += " status"
	case r.URL.Query().Get("watch") != "":
		what = "WATCH"
	}
	n.mu.Lock()
	if n.count == nil {
		n.count = map[string]int{}
	}
	n.count[what]++
	before := n.before
	n.mu.Unlock()
	if before != nil {
		before(r)
	}
	return n.next.RoundTrip(r)
}

func (n *network) requests(what string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.count[what]
}

// once runs do right before the next request to a status.
func (n *network) once(do func()) {
	var done atomic.Bool // others go on meanwhile
	n.mu.Lock()
	defer n.mu.Unlock()
	n.before = func(r *http.Request) {
		if r.Method == http.MethodPatch && strings.HasSuffix(r.URL.Path, "/status") {
			if done.CompareAndSwap(false, true) {
				do()
			}
		}
	}
}

// config is that of a writer in w.
func (w *world) config() Config {
	return Config{REST: w.account, Statuses: w.engine, Namespaces: []string{w.namespace}, Identity: "stile-0", Log: w.canary.Log()}
}

// run runs a writer until the test ends or stop is called.
func (w *world) run(cfg Config) (stop func()) {
	w.t.Helper()
	writer, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- writer.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("run: %v", err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

// plugin makes a WasmPlugin.
func (w *world) plugin(name string) {
	w.t.Helper()
	w.Apply(w.t, nil, fmt.Sprintf("{apiVersion: extensions.istio.io/v1alpha1, kind: WasmPlugin, metadata: {namespace: %s, name: %s}, spec: {url: 'oci://r.example/a:v1'}}", w.namespace, name))
}

const pluginsPath = "/apis/extensions.istio.io/v1alpha1/namespaces/%s/wasmplugins/%s"

// stored returns a plugin as it is stored, read into o.
func (w *world) stored(name string, o any) {
	w.t.Helper()
	body, err := w.admin.CoreV1().RESTClient().Get().AbsPath(fmt.Sprintf(pluginsPath, w.namespace, name)).Do(context.Background()).Raw()
	if err != nil {
		w.t.Fatal(err)
	}
	w.canary.Add("plugin "+name, body)
	if err := json.Unmarshal(body, o); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) get(name string) (p v1alpha1.WasmPlugin) {
	w.t.Helper()
	w.stored(name, &p)
	return p
}

// sees waits until a condition is as given, as Type=Status/Reason.
func (w *world) sees(name string, conditions ...string) v1alpha1.WasmPlugin {
	w.t.Helper()
	var p v1alpha1.WasmPlugin
	kubetest.Eventually(w.t, func() string {
		p = w.get(name)
		for _, want := range conditions {
			if !slices.ContainsFunc(p.Status.Conditions, func(c metav1.Condition) bool {
				return fmt.Sprintf("%s=%s/%s", c.Type, c.Status, c.Reason) == want
			}) {
				return fmt.Sprintf("%s in %+v", want, p.Status.Conditions)
			}
		}
		return ""
	})
	return p
}

// events returns the events that regard a plugin, in the order of their reasons.
func (w *world) events(name string) []events.Event {
	w.t.Helper()
	list, err := w.admin.EventsV1().Events(w.namespace).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	body, err := json.Marshal(list)
	if err != nil {
		w.t.Fatal(err)
	}
	w.canary.Add("events", body)
	var all []events.Event
	for _, e := range list.Items {
		if e.Regarding.Name == name {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b events.Event) int { return strings.Compare(a.Reason, b.Reason) })
	return all
}

func written(t *testing.T, r *prometheus.Registry, metric, result string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != metric {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == result {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s{%s}", metric, result)
	return 0
}
