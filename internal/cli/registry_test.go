package cli

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/canary"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/modules"
)

// registry is a registry with a user who may push and pull a/p, and one who may not.
type registry struct {
	*localregistry.Registry
	t          *testing.T
	good, bad  string // auth files
	pullSecret string // a Secret of the good user
	env        []string
	watch      *canary.Watcher
}

func newRegistry(t *testing.T, o localregistry.Options) *registry {
	t.Helper()
	watch := canary.Watch(t)
	goodPassword, badPassword := watch.Credential(), watch.Credential()
	o.Users = map[string]string{"good": goodPassword, "bad": badPassword}
	if o.Mode != localregistry.Open {
		o.TokenMarker = watch.Credential()
	}
	l, err := localregistry.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	l.Allow("good", "a/p", localregistry.Pull, localregistry.Push)
	folder := t.TempDir()
	r := &registry{Registry: l, t: t, watch: watch}
	authFile := func(user, password string) string {
		auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
		return write(t, folder, user+".json", fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, l.Host(), auth))
	}
	r.good, r.bad = authFile("good", goodPassword), authFile("bad", badPassword)
	text, err := os.ReadFile(r.good)
	if err != nil {
		t.Fatal(err)
	}
	r.pullSecret = write(t, folder, "secret.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: regcred, namespace: team-a}\ntype: kubernetes.io/dockerconfigjson\ndata: {.dockerconfigjson: "+base64.StdEncoding.EncodeToString(text)+"}\n")
	return r
}

// image is a reference to a/p at the registry.
func (r *registry) image(suffix string) string { return r.Host() + "/a/p" + suffix }

// stile runs a verb against the registry and has everything that it prints searched for
// credentials.
func (r *registry) stile(args ...string) result {
	r.t.Helper()
	got := stile(r.t, r.env, append(args, "--plain-http", r.Host())...)
	r.watch.Add("stdout of "+args[0], []byte(got.stdout))
	r.watch.Add("stderr of "+args[0], []byte(got.stderr))
	return got
}

// push puts the module badge at a/p:v1 and returns its digest.
func (r *registry) push() string {
	r.t.Helper()
	file := filepath.Join(r.t.TempDir(), "badge.wasm")
	if err := os.WriteFile(file, modules.Badge(), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return strings.TrimSpace(r.stile("push", file, r.image(":v1"), "--authfile", r.good).want(r.t, OK).stdout)
}

func TestAccess_Answers(t *testing.T) {
	t.Parallel()
	for _, mode := range []localregistry.Mode{localregistry.Bearer, localregistry.Basic} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, localregistry.Options{Mode: mode})
			digest := r.push()
			for name, row := range map[string]struct {
				image  string
				flags  []string
				code   int
				state  string
				reason string
			}{
				"allowed":           {r.image(":v1"), []string{"--authfile", r.good}, OK, "Allowed", ""},
				"allowed by secret": {r.image(":v1"), []string{"--secret", r.pullSecret}, OK, "Allowed", ""},
				"allowed by digest": {r.image("@" + digest), []string{"--authfile", r.good}, OK, "Allowed", ""},
				"allowed by second": {r.image(":v1"), []string{"--authfile", r.bad, "--secret", r.pullSecret}, OK, "Allowed", ""},
				"denied":            {r.image(":v1"), []string{"--authfile", r.bad}, Unauthorized, "Denied", "Unauthorized"},
				"denied anonymous":  {r.image(":v1"), nil, Unauthorized, "Denied", "Unauthorized"},
				"not found":         {r.image(":none"), []string{"--authfile", r.good}, NotFound, "Denied", "ImageNotFound"},
			} {
				t.Run(name, func(t *testing.T) {
					out := r.stile(append([]string{"access", row.image, "-o", "json"}, row.flags...)...).want(t, row.code)
					got := decode[accessReport](t, out.stdout)
					if got.State != row.state || got.Reason != row.reason || got.Image != row.image || got.APIVersion != apiVersion || got.Kind != "AccessReport" {
						t.Errorf("%+v", got)
					}
					if row.state == "Allowed" && (got.Digest != digest || !regexp.MustCompile(`^fp:[0-9a-f]{12}$`).MatchString(got.Credential)) {
						t.Errorf("%+v", got)
					}
					if got.Requests == 0 || got.Tried == 0 || got.CheckedAt == nil {
						t.Errorf("%+v", got)
					}
				})
			}
		})
	}
}

func TestAccess_UnknownIsExit6(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, localregistry.Options{Mode: localregistry.Bearer})
	r.push()
	config := write(t, t.TempDir(), "stile.yaml", "access: { retry: { attempts: 1 } }\n")
	r.Down()
	out := r.stile("access", r.image(":v1"), "--authfile", r.good, "--config", config, "-o", "json").want(t, Unavailable)
	if got := decode[accessReport](t, out.stdout); got.State != "Unknown" || got.Reason != "RegistryUnreachable" {
		t.Errorf("%+v", got)
	}
	r.Up()
	r.SetFaults(localregistry.Fault{Hang: true})
	out = r.stile("access", r.image(":v1"), "--authfile", r.good, "--timeout", "200ms", "-o", "json").want(t, Unavailable)
	if got := decode[accessReport](t, out.stdout); got.State != "Unknown" || !strings.Contains(got.Message, "--timeout") {
		t.Errorf("%+v", got)
	}
}

