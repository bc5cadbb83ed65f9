package secret

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"sync"

	"sigs.k8s.io/yaml"
)

// Size is the length in bytes of a root key, a derived key and a fingerprint.
const Size = sha256.Size

// Purpose separates the keys derived from one root: a value made for one purpose
// tells nothing about, and is never equal to, a value made for another.
type Purpose string

// The purposes that stile derives keys for.
const (
	ForProofs       Purpose = "stile/v1/proofs"       // the key under which a proof is filed
	ForFingerprints Purpose = "stile/v1/fingerprints" // credentials, as they are compared and shown
	ForRows         Purpose = "stile/v1/rows"         // the MAC of each stored row
	ForURLs         Purpose = "stile/v1/urls"         // the unguessable part of module URLs
	ForState        Purpose = "stile/v1/state"        // what the engine remembers over a restart
)

// Root is the one secret of a stile installation, shared by its replicas. Every
// other key is derived from it. The zero Root is not valid.
type Root struct{ current, previous Secret }

// NewRoot returns the Root with the given keys of Size bytes; previous may be empty.
func NewRoot(current, previous []byte) (Root, error) {
	if len(current) != Size {
		return Root{}, fmt.Errorf("root key: current: want %d bytes, have %d", Size, len(current))
	}
	if len(previous) != 0 && len(previous) != Size {
		return Root{}, fmt.Errorf("root key: previous: want %d bytes or none, have %d", Size, len(previous))
	}
	return Root{current: New(current), previous: New(previous)}, nil
}

// ParseRoot reads a key file: YAML with the fields current and previous (optional),
// 64 hexadecimal digits each. Its errors name the field and never the content.
func ParseRoot(file []byte) (Root, error) {
	var doc struct{ Current, Previous string }
	if err := yaml.UnmarshalStrict(file, &doc); err != nil {
		// The parser's own message may quote the line, which is a key.
		return Root{}, errors.New(`root key: not YAML with the fields "current" and "previous" alone`)
	}
	current, err := parseHex("current", doc.Current)
	if err != nil {
		return Root{}, err
	}
	previous, err := parseHex("previous", doc.Previous)
	if err != nil {
		return Root{}, err
	}
	return NewRoot(current, previous)
}

func parseHex(field, text string) ([]byte, error) {
	b, err := hex.DecodeString(strings.TrimSpace(text))
	if err != nil {
		return nil, fmt.Errorf("root key: %s: want %d hexadecimal digits", field, 2*Size)
	}
	return b, nil
}

// FormatRoot returns the key file that ParseRoot reads. It is for writing a new
// key file once; the result is as secret as the key.
func FormatRoot(r Root) []byte {
	text := "current: " + hex.EncodeToString(r.current.Reveal()) + "\n"
	if !r.previous.Empty() {
		text += "previous: " + hex.EncodeToString(r.previous.Reveal()) + "\n"
	}
	return []byte(text)
}

// Valid reports whether r was made by NewRoot or ParseRoot.
func (r Root) Valid() bool { return !r.current.Empty() }

// Key returns the current key for p, which knows the one before the last rotation.
func (r Root) Key(p Purpose) Key {
	k := derive(r.current, p)
	if previous, ok := r.Previous(p); ok {
		k.previous = previous.pool
	}
	return k
}

// Previous returns the key for p under the root before the last rotation, if there is one.
func (r Root) Previous(p Purpose) (Key, bool) {
	if r.previous.Empty() {
		return Key{}, false
	}
	return derive(r.previous, p), true
}

// derivedBytes returns the key for p under root. A zero root panics.
func derivedBytes(root Secret, p Purpose) []byte {
	if root.Empty() {
		panic("secret: key derived from a zero Root")
	}
	k, err := hkdf.Key(sha256.New, root.Reveal(), nil, string(p), Size)
	if err != nil {
		panic("secret: HKDF of one block failed: " + err.Error()) // cannot happen: Size is one block
	}
	return k
}

func derive(root Secret, p Purpose) Key {
	k := derivedBytes(root, p)
	// A pool of keyed hashes: making one costs two block operations and an allocation.
	pool := &sync.Pool{New: func() any { return hmac.New(sha256.New, k) }}
	return Key{pool: func() *sync.Pool { return pool }}
}

// Key computes fingerprints for one purpose. It is safe for concurrent use and has
// no printable form. The zero Key panics when used.
type Key struct{ pool, previous func() *sync.Pool }

// Previous returns the key for the same purpose under the root before the last
// rotation, if there is one.
func (k Key) Previous() (Key, bool) { return Key{pool: k.previous}, k.previous != nil }

// Sum returns the HMAC-SHA256 of the parts, each preceded by its length, so that
// no two lists of parts have the same input.
func (k Key) Sum(parts ...[]byte) Fingerprint {
	pool := k.pool()
	h := pool.Get().(hash.Hash)
	h.Reset()
	var length [8]byte
	for _, part := range parts {
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		h.Write(length[:])
		h.Write(part)
	}
	var f Fingerprint
	h.Sum(f[:0])
	pool.Put(h)
	return f
}

// Format writes "[key]" for every verb.
func (Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[key]") }

// Format writes "[root key]" for every verb.
func (Root) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[root key]") }

// Fingerprint is a keyed digest: equal for equal input under one key, and telling
// nothing about the input to whoever lacks the key. The zero value stands for
// "nothing", and no input has it.
type Fingerprint [Size]byte

// IsZero reports whether f stands for nothing.
func (f Fingerprint) IsZero() bool { return f == Fingerprint{} }

// String returns "fp:" and the first 12 hexadecimal digits: enough to tell
// credentials apart in a log. The zero Fingerprint is "anonymous".
func (f Fingerprint) String() string {
	if f.IsZero() {
		return "anonymous"
	}
	return "fp:" + hex.EncodeToString(f[:6])
}

// MarshalText returns String; JSON and YAML encoders use it.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }
