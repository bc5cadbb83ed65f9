package content

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stileproject/stile/internal/wasm/wasmtest"
)

func TestModule_HostileInput(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	elsewhere := newRegistry(t)
	dir := t.TempDir()
	w := newWorld(t, dir, Config{MaxModule: 1 << 20}, r.host(), elsewhere.host())
	module := wasmtest.Sized(100_000, 1)
	const wasmLayer = "application/wasm"
	one := func(repository string, l descriptor) string {
		return r.put(repository, typeOCIManifest, imageOf(imageConfigBlob(r, repository), l))
	}
	manifest := func(repository, mediaType string, v any) string {
		return r.put(repository, mediaType, mustJSON(v))
	}
	swap := func(repository string, d descriptor, b []byte) descriptor {
		r.set(func() { r.blobs[repository+" "+d.Digest] = b })
		return d
	}
	entry := func(digest string, platform any) doc {
		d := doc{"mediaType": typeOCIManifest, "digest": digest, "size": 1}
		if platform != nil {
			d["platform"] = platform
		}
		return d
	}
	index := func(entries ...doc) doc {
		return doc{"schemaVersion": 2, "mediaType": typeOCIIndex, "manifests": entries}
	}
	for _, row := range []struct {
		story  string
		push   func(repository string) (digest string)
		reason string
		retry  bool
		words  string
	}{
		{"a layer of equal length, tampered with", func(p string) string {
			evil := bytes.Clone(module)
			evil[len(evil)-1] ^= 1 // the very last byte
			return one(p, swap(p, r.blob(p, wasmLayer, module), evil))
		}, ReasonDigestMismatch, true, "digest"},
		{"a tar layer of equal length, tampered with after the module", func(p string) string {
			layer := append(tarGz("plugin.wasm", module), make([]byte, 100)...) // gzip ends, the layer does not
			evil := bytes.Clone(layer)
			evil[len(evil)-1] = 1
			return one(p, swap(p, r.blob(p, ociTarGzip, layer), evil))
		}, ReasonDigestMismatch, true, "digest"},
		{"a tar layer, damaged on the way", func(p string) string {
			layer := tarGz("plugin.wasm", module)
			evil := bytes.Clone(layer)
			evil[len(evil)/2] ^= 0xff
			return one(p, swap(p, r.blob(p, ociTarGzip, layer), evil))
		}, ReasonDigestMismatch, true, "digest"},
		{"a layer that is damaged and delivered as its digest says", func(p string) string {
			layer := tarGz("plugin.wasm", module)
			layer[len(layer)/2] ^= 0xff
			return one(p, r.blob(p, ociTarGzip, layer))
		}, ReasonModuleInvalid, false, "damaged archive"},
		{"a body cut short", func(p string) string {
			return one(p, swap(p, r.blob(p, wasmLayer, module), module[:5000]))
		}, ReasonDigestMismatch, true, "5000 bytes"},
		{"a body that goes on", func(p string) string {
			return one(p, swap(p, r.blob(p, wasmLayer, module), append(bytes.Clone(module), 0)))
		}, ReasonDigestMismatch, true, "more than"},
		{"an empty body", func(p string) string {
			return one(p, swap(p, r.blob(p, wasmLayer, module), nil))
		}, ReasonDigestMismatch, true, ""},
		{"a gzip bomb", func(p string) string {
			return one(p, r.blob(p, ociTarGzip, tarGz("plugin.wasm", append([]byte("\x00asm\x01\x00\x00\x00"), make([]byte, 8<<20)...))))
		}, ReasonModuleTooLarge, false, "maxModuleSize"},
		{"a tar whose header says 200 GiB", func(p string) string {
			return one(p, r.blob(p, ociTarGzip, headerSized(200<<30)))
		}, ReasonModuleInvalid, false, "damaged"},
		{"a layer said to be larger than the limit", func(p string) string {
			d := r.blob(p, wasmLayer, module)
			d.Size = 1 << 40
			return one(p, d)
		}, ReasonModuleTooLarge, false, "limit"},
		{"a module one byte over the limit", func(p string) string {
			big := wasmtest.Sized(1<<20, 3)
			return one(p, r.blob(p, wasmLayer, big))
		}, ReasonModuleTooLarge, false, "maxModuleSize"},
		{"no wasm in the layer", func(p string) string {
			return one(p, r.blob(p, wasmLayer, []byte("#!/bin/sh\nrm -rf /\n")))
		}, ReasonModuleInvalid, false, "there is none"},
		{"no plugin.wasm in the tar", func(p string) string {
			return one(p, r.blob(p, ociTarGzip, tarGz("other.wasm", module)))
		}, ReasonModuleInvalid, false, "plugin.wasm"},
		{"10,000 layers", func(p string) string {
			layers := make([]descriptor, 10_000)
			for i := range layers {
				layers[i] = descriptor{MediaType: ociTarGzip, Digest: digestOf([]byte(fmt.Sprint(i))), Size: 1}
			}
			return r.put(p, typeOCIManifest, imageOf(imageConfigBlob(r, p), layers...))
		}, ReasonModuleInvalid, false, "10000 layers"},
		{"several layers that are modules", func(p string) string {
			return r.put(p, typeOCIManifest, imageOf(imageConfigBlob(r, p), r.blob(p, wasmLayer, module), r.blob(p, wasmLayer, wasmtest.Named("b"))))
		}, ReasonModuleInvalid, false, digestOf(module)},
		{"no layer at all", func(p string) string {
			return r.put(p, typeOCIManifest, imageOf(imageConfigBlob(r, p)))
		}, ReasonModuleInvalid, false, "nothing"},
		{"layers of an unknown type", func(p string) string {
			return one(p, r.blob(p, "application/vnd.cncf.helm.chart.content.v1.tar+gzip", module))
		}, ReasonModuleInvalid, false, "helm"},
		{"Docker schema 1", func(p string) string {
			return manifest(p, typeSchema1Signed, doc{"schemaVersion": 1, "fsLayers": []doc{{"blobSum": digestOf(module)}}})
		}, ReasonModuleInvalid, false, "schema 1"},
		{"Docker schema 1 under another name", func(p string) string {
			return manifest(p, "application/json", doc{"schemaVersion": 1})
		}, ReasonModuleInvalid, false, "schema 1"},
		{"an error page", func(p string) string {
			return r.put(p, "text/html", []byte("<html>maintenance</html>"))
		}, ReasonModuleInvalid, false, "no JSON"},
		{"a document of another kind", func(p string) string {
			return manifest(p, "application/json", doc{"hello": "world"})
		}, ReasonModuleInvalid, false, "media type"},
		{"an index and a manifest at once", func(p string) string {
			m := index(entry(digestOf(module), nil))
			m["layers"] = layersOf([]descriptor{r.blob(p, wasmLayer, module)})
			return manifest(p, typeOCIManifest, m)
		}, ReasonModuleInvalid, false, "neither"},
		{"an index without a platform anywhere", func(p string) string {
			return manifest(p, typeOCIIndex, index(entry(digestOf(module), nil), entry(digestOf(nil), nil)))
		}, ReasonModuleInvalid, false, "none given"},
		{"an index for other platforms", func(p string) string {
			return manifest(p, typeOCIIndex, index(entry(digestOf(module), doc{"os": "windows", "architecture": "amd64"}), entry(digestOf(nil), doc{"os": "linux", "architecture": "s390x"})))
		}, ReasonModuleInvalid, false, "linux/s390x"},
		{"an empty index", func(p string) string { return manifest(p, typeOCIIndex, index()) }, ReasonModuleInvalid, false, "nothing"},
		{"an index that leads to itself", func(p string) string {
			self := digestOf([]byte("itself"))
			raw := mustJSON(index(doc{"mediaType": typeOCIIndex, "digest": self, "size": 1}))
			r.set(func() { r.manifest[p+" "+self] = namedManifest{typeOCIIndex, raw, self} })
			return self
		}, ReasonDigestMismatch, true, ""},
		{"indexes without end", func(p string) string {
			d := r.artifact(p, module)
			for range 6 {
				d = manifest(p, typeOCIIndex, index(doc{"mediaType": typeOCIIndex, "digest": d, "size": 1}))
			}
			return d
		}, ReasonModuleInvalid, false, "index"},
		{"a digest that is none", func(p string) string {
			return one(p, descriptor{MediaType: wasmLayer, Digest: "sha256:../../../etc/passwd", Size: 1})
		}, ReasonModuleInvalid, false, "64 hexadecimal"},
		{"a negative size", func(p string) string {
			return one(p, descriptor{MediaType: wasmLayer, Digest: digestOf(module), Size: -1})
		}, ReasonModuleInvalid, false, "-1 bytes"},
		{"a layer that is to be had elsewhere", func(p string) string {
			l := layer(descriptor{MediaType: wasmLayer, Digest: digestOf(module), Size: int64(len(module))})
			l["urls"] = []string{elsewhere.URL + "/v2/x/blobs/" + elsewhere.blob("x", wasmLayer, module).Digest}
			return manifest(p, typeOCIManifest, doc{"schemaVersion": 2, "mediaType": typeOCIManifest, "config": layer(imageConfigBlob(r, p)), "layers": []doc{l}})
		}, ReasonImageNotFound, true, ""},
	} {
		t.Run(row.story, func(t *testing.T) {
			repository := "h" + fmt.Sprint(len(r.manifest))
			p := w.prove("team-a", r.host()+"/"+repository+"@"+row.push(repository))
			m, err := w.fetch(p)
			problem := wantProblem(t, err, row.reason)
			if problem.Retry != row.retry || !strings.Contains(problem.Message, row.words) {
				t.Errorf("retry %v, message %q; want %v, …%s…", problem.Retry, problem.Message, row.retry, row.words)
			}
			if m.SHA256 != "" || m.Inline != nil {
				t.Errorf("module %+v", m)
			}
			if f, err := w.contents.Open(p); err == nil {
				_ = f.Close()
				t.Error("opened")
			}
		})
	}
	if len(elsewhere.requests) != 0 {
		t.Errorf("asked elsewhere: %v", elsewhere.requests)
	}
	if u := w.store.Usage(); u.Modules != 0 || u.Size != 0 {
		t.Errorf("something of it was kept: %+v", u)
	}
	for _, folder := range []string{"tmp", "modules", "records"} {
		if left, err := os.ReadDir(filepath.Join(dir, "content", folder)); err != nil || len(left) != 0 {
			t.Errorf("%s: %v, %v", folder, left, err)
		}
	}
}

