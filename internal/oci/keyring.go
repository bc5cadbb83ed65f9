package oci

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/stileproject/stile/internal/reference"
	"github.com/stileproject/stile/internal/secret"
)

// Keyring is the entries of some pull secrets or configuration files. It looks
// credentials up as the kubelet does: every entry whose host (globs in its labels),
// port and path prefix fit is a candidate, in the reverse order of the entries'
// names; entries of one name are ordered by fingerprint, so that the order of
// Secrets means nothing. The zero value has no entries. Keyrings are immutable and
// safe for concurrent use.
type Keyring struct {
	key      secret.Key
	entries  []entry // sorted by name, reversed, then by fingerprint
	warnings []string
	helpers  []helperConfig // of configuration files on the command line; none for pull secrets
}

// entry is one registry's line in a pull secret.
type entry struct {
	name       string // host[:port][/path], without scheme and user
	host, port string
	globs      []string // the labels of host
	path       string
	credential Credential
	fault      string // why the entry cannot be used; empty if it can
	origin     string
}

// ParseDockerConfigJSON reads the content of a kubernetes.io/dockerconfigjson Secret
// (.dockerconfigjson), or what docker and podman write. The origin, as "pull secret
// team-a/regcred", is for messages. It fails only if the whole is unreadable; an
// entry that is malformed fails when it is needed, and is a warning otherwise. No
// error or warning quotes the content.
func ParseDockerConfigJSON(key secret.Key, origin string, data []byte) (Keyring, error) {
	var file struct {
		Auths map[string]json.RawMessage `json:"auths"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return Keyring{}, unreadable(origin, `a JSON object with the field "auths"`)
	}
	if file.Auths == nil {
		return Keyring{key: key, warnings: []string{origin + `: has no field "auths", so no entry`}}, nil
	}
	return newKeyring(key, origin, file.Auths), nil
}

// ParseDockerCfg reads the content of a legacy kubernetes.io/dockercfg Secret
// (.dockercfg): the entries without the object around them. Otherwise it is as
// ParseDockerConfigJSON.
func ParseDockerCfg(key secret.Key, origin string, data []byte) (Keyring, error) {
	var entries map[string]json.RawMessage
	if err := json.Unmarshal(data, &entries); err != nil {
		return Keyring{}, unreadable(origin, "a JSON object of registries")
	}
	return newKeyring(key, origin, entries), nil
}

// unreadable does not wrap the parser's error, which may quote the content.
func unreadable(origin, want string) error {
	return &Error{Op: "read credentials", Ref: origin, Kind: Invalid, Err: errors.New("not " + want)}
}

func newKeyring(key secret.Key, origin string, raw map[string]json.RawMessage) Keyring {
	k := Keyring{key: key}
	for location, content := range raw {
		e, ok := newEntry(location)
		if !ok {
			// The name may hold anything, a password too: it is not repeated.
			k.warnings = append(k.warnings, origin+": an entry's name is no registry, entry ignored")
			continue
		}
		e.origin = origin + ", entry " + e.name
		e.credential, e.fault = readEntry(content, e.origin)
		if e.fault != "" {
			k.warnings = append(k.warnings, e.origin+": "+e.fault)
		} else {
			e.credential = e.credential.sealed(key)
		}
		k.entries = append(k.entries, e)
	}
	k.sort()
	return k
}

// newEntry reads an entry's name: host[:port][/path] with or without a scheme. The
// paths /v1/ and /v2/ are the registry's root, as for the kubelet. Host and port are
// put as references put them: lower case, no 443.
func newEntry(location string) (entry, bool) {
	if !strings.HasPrefix(location, "https://") && !strings.HasPrefix(location, "http://") {
		location = "https://" + location
	}
	u, err := url.Parse(location)
	if err != nil || u.Host == "" {
		return entry{}, false
	}
	e := entry{path: u.Path}
	if strings.HasPrefix(e.path, "/v2/") || strings.HasPrefix(e.path, "/v1/") {
		e.path = e.path[len("/v2"):]
	}
	if e.path == "/" {
		e.path = ""
	}
	e.host, e.port = splitHost(strings.ToLower(u.Host))
	if _, err := path.Match(e.host, ""); err != nil && net.ParseIP(strings.Trim(e.host, "[]")) == nil {
		return entry{}, false
	}
	e.globs = strings.Split(e.host, ".")
	e.name = e.host
	if e.port != "" {
		e.name += ":" + e.port
	}
	e.name += e.path
	return e, true
}

// splitHost returns host and port; the port is empty if there is none or it is 443.
func splitHost(s string) (host, port string) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return s, ""
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port == "443" {
		port = ""
	}
	return host, port
}

// readEntry returns the credential that an entry holds, or what is wrong with it in
// words that do not quote it.
func readEntry(content json.RawMessage, origin string) (c Credential, fault string) {
	if !bytes.HasPrefix(bytes.TrimSpace(content), []byte("{")) {
		return c, "is not an object"
	}
	var fields struct{ Username, Password, Auth, IdentityToken, RegistryToken string }
	if err := json.Unmarshal(content, &fields); err != nil {
		return c, `"username", "password", "auth", "identitytoken" and "registrytoken" must be strings`
	}
	username, password := fields.Username, fields.Password
	if fields.Auth != "" { // as for the kubelet, auth wins
		var ok bool
		if username, password, ok = decodeAuth(fields.Auth); !ok {
			return c, `"auth" is not the base64 form of user:password`
		}
	}
	c = Credential{
		username: secret.New([]byte(username)),
		password: secret.New([]byte(password)),
		identity: secret.New([]byte(fields.IdentityToken)),
		bearer:   secret.New([]byte(fields.RegistryToken)),
		origin:   origin,
	}
	switch {
	case !sendable(username + password + fields.RegistryToken):
		return Credential{}, "has control characters, which cannot be sent"
	case c.empty():
		return Credential{}, `has neither "auth" nor "username" and "password"`
	}
	return c, ""
}

// decodeAuth reads base64(user:password), padded or not.
func decodeAuth(field string) (username, password string, ok bool) {
	encoding := base64.RawStdEncoding
	if strings.HasSuffix(strings.TrimSpace(field), "=") {
		encoding = base64.StdEncoding
	}
	decoded, err := encoding.DecodeString(field)
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(decoded), ":")
}

// sendable reports whether s can travel in a header: a line feed would make the
// request fail with an error that quotes it, or smuggle a header.
func sendable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

func (k *Keyring) sort() {
	slices.SortStableFunc(k.entries, func(a, b entry) int {
		return cmp.Or(
			cmp.Compare(b.name, a.name),
			bytes.Compare(a.credential.fingerprint[:], b.credential.fingerprint[:]),
			cmp.Compare(a.origin, b.origin),
		)
	})
	slices.Sort(k.warnings)
}

// JoinKeyrings returns the entries of all rings as one Keyring, in no way dependent on
// their order. All must have been parsed with the same key.
func JoinKeyrings(rings ...Keyring) Keyring {
	var joined Keyring
	for _, k := range rings {
		if len(k.entries) > 0 || len(k.helpers) > 0 {
			joined.key = k.key
		}
		joined.entries = append(joined.entries, k.entries...)
		joined.warnings = append(joined.warnings, k.warnings...)
		joined.helpers = append(joined.helpers, k.helpers...)
	}
	joined.sort()
	return joined
}

// Warnings returns what is wrong with entries, sorted. It quotes no content.
func (k Keyring) Warnings() []string { return slices.Clone(k.warnings) }

// For returns the credentials that apply to r's repository. If nothing applies they
// are anonymous. If an entry that applies is malformed, For fails with Kind Invalid
// and names the Secret and the entry: it never falls back to anonymous.
func (k Keyring) For(r Reference) (Credentials, error) {
	if helped, err := k.ask(r); err != nil || !helped.Anonymous() {
		return helped, err
	}
	applying := k.applying(r)
	candidates := make([]Credential, 0, len(applying))
	for _, e := range applying {
		if e.fault != "" {
			return Credentials{}, &Error{Op: "credentials for", Ref: r.Source(), Kind: Invalid, Err: fmt.Errorf("%s: %s", e.origin, e.fault)}
		}
		candidates = append(candidates, e.credential)
	}
	if len(candidates) == 0 {
		return Credentials{}, nil
	}
	return newCredentials(k.key, candidates, formerOrder(applying)), nil
}

// formerOrder returns the credentials of entries in the order they had before the last
// rotation of the root key: those of one rank are in the order of their fingerprints.
func formerOrder(entries []entry) []Credential {
	former := slices.Clone(entries)
	slices.SortStableFunc(former, func(a, b entry) int {
		return cmp.Or(cmp.Compare(b.name, a.name), bytes.Compare(a.credential.previous[:], b.credential.previous[:]))
	})
	list := make([]Credential, len(former))
	for i, e := range former {
		list[i] = e.credential
	}
	return list
}

// applying returns the entries that fit r, in their order.
func (k Keyring) applying(r Reference) []entry {
	host := r.Host()
	hub := host == reference.DockerHub
	if hub {
		host = "docker.io" // what the kubelet calls it when it looks
	}
	name, port := splitHost(host)
	labels, repository := strings.Split(name, "."), "/"+r.Repository()
	var found []entry
	for _, e := range k.entries {
		if e.port == port && strings.HasPrefix(repository, e.path) && e.fits(name, labels) {
			found = append(found, e)
		}
	}
	if len(found) > 0 || !hub {
		return found
	}
	// Docker's own name for its registry, as "docker login" writes it.
	for _, e := range k.entries {
		if e.name == reference.DockerHub {
			found = append(found, e)
		}
	}
	return found
}

// fits reports whether the entry is for a host: as many labels in both, and each fitting
// its glob.
func (e entry) fits(host string, labels []string) bool {
	if e.host == host {
		return true
	}
	if len(e.globs) != len(labels) {
		return false
	}
	for i, glob := range e.globs {
		if ok, err := path.Match(glob, labels[i]); err != nil || !ok {
			return false
		}
	}
	return true
}
