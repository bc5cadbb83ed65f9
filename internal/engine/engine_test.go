package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/engine"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/source"
	"github.com/stileproject/stile/internal/wasm"
	"github.com/stileproject/stile/internal/xds"
)

// The engine is tested with a real gate, real translation and real time in a bubble;
// the registry, the contents and the proxies' streams are small doubles, because what is
// tested is what the engine makes of their answers, and when.

const (
	host = "registry.example"
	good = "team-a-password" // the registry lets this one in
)

func digestOf(n int) string { return fmt.Sprintf("sha256:%064x", n) }

// registry answers checks. It is what oci.Client is to the gate.
type registry struct {
	mu      sync.Mutex
	key     secret.Key
	tags    map[string]string // repository:tag to digest
	allowed map[secret.Fingerprint]bool
	err     error         // instead of an answer
	hang    chan struct{} // closed: answer
	checks  int
}

func (r *registry) let(password string, in bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.allowed[oci.NewCredential(r.key, "", "user", password).Fingerprint()] = in
}

func (r *registry) set(f func(*registry)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

func (r *registry) Check(ctx context.Context, ref oci.Reference, c oci.Credential, _ oci.Trust, _ oci.CheckOptions) (oci.Descriptor, error) {
	r.mu.Lock()
	r.checks++
	hang := r.hang
	r.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return oci.Descriptor{}, &oci.Error{Op: "check", Ref: ref.String(), Kind: oci.Unavailable, Err: ctx.Err()}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return oci.Descriptor{}, r.err
	}
	if !r.allowed[c.Fingerprint()] {
		return oci.Descriptor{}, &oci.Error{Op: "check", Ref: ref.String(), Kind: oci.Unauthorized, Status: 401, FromRegistry: true}
	}
	digest := ref.Digest()
	if digest == "" {
		digest = r.tags[ref.Repository()+":"+ref.Tag()]
	}
	if digest == "" {
		return oci.Descriptor{}, &oci.Error{Op: "check", Ref: ref.String(), Kind: oci.NotFound, Status: 404, FromRegistry: true}
	}
	return oci.Descriptor{Digest: digest, MediaType: "application/vnd.oci.image.manifest.v1+json"}, nil
}

func (*registry) Forget(secret.Fingerprint) {}

// contents has a module for every digest that it was given.
type contents struct {
	mu       sync.Mutex
	modules  map[string]content.Module
	problems map[string]error
	signed   map[string]string // digest to key
	changes  chan struct{}
	retained []string
}

func (c *contents) Module(p access.Proof) (content.Module, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.problems[p.Digest()]; err != nil {
		return content.Module{}, err
	}
	m, ok := c.modules[p.Digest()]
	if !ok {
		return content.Module{}, content.ErrPending
	}
	return m, nil
}

// Signed knows the digests that each key has signed.
func (c *contents) Signed(p access.Proof, key string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.signed[p.Digest()] == key {
		return nil
	}
	return &content.Problem{Reason: v1alpha1.ReasonSignatureInvalid, Message: "no signature by that key"}
}

func (c *contents) URL(content.URLRequest) (content.Module, error) {
	return content.Module{}, content.ErrPending
}

func (c *contents) Open(p access.Proof) (io.ReadSeekCloser, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return nopCloser{strings.NewReader(c.modules[p.Digest()].SHA256)}, nil
}

func (c *contents) OpenURL(content.URLRequest) (io.ReadSeekCloser, error) {
	return nil, errors.New("no module")
}

func (c *contents) Retain(sums []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retained = sums
}

func (c *contents) Changes() <-chan struct{} { return c.changes }

// arrive makes the module of a digest available; a module that is large has no inline bytes.
func (c *contents) arrive(n int, large bool) {
	c.mu.Lock()
	m := content.Module{
		Digest: digestOf(n), SHA256: fmt.Sprintf("%064x", 1000+n), Size: 10,
		Info: wasm.Module{Types: []string{wasm.HTTP}},
	}
	if !large {
		m.Inline = []byte(fmt.Sprintf("module %d", n))
	}
	c.modules[digestOf(n)] = m
	delete(c.problems, digestOf(n))
	c.mu.Unlock()
	select {
	case c.changes <- struct{}{}:
	default:
	}
}

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

// proxies remembers what was published to each group.
type proxies struct {
	mu        sync.Mutex
	events    chan xds.Event
	groups    map[xds.StreamID]string
	published map[string]*xds.Snapshot
	times     map[string]int
	counts    xds.Counts // of every plugin
}

func (p *proxies) Events() <-chan xds.Event { return p.events }

func (p *proxies) Join(id xds.StreamID, group string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.groups[id] = group
}

func (p *proxies) Publish(group string, s *xds.Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.published[group] = s
	p.times[group]++
}

func (p *proxies) Counts(plugin.Key) xds.Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// house is an engine with its doubles, in a bubble.
type house struct {
	t        *testing.T
	registry *registry
	contents *contents
	proxies  *proxies
	engine   *engine.Engine
	worlds   chan *source.World
	now      source.World
	streams  xds.StreamID
}

// build runs story in a bubble of time with an engine whose configuration may be changed.
func build(t *testing.T, change func(*engine.Config), story func(*house)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h, leave := open(t, change)
		story(h)
		leave()
	})
}

