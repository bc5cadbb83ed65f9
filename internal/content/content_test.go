package content

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/wasm/wasmtest"
)

// Four ways to name somebody else's content, and none opens it: 0 bytes, 0 facts.
func TestClaimedDigestOpensNothing(t *testing.T) {
	t.Parallel()
	victims := newRegistry(t)
	mallory := newRegistry(t)
	files := newFiles(t)
	w := newWorld(t, t.TempDir(), Config{}, victims.host(), mallory.host(), files.host())

	private := wasmtest.Named("the victim's private module")
	digest := victims.artifact("team-a/private", private, "v1")
	victim := w.prove("team-a", victims.host()+"/team-a/private:v1")
	m := w.mustFetch(victim)
	if !bytes.Equal(m.Inline, private) {
		t.Fatal("the victim itself has no access")
	}
	if _, err := w.contents.Facts(testContext(t), victim); err != nil {
		t.Fatal(err)
	}
	victimManifest := victims.manifest["team-a/private "+digest]

	nothing := func(t *testing.T, p access.Proof) {
		t.Helper()
		if !p.Stands() || p.Namespace() != "mallory" {
			t.Fatal("the attack needs a proof that stands, for mallory's own image")
		}
		m, err := w.fetch(p)
		if err == nil || m.Size != 0 || len(m.Inline) != 0 || m.SHA256 != "" {
			t.Errorf("module %+v, %v", m, err)
		}
		if f, err := w.contents.Open(p); err == nil {
			b, _ := io.ReadAll(f)
			_ = f.Close()
			t.Errorf("opened %d bytes", len(b))
		}
		if m, err := w.contents.Fetch(testContext(t), p); err == nil || m.SHA256 != "" {
			t.Errorf("fetched %+v", m)
		}
	}
	noFacts := func(t *testing.T, p access.Proof) {
		t.Helper()
		if f, err := w.contents.Facts(testContext(t), p); err == nil || f.MediaType != "" || len(f.Platforms) != 0 {
			t.Errorf("facts %+v, %v", f, err)
		}
	}

	t.Run("a header that claims the digest", func(t *testing.T) {
		mallory.set(func() {
			claim := namedManifest{typeOCIManifest, []byte(`{"schemaVersion":2}`), digest}
			mallory.manifest["m/header v1"] = claim
			mallory.manifest["m/header "+digest] = claim
		})
		p := w.prove("mallory", mallory.host()+"/m/header:v1") // HEAD believes the header
		if p.Digest() != digest {
			t.Fatalf("the proof is for %s", p.Digest())
		}
		nothing(t, p)
		noFacts(t, p)
	})
	t.Run("an index that names the manifest", func(t *testing.T) {
		index := mustJSON(doc{"schemaVersion": 2, "mediaType": typeOCIIndex, "manifests": []doc{{
			"mediaType": typeOCIManifest, "digest": digest, "size": len(victimManifest.raw),
			"platform": doc{"os": "wasip1", "architecture": "wasm"},
		}}})
		mallory.put("m/index", typeOCIIndex, index, "v1")
		nothing(t, w.prove("mallory", mallory.host()+"/m/index:v1"))
	})
	t.Run("a descriptor of the victim's layer", func(t *testing.T) {
		config := mallory.blob("m/layer", "application/vnd.wasm.config.v0+json", []byte("{}"))
		stolen := descriptor{MediaType: "application/wasm", Digest: digestOf(private), Size: int64(len(private))}
		mallory.put("m/layer", typeOCIManifest, imageOf(config, stolen), "v1")
		nothing(t, w.prove("mallory", mallory.host()+"/m/layer:v1"))
	})
	t.Run("the victim's manifest itself, without its layer", func(t *testing.T) {
		mallory.put("m/copy", typeOCIManifest, victimManifest.raw, "v1")
		nothing(t, w.prove("mallory", mallory.host()+"/m/copy:v1"))
	})
	t.Run("another repository of the victim's registry", func(t *testing.T) {
		victims.put("mallory/copy", typeOCIManifest, victimManifest.raw, "v1")
		nothing(t, w.prove("mallory", victims.host()+"/mallory/copy:v1"))
	})
	t.Run("a sha256 field", func(t *testing.T) {
		files.put("/mine.wasm", wasmtest.Named("mallory's own"))
		r := URLRequest{URL: files.URL + "/mine.wasm", SHA256: m.SHA256, Trust: w.trust(files.host()), Namespace: "mallory"}
		got, err := w.fetchURL(r)
		wantProblem(t, err, ReasonDigestMismatch)
		if got.Size != 0 || got.Inline != nil {
			t.Errorf("module %+v", got)
		}
		if _, err := w.contents.OpenURL(r); err == nil {
			t.Error("opened")
		}
		r.URL = files.URL + "/missing.wasm"
		if got, err := w.fetchURL(r); err == nil || got.Size != 0 {
			t.Errorf("module %+v, %v", got, err)
		}
	})
	// And through it all the victim's own stays open.
	if b := readAll(t, w, victim); !bytes.Equal(b, private) {
		t.Error("the victim lost access")
	}
}

