// Package secret holds values that cannot be printed, and the keys under which
// they are compared. Its one rule: a secret leaves this package as a fingerprint
// or, inside package oci alone, as bytes; never as text.
package secret

import (
	"fmt"
	"io"
	"log/slog"
)

// redacted is what every printable form of a secret reads.
const redacted = "[secret]"

// Secret is a credential's bytes. It has no printable form: every fmt verb, slog
// and every text or JSON encoder writes "[secret]". The zero value is the empty
// secret. Secrets are immutable, safe for concurrent use and not comparable; to
// compare two, compare their fingerprints.
//
// The bytes live in a closure because fmt does not call methods on the unexported
// fields of other structs: a byte slice would leak through any struct that wraps it.
type Secret struct{ reveal func() []byte }

// New returns a Secret with a copy of b.
func New(b []byte) Secret {
	if len(b) == 0 {
		return Secret{}
	}
	own := append([]byte(nil), b...)
	return Secret{reveal: func() []byte { return own }}
}

// Empty reports whether s holds no bytes.
func (s Secret) Empty() bool { return s.reveal == nil }

// Reveal returns the bytes, which the caller must neither change nor keep. Only
// package oci may call it, to put a credential on the wire; the linter holds that.
func (s Secret) Reveal() []byte {
	if s.reveal == nil {
		return nil
	}
	return s.reveal()
}

// Fingerprint returns what s may be compared and cached by: its HMAC under k.
func (s Secret) Fingerprint(k Key) Fingerprint { return k.Sum(s.Reveal()) }

// Format writes "[secret]" for every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// String returns "[secret]".
func (Secret) String() string { return redacted }

// LogValue returns "[secret]".
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns "[secret]"; JSON and YAML encoders use it.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