func TestAccess_AnonymousAtAnOpenRegistry(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, localregistry.Options{Mode: localregistry.Open})
	r.push()
	got := decode[accessReport](t, r.stile("access", r.image(":v1"), "-o", "json").want(t, OK).stdout)
	if got.Credential != "anonymous" {
		t.Errorf("%+v", got)
	}
}

func TestAccess_PlainHTTPIsNeverAFallback(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, localregistry.Options{Mode: localregistry.Open})
	r.push()
	before := r.RequestCount()
	stile(t, nil, "access", r.image(":v1"), "--timeout", "20s", "--config", write(t, t.TempDir(), "c.yaml", "access: { retry: { attempts: 1 } }\n")).want(t, Unavailable)
	if r.RequestCount() != before {
		t.Error("a request in clear")
	}
}

func TestAccess_CredentialFiles(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, localregistry.Options{Mode: localregistry.Bearer})
	r.push()
	r.env = []string{"REGISTRY_AUTH_FILE=" + r.good}
	r.stile("access", r.image(":v1")).want(t, OK)
	r.stile("access", r.image(":v1"), "--authfile", r.bad).want(t, Unauthorized)
	r.env = nil
	r.stile("access", r.image(":v1"), "--authfile", r.good+".missing").want(t, Usage, "good.json.missing", "--authfile")
	r.stile("access", r.image(":v1"), "--secret", r.good+".missing").want(t, Usage, "good.json.missing")
	r.stile("access", r.image(":v1"), "--secret", write(t, t.TempDir(), "x.yaml", "kind: Nonsense\n")).want(t, Usage, "holds no Secret")
	broken := write(t, t.TempDir(), "broken.json", `{"auths":{"`+r.Host()+`":{"auth":"%%"}}}`)
	r.stile("access", r.image(":v1"), "--authfile", broken).want(t, Usage, r.Host())
}

func TestRegistryOf_SpellingsOfOneHostAreOneEntry(t *testing.T) {
	t.Parallel()
	cfg := &v1alpha1.Config{Registries: []v1alpha1.RegistryConfig{{Host: "docker.io"}, {Host: "Registry.Example:443"}, {Host: "plain"}}}
	for _, host := range []string{"index.docker.io", "registry.example", "plain", "Docker.io", "PLAIN", "registry.example:443"} {
		registryOf(cfg, host)
	}
	if len(cfg.Registries) != 3 {
		t.Errorf("%+v", cfg.Registries)
	}
	registryOf(cfg, "registry.example:5000")
	if len(cfg.Registries) != 4 {
		t.Errorf("%+v", cfg.Registries)
	}
	// The client refuses two entries of one host, so this is what keeps the verbs working.
	stile(t, nil, "access", "docker.io/library/nothing:v1", "--timeout", "1ms", "--config",
		write(t, t.TempDir(), "c.yaml", "registries: [{ host: docker.io }]\n")).want(t, Unavailable)
}

