package pods

import (
	"bytes"
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/placement"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/store"
)

// plainLRU is the plain design that inspection is measured beside: least recently used
// out, keyed by the reference and all of the pod's registry logins, right or wrong for the
// registry, with a lifetime and without any right that could end.
type plainLRU struct {
	mu      sync.Mutex
	entries map[[32]byte]*list.Element
	order   *list.List
	limit   int
}

type plainEntry struct {
	key       [32]byte
	platforms []placement.Platform
}

func (c *plainLRU) put(key [32]byte, platforms []placement.Platform) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries[key] = c.order.PushFront(&plainEntry{key, platforms})
	if c.order.Len() > c.limit {
		last := c.order.Back()
		delete(c.entries, last.Value.(*plainEntry).key)
		c.order.Remove(last)
	}
}

func (c *plainLRU) get(key [32]byte) ([]placement.Platform, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if !ok {
		return nil, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*plainEntry).platforms, true
}

// keyOf is sha256(reference, NUL, the secret as it is).
func keyOf(image string, login []byte) [32]byte {
	h := sha256.New()
	h.Write([]byte(image))
	h.Write([]byte{0})
	h.Write(login)
	return [32]byte(h.Sum(nil))
}

// merged is a secret's logins as one document, as they are hashed where several secrets
// are one key.
func merged(b *testing.B, login []byte) []byte {
	b.Helper()
	var doc struct {
		Auths map[string]json.RawMessage `json:"auths"`
	}
	if err := json.Unmarshal(login, &doc); err != nil {
		b.Fatal(err)
	}
	text, err := json.Marshal(doc)
	if err != nil {
		b.Fatal(err)
	}
	return text
}

// bench is the rooms, with images that are proven and known.
type bench struct {
	gate     *access.Gate
	contents *content.Contents
	ring     oci.Keyring
	trust    oci.Trust
	login    []byte
	images   []string
	requests []access.Request
	proofs   []access.Proof
	plain    *plainLRU
}

const benchImages = 1000

// newBench warms images of a registry whose pull secret has so many logins.
func newBench(b *testing.B, logins int) *bench {
	b.Helper()
	index := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` +
		entry("amd64", "") + "," + entry("arm64", "v8") + "," + entry("ppc64le", "") + "," + entry("s390x", "") + `]}`)
	sum := sha256.Sum256(index)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		w.Header().Set("Docker-Content-Digest", digest)
		_, _ = w.Write(index)
	}))
	b.Cleanup(registry.Close)
	host := strings.TrimPrefix(registry.URL, "http://")

	root, err := secret.NewRoot(bytes.Repeat([]byte{1}, secret.Size), nil)
	if err != nil {
		b.Fatal(err)
	}
	key := root.Key(secret.ForFingerprints)
	client, err := oci.NewClient(oci.Settings{Key: key, Registries: []oci.Registry{{Host: host, PlainHTTP: true}}})
	if err != nil {
		b.Fatal(err)
	}
	kept, err := store.Open(b.TempDir(), store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	s := &bench{gate: access.New(client, access.Config{MaxPerNamespace: 1_000_000, MaxProofs: 1_000_000}), contents: content.New(kept, client, content.Config{})}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.gate.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		<-ended
		client.Close()
		_ = kept.Close()
	})

	auths := map[string]any{}
	for i := range logins {
		at := host
		if i > 0 {
			at = fmt.Sprintf("registry-%d.example/team", i)
		}
		auths[at] = map[string]string{"auth": base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "user-%d:%s", i, strings.Repeat("x", 60)))}
	}
	if s.login, err = json.Marshal(map[string]any{"auths": auths}); err != nil {
		b.Fatal(err)
	}
	if s.ring, err = oci.ParseDockerConfigJSON(key, "pull secret", s.login); err != nil {
		b.Fatal(err)
	}
	if s.trust, err = client.Trust(host, oci.Operator); err != nil {
		b.Fatal(err)
	}
	s.plain = &plainLRU{entries: map[[32]byte]*list.Element{}, order: list.New(), limit: benchImages}
	for i := range benchImages {
		image := fmt.Sprintf("%s/team/app-%d:v1", host, i)
		r := s.request(b, image, i)
		p, v, err := s.gate.Prove(ctx, r)
		if err != nil || v.State != access.Allowed {
			b.Fatalf("%+v, %v", v, err)
		}
		facts, err := s.contents.Facts(ctx, p)
		if err != nil {
			b.Fatal(err)
		}
		s.images, s.requests, s.proofs = append(s.images, image), append(s.requests, r), append(s.proofs, p)
		s.plain.put(keyOf(image, s.login), platformsOf(facts))
	}
	return s
}

func entry(architecture, variant string) string {
	return fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%064d","size":1,"platform":{"os":"linux","architecture":%q,"variant":%q}}`, len(architecture), architecture, variant)
}