func readAll(t *testing.T, w *world, p access.Proof) []byte {
	t.Helper()
	f, err := w.contents.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// files is an http server for modules.
type files struct {
	*registry
	content map[string][]byte
}

func newFiles(t testing.TB) *files {
	t.Helper()
	f := &files{content: map[string][]byte{}}
	f.registry = newRegistry(t)
	f.Server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.requests = append(f.requests, r.Method+" "+r.URL.Path)
		b, ok := f.content[r.URL.Path]
		f.mu.Unlock()
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = w.Write(b)
	})
	return f
}

func (f *files) put(path string, b []byte) { f.set(func() { f.content[path] = b }) }

func TestModule_EveryPackaging(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	w := newWorld(t, t.TempDir(), Config{}, r.host())
	module := wasmtest.Named("packed")
	config := imageConfigBlob(r, "p")
	wasmIn := func(mediaType string) descriptor { return r.blob("p", mediaType, module) }
	tarIn := func(mediaType string) descriptor {
		return r.blob("p", mediaType, tarGz("plugin.wasm", module))
	}
	index := func(entries ...doc) []byte {
		return mustJSON(doc{"schemaVersion": 2, "mediaType": typeOCIIndex, "manifests": entries})
	}
	entry := func(digest, os, arch string) doc {
		d := doc{"mediaType": typeOCIManifest, "digest": digest, "size": 1}
		if os != "" {
			d["platform"] = doc{"os": os, "architecture": arch}
		}
		return d
	}
	good := r.artifact("p", module)
	other := r.artifact("p", wasmtest.Named("for another platform"))
	for _, row := range []struct {
		story, packaging string
		digest           string
	}{
		{"Wasm artifact", "artifact", good},
		{"solo.io, one layer", "layer", r.put("p", typeOCIManifest, imageOf(config, wasmIn("application/vnd.module.wasm.content.layer.v1+wasm")))},
		{"solo.io, two layers", "layer", r.put("p", typeOCIManifest, imageOf(config,
			r.blob("p", "application/vnd.module.wasm.config.v1+json", []byte(`{"rootIds":[]}`)), wasmIn("application/vnd.module.wasm.content.layer.v1+wasm")))},
		{"oci-wasm of old", "layer", r.put("p", typeOCIManifest, imageOf(config, wasmIn("application/vnd.wasm.content.layer.v1+wasm")))},
		{"OCI image", "tar", r.put("p", typeOCIManifest, imageOf(config, tarIn(ociTarGzip)))},
		{"OCI image, compression mislabelled", "tar", r.put("p", typeOCIManifest, imageOf(config, tarIn("application/vnd.oci.image.layer.v1.tar")))},
		{"Docker image", "tar", r.put("p", typeDockerManifest, mustJSON(doc{
			"schemaVersion": 2, "mediaType": typeDockerManifest,
			"config": layer(r.blob("p", "application/vnd.docker.container.image.v1+json", []byte("{}"))),
			"layers": layersOf([]descriptor{tarIn("application/vnd.docker.image.rootfs.diff.tar.gzip")}),
		}))},
		{"manifest without a media type of its own", "tar", r.put("p", typeOCIManifest, mustJSON(doc{
			"schemaVersion": 2, "config": layer(config), "layers": layersOf([]descriptor{tarIn(ociTarGzip)}),
		}))},
		{"the module in the lower of two layers", "tar", r.put("p", typeOCIManifest, imageOf(config, tarIn(ociTarGzip), r.blob("p", ociTarGzip, tarGz("runtime-config.json", []byte("{}")))))},
		{"the upper layer hides the lower", "tar", r.put("p", typeOCIManifest, imageOf(config, r.blob("p", ociTarGzip, tarGz("plugin.wasm", wasmtest.Named("older"))), tarIn(ociTarGzip)))},
		{"index, wasip1/wasm before all", "artifact", r.put("p", typeOCIIndex, index(entry(other, "linux", "amd64"), entry(other, "wasi", "wasm"), entry(good, "wasip1", "wasm")))},
		{"index, wasi/wasm before linux/amd64", "artifact", r.put("p", typeOCIIndex, index(entry(other, "linux", "amd64"), entry(good, "wasi", "wasm")))},
		{"index, linux/amd64 at last", "artifact", r.put("p", typeOCIIndex, index(entry(other, "linux", "arm64"), entry(good, "linux", "amd64")))},
		{"index with one manifest and no platform", "artifact", r.put("p", typeOCIIndex, index(entry(good, "", ""), entry(other, "unknown", "unknown")))},
		{"Docker list", "artifact", r.put("p", typeDockerList, mustJSON(doc{"schemaVersion": 2, "mediaType": typeDockerList, "manifests": []doc{entry(good, "linux", "amd64")}}))},
		{"index in an index", "artifact", r.put("p", typeOCIIndex, index(doc{
			"mediaType": typeOCIIndex, "size": 1, "digest": r.put("p", typeOCIIndex, index(entry(good, "wasip1", "wasm"))),
		}))},
	} {
		t.Run(row.story, func(t *testing.T) {
			p := w.prove("team-a", r.host()+"/p@"+row.digest)
			m := w.mustFetch(p)
			if !bytes.Equal(m.Inline, module) || "sha256:"+m.SHA256 != digestOf(module) || m.Size != int64(len(module)) {
				t.Errorf("module %+v", m)
			}
			if m.Packaging != row.packaging || m.Digest != row.digest || len(m.Findings) != 0 {
				t.Errorf("packaging %s, digest %s, findings %v", m.Packaging, m.Digest, m.Findings)
			}
			if diff := cmp.Diff([]string{"0.2.1"}, m.Info.ABI); diff != "" {
				t.Error(diff)
			}
			if !bytes.Equal(readAll(t, w, p), module) {
				t.Error("other bytes on disk")
			}
		})
	}
}

