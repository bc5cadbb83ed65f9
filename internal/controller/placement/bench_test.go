package placement

import (
	"bytes"
	"container/list"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/canary"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/placement"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/source"
	"github.com/stileproject/stile/internal/store"
)

// still are Secrets that do not change.
type still map[source.Key]*document.Secret

func (still) Want(string, []source.Key)                   {}
func (s still) Get(k source.Key) (*document.Secret, bool) { return s[k], true }
func (still) Why(source.Key) error                        { return nil }
func (still) OnChange(func(source.Key))                   {}

// plain is the design of the seed: an LRU of 256 entries keyed by the SHA-256 of the
// reference and all of the pod's registry credentials.
type plain struct {
	mu    sync.Mutex
	order *list.List
	byKey map[[32]byte]*list.Element
}

type plainEntry struct {
	key       [32]byte
	platforms []placement.Platform
}

func (p *plain) inspect(image string, auths map[string]map[string]string) ([]placement.Platform, bool) {
	secrets, err := json.Marshal(auths)
	if err != nil {
		return nil, false
	}
	h := sha256.New()
	_, _ = h.Write([]byte(image))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write(secrets)
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.byKey[[32]byte(h.Sum(nil))]
	if !ok {
		return nil, false
	}
	p.order.MoveToFront(e)
	return e.Value.(*plainEntry).platforms, true
}

// BenchmarkWarmInspection is what a replica of a known pod costs, beside the plain cache:
// anew is all of it, from the pod and its Secrets to the platforms; known is the look by a
// proof that the pod already holds.
func BenchmarkWarmInspection(b *testing.B) {
	watch := canary.Watch(b)
	registry, err := localregistry.Start(localregistry.Options{})
	must(b, err)
	b.Cleanup(func() { _ = registry.Close() })
	root, err := secret.NewRoot(bytes.Repeat([]byte{7}, 32), nil)
	must(b, err)
	client, err := oci.NewClient(oci.Settings{Registries: []oci.Registry{{Host: registry.Host(), PlainHTTP: true}}, Key: root.Key(secret.ForFingerprints)})
	must(b, err)
	b.Cleanup(client.Close)
	st, err := store.Open(b.TempDir(), store.Options{})
	must(b, err)
	b.Cleanup(func() { _ = st.Close() })
	g := access.New(client, access.Config{})
	password := watch.Credential()
	registry.SetUser("alice", password)
	registry.Allow("alice", localregistry.Everywhere)
	w := &world{t: b, registry: registry, watch: watch}
	image, _ := w.image("team/app", "v1", "linux/amd64", "linux/arm64")

	// A Secret as people have them: for ten registries.
	auths := map[string]map[string]string{registry.Host(): {"username": "alice", "password": password}}
	for i := range 9 {
		auths[fmt.Sprintf("registry-%d.example", i)] = map[string]string{"username": "alice", "password": fmt.Sprint("p", i)}
	}
	config, err := json.Marshal(map[string]any{"auths": auths})
	must(b, err)
	secrets := still{key("team", "may"): {Namespace: "team", Name: "may", Type: oci.SecretTypeDockerConfigJSON, Data: map[string]secret.Secret{corev1.DockerConfigJsonKey: secret.New(config)}}}
	c, err := New(Config{REST: &rest.Config{Host: "http://127.0.0.1:1"}, Gate: g, Contents: content.New(st, client, content.Config{}), Registries: client, Secrets: secrets, Fingerprints: root.Key(secret.ForFingerprints)})
	must(b, err)
	ctx := b.Context()
	var owned sync.WaitGroup
	b.Cleanup(owned.Wait)
	owned.Go(func() { _ = g.Run(ctx) })
	c.facts.start(ctx, &owned)

	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "p", CreationTimestamp: metav1.Now()},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Image: image}}, ImagePullSecrets: []corev1.LocalObjectReference{{Name: "may"}}}}
	h := &held{key: key("team", "p"), pod: pod}
	h.secrets = c.secretKeys(h)
	inspect := func() (answer, bool) {
		asks, read := c.asksOf(h)
		if !read {
			b.Fatal("Secrets that were not read")
		}
		h.asks = asks
		a := c.inspect(h, &h.asks[0], time.Now())
		return a, a.state == ready
	}
	for ok := false; !ok; {
		changed := g.Changed()
		if _, ok = inspect(); !ok {
			select {
			case <-changed:
			case <-c.wake:
			}
		}
	}
	cache := &plain{order: list.New(), byKey: map[[32]byte]*list.Element{}}
	digest := sha256.New()
	all, err := json.Marshal(auths)
	must(b, err)
	_, _ = fmt.Fprintf(digest, "%s\x00%s", image, all)
	e := &plainEntry{key: [32]byte(digest.Sum(nil)), platforms: []placement.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}}}
	cache.byKey[e.key] = cache.order.PushFront(e)

	b.Run("stile/anew", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, ok := inspect(); !ok {
				b.Fatal("a miss")
			}
			c.release(h)
		}
	})
	b.Run("stile/known", func(b *testing.B) {
		inspect()
		b.ReportAllocs()
		for b.Loop() {
			if a := c.inspect(h, &h.asks[0], time.Time{}); a.state != ready {
				b.Fatal("a miss")
			}
		}
		c.release(h)
	})
	b.Run("plain", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, ok := cache.inspect(image, auths); !ok {
				b.Fatal("a miss")
			}
		}
	})
	b.Run("plain/secret-parsed-for-each-pod", func(b *testing.B) { // as that operator does
		b.ReportAllocs()
		for b.Loop() {
			var parsed struct{ Auths map[string]map[string]string }
			if json.Unmarshal(config, &parsed) != nil {
				b.Fatal("no JSON")
			}
			if _, ok := cache.inspect(image, parsed.Auths); !ok {
				b.Fatal("a miss")
			}
		}
	})
}
