package content

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stileproject/stile/internal/oci/localregistry"
)

// cosigned is what a registry held after the real tool had signed an image there: see
// testdata/cosign/main.go, which made the files.
type cosigned struct {
	Recipe, Key, Digest string
	Manifests           map[string]struct {
		MediaType string
		Raw       []byte
	}
	Blobs map[string][]byte
}

func cosignedFiles(t testing.TB) map[string]cosigned {
	t.Helper()
	files, err := filepath.Glob("testdata/cosign/*.json")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]cosigned{}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var c cosigned
		if err := json.Unmarshal(b, &c); err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(name), ".json")] = c
	}
	return all
}

// serve puts all that the registry held into one of ours, with the referrers API if the
// other had it.
func (c cosigned) serve(t testing.TB, referrers bool) (host string) {
	t.Helper()
	if !referrers {
		r := newRegistry(t)
		for digest, b := range c.Blobs {
			r.blobs["signed/image "+digest] = b
		}
		for name, m := range c.Manifests {
			r.put("signed/image", m.MediaType, m.Raw, name)
		}
		return r.host()
	}
	r, err := localregistry.Start(localregistry.Options{Mode: localregistry.Open})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	send := func(method, path, mediaType string, b []byte) {
		t.Helper()
		request, err := http.NewRequestWithContext(testContext(t), method, "http://"+r.Host()+"/v2/signed/image/"+path, bytes.NewReader(b))
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
	for digest, b := range c.Blobs {
		send(http.MethodPost, "blobs/uploads/?digest="+digest, "application/octet-stream", b)
	}
	for name, m := range c.Manifests {
		send(http.MethodPut, "manifests/"+name, m.MediaType, m.Raw)
	}
	return r.Host()
}

// What the real cosign has signed is verified by its key and by no other, in both
// formats, whatever the kind of key and wherever the registry keeps it.
func TestSigned_ByTheRealTool(t *testing.T) {
	t.Parallel()
	all := cosignedFiles(t)
	if len(all) != 12 {
		t.Fatalf("%d fixtures", len(all))
	}
	for name, c := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := c.serve(t, strings.HasSuffix(name, "referrers"))
			w := newWorld(t, t.TempDir(), Config{}, host)
			p := w.prove("team-a", host+"/signed/image@"+c.Digest)
			for _, o := range all {
				if o.Key != c.Key {
					wantProblem(t, w.contents.VerifySignature(testContext(t), p, o.Key), ReasonSignatureInvalid)
				}
			}
			if err := w.contents.VerifySignature(testContext(t), p, c.Key); err != nil {
				t.Error(err)
			}
		})
	}
}

// The signature of one image is none of another, also where a registry says so.
func TestSigned_ByTheRealToolForAnotherImage(t *testing.T) {
	t.Parallel()
	all := cosignedFiles(t)
	for _, name := range []string{"ecdsa-classic-tags", "ecdsa-bundle-tags"} {
		c := all[name]
		r := newRegistry(t)
		for digest, b := range c.Blobs {
			r.blobs["p "+digest] = b
		}
		another := r.artifact("p", []byte("\x00asm\x01\x00\x00\x00 another"))
		for tag, m := range c.Manifests {
			r.put("p", m.MediaType, m.Raw, strings.Replace(tag, strings.TrimPrefix(c.Digest, "sha256:"), strings.TrimPrefix(another, "sha256:"), 1))
		}
		w := newWorld(t, t.TempDir(), Config{}, r.host())
		p := w.prove("team-a", r.host()+"/p@"+another)
		problem := wantProblem(t, w.contents.VerifySignature(testContext(t), p, c.Key), ReasonSignatureInvalid)
		if !strings.Contains(problem.Message, "not this image") && !strings.Contains(problem.Message, "something else") {
			t.Errorf("%s: %s", name, problem.Message)
		}
	}
}
