package placement

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
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
	dto "github.com/prometheus/client_model/go"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/canary"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/placement"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/source"
	"github.com/stileproject/stile/internal/source/kube"
	"github.com/stileproject/stile/internal/store"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m, kubetest.Options{})) }

// own is stile's namespace in the tests.
const own = "stile-system"

// rights are those that the chart gives the account: the controller of the tests has no others.
const rights = `
apiVersion: v1
kind: Namespace
metadata: {name: stile-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: stile-placement}
rules:
- {apiGroups: [""], resources: [pods], verbs: [get, list, watch, patch]}
- {apiGroups: [""], resources: [secrets], verbs: [get, watch]}
- {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: stile-placement}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: stile-placement}
subjects: [{kind: ServiceAccount, namespace: stile-system, name: stile}]
`

// world is a cluster with a registry, and a controller that has the account of the chart
// and is held by the guard.
type world struct {
	t        testing.TB
	api      *kubetest.Server
	client   *kubernetes.Clientset // the administrator's
	registry *localregistry.Registry
	watch    *canary.Watcher
	access   access.Config
	hosts    []string // more registries
	open     bool     // the registry asks nobody who is there
	dir      string
	as       *rest.Config

	// requests to the API server by the controller, by verb and resource.
	requests struct {
		sync.Mutex
		count map[string]int
	}
	metrics *prometheus.Registry
	gate    *access.Gate
	secrets *kube.Secrets
	stop    func()
	names   atomic.Int64
	prints  secret.Key
}

// counting counts what the controller asks of the API server.
type counting struct {
	w    *world
	next http.RoundTripper
}

func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	kind := r.Method
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	resource := ""
	for _, known := range []string{"pods", "secrets", "events"} {
		if i := slices.Index(path, known); i >= 0 {
			resource = known
			switch {
			case r.URL.Query().Get("watch") != "":
				kind = "WATCH"
			case r.Method == http.MethodGet && i == len(path)-1:
				kind = "LIST"
			}
		}
	}
	c.w.requests.Lock()
	c.w.requests.count[kind+" "+resource]++
	c.w.requests.Unlock()
	return c.next.RoundTrip(r)
}

func (w *world) count(what string) int {
	w.requests.Lock()
	defer w.requests.Unlock()
	return w.requests.count[what]
}

// one has tests with a controller run one after the other: it handles the pods of all
// namespaces.
var one sync.Mutex

// newWorld returns a cluster without a running controller.
func newWorld(t testing.TB, mode ...localregistry.Mode) *world {
	t.Helper()
	watch := canary.Watch(t)
	one.Lock()
	t.Cleanup(one.Unlock)
	api := kubetest.API(t)
	w := (&world{t: t, watch: watch, dir: t.TempDir(), open: slices.Contains(mode, localregistry.Open)}).at(api)
	w.requests.count = map[string]int{}
	var err error
	w.registry, err = localregistry.Start(localregistry.Options{Mode: append(mode, localregistry.Bearer)[0], TokenMarker: watch.Credential(), TokenLife: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.registry.Close() })
	w.access = access.Config{Attempts: 1, DeniedFirst: 200 * time.Millisecond}
	return w
}

// at has the world in another cluster.
func (w *world) at(api *kubetest.Server) *world {
	w.t.Helper()
	var err error
	w.api = api
	w.client, err = kubernetes.NewForConfig(api.Config)
	must(w.t, err)
	guard, err := os.ReadFile("../../../charts/stile/files/guard-policy.yaml")
	must(w.t, err)
	api.Apply(w.t, nil, rights)
	api.Apply(w.t, nil, string(guard))
	w.as = api.ServiceAccount(w.t, own, "stile")
	return w
}