func TestURL_EveryPackaging(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	w := newWorld(t, t.TempDir(), Config{}, f.host())
	module := wasmtest.Named("at a url")
	f.put("/raw.wasm", module)
	f.put("/a.tar.gz", tarGz("whatever.wasm", module))
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	zipped := func(b []byte) []byte { return z.EncodeAll(b, nil) }
	f.put("/a.wasm.zst", zipped(module))
	f.put("/b.tar.gz.zst", zipped(tarGz("m.wasm", module)))
	f.put("/nested.tar.gz", tarGz("m.wasm.zst", zipped(module)))
	for path, packaging := range map[string]string{
		"/raw.wasm": "raw", "/a.wasm.zst": "raw", "/a.tar.gz": "tar", "/b.tar.gz.zst": "tar", "/nested.tar.gz": "tar",
	} {
		r := URLRequest{URL: f.URL + path + "?token=CANARY", Trust: w.trust(f.host()), Namespace: "team-a"}
		m, err := w.fetchURL(r)
		if err != nil || !bytes.Equal(m.Inline, module) || m.Packaging != packaging || m.Digest != "" {
			t.Fatalf("%s: %+v, %v", path, m, err)
		}
		r.SHA256 = m.SHA256 // what came is pinned too
		if _, err := w.contents.URL(r); !errors.Is(err, ErrPending) && err != nil {
			t.Fatal(err)
		}
		if m, err = w.fetchURL(r); err != nil || m.SHA256 != r.SHA256 {
			t.Fatalf("pinned: %+v, %v", m, err)
		}
		if n := f.count(path); n != 1 {
			t.Errorf("%s: %d requests, want 1", path, n)
		}
	}
}

