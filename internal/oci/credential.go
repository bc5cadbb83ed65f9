package oci

import (
	"encoding/binary"
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
	previous           secret.Fingerprint // under the root key before the last rotation
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
	c.fingerprint, c.previous = secret.Fingerprint{}, secret.Fingerprint{}
	if !c.empty() {
		c.fingerprint, c.previous = sumBoth(key, []byte("credential"), c.username.Reveal(), c.password.Reveal(), c.identity.Reveal(), c.bearer.Reveal())
	}
	return c
}

// sumBoth returns the parts' fingerprint, and what it was before the last rotation of
// the root key; zero if there was none.
func sumBoth(key secret.Key, parts ...[]byte) (now, previous secret.Fingerprint) {
	if old, ok := key.Previous(); ok {
		previous = old.Sum(parts...)
	}
	return key.Sum(parts...), previous
}

func (c Credential) empty() bool {
	return c.username.Empty() && c.password.Empty() && c.identity.Empty() && c.bearer.Empty()
}

// Fingerprint identifies the credential, whatever Secret it came from; zero for the
// anonymous one.
func (c Credential) Fingerprint() secret.Fingerprint { return c.fingerprint }

// Previous returns what Fingerprint was before the last rotation of the root key: only
// for finding what was kept under it. Zero if there was none, and for the anonymous one.
func (c Credential) Previous() secret.Fingerprint { return c.previous }

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
// are tried. The zero value is anonymous alone. They are immutable, one word long and
// not comparable, see Equal; equal lists have equal fingerprints, whatever Secrets they
// came from.
type Credentials struct {
	_  [0]func()
	of *candidates // nil = anonymous
}

type candidates struct {
	list                  []Credential // at least one, none twice, none anonymous
	fingerprint, previous secret.Fingerprint
}

// NewCredentials returns the candidates in the given order without duplicates and
// anonymous ones.
func NewCredentials(key secret.Key, list ...Credential) Credentials {
	return newCredentials(key, list, list)
}

// newCredentials is NewCredentials for candidates that were in another order before
// the last rotation of the root key.
func newCredentials(key secret.Key, list, before []Credential) Credentials {
	c := &candidates{list: distinct(list)}
	if len(c.list) == 0 {
		return Credentials{}
	}
	parts := [][]byte{[]byte("credentials")}
	for i := range c.list {
		parts = append(parts, c.list[i].fingerprint[:])
	}
	c.fingerprint = key.Sum(parts...)
	if old, ok := key.Previous(); ok {
		parts = parts[:1]
		former := distinct(before)
		for i := range former {
			parts = append(parts, former[i].previous[:])
		}
		c.previous = old.Sum(parts...)
	}
	return Credentials{of: c}
}

// distinct returns the list without duplicates and anonymous ones.
func distinct(list []Credential) []Credential {
	var kept []Credential
	seen := make(map[secret.Fingerprint]bool, len(list))
	for _, one := range list {
		if !one.Anonymous() && !seen[one.fingerprint] {
			seen[one.fingerprint] = true
			kept = append(kept, one)
		}
	}
	return kept
}

// Fingerprint identifies the list: the candidates and their order. Zero for anonymous.
func (c Credentials) Fingerprint() secret.Fingerprint {
	if c.of == nil {
		return secret.Fingerprint{}
	}
	return c.of.fingerprint
}

// Previous returns what Fingerprint was before the last rotation of the root key: only
// for finding what was kept under it. Zero if there was none, and for anonymous.
func (c Credentials) Previous() secret.Fingerprint {
	if c.of == nil {
		return secret.Fingerprint{}
	}
	return c.of.previous
}

// Equal reports whether both are the same candidates in the same order.
func (c Credentials) Equal(other Credentials) bool {
	return c.of == other.of || c.of != nil && other.of != nil && c.of.fingerprint == other.of.fingerprint
}

// Hash returns a hash for tables in memory: equal for equal Credentials.
func (c Credentials) Hash() uint64 {
	if c.of == nil {
		return 0
	}
	// A keyed digest: any eight bytes are as good as a hash of it.
	return binary.LittleEndian.Uint64(c.of.fingerprint[:])
}

// Anonymous reports whether no credential applies.
func (c Credentials) Anonymous() bool { return c.of == nil }

// Candidates returns the credentials in the order they are tried: at least one, the
// zero Credential where none applies. The caller must not change the slice.
func (c Credentials) Candidates() []Credential {
	if c.of == nil {
		return anonymousOnly
	}
	return c.of.list
}

var anonymousOnly = []Credential{{}}

// Format writes "[credentials fp:…]" for every verb.
func (c Credentials) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "[credentials "+c.Fingerprint().String()+"]")
}

// LogValue returns the fingerprint.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.Fingerprint().String()) }

// MarshalText returns the fingerprint in text.
func (c Credentials) MarshalText() ([]byte, error) { return c.Fingerprint().MarshalText() }