// run starts a controller over what is on disk; stop ends it.
func (w *world) run(change ...func(*Config)) *world {
	w.t.Helper()
	root, err := secret.NewRoot(bytes.Repeat([]byte{7}, 32), nil)
	must(w.t, err)
	w.metrics, w.prints = prometheus.NewRegistry(), root.Key(secret.ForFingerprints)
	log := w.watch.Log()
	hosts := []oci.Registry{{Host: w.registry.Host(), PlainHTTP: true}}
	for _, h := range w.hosts {
		hosts = append(hosts, oci.Registry{Host: h, PlainHTTP: true})
	}
	client, err := oci.NewClient(oci.Settings{Registries: hosts, Key: root.Key(secret.ForFingerprints), Log: log})
	must(w.t, err)
	st, err := store.Open(w.dir, store.Options{Log: log})
	must(w.t, err)
	gateConfig := w.access
	gateConfig.Log = log
	w.gate = access.New(client, gateConfig)
	contents := content.New(st, client, content.Config{Log: log})
	config := rest.CopyConfig(w.as)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return counting{w, next} })
	reader, err := kubernetes.NewForConfig(config)
	must(w.t, err)
	w.secrets = kube.NewSecrets(reader, log)
	c := Config{REST: config, Gate: w.gate, Contents: contents, Registries: client, Secrets: w.secrets,
		Fingerprints: root.Key(secret.ForFingerprints), Namespace: own, MaxWait: time.Minute, Log: log, Registerer: w.metrics}
	for _, f := range change {
		f(&c)
	}
	controller, err := New(c)
	must(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var owned sync.WaitGroup
	owned.Go(func() { _ = w.gate.Run(ctx) })
	owned.Go(func() { _ = w.secrets.Run(ctx) })
	owned.Go(func() { _ = controller.Run(ctx) })
	var once sync.Once
	w.stop = func() {
		once.Do(func() {
			cancel()
			owned.Wait()
			client.Close()
			must(w.t, st.Close())
			var text bytes.Buffer
			families, err := w.metrics.Gather()
			must(w.t, err)
			for _, f := range families {
				text.WriteString(f.String())
			}
			w.watch.Add("metrics", text.Bytes())
		})
	}
	w.t.Cleanup(w.stop)
	return w
}

// each does something n times, several at a time.
func each(n int, do func(i int)) {
	var all sync.WaitGroup
	next := make(chan int)
	for range 16 {
		all.Go(func() {
			for i := range next {
				do(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	all.Wait()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// namespace makes one; when the test ends its pods go, and what they and their events
// said is searched for credentials.
func (w *world) namespace() string {
	w.t.Helper()
	ns := w.api.Namespace(w.t)
	w.t.Cleanup(func() {
		ctx := context.Background()
		pods, err := w.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		must(w.t, err)
		events, err := w.client.EventsV1().Events(ns).List(ctx, metav1.ListOptions{})
		must(w.t, err)
		for _, list := range []any{pods, events} {
			b, err := json.Marshal(list)
			must(w.t, err)
			w.watch.Add("objects", b)
		}
		must(w.t, w.client.CoreV1().Pods(ns).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}, metav1.ListOptions{}))
	})
	return ns
}

// image is one that a test pushes: platforms as os/arch, or none for a plain manifest.
func (w *world) image(repository, tag string, platforms ...string) (reference, digest string) {
	w.t.Helper()
	w.registry.SetOpen(true)
	defer w.registry.SetOpen(w.open)
	manifestOf := func(platform string) []byte {
		system, arch, _ := strings.Cut(platform, "/")
		config := fmt.Appendf(nil, `{"os":%q,"architecture":%q,"n":%d}`, system, arch, w.names.Add(1))
		w.blob(repository, config)
		return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[]}`,
			digestOf(config), len(config))
	}
	var body []byte
	kind := "application/vnd.oci.image.manifest.v1+json"
	if len(platforms) == 1 {
		body = manifestOf(platforms[0])
	} else {
		kind = "application/vnd.oci.image.index.v1+json"
		var entries []string
		for _, p := range platforms {
			system, arch, _ := strings.Cut(p, "/")
			m := manifestOf(p)
			w.put("/v2/"+repository+"/manifests/"+digestOf(m), "application/vnd.oci.image.manifest.v1+json", m)
			entries = append(entries, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":%d,"platform":{"os":%q,"architecture":%q}}`, digestOf(m), len(m), system, arch))
		}
		body = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, kind, strings.Join(entries, ","))
	}
	w.put("/v2/"+repository+"/manifests/"+tag, kind, body)
	return w.registry.Host() + "/" + repository + ":" + tag, digestOf(body)
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func (w *world) blob(repository string, b []byte) {
	w.t.Helper()
	w.push(http.MethodPost, "/v2/"+repository+"/blobs/uploads/?digest="+digestOf(b), "application/octet-stream", b)
}

func (w *world) put(path, kind string, b []byte) {
	w.t.Helper()
	w.push(http.MethodPut, path, kind, b)
}

func (w *world) push(method, path, kind string, b []byte) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, "http://"+w.registry.Host()+path, bytes.NewReader(b))
	must(w.t, err)
	req.Header.Set("Content-Type", kind)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	must(w.t, err)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		w.t.Fatalf("push %s: %s", path, resp.Status)
	}
}