func TestURL_NotBeforeFetchesAgainAndKeepsWhatIsPinned(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	w := newWorld(t, t.TempDir(), Config{}, f.host())
	one, two := wasmtest.Named("one"), wasmtest.Named("two")
	f.put("/m", one)
	r := URLRequest{URL: f.URL + "/m", Trust: w.trust(f.host()), Namespace: "team-a"}
	first, err := w.fetchURL(r)
	if err != nil {
		t.Fatal(err)
	}
	f.put("/m", two)
	if m, err := w.fetchURL(r); err != nil || m.SHA256 != first.SHA256 {
		t.Fatalf("without NotBefore it was fetched again: %v", err)
	}
	r.NotBefore = time.Now()
	if m, err := w.fetchURL(r); err != nil || !bytes.Equal(m.Inline, two) {
		t.Fatalf("%+v, %v", m, err)
	}
	if m, err := w.fetchURL(r); err != nil || !bytes.Equal(m.Inline, two) || f.count("/m") != 2 {
		t.Fatalf("%v, %d requests", err, f.count("/m"))
	}
	pinned := r
	pinned.SHA256 = first.SHA256
	if m, err := w.fetchURL(pinned); err != nil || !bytes.Equal(m.Inline, one) || f.count("/m") != 2 {
		t.Fatalf("the version before is gone: %v, %d requests", err, f.count("/m"))
	}
}

// What has not changed at a URL is not sent again, if its server can tell; and what the
// store lost meanwhile is.
func TestURL_WhatHasNotChangedIsNotDownloadedAgain(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	sent := 0
	usual := f.Server.Config.Handler
	f.Server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		tag := `"` + digestOf(f.content[r.URL.Path]) + `"`
		f.mu.Unlock()
		w.Header().Set("ETag", tag)
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		f.set(func() { sent++ })
		usual.ServeHTTP(w, r)
	})
	w := newWorld(t, t.TempDir(), Config{}, f.host())
	f.put("/m", wasmtest.Named("one"))
	r := URLRequest{URL: f.URL + "/m", Trust: w.trust(f.host()), Namespace: "team-a"}
	fetch := func(want string, downloads int) {
		t.Helper()
		r.NotBefore = time.Now()
		m, err := w.fetchURL(r)
		if err != nil || !bytes.Equal(m.Inline, wasmtest.Named(want)) {
			t.Fatalf("%+v, %v", m, err)
		}
		f.set(func() {
			if sent != downloads {
				t.Errorf("%d downloads, want %d", sent, downloads)
			}
		})
	}
	fetch("one", 1)
	fetch("one", 1)
	f.put("/m", wasmtest.Named("two"))
	fetch("two", 2)
	fetch("two", 2)
	sum := strings.TrimPrefix(digestOf(wasmtest.Named("two")), "sha256:")
	if err := os.Truncate(filepath.Join(w.dir, "content", "modules", sum), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.Open(sum); err == nil {
		t.Fatal("still there")
	}
	fetch("two", 3)
}

func TestModule_OneDownloadForEverybodyWhoMay(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	w := newWorld(t, t.TempDir(), Config{}, r.host())
	d := r.artifact("p", wasmtest.Named("shared"), "v1")
	image := r.host() + "/p@" + d
	w.mustFetch(w.prove("team-a", image))
	w.mustFetch(w.prove("team-a", image)) // another plugin, same credential
	w.mustFetch(w.prove("team-b", image, testCredential(t, "bob")))
	if blobs, manifests := r.count("/blobs/"), r.count("GET /v2/p/manifests/"); blobs != 1 || manifests != 1 {
		t.Errorf("%d downloads of the layer, %d of the manifest, want 1 each: %v", blobs, manifests, r.requests)
	}
}

func TestModule_AHundredAsksAreOneDownload(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	w := newWorld(t, t.TempDir(), Config{}, r.host())
	d := r.artifact("p", wasmtest.Named("asked for at once"), "v1")
	p := w.prove("team-a", r.host()+"/p@"+d)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			if _, err := w.contents.Fetch(testContext(t), p); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := r.count("/blobs/"); n != 1 {
		t.Errorf("%d downloads of the layer, want 1", n)
	}
}

