package content

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/wasm/wasmtest"
)

// signer signs as cosign does with a key of one kind.
type signer struct {
	kind string
	sign func(message []byte) []byte
	pem  string
}

func signers(t testing.TB) []signer {
	t.Helper()
	var all []signer
	add := func(kind string, key crypto.Signer, h crypto.Hash) {
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, signer{kind: kind, pem: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), sign: func(m []byte) []byte {
			if h != 0 {
				m = digestWith(h, m)
			}
			sig, err := key.Sign(rand.Reader, m, h)
			if err != nil {
				t.Fatal(err)
			}
			return sig
		}})
	}
	ec := func(c elliptic.Curve) *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	add("ECDSA P-256", ec(elliptic.P256()), crypto.SHA256)
	add("ECDSA P-384 with SHA-256", ec(elliptic.P384()), crypto.SHA256)
	add("ECDSA P-384 with SHA-384", ec(elliptic.P384()), crypto.SHA384)
	add("ECDSA P-521", ec(elliptic.P521()), crypto.SHA512)
	add("RSA", rsaKey, crypto.SHA256)
	add("Ed25519", edKey, 0)
	return all
}

func simplePayload(kind, digest string) []byte {
	return mustJSON(doc{"critical": doc{"identity": doc{"docker-reference": "x"}, "image": doc{"docker-manifest-digest": digest}, "type": kind}, "optional": nil})
}

func bundleOf(payload []byte, payloadType string, signatures ...[]byte) []byte {
	var sigs []doc
	for _, s := range signatures {
		sigs = append(sigs, doc{"sig": base64.StdEncoding.EncodeToString(s)})
	}
	return mustJSON(doc{
		"mediaType": typeBundlePrefix + "+json", "verificationMaterial": doc{"publicKey": doc{"hint": "x"}},
		"dsseEnvelope": doc{"payload": base64.StdEncoding.EncodeToString(payload), "payloadType": payloadType, "signatures": sigs},
	})
}

func statement(predicate, digest string) []byte {
	return mustJSON(doc{"_type": typeStatement, "predicateType": predicate, "subject": []doc{{"digest": doc{"sha256": strings.TrimPrefix(digest, "sha256:")}}}})
}

func (s signer) bundle(payload []byte) []byte {
	return bundleOf(payload, payloadInToto, s.sign(preAuthentication(payloadInToto, payload)))
}

// attach pushes a classic signature of the image.
func (r *registry) attach(repository, digest string, payload []byte, signature string) {
	l := layer(r.blob(repository, typeSimpleSigning, payload))
	l["annotations"] = doc{annotationSig: signature}
	r.put(repository, typeOCIManifest, mustJSON(doc{"schemaVersion": 2, "mediaType": typeOCIManifest, "config": layer(imageConfigBlob(r, repository)), "layers": []doc{l}}),
		strings.Replace(digest, ":", "-", 1)+".sig")
}

// refer pushes bundles that refer to the image, by the fallback tag.
func (r *registry) refer(repository, digest string, bundles ...[]byte) {
	var entries []doc
	for _, b := range bundles {
		m := mustJSON(doc{
			"schemaVersion": 2, "mediaType": typeOCIManifest, "artifactType": typeBundlePrefix + "+json",
			"config": layer(r.blob(repository, "application/vnd.oci.empty.v1+json", []byte("{}"))),
			"layers": []doc{layer(r.blob(repository, typeBundlePrefix+"+json", b))},
		})
		entries = append(entries, doc{"mediaType": typeOCIManifest, "digest": r.put(repository, typeOCIManifest, m), "size": len(m), "artifactType": typeBundlePrefix + "+json"})
	}
	r.put(repository, typeOCIIndex, mustJSON(doc{"schemaVersion": 2, "mediaType": typeOCIIndex, "manifests": entries}), strings.Replace(digest, ":", "-", 1))
}