// open makes a house in the bubble it is called in. The caller calls leave at its end.
func open(t *testing.T, change func(*engine.Config)) (h *house, leave func()) {
	t.Helper()
	root, err := secret.NewRoot(make([]byte, secret.Size), nil)
	if err != nil {
		t.Fatal(err)
	}
	key := root.Key(secret.ForFingerprints)
	client, err := oci.NewClient(oci.Settings{Key: key, Registries: []oci.Registry{{Host: host}}})
	if err != nil {
		t.Fatal(err)
	}
	h = &house{
		t:        t,
		registry: &registry{key: key, tags: map[string]string{}, allowed: map[secret.Fingerprint]bool{}},
		contents: &contents{modules: map[string]content.Module{}, problems: map[string]error{}, signed: map[string]string{}, changes: make(chan struct{}, 1)},
		proxies: &proxies{
			events: make(chan xds.Event, 16), groups: map[xds.StreamID]string{},
			published: map[string]*xds.Snapshot{}, times: map[string]int{},
		},
		worlds: make(chan *source.World, 1),
	}
	h.registry.let(good, true)
	h.now.Secrets = map[source.Key]*document.Secret{}
	h.now.Invalid = map[source.Key][]v1alpha1.Finding{}
	gate := access.New(h.registry, access.Config{})
	cfg := engine.Config{
		RootNamespace: "root", ModulesURL: "http://127.0.0.1:18001",
		Fingerprints: key, URLs: root.Key(secret.ForURLs),
	}
	if change != nil {
		change(&cfg)
	}
	h.engine = engine.New(cfg, engine.Rooms{Gate: gate, Contents: h.contents, Proxies: h.proxies, Registries: client})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = gate.Run(ctx) })
	running.Go(func() { _ = h.engine.Run(ctx, h.worlds) })
	return h, func() {
		cancel()
		running.Wait()
		client.Close()
	}
}

// settle lets everything happen that needs no more than a second.
func (h *house) settle() { h.pass(time.Second) }

// pass lets time go by.
func (h *house) pass(d time.Duration) {
	time.Sleep(d) // in the bubble: nobody waits
	synctest.Wait()
}

// secret writes or replaces team's pull secret "regcred"; an empty password deletes it.
func (h *house) secret(namespace, password string) {
	key := source.Key{Namespace: namespace, Name: "regcred"}
	secrets := map[source.Key]*document.Secret{}
	for k, v := range h.now.Secrets {
		secrets[k] = v
	}
	delete(secrets, key)
	if password != "" {
		config := fmt.Sprintf(`{"auths":{%q:{"username":"user","password":%q}}}`, host, password)
		secrets[key] = &document.Secret{
			Namespace: namespace, Name: "regcred", Type: "kubernetes.io/dockerconfigjson",
			Data: map[string]secret.Secret{".dockerconfigjson": secret.New([]byte(config))},
		}
	}
	h.now.Secrets = secrets
}

// plugin writes or replaces a plugin; an empty URL deletes it.
func (h *house) plugin(namespace, name, url string, change ...func(*v1alpha1.WasmPluginSpec)) {
	var rest []*v1alpha1.WasmPlugin
	for _, p := range h.now.Plugins {
		if p.Namespace != namespace || p.Name != name {
			rest = append(rest, p)
		}
	}
	h.now.Plugins = rest
	if url == "" {
		return
	}
	p := &v1alpha1.WasmPlugin{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Generation: 1},
		Spec:       v1alpha1.WasmPluginSpec{URL: url, ImagePullSecret: "regcred"},
	}
	for _, c := range change {
		c(&p.Spec)
	}
	h.now.Plugins = append(rest, p)
}

// apply gives the engine the world as it was written.
func (h *house) apply() {
	w := h.now
	h.worlds <- &w
	h.settle()
}

// connect opens the stream of a proxy of a namespace.
func (h *house) connect(namespace string) {
	h.streams++
	h.proxies.events <- xds.Event{Kind: xds.Connected, Stream: h.streams, Node: plugin.Node{
		ID: fmt.Sprintf("%s-%d", namespace, h.streams), Cluster: "edge", Namespace: namespace,
	}}
	h.settle()
}

// delivered is what proxies of a namespace are given for a plugin of it: "hold", "standin",
// "keep+hold", "keep+standin", "module <n>", or "nothing" if the name does not exist for them.
func (h *house) delivered(namespace, name string) string {
	h.proxies.mu.Lock()
	defer h.proxies.mu.Unlock()
	for _, s := range h.proxies.published {
		r := s.Resource(xds.ExtensionType, xds.ResourceName(plugin.Key{Namespace: namespace, Name: name}))
		if r == nil {
			continue
		}
		text := ""
		if r.Keep {
			text = "keep+"
		}
		switch {
		case r.Hold:
			return text + "hold"
		case r.StandIn:
			return text + "standin"
		}
		if i := strings.Index(string(r.Any.GetValue()), "module "); i >= 0 {
			return text + string(r.Any.GetValue()[i:i+len("module 1")])
		}
		return text + "remote"
	}
	return "nothing"
}

func (h *house) wantDelivered(namespace, name, want string) {
	h.t.Helper()
	if got := h.delivered(namespace, name); got != want {
		h.t.Errorf("%s/%s is delivered as %q, want %q", namespace, name, got, want)
	}
}

// status returns the status of a plugin.
func (h *house) status(namespace, name string) engine.PluginStatus {
	h.t.Helper()
	for _, s := range h.engine.Plugins() {
		if s.Namespace == namespace && s.Name == name {
			return s
		}
	}
	h.t.Fatalf("%s/%s has no status", namespace, name)
	return engine.PluginStatus{}
}

// wantCondition compares "Type=Status Reason".
func (h *house) wantCondition(namespace, name, want string) {
	h.t.Helper()
	for _, c := range h.status(namespace, name).Conditions {
		if got := c.Type + "=" + c.Status + " " + c.Reason; strings.HasPrefix(want, c.Type+"=") {
			if got != want {
				h.t.Errorf("%s/%s: %s (%s), want %s", namespace, name, got, c.Message, want)
			}
			return
		}
	}
	h.t.Errorf("%s/%s has no condition for %s", namespace, name, want)
}