func TestP9_ARestartAsksNobody(t *testing.T) {
	t.Parallel()
	r, f := newRegistry(t), newFiles(t)
	dir := t.TempDir()
	module := wasmtest.Named("kept")
	d := r.artifact("p", module, "v1")
	f.put("/m", module)
	var proof access.Proof
	request := URLRequest{URL: f.URL + "/m", Namespace: "team-a"}
	t.Run("before", func(t *testing.T) {
		w := newWorld(t, dir, Config{}, r.host(), f.host())
		proof = w.prove("team-a", r.host()+"/p@"+d)
		w.mustFetch(proof)
		request.Trust = w.trust(f.host())
		if _, err := w.fetchURL(request); err != nil {
			t.Fatal(err)
		}
		if _, err := w.contents.Facts(testContext(t), proof); err != nil {
			t.Fatal(err)
		}
	})
	w := newWorld(t, dir, Config{}, r.host(), f.host())
	p := w.prove("team-a", r.host()+"/p@"+d)
	asked, askedFiles := len(r.requests), len(f.requests)
	if m := w.mustFetch(p); !bytes.Equal(m.Inline, module) || m.Info.ABI[0] != "0.2.1" {
		t.Errorf("module %+v", m)
	}
	if m, err := w.fetchURL(request); err != nil || !bytes.Equal(m.Inline, module) {
		t.Errorf("url: %+v, %v", m, err)
	}
	if _, err := w.contents.Facts(testContext(t), p); err != nil {
		t.Error(err)
	}
	if len(r.requests) != asked || len(f.requests) != askedFiles {
		t.Errorf("asked again: %v %v", r.requests[asked:], f.requests[askedFiles:])
	}
}

