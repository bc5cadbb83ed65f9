package content

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// registry is a registry that says and delivers whatever a test puts into it: the one
// a hostile tenant would run. It asks for no credentials.
type registry struct {
	*httptest.Server
	mu       sync.Mutex
	blobs    map[string][]byte        // "repository digest"
	manifest map[string]namedManifest // "repository reference"
	refuse   func(*http.Request) int  // status to answer instead; 0 = as usual
	requests []string
}

type namedManifest struct {
	mediaType string
	raw       []byte
	claim     string // what the Docker-Content-Digest header says
}

func newRegistry(t testing.TB) *registry {
	t.Helper()
	r := &registry{blobs: map[string][]byte{}, manifest: map[string]namedManifest{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *registry) host() string { return strings.TrimPrefix(r.URL, "http://") }

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, req.Method+" "+req.URL.Path)
	refuse := r.refuse
	r.mu.Unlock()
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if refuse != nil {
		if status := refuse(req); status != 0 {
			w.WriteHeader(status)
			return
		}
	}
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	r.mu.Lock()
	defer r.mu.Unlock()
	if repository, name, ok := strings.Cut(path, "/manifests/"); ok {
		m, ok := r.manifest[repository+" "+name]
		if !ok {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`)
			return
		}
		w.Header().Set("Content-Type", m.mediaType)
		w.Header().Set("Docker-Content-Digest", m.claim)
		w.Header().Set("Content-Length", fmt.Sprint(len(m.raw)))
		if req.Method != http.MethodHead {
			_, _ = w.Write(m.raw)
		}
		return
	}
	if repository, d, ok := strings.Cut(path, "/blobs/"); ok {
		b, ok := r.blobs[repository+" "+d]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = w.Write(b)
		return
	}
	if path != "" {
		w.WriteHeader(http.StatusNotFound)
	}
}

func (r *registry) count(part string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, line := range r.requests {
		if strings.Contains(line, part) {
			n++
		}
	}
	return n
}

func (r *registry) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

func digestOf(b []byte) string { return newDigest(sha256.Sum256(b)) }

// blob puts b into the repository and returns its descriptor.
func (r *registry) blob(repository, mediaType string, b []byte) descriptor {
	d := digestOf(b)
	r.set(func() { r.blobs[repository+" "+d] = b })
	return descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

// put puts a manifest into the repository, under its digest and the tags, and returns
// its digest.
func (r *registry) put(repository, mediaType string, raw []byte, tags ...string) string {
	d := digestOf(raw)
	r.set(func() {
		for _, name := range append(tags, d) {
			r.manifest[repository+" "+name] = namedManifest{mediaType, raw, d}
		}
	})
	return d
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

type doc map[string]any

func imageOf(config descriptor, layers ...descriptor) []byte {
	return mustJSON(doc{"schemaVersion": 2, "mediaType": typeOCIManifest, "config": layer(config), "layers": layersOf(layers)})
}

func layer(d descriptor) doc {
	return doc{"mediaType": d.MediaType, "digest": d.Digest, "size": d.Size}
}

func layersOf(all []descriptor) []doc {
	docs := []doc{}
	for _, d := range all {
		docs = append(docs, layer(d))
	}
	return docs
}

// artifact pushes a Wasm artifact and returns its digest.
func (r *registry) artifact(repository string, module []byte, tags ...string) string {
	config := r.blob(repository, "application/vnd.wasm.config.v0+json", []byte(`{"architecture":"wasm","os":"wasip1"}`))
	return r.put(repository, typeOCIManifest, imageOf(config, r.blob(repository, "application/wasm", module)), tags...)
}

const ociTarGzip = "application/vnd.oci.image.layer.v1.tar+gzip"

func imageConfigBlob(r *registry, repository string) descriptor {
	return r.blob(repository, "application/vnd.oci.image.config.v1+json", []byte(`{"architecture":"arm64","os":"linux","variant":"v8"}`))
}

// image pushes an image whose one layer has the file, and returns its digest.
func (r *registry) image(repository, file string, content []byte, tags ...string) string {
	return r.put(repository, typeOCIManifest, imageOf(imageConfigBlob(r, repository), r.blob(repository, ociTarGzip, tarGz(file, content))), tags...)
}

func tarGz(name string, content []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Mode: 0o644, Typeflag: tar.TypeReg})
	if err == nil {
		_, err = w.Write(content)
	}
	if err = errors.Join(err, w.Close(), z.Close()); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// world is a client, a gate and contents over a store, all real, for the registries
// on loopback that a test names.
type world struct {
	t        testing.TB
	client   *oci.Client
	gate     *access.Gate
	store    *store.Store
	contents *Contents
	dir      string
	holders  int
}

func testRoot(t testing.TB) secret.Root {
	t.Helper()
	root, err := secret.NewRoot(bytes.Repeat([]byte{9}, secret.Size), nil)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func newWorld(t testing.TB, dir string, c Config, hosts ...string) *world {
	t.Helper()
	return newWorldWith(t, dir, store.Options{}, c, hosts...)
}

func newWorldIn(t testing.TB, o store.Options, c Config, hosts ...string) *world {
	t.Helper()
	return newWorldWith(t, t.TempDir(), o, c, hosts...)
}

func newWorldWith(t testing.TB, dir string, o store.Options, c Config, hosts ...string) *world {
	t.Helper()
	root := testRoot(t)
	settings := oci.Settings{Key: root.Key(secret.ForFingerprints)}
	for _, h := range hosts {
		settings.Registries = append(settings.Registries, oci.Registry{Host: h, PlainHTTP: true})
	}
	client, err := oci.NewClient(settings)
	if err != nil {
		t.Fatal(err)
	}
	o.Keys = []secret.Key{root.Key(secret.ForRows)}
	s, err := store.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if c.Keys == nil {
		c.Keys = []secret.Key{root.Key(secret.ForRows)}
	}
	w := &world{t: t, dir: dir, client: client, gate: access.New(client, access.Config{ConfirmAfter: time.Millisecond}), store: s, contents: New(s, client, c)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.gate.Run(ctx) })
	wg.Go(func() {
		if err := w.contents.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		client.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func parse(t testing.TB, s string) oci.Reference {
	t.Helper()
	r, err := oci.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (w *world) trust(host string) oci.Trust {
	w.t.Helper()
	tr, err := w.client.Trust(host, oci.Operator)
	if err != nil {
		w.t.Fatal(err)
	}
	return tr
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// prove returns a proof for the image, held by a new plugin of the namespace.
func (w *world) prove(namespace, image string, credentials ...oci.Credential) access.Proof {
	w.t.Helper()
	w.holders++
	ref := parse(w.t, image)
	request := access.Request{
		Image: ref, Trust: w.trust(ref.Host()),
		Credentials: oci.NewCredentials(testRoot(w.t).Key(secret.ForFingerprints), credentials...),
		Holder:      access.Holder{Namespace: namespace, Name: fmt.Sprint("plugin-", w.holders)},
	}
	p, v, err := w.gate.Prove(testContext(w.t), request)
	if err != nil || v.State != access.Allowed || !p.Stands() {
		w.t.Fatalf("prove %s: %+v, %v", image, v, err)
	}
	return p
}

// fetch waits for the module through Module and Changes alone, as the engine does.
func (w *world) fetch(p access.Proof) (Module, error) {
	w.t.Helper()
	return w.settle(func() (Module, error) { return w.contents.Module(p) })
}

func (w *world) fetchURL(r URLRequest) (Module, error) {
	w.t.Helper()
	return w.settle(func() (Module, error) { return w.contents.URL(r) })
}

func (w *world) settle(ask func() (Module, error)) (Module, error) {
	w.t.Helper()
	ctx := testContext(w.t)
	for {
		m, err := ask()
		if !errors.Is(err, ErrPending) {
			return m, err
		}
		select {
		case <-w.contents.Changes():
		case <-ctx.Done():
			w.t.Fatal("nothing came, and nobody said why")
		}
	}
}

func (w *world) mustFetch(p access.Proof) Module {
	w.t.Helper()
	m, err := w.fetch(p)
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

func wantProblem(t testing.TB, err error, reason string) *Problem {
	t.Helper()
	p, ok := errors.AsType[*Problem](err)
	if !ok || p.Reason != reason {
		t.Fatalf("error %v, want a problem %s", err, reason)
	}
	return p
}

func testCredential(t testing.TB, user string) oci.Credential {
	t.Helper()
	return oci.NewCredential(testRoot(t).Key(secret.ForFingerprints), "test", user, "password-of-"+user)
}
