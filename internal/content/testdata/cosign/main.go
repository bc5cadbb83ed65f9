// Command cosign makes the signatures that the tests of package content verify, with the
// real tool. Run it in this folder with "go run ."; it writes the .json files beside it.
//
// Each file is what a registry holds after
//
//	cosign sign --yes --key KEY --tlog-upload=false --use-signing-config=false \
//	    --new-bundle-format=false|true --allow-insecure-registry REF@DIGEST
//
// in both formats, with keys of cosign's own making and imported ones, on registries
// with and without the referrers API.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// fixture is what a registry holds.
type fixture struct {
	Recipe    string              `json:"recipe"` // what was run
	Key       string              `json:"key"`    // the public one, PEM
	Digest    string              `json:"digest"` // of the image that is signed
	Manifests map[string]manifest `json:"manifests"`
	Blobs     map[string][]byte   `json:"blobs"`
}

type manifest struct {
	MediaType string `json:"mediaType"`
	Raw       []byte `json:"raw"`
}

func main() {
	dir, err := os.MkdirTemp("", "cosign-fixtures-*")
	check(err)
	defer os.RemoveAll(dir)
	cosign := filepath.Join(dir, "cosign")
	run(dir, "go", "build", "-C", working(), "-o", cosign, "github.com/sigstore/cosign/v3/cmd/cosign")
	run(dir, cosign, "generate-key-pair", "--output-key-prefix", "ecdsa")
	for kind, make := range map[string][]string{
		"rsa":     {"openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "rsa.pem"},
		"p384":    {"openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384", "-out", "p384.pem"},
		"ed25519": {"openssl", "genpkey", "-algorithm", "ED25519", "-out", "ed25519.pem"},
	} {
		run(dir, make[0], make[1:]...)
		run(dir, cosign, "import-key-pair", "--key", kind+".pem", "--output-key-prefix", kind)
	}
	for _, kind := range []string{"ecdsa", "rsa", "p384", "ed25519"} {
		for _, bundle := range []bool{false, true} {
			for _, referrers := range []bool{true, false} {
				file := fmt.Sprintf("%s-%s-%s.json", kind, choose(bundle, "bundle", "classic"), choose(referrers, "referrers", "tags"))
				if !bundle && referrers {
					continue // nobody looks for referrers then
				}
				b, err := json.MarshalIndent(sign(dir, cosign, kind, bundle, referrers), "", " ")
				check(err)
				check(os.WriteFile(file, append(b, '\n'), 0o644))
				fmt.Println(file)
			}
		}
	}
}

// sign has an image signed on a registry of its own and returns what that holds.
func sign(dir, cosign, kind string, bundle, referrers bool) fixture {
	f := fixture{Manifests: map[string]manifest{}, Blobs: map[string][]byte{}}
	var mu sync.Mutex
	backend := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(referrers))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ref, ok := strings.Cut(r.URL.Path, "/manifests/"); ok && r.Method == http.MethodPut {
			b, err := io.ReadAll(r.Body)
			check(err)
			mu.Lock()
			f.Manifests[ref] = manifest{r.Header.Get("Content-Type"), b}
			mu.Unlock()
			r.Body = io.NopCloser(bytes.NewReader(b))
		}
		backend.ServeHTTP(w, r)
	}))
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "http://")
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), "application/vnd.wasm.config.v0+json")
	// The smallest module that Envoy loads would do; the signature is of the manifest alone.
	image, err := mutate.AppendLayers(image, static.NewLayer([]byte("\x00asm\x01\x00\x00\x00"), "application/wasm"))
	check(err)
	tag, err := name.ParseReference(host+"/signed/image:v1", name.Insecure)
	check(err)
	check(remote.Write(tag, image))
	digest, err := image.Digest()
	check(err)
	f.Digest = digest.String()
	args := []string{
		"sign", "--yes", "--key", kind + ".key", "--tlog-upload=false", "--use-signing-config=false",
		fmt.Sprintf("--new-bundle-format=%v", bundle), "--allow-insecure-registry", "--allow-http-registry",
	}
	run(dir, cosign, append(args, host+"/signed/image@"+f.Digest)...)
	f.Recipe = "cosign " + strings.Join(append(args, "REGISTRY/signed/image@"+f.Digest), " ")
	public, err := os.ReadFile(filepath.Join(dir, kind+".pub"))
	check(err)
	f.Key = string(public)
	for _, m := range f.Manifests {
		var refs struct {
			Config *struct{ Digest string }
			Layers []struct{ Digest string }
		}
		check(json.Unmarshal(m.Raw, &refs))
		if refs.Config != nil {
			refs.Layers = append(refs.Layers, *refs.Config)
		}
		for _, l := range refs.Layers {
			resp, err := http.Get(s.URL + "/v2/signed/image/blobs/" + l.Digest)
			check(err)
			b, err := io.ReadAll(resp.Body)
			check(err)
			resp.Body.Close()
			f.Blobs[l.Digest] = b
		}
	}
	return f
}

func run(dir, program string, args ...string) {
	c := exec.Command(program, args...)
	c.Dir, c.Env = dir, append(os.Environ(), "COSIGN_PASSWORD=", "HOME="+dir, "GOCACHE="+output("go", "env", "GOCACHE"), "GOMODCACHE="+output("go", "env", "GOMODCACHE"))
	if out, err := c.CombinedOutput(); err != nil {
		log.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
}

func output(program string, args ...string) string {
	b, err := exec.Command(program, args...).Output()
	check(err)
	return strings.TrimSpace(string(b))
}

func working() string {
	dir, err := os.Getwd()
	check(err)
	return dir
}

func choose(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