func TestSigned(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	w := newWorld(t, t.TempDir(), Config{}, r.host())
	keys := signers(t)
	key, other := keys[0], keys[1]
	b64 := base64.StdEncoding.EncodeToString
	type sign func(repository, digest string)
	classic := func(k signer, change func(payload []byte) []byte) sign {
		return func(repository, digest string) {
			payload := simplePayload(typeCosign, digest)
			signature := b64(k.sign(payload))
			if change != nil {
				payload = change(payload)
			}
			r.attach(repository, digest, payload, signature)
		}
	}
	rows := []struct {
		story string
		sign  sign
		words string // of the problem; empty = it is signed
	}{
		{"no signature", func(string, string) {}, "there is no signature"},
		{"classic, by another key", classic(other, nil), "another key"},
		{"classic, the payload changed", classic(key, func(b []byte) []byte { return append(b, ' ') }), "another key"},
		{"classic, of another image", func(repository, digest string) {
			payload := simplePayload(typeCosign, digestOf([]byte("another")))
			r.attach(repository, digest, payload, b64(key.sign(payload)))
		}, "not this image"},
		{"classic, of another type", func(repository, digest string) {
			payload := simplePayload("atomic container signature", digest)
			r.attach(repository, digest, payload, b64(key.sign(payload)))
		}, "atomic"},
		{"classic, no signature in the annotation", func(repository, digest string) {
			r.attach(repository, digest, simplePayload(typeCosign, digest), "")
		}, "no base64"},
		{"bundle, by another key", func(repository, digest string) {
			r.refer(repository, digest, other.bundle(statement(predicateSign, digest)))
		}, "another key"},
		{"bundle, of another image", func(repository, digest string) {
			r.refer(repository, digest, key.bundle(statement(predicateSign, digestOf(nil))))
		}, "something else"},
		{"a bill of materials by the same key", func(repository, digest string) {
			r.refer(repository, digest, key.bundle(statement("https://spdx.dev/Document", digest)))
		}, "spdx"},
		{"bundle, another type of payload", func(repository, digest string) {
			payload := statement(predicateSign, digest)
			r.refer(repository, digest, bundleOf(payload, "application/json", key.sign(preAuthentication("application/json", payload))))
		}, "in-toto"},
		{"bundle, signed without its type", func(repository, digest string) {
			payload := statement(predicateSign, digest)
			r.refer(repository, digest, bundleOf(payload, payloadInToto, key.sign(payload)))
		}, "another key"},
		{"bundle without a signature", func(repository, digest string) {
			r.refer(repository, digest, bundleOf(statement(predicateSign, digest), payloadInToto))
		}, "0 signatures"},
		{"bundle that is none", func(repository, digest string) { r.refer(repository, digest, []byte("[]")) }, "no JSON"},
		{"a bad one beside a good one", func(repository, digest string) {
			r.refer(repository, digest, []byte("x"), other.bundle(statement(predicateSign, digest)), key.bundle(statement(predicateSign, digest)))
		}, ""},
		{"a huge one beside a good one", func(repository, digest string) {
			r.refer(repository, digest, make([]byte, maxBundle+1), key.bundle(statement(predicateSign, digest)))
		}, ""},
		{"a bad classic one and a good bundle", func(repository, digest string) {
			classic(other, nil)(repository, digest)
			r.refer(repository, digest, key.bundle(statement(predicateSign, digest)))
		}, ""},
	}
	for i, row := range rows {
		t.Run(row.story, func(t *testing.T) {
			repository := fmt.Sprint("s", i)
			digest := r.artifact(repository, wasmtest.Named(row.story))
			row.sign(repository, digest)
			p := w.prove("team-a", r.host()+"/"+repository+"@"+digest)
			err := w.contents.VerifySignature(testContext(t), p, key.pem)
			if row.words == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if problem := wantProblem(t, err, ReasonSignatureInvalid); !problem.Retry || !strings.Contains(problem.Message, row.words) {
				t.Errorf("problem %+v, want …%s…", problem, row.words)
			}
		})
	}
	for i, k := range keys {
		for _, format := range []string{"classic", "bundle"} {
			t.Run(k.kind+", "+format, func(t *testing.T) {
				repository := fmt.Sprint("k", i, format)
				digest := r.artifact(repository, wasmtest.Named(k.kind))
				if format == "classic" {
					classic(k, nil)(repository, digest)
				} else {
					r.refer(repository, digest, k.bundle(statement(predicateSign, digest)))
				}
				p := w.prove("team-a", r.host()+"/"+repository+"@"+digest)
				if err := w.contents.VerifySignature(testContext(t), p, k.pem); err != nil {
					t.Error(err)
				}
				stranger := keys[(i+1)%len(keys)]
				wantProblem(t, w.contents.VerifySignature(testContext(t), p, stranger.pem), ReasonSignatureInvalid)
			})
		}
	}
}