func headerSized(size int64) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: "plugin.wasm", Size: size, Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
		panic(err)
	}
	_, _ = w.Write(wasmtest.Named("short"))
	_ = z.Close()
	return out.Bytes()
}

func TestModule_AConnectionThatBreaksOffIsTriedAgain(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	w := newWorld(t, t.TempDir(), Config{}, f.host())
	module := wasmtest.Sized(200_000, 1)
	broken := true
	f.Server.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		rw.Header().Set("Content-Length", fmt.Sprint(len(module))) // a lie, the first time
		if broken {
			broken = false
			_, _ = rw.Write(module[:50_000])
			panic(http.ErrAbortHandler)
		}
		_, _ = rw.Write(module)
	})
	r := URLRequest{URL: f.URL + "/m", Trust: w.trust(f.host()), Namespace: "team-a"}
	_, err := w.fetchURL(r)
	if p := wantProblem(t, err, ReasonRegistryUnreachable); !p.Retry {
		t.Fatalf("problem %+v", p)
	}
	for {
		<-w.contents.Changes()
		if m, err := w.contents.URL(r); err == nil && bytes.Equal(m.Inline, module) {
			return
		}
	}
}

func TestFacts(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	w := newWorld(t, t.TempDir(), Config{}, r.host())
	module := r.artifact("p", wasmtest.Named("facts"))
	image := r.image("p", "plugin.wasm", wasmtest.Named("facts"))
	bundle := r.put("p", typeOCIManifest, imageOf(r.blob("p", "application/vnd.oci.image.config.v1+json",
		[]byte(`{"os":"linux","architecture":"amd64","config":{"Labels":{"operators.operatorframework.io.bundle.mediatype.v1":"registry+v1"}}}`)),
		r.blob("p", ociTarGzip, tarGz("x", nil))))
	odd := r.put("p", typeOCIManifest, imageOf(r.blob("p", "application/vnd.oci.empty.v1+json", []byte("[]")), r.blob("p", "application/wasm", wasmtest.Named("odd"))))
	says := func(config string) string {
		return r.put("p", typeOCIManifest, imageOf(r.blob("p", "application/vnd.oci.image.config.v1+json", []byte(config)), r.blob("p", ociTarGzip, tarGz("x", nil))))
	}
	systemless := says(`{"architecture":"arm64","variant":"v8"}`)
	systemlessIndex := r.put("p", typeOCIIndex, mustJSON(doc{"schemaVersion": 2, "mediaType": typeOCIIndex, "manifests": []doc{
		{"mediaType": typeOCIManifest, "digest": systemless, "size": 1, "platform": doc{"architecture": "s390x"}}, // its config says it
	}}))
	at := func(os, arch, variant string) doc {
		return doc{"mediaType": typeOCIManifest, "digest": module, "size": 1, "platform": doc{"os": os, "architecture": arch, "variant": variant}}
	}
	attestation := at("unknown", "unknown", "")
	attestation["annotations"] = doc{"vnd.docker.reference.type": "attestation-manifest"}
	index := r.put("p", typeOCIIndex, mustJSON(doc{"schemaVersion": 2, "mediaType": typeOCIIndex, "manifests": []doc{
		at("linux", "arm64", "v8"), attestation, at("linux", "amd64", ""), at("linux", "amd64", ""),
		{"mediaType": typeOCIManifest, "digest": image, "size": 1}, // no platform: its config says it
	}}))
	nested := r.put("p", typeOCIIndex, mustJSON(doc{"schemaVersion": 2, "mediaType": typeOCIIndex, "manifests": []doc{
		at("windows", "amd64", ""),
		{"mediaType": typeOCIIndex, "digest": index, "size": 1},
		{"mediaType": typeOCIManifest, "digest": odd, "size": 1},                                                    // its config says nothing
		{"mediaType": typeOCIManifest, "digest": "sha256:" + strings.Repeat("0", 64), "size": 1},                    // not there: a sparse index
		{"mediaType": typeOCIManifest, "digest": module, "size": 1, "artifactType": "application/vnd.example.sbom"}, // a referrer
	}}))
	schema1 := r.put("p", typeSchema1, []byte(`{"schemaVersion":1}`))
	mixed := r.put("p", typeDockerList, mustJSON(doc{"schemaVersion": 2, "mediaType": typeDockerList, "manifests": []doc{
		{"mediaType": typeDockerManifest, "digest": schema1, "size": 1},           // of a kind that nobody runs
		{"mediaType": typeSchema1, "digest": schema1, "size": 1, "platform": nil}, // and says so
		{"mediaType": typeDockerManifest, "digest": module, "size": 1, "platform": doc{"os": "linux", "architecture": "s390x"}},
		{"mediaType": typeDockerManifest, "digest": module, "size": 1, "platform": doc{"os": "linux", "architecture": "ppc64le"}},
	}}))
	onlyAttested := r.put("p", typeOCIIndex, mustJSON(doc{"schemaVersion": 2, "mediaType": typeOCIIndex, "manifests": []doc{attestation}}))
	none := r.put("p", typeOCIIndex, mustJSON(doc{"schemaVersion": 2, "mediaType": typeOCIIndex, "manifests": []doc{}}))
	wrapped := r.put("p", typeOCIIndex, mustJSON(doc{"schemaVersion": 2, "mediaType": typeOCIIndex, "manifests": []doc{
		{"mediaType": typeOCIManifest, "digest": bundle, "size": 1, "platform": doc{"os": "linux", "architecture": "amd64"}}, attestation,
	}}))
	gone := r.put("p", typeOCIIndex, mustJSON(doc{"schemaVersion": 2, "mediaType": typeOCIIndex, "manifests": []doc{
		{"mediaType": typeOCIManifest, "digest": "sha256:" + strings.Repeat("1", 64), "size": 1, "platform": doc{"os": "linux", "architecture": "amd64"}},
	}}))
	loop := nested
	for range maxIndexes {
		loop = r.put("p", typeOCIIndex, mustJSON(doc{"schemaVersion": 2, "mediaType": typeOCIIndex, "manifests": []doc{{"mediaType": typeOCIIndex, "digest": loop, "size": 1}}}))
	}
	for _, row := range []struct {
		story, digest, want string
	}{
		{"artifact", module, `{"mediaType":"` + typeOCIManifest + `","platforms":[{"os":"wasip1","architecture":"wasm"}],"wasm":true}`},
		{"image", image, `{"mediaType":"` + typeOCIManifest + `","platforms":[{"os":"linux","architecture":"arm64","variant":"v8"}],"wasm":false}`},
		{"operator bundle", bundle, `{"mediaType":"` + typeOCIManifest + `","platforms":[{"os":"linux","architecture":"amd64"}],"wasm":false,"bundle":true}`},
		{"config that says nothing", odd, `{"mediaType":"` + typeOCIManifest + `","platforms":[],"wasm":true}`},
		{"no system", systemless, `{"mediaType":"` + typeOCIManifest + `","platforms":[{"os":"linux","architecture":"arm64","variant":"v8"}],"wasm":false}`},
		{"no system in an index", systemlessIndex, `{"mediaType":"` + typeOCIIndex + `","platforms":[{"os":"linux","architecture":"arm64","variant":"v8"}],"wasm":false}`},
		{"no architecture", says(`{"os":"linux"}`), `{"mediaType":"` + typeOCIManifest + `","platforms":[],"wasm":false}`},
		{"neither", says(`{}`), `{"mediaType":"` + typeOCIManifest + `","platforms":[],"wasm":false}`},
		{"unknown system", says(`{"os":"unknown","architecture":"amd64"}`), `{"mediaType":"` + typeOCIManifest + `","platforms":[],"wasm":false}`},
		{"unknown architecture", says(`{"architecture":"unknown"}`), `{"mediaType":"` + typeOCIManifest + `","platforms":[],"wasm":false}`},
		{"Wasm without a system", says(`{"architecture":"wasm"}`), `{"mediaType":"` + typeOCIManifest + `","platforms":[],"wasm":true}`},
		{"index", index, `{"mediaType":"` + typeOCIIndex + `","platforms":[{"os":"linux","architecture":"amd64"},{"os":"linux","architecture":"arm64","variant":"v8"}],"wasm":false}`},
		{"index in an index", nested, `{"mediaType":"` + typeOCIIndex + `","platforms":[{"os":"linux","architecture":"amd64"},{"os":"linux","architecture":"arm64","variant":"v8"},{"os":"windows","architecture":"amd64"}],"wasm":false}`},
		{"schema 1 beneath", mixed, `{"mediaType":"` + typeDockerList + `","platforms":[{"os":"linux","architecture":"ppc64le"},{"os":"linux","architecture":"s390x"}],"wasm":false}`},
		{"attestations alone", onlyAttested, `{"mediaType":"` + typeOCIIndex + `","platforms":[],"wasm":false}`},
		{"an empty index", none, `{"mediaType":"` + typeOCIIndex + `","platforms":[],"wasm":false}`},
		{"bundle in an index", wrapped, `{"mediaType":"` + typeOCIIndex + `","platforms":[{"os":"linux","architecture":"amd64"}],"wasm":false,"bundle":true}`},
		{"one entry, not there", gone, `{"mediaType":"` + typeOCIIndex + `","platforms":[{"os":"linux","architecture":"amd64"}],"wasm":false}`},
	} {
		t.Run(row.story, func(t *testing.T) {
			p := w.prove("team-a", r.host()+"/p@"+row.digest)
			f, err := w.contents.Facts(testContext(t), p)
			if err != nil || f.Digest != row.digest || f.Size == 0 {
				t.Fatalf("%+v, %v", f, err)
			}
			asked := len(r.requests)
			if again, err := w.contents.Facts(testContext(t), p); err != nil || fmt.Sprint(again) != fmt.Sprint(f) || len(r.requests) != asked {
				t.Errorf("asked again: %+v, %v", again, err)
			}
			f.Digest, f.Size = "", 0
			b, _ := json.Marshal(f)
			if got := strings.Replace(strings.Replace(string(b), `"digest":"",`, "", 1), `"size":0,`, "", 1); got != row.want {
				t.Errorf("facts\n%s, want\n%s", got, row.want)
			}
		})
	}
	_, err := w.contents.Facts(testContext(t), w.prove("team-a", r.host()+"/p@"+loop))
	wantProblem(t, err, ReasonModuleInvalid)
	_, err = w.contents.Facts(testContext(t), w.prove("team-a", r.host()+"/p@"+schema1))
	wantProblem(t, err, ReasonModuleInvalid)
	if n := r.count("/blobs/" + digestOf(tarGz("plugin.wasm", wasmtest.Named("facts")))); n != 0 {
		t.Error("a layer was fetched for facts")
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"`+typeOCIManifest+`","config":{},"layers":[{"mediaType":"application/wasm","digest":"`+digestOf(nil)+`","size":3}]}`), typeOCIManifest)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"`+typeOCIManifest+`","digest":"`+digestOf(nil)+`","platform":null}]}`), typeOCIIndex)
	f.Add([]byte(`{"schemaVersion":1}`), typeSchema1)
	f.Add([]byte(`[]`), "")
	f.Fuzz(func(t *testing.T, raw []byte, mediaType string) {
		m, err := parseManifest(raw, mediaType)
		if err != nil {
			return
		}
		m.platforms()
		if m.index {
			if d, err := m.choose(); err == nil && !digestForm.MatchString(d.Digest) {
				t.Errorf("chosen: %+v", d)
			}
			return
		}
		layers, _, err := m.candidates()
		if err != nil {
			return
		}
		for _, l := range layers {
			if !digestForm.MatchString(l.Digest) || l.Size < 0 {
				t.Errorf("candidate: %+v", l)
			}
		}
		if len(layers) == 0 || len(layers) > maxTarLayers {
			t.Errorf("%d candidates", len(layers))
		}
	})
}