func TestP6_WhatIsAlteredOnDiskIsFetchedAgain(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	dir := t.TempDir()
	w := newWorld(t, dir, Config{InlineMax: -1}, r.host())
	module := wasmtest.Named("to be altered")
	d := r.artifact("p", module, "v1")
	p := w.prove("team-a", r.host()+"/p@"+d)
	m := w.mustFetch(p)
	path := filepath.Join(dir, "content", "modules", m.SHA256)
	evil := bytes.Replace(module, []byte("altered"), []byte("ALTERED"), 1)
	if err := os.WriteFile(path, evil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.contents.Open(p); !errors.Is(err, ErrPending) {
		t.Fatalf("opened: %v", err)
	}
	w.mustFetch(p)
	if !bytes.Equal(readAll(t, w, p), module) {
		t.Error("not healed")
	}
}

func TestP1_ModuleNeverWaits(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	w := newWorld(t, t.TempDir(), Config{}, r.host())
	d := r.artifact("p", wasmtest.Named("slow"), "v1")
	p := w.prove("team-a", r.host()+"/p@"+d)
	release := make(chan struct{})
	r.set(func() {
		r.refuse = func(*http.Request) int {
			<-release
			return 0
		}
	})
	for range 100 {
		if _, err := w.contents.Module(p); !errors.Is(err, ErrPending) {
			t.Fatalf("error %v, want ErrPending", err)
		}
	}
	close(release)
	w.mustFetch(p)
}

func TestModule_AProofThatNoLongerStandsOpensNothing(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	w := newWorld(t, t.TempDir(), Config{}, r.host())
	d := r.artifact("p", wasmtest.Sized(1<<20, 1), "v1")
	p := w.prove("team-a", r.host()+"/p@"+d)
	w.mustFetch(p)
	f, err := w.contents.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	w.gate.Release(access.Holder{Namespace: "team-a", Name: "plugin-1"})
	if p.Stands() {
		t.Fatal("the proof still stands")
	}
	if _, err := w.contents.Module(p); !errors.Is(err, ErrNotProven) {
		t.Errorf("Module: %v", err)
	}
	if _, err := w.contents.Open(p); !errors.Is(err, ErrNotProven) {
		t.Errorf("Open: %v", err)
	}
	if _, err := w.contents.Fetch(testContext(t), p); !errors.Is(err, ErrNotProven) {
		t.Errorf("Fetch: %v", err)
	}
	if _, err := w.contents.Facts(testContext(t), p); !errors.Is(err, ErrNotProven) {
		t.Errorf("Facts: %v", err)
	}
	if _, err := f.Read(make([]byte, 10)); !errors.Is(err, ErrNotProven) {
		t.Errorf("Read of what was open: %v", err)
	}
	if _, err := w.contents.Module(access.Proof{}); !errors.Is(err, ErrNotProven) {
		t.Errorf("the zero Proof: %v", err)
	}
}

func TestModule_AnInvalidModuleComesWithItsFindings(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	w := newWorld(t, t.TempDir(), Config{}, r.host())
	d := r.artifact("p", wasmtest.Module(wasmtest.Options{Functions: []string{"main"}}), "v1")
	m, err := w.fetch(w.prove("team-a", r.host()+"/p@"+d))
	p := wantProblem(t, err, ReasonModuleInvalid)
	if p.Retry || len(m.Findings) < 2 || m.Inline != nil || !strings.Contains(p.Message, "proxy_abi_version") {
		t.Errorf("problem %+v, findings %v", p, m.Findings)
	}
	if n := r.count("/blobs/"); n != 1 {
		t.Errorf("%d downloads", n)
	}
}

func TestModule_RecoversWithoutBeingPoked(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	w := newWorld(t, t.TempDir(), Config{}, r.host())
	d := r.artifact("p", wasmtest.Named("after a blip"), "v1")
	p := w.prove("team-a", r.host()+"/p@"+d)
	r.set(func() {
		r.refuse = func(req *http.Request) int {
			if strings.Contains(req.URL.Path, "/blobs/") {
				return http.StatusServiceUnavailable
			}
			return 0
		}
	})
	_, err := w.fetch(p)
	if problem := wantProblem(t, err, ReasonRegistryUnreachable); !problem.Retry || problem.NextTry.IsZero() {
		t.Fatalf("problem %+v", problem)
	}
	r.set(func() { r.refuse = nil })
	ctx := testContext(t)
	for { // nobody asks: only the event is waited for
		select {
		case <-w.contents.Changes():
		case <-ctx.Done():
			t.Fatal("nothing happened")
		}
		if m, err := w.contents.Module(p); err == nil && m.Inline != nil {
			return
		}
	}
}

// A URL may deliver something better tomorrow: it is asked again though nobody pokes, also
// after a restart; while it does not, or cannot be reached, the findings are what is told.
func TestURL_AnInvalidModuleIsAskedForAgain(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	dir := t.TempDir()
	bad, good := wasmtest.Module(wasmtest.Options{Functions: []string{"main"}}), wasmtest.Named("mended")
	f.put("/m", bad)
	check := func(t *testing.T, w *world, r URLRequest) {
		t.Helper()
		m, err := w.fetchURL(r)
		if p := wantProblem(t, err, ReasonModuleInvalid); !p.Retry || p.NextTry.Before(time.Now()) || len(m.Findings) == 0 {
			t.Errorf("%+v, %v", p, m.Findings)
		}
	}
	// later is as if the time of the next try had come; it returns the problem that follows.
	later := func(t *testing.T, w *world, r URLRequest) error {
		t.Helper()
		c, before := w.contents, f.count("/m")
		c.mu.Lock()
		it, err := c.itemOfURL(r)
		if err != nil || it.due.IsZero() {
			t.Fatalf("no next try: %v", err)
		}
		it.due, it.problem.NextTry, c.nextLook = time.Now(), time.Now(), time.Time{}
		c.mu.Unlock()
		signal(c.wake)
		for {
			<-c.Changes()
			if _, err := c.URL(r); f.count("/m") > before && !errors.Is(err, ErrPending) {
				return err
			}
		}
	}
	t.Run("before a restart", func(t *testing.T) {
		w := newWorld(t, dir, Config{}, f.host())
		r := URLRequest{URL: f.URL + "/m", Trust: w.trust(f.host()), Namespace: "team-a"}
		check(t, w, r)
		wantProblem(t, later(t, w, r), ReasonModuleInvalid)
	})
	w := newWorld(t, dir, Config{}, f.host())
	r := URLRequest{URL: f.URL + "/m", Trust: w.trust(f.host()), Namespace: "team-a"}
	check(t, w, r)
	f.set(func() { delete(f.content, "/m") })
	wantProblem(t, later(t, w, r), ReasonModuleInvalid)
	f.put("/m", good)
	if err := later(t, w, r); err != nil {
		t.Fatal(err)
	}
	if m, err := w.contents.URL(r); err != nil || !bytes.Equal(m.Inline, good) {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestRetain_WhatNobodyUsesLeavesTheMemory(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	w := newWorld(t, t.TempDir(), Config{}, r.host())
	p := w.prove("team-a", r.host()+"/p@"+r.artifact("p", wasmtest.Named("a"), "v1"))
	m := w.mustFetch(p)
	w.contents.Retain(nil) // asked for since the last one: stays once
	if _, err := w.contents.Module(p); err != nil {
		t.Fatal(err)
	}
	w.contents.Retain([]string{m.SHA256})
	w.contents.Retain([]string{m.SHA256})
	if _, err := w.contents.Module(p); err != nil {
		t.Fatal(err)
	}
	w.contents.Retain(nil)
	w.contents.Retain(nil)
	if len(w.contents.inline) != 0 {
		t.Error("bytes that nobody uses are kept in memory")
	}
	if m := w.mustFetch(p); m.Inline == nil || r.count("/blobs/") != 1 {
		t.Error("not loaded from disk again")
	}
}