// A registry with the referrers API has no tag to find them by.
func TestSigned_ByTheReferrersAPI(t *testing.T) {
	t.Parallel()
	r, err := localregistry.Start(localregistry.Options{Mode: localregistry.Open})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	w := newWorld(t, t.TempDir(), Config{}, r.Host())
	digest, err := w.client.Push(testContext(t), wasmtest.Named("referred to"), parse(t, r.Host()+"/p:v1"), oci.LayoutArtifact, oci.Credential{}, w.trust(r.Host()))
	if err != nil {
		t.Fatal(err)
	}
	p := w.prove("team-a", r.Host()+"/p@"+digest)
	key := signers(t)[0]
	wantProblem(t, w.contents.VerifySignature(testContext(t), p, key.pem), ReasonSignatureInvalid)

	send := func(method, path, mediaType string, b []byte) {
		t.Helper()
		request, err := http.NewRequestWithContext(testContext(t), method, "http://"+r.Host()+path, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", mediaType)
		answer, err := http.DefaultTransport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusCreated {
			t.Fatalf("%s %s: %s", method, path, answer.Status)
		}
	}
	blob := func(mediaType string, b []byte) doc {
		send(http.MethodPost, "/v2/p/blobs/uploads/?digest="+digestOf(b), "application/octet-stream", b)
		return doc{"mediaType": mediaType, "digest": digestOf(b), "size": len(b)}
	}
	bundle := key.bundle(statement(predicateSign, digest))
	m := mustJSON(doc{
		"schemaVersion": 2, "mediaType": typeOCIManifest, "artifactType": typeBundlePrefix + "+json",
		"config":  blob("application/vnd.oci.empty.v1+json", []byte("{}")),
		"layers":  []doc{blob(typeBundlePrefix+"+json", bundle)},
		"subject": doc{"mediaType": typeOCIManifest, "digest": digest, "size": 1},
	})
	send(http.MethodPut, "/v2/p/manifests/"+digestOf(m), typeOCIManifest, m)
	if err := w.contents.VerifySignature(testContext(t), p, key.pem); err != nil {
		t.Error(err)
	}
}

func TestSigned_NeverWaitsAndIsKept(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	dir := t.TempDir()
	key := signers(t)[0]
	digest := r.artifact("p", wasmtest.Named("signed"))
	image := r.host() + "/p@" + digest
	wait := func(w *world, signed func() error) error {
		for {
			err := signed()
			if !errors.Is(err, ErrPending) {
				return err
			}
			<-w.contents.Changes()
		}
	}
	t.Run("before", func(t *testing.T) {
		w := newWorld(t, dir, Config{}, r.host())
		p := w.prove("team-a", image)
		signed := func() error { return w.contents.Signed(p, key.pem) }
		wantProblem(t, wait(w, signed), ReasonSignatureInvalid)
		payload := simplePayload(typeCosign, digest)
		r.attach("p", digest, payload, base64.StdEncoding.EncodeToString(key.sign(payload)))
		if err := w.contents.VerifySignature(testContext(t), p, key.pem); err != nil {
			t.Fatal(err)
		}
		if err := wait(w, signed); err != nil {
			t.Error(err)
		}
		wantProblem(t, w.contents.Signed(p, "no key"), ReasonSignatureInvalid)
	})
	w := newWorld(t, dir, Config{}, r.host())
	p := w.prove("team-a", image)
	asked := len(r.requests)
	if err := w.contents.Signed(p, key.pem); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if len(r.requests) != asked {
		t.Errorf("asked again: %v", r.requests[asked:])
	}
}

func FuzzSignatures(f *testing.F) {
	key, err := parseKey(signers(f)[0].pem)
	if err != nil {
		f.Fatal(err)
	}
	digest := digestOf(nil)
	f.Add(simplePayload(typeCosign, digest), "c2ln", bundleOf(statement(predicateSign, digest), payloadInToto, []byte("sig")))
	f.Add([]byte("{}"), "", []byte("{}"))
	f.Fuzz(func(t *testing.T, payload []byte, signature string, bundle []byte) {
		if key.checkSimple(payload, signature, digest) == nil || key.checkBundle(bundle, digest) == nil {
			t.Error("forged")
		}
	})
}