// user makes somebody who may pull the repositories.
func (w *world) user(name string, repositories ...string) (password string) {
	password = w.watch.Credential()
	w.registry.SetUser(name, password)
	for _, r := range repositories {
		w.registry.Allow(name, r)
	}
	return password
}

func dockerConfig(host, name, password string) []byte {
	auth := base64.StdEncoding.EncodeToString([]byte(name + ":" + password))
	return fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, host, auth)
}

// pullSecret makes or changes one.
func (w *world) pullSecret(ns, name, user, password string) {
	w.t.Helper()
	w.rawSecret(ns, name, dockerConfig(w.registry.Host(), user, password))
}

func (w *world) rawSecret(ns, name string, config []byte) {
	w.t.Helper()
	ctx := context.Background()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Type: corev1.SecretTypeDockerConfigJson,
		Data: map[string][]byte{corev1.DockerConfigJsonKey: config}}
	if _, err := w.client.CoreV1().Secrets(ns).Update(ctx, s, metav1.UpdateOptions{}); err == nil {
		return
	}
	_, err := w.client.CoreV1().Secrets(ns).Create(ctx, s, metav1.CreateOptions{})
	must(w.t, err)
}

// pod makes a gated pod with one image and some pull secrets.
func (w *world) pod(ns, name, image string, change ...func(*corev1.Pod)) *corev1.Pod {
	w.t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.PodSpec{
		Containers:      []corev1.Container{{Name: "main", Image: image, ImagePullPolicy: corev1.PullIfNotPresent}},
		SchedulingGates: []corev1.PodSchedulingGate{{Name: placement.Gate}},
	}}
	for _, f := range change {
		f(p)
	}
	made, err := w.client.CoreV1().Pods(ns).Create(context.Background(), p, metav1.CreateOptions{})
	must(w.t, err)
	return made
}

func with(secrets ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		for _, s := range secrets {
			p.Spec.ImagePullSecrets = append(p.Spec.ImagePullSecrets, corev1.LocalObjectReference{Name: s})
		}
	}
}

// went waits until the pod carries the gate no more, and returns it.
func (w *world) went(ns, name string) *corev1.Pod {
	w.t.Helper()
	var p *corev1.Pod
	kubetest.Eventually(w.t, func() string {
		var err error
		if p, err = w.client.CoreV1().Pods(ns).Get(context.Background(), name, metav1.GetOptions{}); err != nil {
			return err.Error()
		}
		if placement.Gated(p) {
			return "pod " + ns + "/" + name + " to be let go"
		}
		return ""
	})
	return p
}

// where returns the architectures that the pod's required affinity names: "" for none at all.
func where(p *corev1.Pod) string {
	a := p.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return ""
	}
	var terms []string
	for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		var parts []string
		for _, e := range term.MatchExpressions {
			parts = append(parts, strings.TrimPrefix(e.Key, "kubernetes.io/")+" "+string(e.Operator)+" "+strings.Join(e.Values, ","))
		}
		slices.Sort(parts)
		terms = append(terms, strings.Join(parts, "; "))
	}
	return strings.Join(terms, " | ")
}

// outcomeOf returns what the label says of the decision.
func outcomeOf(p *corev1.Pod) string { return p.Labels[placement.Label] }

func wantPod(t testing.TB, p *corev1.Pod, outcome placement.Outcome, affinity string) {
	t.Helper()
	if got := outcomeOf(p); got != string(outcome) {
		t.Errorf("pod %s: outcome %q, want %q", p.Name, got, outcome)
	}
	if got := where(p); got != affinity {
		t.Errorf("pod %s: affinity %q, want %q", p.Name, got, affinity)
	}
}

// asked returns how many requests f costs the registry.
func (w *world) asked(f func()) int {
	before := w.registry.RequestCount()
	f()
	return w.registry.RequestCount() - before
}

// event waits for one about the pod with the reason, and returns its note.
func (w *world) event(ns, pod, reason string) string {
	w.t.Helper()
	note := ""
	kubetest.Eventually(w.t, func() string {
		list, err := w.client.EventsV1().Events(ns).List(context.Background(), metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		for _, e := range list.Items {
			if e.Reason == reason && e.Regarding.Name == pod {
				note = e.Note
				return ""
			}
		}
		return "event " + reason + " of pod " + pod
	})
	return note
}

// metric returns the sum of a metric's values, of those with the label value if one is given.
func (w *world) metric(name, label string) float64 {
	w.t.Helper()
	families, err := w.metrics.Gather()
	must(w.t, err)
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if label == "" || slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetValue() == label }) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func key(ns, name string) source.Key { return source.Key{Namespace: ns, Name: name} }
