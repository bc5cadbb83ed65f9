package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/stileproject/stile/internal/reference"
	"github.com/stileproject/stile/internal/secret"
)

const (
	// helperTimeout bounds a credential helper: it may have to ask a person to unlock a
	// key chain, and no longer.
	helperTimeout = 60 * time.Second
	// maxHelperAnswer is how much of a helper's answer is read.
	maxHelperAnswer = 1 << 20
)

// helperName is what a helper may be called: no path, so that what runs is on the
// user's PATH.
var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// helperConfig is what one of the user's configuration files says of credential helpers.
type helperConfig struct {
	origin string
	store  string            // the helper for every registry
	byHost map[string]string // by canonical host
	path   string            // where helpers are looked for, as PATH
}

// readHelpers returns what a configuration file says of helpers, and whether it says
// anything.
func readHelpers(origin string, data []byte, path string) (helperConfig, bool) {
	var file struct {
		CredsStore  string            `json:"credsStore"`
		CredHelpers map[string]string `json:"credHelpers"`
	}
	if json.Unmarshal(data, &file) != nil || file.CredsStore == "" && len(file.CredHelpers) == 0 {
		return helperConfig{}, false
	}
	h := helperConfig{origin: origin, store: file.CredsStore, byHost: make(map[string]string), path: path}
	for location, name := range file.CredHelpers {
		if e, ok := newEntry(location); ok && e.path == "" {
			h.byHost[canonicalHost(e.name)] = name
		}
	}
	return h, true
}

// ask asks the helpers for r's registry. It returns anonymous if none applies or has
// anything, and fails if one that applies does.
func (k Keyring) ask(r Reference) (Credentials, error) {
	for _, h := range k.helpers {
		name := h.byHost[r.Host()]
		if name == "" {
			name = h.store
		}
		if name == "" {
			continue
		}
		c, err := h.get(k.key, name, r.Host())
		if err != nil {
			return Credentials{}, &Error{Op: "credentials for", Ref: r.Source(), Kind: Invalid, Err: err}
		}
		if !c.Anonymous() {
			return NewCredentials(k.key, c), nil
		}
	}
	return Credentials{}, nil
}

// get runs docker-credential-<name> get. Nothing that the helper writes is repeated in
// an error.
func (h helperConfig) get(key secret.Key, name, host string) (Credential, error) {
	fault := func(format string, args ...any) (Credential, error) {
		return Credential{}, fmt.Errorf("%s: credential helper: %s", h.origin, fmt.Sprintf(format, args...))
	}
	if !helperName.MatchString(name) {
		return fault("its name is not letters, digits, '.', '_' and '-'")
	}
	program := "docker-credential-" + name
	file, ok := h.find(program)
	if !ok {
		return fault("%s is not on the PATH", program)
	}
	server := host
	if host == reference.DockerHub {
		server = "https://index.docker.io/v1/" // what docker login calls it
	}
	ctx, cancel := context.WithTimeout(context.Background(), helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, file, "get") // #nosec G204 -- the user's own configuration names it, and it has no path
	cmd.Stdin = strings.NewReader(server)
	cmd.WaitDelay = time.Second
	out := &limited{rest: maxHelperAnswer}
	cmd.Stdout = out
	if err := cmd.Run(); err != nil {
		if strings.Contains(out.String(), "credentials not found") {
			return Credential{}, nil
		}
		if ctx.Err() != nil {
			return fault("%s did not answer within %s", program, helperTimeout)
		}
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return fault("%s failed with exit code %d", program, exit.ExitCode())
		}
		return fault("%s could not be run", program)
	}
	var answer struct{ Username, Secret string }
	if json.Unmarshal(out.Bytes(), &answer) != nil || !sendable(answer.Username+answer.Secret) {
		return fault("the answer of %s is not understood", program)
	}
	origin := h.origin + ", credential helper " + name
	if answer.Username == "<token>" {
		return Credential{identity: secret.New([]byte(answer.Secret)), origin: origin}.sealed(key), nil
	}
	return NewCredential(key, origin, answer.Username, answer.Secret), nil
}

// find returns the file of a program on the path.
func (h helperConfig) find(program string) (string, bool) {
	for _, dir := range filepath.SplitList(h.path) {
		if !filepath.IsAbs(dir) {
			continue // as os/exec does: what lies in the working folder is not run
		}
		file := filepath.Join(dir, program)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file, true
		}
	}
	return "", false
}

// limited keeps the first bytes of what is written.
type limited struct {
	bytes.Buffer
	rest int
}

func (l *limited) Write(p []byte) (int, error) {
	keep := p[:min(len(p), l.rest)]
	l.rest -= len(keep)
	_, _ = l.Buffer.Write(keep)
	return len(p), nil
}
