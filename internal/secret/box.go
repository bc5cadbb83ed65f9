package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
)

// ErrSealed says that sealed bytes were not sealed under this root, or were altered.
var ErrSealed = errors.New("sealed under another root key, or altered")

// Box seals bytes that must outlive the process and may hold what others must not
// read, with AES-256-GCM under a key of its own. It is safe for concurrent use and has
// no printable form. The zero Box panics when used.
type Box struct{ current, previous func() cipher.AEAD }

// Box returns the Box for p. What the previous root sealed opens too.
func (r Root) Box(p Purpose) Box {
	b := Box{current: aead(derivedBytes(r.current, p))}
	if !r.previous.Empty() {
		b.previous = aead(derivedBytes(r.previous, p))
	}
	return b
}

func aead(key []byte) func() cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("secret: AES with a 32-byte key failed: " + err.Error())
	}
	a, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic("secret: GCM failed: " + err.Error())
	}
	return func() cipher.AEAD { return a }
}

// Seal returns plain encrypted and authenticated, under a random nonce.
func (b Box) Seal(plain []byte) []byte {
	return b.current().Seal(nil, nil, plain, nil) //nolint:gosec // no nonce is given: this cipher.AEAD makes a random one itself
}

// Open returns what was sealed, or ErrSealed.
func (b Box) Open(sealed []byte) ([]byte, error) {
	for _, a := range []func() cipher.AEAD{b.current, b.previous} {
		if a == nil {
			continue
		}
		if plain, err := a().Open(nil, nil, sealed, nil); err == nil {
			return plain, nil
		}
	}
	return nil, ErrSealed
}

// Format writes "[box]" for every verb.
func (Box) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[box]") }
