package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stileproject/stile/internal/canary"
)

// home is a person's folder and environment.
type home struct {
	t   *testing.T
	dir string
	env map[string]string
}

func newHome(t *testing.T) *home {
	t.Helper()
	dir := t.TempDir()
	return &home{t: t, dir: dir, env: map[string]string{"HOME": dir}}
}

func (h *home) write(name, content string) string {
	h.t.Helper()
	file := filepath.Join(h.dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o700); err != nil { // #nosec G306 -- helpers must be executable
		h.t.Fatal(err)
	}
	return file
}

func (h *home) getenv(name string) string { return h.env[name] }

func (h *home) keyring(authfile string) (Keyring, error) {
	return DefaultKeyring(testKey(h.t), authfile, h.getenv)
}

func TestDefaultKeyring_WhereItLooks(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.write(".docker/config.json", `{"auths":{"r.example":{"username":"u","password":"docker"}}}`)
	h.write(".config/containers/auth.json", `{"auths":{"r.example/a":{"username":"u","password":"podman"}}}`)
	h.write("run/containers/auth.json", `{"auths":{"r.example/a/p":{"username":"u","password":"runtime"}}}`)
	h.write("docker/config.json", `{"auths":{"r.example":{"username":"u","password":"DOCKER_CONFIG"}}}`)
	registryAuth := h.write("registry-auth.json", `{"auths":{"r.example":{"username":"u","password":"REGISTRY_AUTH_FILE"}}}`)
	authfile := h.write("authfile", `{"r.example":{"username":"u","password":"authfile"}}`) // a legacy one
	look := func(authfile string, want ...string) {
		t.Helper()
		k, err := h.keyring(authfile)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, passwords(t, k, "r.example/a/p")); diff != "" {
			t.Error(diff)
		}
	}
	look("", "podman", "docker")
	h.env["XDG_RUNTIME_DIR"] = filepath.Join(h.dir, "run")
	look("", "runtime", "podman", "docker")
	h.env["DOCKER_CONFIG"] = filepath.Join(h.dir, "docker")
	look("", "DOCKER_CONFIG")
	h.env["REGISTRY_AUTH_FILE"] = registryAuth
	look("", "REGISTRY_AUTH_FILE")
	look(authfile, "authfile")
	if _, err := h.keyring(filepath.Join(h.dir, "none")); !errors.Is(err, Invalid) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that was named and is not there: %v", err)
	}
	h.env = map[string]string{"HOME": filepath.Join(h.dir, "nobody")}
	look("", "")
}

func TestDefaultKeyring_CredentialHelpers(t *testing.T) {
	t.Parallel()
	w := canary.Watch(t)
	pass, token := w.Credential(), w.Credential()
	h := newHome(t)
	h.env["PATH"] = filepath.Join(h.dir, "bin")
	h.write("bin/docker-credential-good", `#!/bin/sh
read server
case "$server" in
https://index.docker.io/v1/) echo '{"Username":"<token>","Secret":"`+token+`"}';;
r.example) echo '{"Username":"u","Secret":"`+pass+`"}';;
*) echo "credentials not found in native keychain"; exit 1;;
esac
`)
	h.write("bin/docker-credential-bad", "#!/bin/sh\necho '"+pass+"'; exit 3\n")
	h.write("bin/docker-credential-odd", "#!/bin/sh\necho '"+pass+"'\n")
	h.write(".docker/config.json", `{"auths":{"r.example":{},"gone.example":{},"plain.example":{"username":"u","password":"p"}},
		"credsStore":"good","credHelpers":{"bad.example":"bad","odd.example":"odd","lost.example":"lost","evil.example":"../evil"}}`)
	k, err := h.keyring("")
	if err != nil {
		t.Fatal(err)
	}
	if len(k.Warnings()) > 0 {
		t.Errorf("warnings: %q", k.Warnings())
	}
	if got := passwords(t, k, "r.example/a"); len(got) != 1 || got[0] != pass {
		t.Error("the helper's password is not used")
	}
	c, err := k.For(ref(t, "p"))
	if err != nil || string(c.Candidates()[0].identity.Reveal()) != token {
		t.Errorf("the helper's identity token is not used: %v", err)
	}
	if got := passwords(t, k, "plain.example/a"); len(got) != 1 || got[0] != "p" {
		t.Error("the file's entry is not used where the helper has none")
	}
	for _, public := range []string{"gone.example/a", "other.example/a"} {
		if c, err := k.For(ref(t, public)); err != nil || !c.Anonymous() {
			t.Errorf("%s: %v, %v", public, c, err)
		}
	}
	for host, want := range map[string]string{
		"bad.example":  "docker-credential-bad failed with exit code 3",
		"odd.example":  "the answer of docker-credential-odd is not understood",
		"lost.example": "docker-credential-lost is not on the PATH",
		"evil.example": "its name is not",
	} {
		_, err := k.For(ref(t, host+"/a"))
		if !errors.Is(err, Invalid) || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%s: got %v, want %q", host, err, want)
		}
		w.Errors(err)
	}
}

func TestPullSecretRunsNoHelper(t *testing.T) {
	t.Parallel()
	k := keyring(t, "pull secret ns/s", []byte(`{"auths":{},"credsStore":"good","credHelpers":{"r.example":"good"}}`))
	if c, err := k.For(ref(t, "r.example/a")); err != nil || !c.Anonymous() {
		t.Errorf("%v, %v", c, err)
	}
}

func TestReadConfigFile_EmptyAndBroken(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	if _, err := h.keyring(h.write("empty", " \n")); err != nil {
		t.Error(err)
	}
	if _, err := h.keyring(h.write("broken", "{")); !errors.Is(err, Invalid) || !strings.Contains(err.Error(), filepath.Join(h.dir, "broken")) {
		t.Errorf("got %v", err)
	}
	if _, err := h.keyring(h.write("huge", strings.Repeat(" ", maxConfigFile+1))); !errors.Is(err, Invalid) {
		t.Errorf("got %v", err)
	}
}
