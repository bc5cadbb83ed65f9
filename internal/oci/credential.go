package oci

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/stileproject/stile/internal/secret"
)

// Credential is one way to be somebody at a registry: a user name and password, an
// identity token (to be exchanged for bearer tokens) or a registry token (a bearer
// token itself). The zero value is anonymous. It has no printable form; it is
// immutable and not comparable: compare fingerprints.
type Credential struct {
	username, password secret.Secret
	identity           secret.Secret // OAuth2 refresh token
	bearer             secret.Secret // sent as it is
	origin             string
	fingerprint        secret.Fingerprint
}

// NewCredential returns the credential of a user name and password. The origin is for
// messages alone. Empty user name and password give the anonymous credential.
func NewCredential(key secret.Key, origin, username, password string) Credential {
	return Credential{
		username: secret.New([]byte(username)),
		password: secret.New([]byte(password)),
		origin:   origin,
	}.sealed(key)
}

// sealed returns c with its fingerprint computed.
func (c Credential) sealed(key secret.Key) Credential {
	c.fingerprint = secret.Fingerprint{}
	if !c.empty() {
		c.fingerprint = key.Sum([]byte("credential"), c.username.Reveal(), c.password.Reveal(), c.identity.Reveal(), c.bearer.Reveal())
	}
	return c
}

func (c Credential) empty() bool {
	return c.username.Empty() && c.password.Empty() && c.identity.Empty() && c.bearer.Empty()
}

// Fingerprint identifies the credential, whatever Secret it came from; zero for the
// anonymous one.
func (c Credential) Fingerprint() secret.Fingerprint { return c.fingerprint }

// Anonymous reports whether c is nobody.
func (c Credential) Anonymous() bool { return c.fingerprint.IsZero() }

// Origin says where c was written, as "pull secret team-a/regcred, entry
// registry.example:5000". It is for messages and no part of c's identity.
func (c Credential) Origin() string { return c.origin }

// Format writes "[credential fp:…]" for every verb.
func (c Credential) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, c.String())
}

// String returns "[credential fp:…]".
func (c Credential) String() string { return "[credential " + c.fingerprint.String() + "]" }

// LogValue returns the fingerprint.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.fingerprint.String()) }

// MarshalText returns the fingerprint in text.
func (c Credential) MarshalText() ([]byte, error) { return c.fingerprint.MarshalText() }

// Credentials are the candidates that apply to one repository, in the order they
// are tried. The zero value is anonymous alone. They are immutable, and equal lists
// have equal fingerprints, whatever Secrets they came from.
type Credentials struct {
	candidates  []Credential // none twice
	fingerprint secret.Fingerprint
}

// NewCredentials returns the candidates in the given order without duplicates and
// anonymous ones.
func NewCredentials(key secret.Key, candidates ...Credential) Credentials {
	var c Credentials
	seen := make(map[secret.Fingerprint]bool, len(candidates))
	parts := [][]byte{[]byte("credentials")}
	for _, one := range candidates {
		if one.Anonymous() || seen[one.fingerprint] {
			continue
		}
		seen[one.fingerprint] = true
		c.candidates = append(c.candidates, one)
		parts = append(parts, c.candidates[len(c.candidates)-1].fingerprint[:])
	}
	if len(c.candidates) > 0 {
		c.fingerprint = key.Sum(parts...)
	}
	return c
}

// Fingerprint identifies the list: the candidates and their order. Zero for anonymous.
func (c Credentials) Fingerprint() secret.Fingerprint { return c.fingerprint }

// Anonymous reports whether no credential applies.
func (c Credentials) Anonymous() bool { return len(c.candidates) == 0 }

// Candidates returns the credentials in the order they are tried: at least one, the
// zero Credential where none applies. The caller must not change the slice.
func (c Credentials) Candidates() []Credential {
	if len(c.candidates) == 0 {
		return anonymousOnly
	}
	return c.candidates
}

var anonymousOnly = []Credential{{}}

// Format writes "[credentials fp:…]" for every verb.
func (c Credentials) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "[credentials "+c.fingerprint.String()+"]")
}

// LogValue returns the fingerprint.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.fingerprint.String()) }

// MarshalText returns the fingerprint in text.
func (c Credentials) MarshalText() ([]byte, error) { return c.fingerprint.MarshalText() }
