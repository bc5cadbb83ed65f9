package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/stileproject/stile/internal/secret"
)

// maxConfigFile is the largest configuration file that is read: Kubernetes stores no
// larger Secret.
const maxConfigFile = 1 << 20

// DefaultKeyring returns the credentials of the person at the command line: those of
// authfile if it is not empty; else of REGISTRY_AUTH_FILE; else of config.json in
// DOCKER_CONFIG; else of ~/.docker/config.json and containers/auth.json (in
// XDG_RUNTIME_DIR, or XDG_CONFIG_HOME or ~/.config) together. A file that was named
// must exist, the others may lack. Credential helpers that the files name are run
// when For needs them. getenv is os.Getenv or a stand-in.
func DefaultKeyring(key secret.Key, authfile string, getenv func(string) string) (Keyring, error) {
	for _, named := range []string{authfile, getenv("REGISTRY_AUTH_FILE")} {
		if named != "" {
			return readConfigFile(key, named, getenv)
		}
	}
	if dir := getenv("DOCKER_CONFIG"); dir != "" {
		return readIfThere(key, filepath.Join(dir, "config.json"), getenv)
	}
	var rings []Keyring
	for _, file := range usualFiles(getenv) {
		k, err := readIfThere(key, file, getenv)
		if err != nil {
			return Keyring{}, err
		}
		rings = append(rings, k)
	}
	return JoinKeyrings(rings...), nil
}

// usualFiles returns where docker and podman keep credentials.
func usualFiles(getenv func(string) string) []string {
	var files []string
	home := getenv("HOME")
	if home != "" {
		files = append(files, filepath.Join(home, ".docker", "config.json"))
	}
	if dir := getenv("XDG_RUNTIME_DIR"); dir != "" {
		files = append(files, filepath.Join(dir, "containers", "auth.json"))
	}
	switch dir := getenv("XDG_CONFIG_HOME"); {
	case dir != "":
		files = append(files, filepath.Join(dir, "containers", "auth.json"))
	case home != "":
		files = append(files, filepath.Join(home, ".config", "containers", "auth.json"))
	}
	return files
}

func readIfThere(key secret.Key, file string, getenv func(string) string) (Keyring, error) {
	k, err := readConfigFile(key, file, getenv)
	if errors.Is(err, fs.ErrNotExist) {
		return Keyring{}, nil
	}
	return k, err
}

// readConfigFile reads a docker config.json, a containers auth.json or a legacy
// .dockercfg: the latter has no object "auths" around its entries.
func readConfigFile(key secret.Key, file string, getenv func(string) string) (Keyring, error) {
	data, err := readSmallFile(file)
	if err != nil {
		return Keyring{}, &Error{Op: "read credentials", Ref: file, Kind: Invalid, Err: err}
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return Keyring{}, nil // what a first login begins with
	}
	origin := "file " + file
	var fields map[string]json.RawMessage
	if json.Unmarshal(data, &fields) == nil && legacy(fields) {
		return ParseDockerCfg(key, origin, data)
	}
	k, err := ParseDockerConfigJSON(key, origin, data)
	if err != nil {
		return Keyring{}, err
	}
	helpers, ok := readHelpers(origin, data, getenv("PATH"))
	if !ok {
		return k, nil
	}
	k.helpers = []helperConfig{helpers}
	return k.withoutEmpty(fields["auths"]), nil
}

// legacy reports whether fields are registries: none is a name that config.json has,
// and all are objects.
func legacy(fields map[string]json.RawMessage) bool {
	for name, content := range fields {
		switch name {
		case "auths", "credsStore", "credHelpers", "HttpHeaders", "proxies", "plugins", "aliases", "currentContext", "detachKeys":
			return false
		}
		if !bytes.HasPrefix(bytes.TrimSpace(content), []byte("{")) {
			return false
		}
	}
	return len(fields) > 0
}

// withoutEmpty drops the entries that docker leaves behind, empty, for what it gave to
// a helper.
func (k Keyring) withoutEmpty(auths json.RawMessage) Keyring {
	var raw map[string]map[string]any
	if json.Unmarshal(auths, &raw) != nil {
		return k
	}
	empty := make(map[string]bool)
	for location, fields := range raw {
		if e, ok := newEntry(location); ok && len(fields) == 0 {
			empty[e.name] = true
		}
	}
	kept := Keyring{key: k.key, helpers: k.helpers}
	for _, e := range k.entries {
		if e.fault != "" && empty[e.name] {
			continue
		}
		kept.entries = append(kept.entries, e)
		if e.fault != "" {
			kept.warnings = append(kept.warnings, e.origin+": "+e.fault)
		}
	}
	kept.sort()
	return kept
}

func readSmallFile(name string) ([]byte, error) {
	f, err := os.Open(name) // #nosec G304 -- the user names it
	if err != nil {
		return nil, cause(err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigFile+1))
	if err != nil {
		return nil, cause(err)
	}
	if len(data) > maxConfigFile {
		return nil, fmt.Errorf("the file is larger than %d bytes", maxConfigFile)
	}
	return data, nil
}

// cause returns what is wrong without the path, which the Error around it names.
func cause(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}
