package registry

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/store"
	"github.com/stileproject/stile/internal/wasm/wasmtest"
)

type doc map[string]any

const (
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	ociConfig      = "application/vnd.oci.image.config.v1+json"
	ociLayer       = "application/vnd.oci.image.layer.v1.tar"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	soloLayer      = "application/vnd.module.wasm.content.layer.v1+wasm"
	soloConfig     = "application/vnd.module.wasm.config.v1+json"
	wasmConfig     = "application/vnd.wasm.config.v0+json"
)

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (r *rig) send(method, address, mediaType string, b []byte) *http.Response {
	r.t.Helper()
	request, err := http.NewRequestWithContext(r.t.Context(), method, address, bytes.NewReader(b))
	must(r.t, err)
	request.Header.Set("Content-Type", mediaType)
	request.SetBasicAuth("alice", r.alice)
	answer, err := http.DefaultTransport.RoundTrip(request)
	must(r.t, err)
	text, err := io.ReadAll(answer.Body)
	must(r.t, errors.Join(err, answer.Body.Close()))
	if answer.StatusCode != http.StatusCreated && answer.StatusCode != http.StatusAccepted {
		r.t.Fatalf("%s %s: %s %s", method, request.URL.Path, answer.Status, text)
	}
	return answer
}

// blob uploads b as a stranger's tool would, and returns its descriptor.
func (r *rig) blob(repository, mediaType string, b []byte) doc {
	r.t.Helper()
	started := r.send(http.MethodPost, "http://"+r.host+"/v2/"+repository+"/blobs/uploads/", "application/octet-stream", nil)
	at, err := url.Parse(started.Header.Get("Location"))
	must(r.t, err)
	query := at.Query()
	query.Set("digest", digestOf(b))
	at.RawQuery = query.Encode()
	r.send(http.MethodPut, at.String(), "application/octet-stream", b)
	return doc{"mediaType": mediaType, "digest": digestOf(b), "size": len(b)}
}

// manifest uploads a manifest under a tag and returns its descriptor.
func (r *rig) manifest(repository, tag, mediaType string, m doc) doc {
	r.t.Helper()
	m["schemaVersion"], m["mediaType"] = 2, mediaType
	b := encode(m)
	r.send(http.MethodPut, "http://"+r.host+"/v2/"+repository+"/manifests/"+tag, mediaType, b)
	return doc{"mediaType": mediaType, "digest": digestOf(b), "size": len(b)}
}

func tarOf(t *testing.T, name string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	must(t, w.WriteHeader(&tar.Header{Name: name, Size: int64(len(b)), Mode: 0o644, Typeflag: tar.TypeReg}))
	_, err := w.Write(b)
	must(t, errors.Join(err, w.Close()))
	return out.Bytes()
}

func gzipOf(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	must(t, errors.Join(err, w.Close()))
	return out.Bytes()
}

func zstdOf(t *testing.T, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	must(t, err)
	return w.EncodeAll(b, nil)
}