func TestPushPullInspectCheck(t *testing.T) {
	t.Parallel()
	for _, layout := range []string{"artifact", "oci", "docker"} {
		t.Run(layout, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, localregistry.Options{Mode: localregistry.Bearer})
			folder := t.TempDir()
			file := filepath.Join(folder, "badge.wasm")
			if err := os.WriteFile(file, modules.Badge(), 0o600); err != nil {
				t.Fatal(err)
			}
			pushed := decode[pushReport](t, r.stile("push", file, r.image(":v1"), "--layout", layout, "--authfile", r.good, "-o", "json").want(t, OK).stdout)
			if pushed.Kind != "Push" || !strings.HasPrefix(pushed.Digest, "sha256:") {
				t.Errorf("%+v", pushed)
			}
			path := filepath.Join(folder, "pulled.wasm")
			pulled := decode[pullReport](t, r.stile("pull", r.image(":v1"), "--output", path, "--sha256", pushed.Digest, "--authfile", r.good, "-o", "json").want(t, OK).stdout)
			if pulled.Kind != "Pull" || pulled.Digest != pushed.Digest || pulled.Size != int64(len(modules.Badge())) || pulled.Path != path {
				t.Errorf("%+v", pulled)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, modules.Badge()) {
				t.Errorf("other bytes came, %v", err)
			}
			if out := r.stile("pull", r.image(":v1"), "--output", "-", "--authfile", r.good).want(t, OK).stdout; out != string(modules.Badge()) {
				t.Error("other bytes came on stdout")
			}
			inspected := decode[inspection](t, r.stile("inspect", r.image(":v1"), "--authfile", r.good, "-o", "json").want(t, OK).stdout)
			if inspected.Kind != "Inspection" || inspected.Digest != pushed.Digest || inspected.Wasm == nil || inspected.Wasm.SHA256 != pulled.SHA256 || inspected.Wasm.ABI[0] != "0.2.1" {
				t.Errorf("%+v", inspected)
			}
			checked := decode[checkReport](t, r.stile("check", r.image(":v1"), "--authfile", r.good, "-o", "json").want(t, OK).stdout)
			if checked.Kind != "CheckReport" || len(checked.Findings) != 0 {
				t.Errorf("%+v", checked)
			}
			r.stile("check", r.image(":v1"), "--type", "NETWORK", "--authfile", r.good).want(t, Findings)

			text := write(t, folder, "text.wasm", "(module)")
			r.stile("push", text, r.image(":text"), "--layout", layout, "--authfile", r.good).want(t, OK)
			checked = decode[checkReport](t, r.stile("check", r.image(":text"), "--authfile", r.good, "-o", "json").want(t, Findings).stdout)
			if len(checked.Findings) == 0 || checked.Findings[0].Severity != "error" {
				t.Errorf("an image without a module: %+v", checked)
			}

			// Who may not read it gets nothing, and no file.
			other := filepath.Join(folder, "other.wasm")
			r.stile("pull", r.image(":v1"), "--output", other, "--authfile", r.bad).want(t, Unauthorized)
			r.stile("pull", r.image(":none"), "--output", other, "--authfile", r.good).want(t, NotFound)
			r.stile("pull", r.image(":v1"), "--output", other, "--sha256", strings.Repeat("0", 64), "--authfile", r.good).want(t, VerificationFailed, "digest")
			r.stile("pull", r.image(":v1"), "--output", other, "--verification-key", publicKey(t), "--authfile", r.good).want(t, VerificationFailed, "SignatureInvalid")
			r.stile("pull", r.image(":v1"), "--output", other, "--verification-key", file+".missing", "--authfile", r.good).want(t, Usage, "--verification-key")
			r.stile("inspect", r.image(":v1"), "--authfile", r.bad).want(t, Unauthorized)
			r.stile("push", file, r.image(":v2"), "--authfile", r.bad).want(t, Unauthorized)
			if left, _ := filepath.Glob(filepath.Join(folder, "*other*")); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// publicKey writes the public key of nobody who has signed anything.
func publicKey(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, t.TempDir(), "key.pub", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
}

func TestPull_URL(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/badge.wasm" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(modules.Badge())
	}))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	path := filepath.Join(t.TempDir(), "badge.wasm")
	r := decode[pullReport](t, stile(t, nil, "pull", server.URL+"/badge.wasm?key=secret", "--output", path, "--plain-http", host, "-o", "json").want(t, OK).stdout)
	if r.Digest != "" || strings.Contains(r.Reference, "secret") {
		t.Errorf("%+v", r)
	}
	stile(t, nil, "pull", server.URL+"/badge.wasm", "--output", path, "--sha256", r.SHA256, "--plain-http", host).want(t, OK)
	stile(t, nil, "pull", server.URL+"/badge.wasm", "--output", path, "--sha256", strings.Repeat("0", 64), "--plain-http", host).want(t, VerificationFailed)
	stile(t, nil, "pull", server.URL+"/other.wasm", "--output", path, "--plain-http", host).want(t, NotFound, "404")
	stile(t, nil, "check", server.URL+"/badge.wasm", "--plain-http", host).want(t, OK)
	stile(t, nil, "inspect", server.URL+"/badge.wasm", "--plain-http", host).want(t, OK)
	stile(t, nil, "pull", server.URL+"/badge.wasm", "--output", path+"/x", "--plain-http", host).want(t, Failed, "not a directory")
}

func TestCheckAndInspect_File(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	file := filepath.Join(folder, "badge.wasm")
	if err := os.WriteFile(file, modules.Badge(), 0o600); err != nil {
		t.Fatal(err)
	}
	text := write(t, folder, "text.wasm", "(module)")
	golden(t, "check.txt", stile(t, nil, "check", file).want(t, OK).stdout)
	golden(t, "check-text.txt", stile(t, nil, "check", text, "-o", "wide").want(t, Findings).stdout)
	golden(t, "inspect.json", strings.ReplaceAll(stile(t, nil, "inspect", file, "-o", "json").want(t, OK).stdout, folder, "FOLDER"))
	stile(t, nil, "inspect", text).want(t, Findings, "is no Wasm module")
	good, bad := write(t, folder, "good.yaml", "name: hello\n"), write(t, folder, "bad.yaml", "nam: hello\n")
	stile(t, nil, "check", file, "--plugin-config", good).want(t, OK)
	golden(t, "check-refused.txt", stile(t, nil, "check", file, "--plugin-config", bad).want(t, Findings).stdout)
	stile(t, nil, "check", file, "--plugin-config", text).want(t, Usage, "--plugin-config")
	stile(t, nil, "check", file, "--plugin-config", folder+"/missing").want(t, Usage, "missing")
	stile(t, nil, "check", folder+"/missing.wasm").want(t, Usage, "there is no such file")
	stile(t, nil, "push", folder+"/missing.wasm", "r.example/a:v1").want(t, Usage, "missing.wasm")
}