func platformsOf(f content.Facts) []placement.Platform {
	all := make([]placement.Platform, 0, len(f.Platforms))
	for _, p := range f.Platforms {
		all = append(all, placement.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant})
	}
	return all
}

// request is that of a pod, from what it says: the image's name and its pull secret.
func (s *bench) request(b *testing.B, image string, pod int) access.Request {
	b.Helper()
	ref, err := oci.ParseReference(image)
	if err != nil {
		b.Fatal(err)
	}
	credentials, err := s.ring.For(ref)
	if err != nil || credentials.Anonymous() {
		b.Fatal(credentials, err)
	}
	return access.Request{Image: ref, Credentials: credentials, Trust: s.trust, Holder: access.Holder{Namespace: "team", Name: fmt.Sprintf("pods/p-%d/0", pod)}}
}

// measured runs do b.N times and reports, beside the time that passed, the processor time
// that it took, which does not depend on what else the machine does.
func measured(b *testing.B, do func(i int)) {
	b.Helper()
	b.ReportAllocs()
	begin := processorTime(b)
	i := 0
	for ; b.Loop(); i++ {
		do(i)
	}
	b.ReportMetric(float64(processorTime(b)-begin)/float64(i), "cpu-ns/op")
}

func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkWarmInspection is one image of one pod, all of which is known: by the gate and
// the contents, and beside them by the plain design.
func BenchmarkWarmInspection(b *testing.B) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}}
	for _, logins := range []int{1, 25} {
		s := newBench(b, logins)
		name := fmt.Sprintf("logins=%d/", logins)
		decide := func(b *testing.B, image string, platforms []placement.Platform) {
			b.Helper()
			if d := placement.Decide(pod, []placement.Image{{Name: image, Platforms: platforms}}, placement.Settings{}); d.Outcome != placement.Placed {
				b.Fatal(d.Message)
			}
		}
		b.Run(name+"check+facts+decide", func(b *testing.B) {
			measured(b, func(i int) {
				n := i % benchImages
				if v := s.gate.Check(s.requests[n]); v.State != access.Allowed {
					b.Fatal(v)
				}
				facts, ok := s.contents.KnownFacts(s.proofs[n])
				if !ok {
					b.Fatal("not known")
				}
				decide(b, s.images[n], platformsOf(facts))
			})
		})
		b.Run(name+"whole pod", func(b *testing.B) {
			measured(b, func(i int) {
				n := i % benchImages
				r := s.request(b, s.images[n], benchImages+i)
				v := s.gate.Check(r)
				r.Image = r.Image.At(v.Digest)
				p, v := s.gate.Hold(r)
				facts, ok := s.contents.KnownFacts(p)
				if v.State != access.Allowed || !ok {
					b.Fatal(v, ok)
				}
				decide(b, s.images[n], platformsOf(facts))
				s.gate.Release(r.Holder)
			})
		})
		plain := func(key func(*testing.B, string) [32]byte) func(*testing.B) {
			return func(b *testing.B) {
				b.Helper()
				measured(b, func(i int) {
					n := i % benchImages
					platforms, ok := s.plain.get(key(b, s.images[n]))
					if !ok {
						b.Fatal("not known")
					}
					decide(b, s.images[n], platforms)
				})
			}
		}
		b.Run(name+"plain", plain(func(_ *testing.B, image string) [32]byte { return keyOf(image, s.login) }))
		b.Run(name+"plain, logins merged", plain(func(b *testing.B, image string) [32]byte { b.Helper(); return keyOf(image, merged(b, s.login)) }))
		b.Run(name+"decide alone", func(b *testing.B) {
			facts, _ := s.contents.KnownFacts(s.proofs[0])
			platforms := platformsOf(facts)
			measured(b, func(int) { decide(b, "registry.example/team/app:v1", platforms) })
		})
	}
}