// Whatever form an image has, by tag and by digest, the module comes out of the real
// registry as it went in, for who may read it and for nobody else.
func TestEveryPackaging(t *testing.T) {
	t.Parallel()
	r := newRig(t, "htpasswd")
	alice := r.as("alice", r.alice)
	module := wasmtest.Sized(300<<10, 7)
	const p = "a/p"
	with := func(d doc, os, arch string) doc {
		d["platform"] = doc{"os": os, "architecture": arch}
		return d
	}
	image := func(config doc, layers ...doc) doc { return doc{"config": config, "layers": layers} }
	config := func() doc { return r.blob(p, ociConfig, []byte(`{"architecture":"amd64","os":"linux"}`)) }
	artifact := func(tag string, b []byte) doc {
		return r.manifest(p, tag, ociManifest, image(r.blob(p, wasmConfig, []byte(`{"architecture":"wasm","os":"wasip1"}`)), r.blob(p, "application/wasm", b)))
	}
	other := artifact("other", wasmtest.Named("another"))
	digests := map[string]doc{
		"artifact":        artifact("artifact", module),
		"layer":           r.manifest(p, "layer", ociManifest, image(config(), r.blob(p, soloLayer, module))),
		"layer-of-two":    r.manifest(p, "layer-of-two", ociManifest, image(config(), r.blob(p, soloConfig, []byte(`{}`)), r.blob(p, soloLayer, module))),
		"tar":             r.manifest(p, "tar", ociManifest, image(config(), r.blob(p, ociLayer, tarOf(t, "plugin.wasm", module)))),
		"tar-gzip":        r.manifest(p, "tar-gzip", ociManifest, image(config(), r.blob(p, ociLayer+"+gzip", gzipOf(t, tarOf(t, "./plugin.wasm", module))))),
		"tar-zstd":        r.manifest(p, "tar-zstd", ociManifest, image(config(), r.blob(p, ociLayer+"+zstd", zstdOf(t, tarOf(t, "plugin.wasm", module))))),
		"docker":          r.manifest(p, "docker", dockerManifest, image(r.blob(p, dockerConfig, []byte(`{}`)), r.blob(p, dockerLayer, gzipOf(t, tarOf(t, "plugin.wasm", module))))),
		"pushed-artifact": {}, "pushed-oci": {}, "pushed-docker": {},
	}
	for _, layout := range []oci.Layout{oci.LayoutArtifact, oci.LayoutOCI, oci.LayoutDocker} {
		digest, err := r.client.Push(t.Context(), module, r.ref(p+":pushed-"+string(layout)), layout, alice, r.trust)
		must(t, err)
		digests["pushed-"+string(layout)] = doc{"digest": digest}
	}
	good := func() doc {
		return doc{"mediaType": ociManifest, "digest": digests["artifact"]["digest"], "size": digests["artifact"]["size"]}
	}
	digests["index"] = r.manifest(p, "index", ociIndex, doc{"manifests": []doc{with(other, "linux", "amd64"), with(good(), "wasip1", "wasm")}})
	digests["index-of-index"] = r.manifest(p, "index-of-index", ociIndex, doc{"manifests": []doc{digests["index"]}})
	docker := doc{"mediaType": dockerManifest, "digest": digests["docker"]["digest"], "size": digests["docker"]["size"]}
	digests["docker-list"] = r.manifest(p, "docker-list", dockerList, doc{"manifests": []doc{with(docker, "linux", "amd64")}})

	for tag, d := range digests {
		for _, by := range []string{"tag", "digest"} {
			t.Run(tag+" by "+by, func(t *testing.T) {
				ref := r.ref(p + ":" + tag)
				if by == "digest" {
					ref = ref.At(d["digest"].(string))
				}
				gate, contents := r.rooms(t) // each with a store of its own: all is fetched
				proof, v, err := gate.Prove(t.Context(), access.Request{
					Image: ref, Trust: r.trust, Credentials: oci.NewCredentials(r.key, alice), Holder: access.Holder{Namespace: "team-a", Name: tag},
				})
				if err != nil || v.State != access.Allowed || v.Digest != d["digest"] {
					t.Fatalf("%+v, %v, want digest %v", v, err, d["digest"])
				}
				m, err := contents.Fetch(t.Context(), proof)
				r.w.Errors(err)
				if err != nil || !bytes.Equal(m.Inline, module) || m.Digest != d["digest"] {
					t.Errorf("%d bytes of %s: %v", len(m.Inline), m.Digest, err)
				}
				_, v, err = gate.Prove(t.Context(), access.Request{
					Image: ref, Trust: r.trust, Credentials: oci.NewCredentials(r.key, r.as("bob", r.bob)), Holder: access.Holder{Namespace: "team-b", Name: tag},
				})
				if err == nil && v.State == access.Allowed {
					t.Error("a stranger was let in")
				}
			})
		}
	}
}

// rooms are a gate and contents of their own, ended with the test.
func (r *rig) rooms(t *testing.T) (*access.Gate, *content.Contents) {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(dir, store.Options{Log: r.w.Log()})
	must(t, err)
	gate := access.New(r.client, access.Config{ConfirmAfter: time.Millisecond, Log: r.w.Log()})
	contents := content.New(s, r.client, content.Config{Log: r.w.Log()})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = gate.Run(ctx) })
	running.Go(func() { _ = contents.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		must(t, s.Close())
	})
	return gate, contents
}
