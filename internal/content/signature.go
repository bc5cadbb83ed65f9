package content

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // P-384, P-521 and Ed25519 keys sign with it
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// The formats of cosign: a simple-signing payload whose signature is an annotation, and
// a bundle with a signed in-toto statement.
const (
	typeSimpleSigning = "application/vnd.dev.cosign.simplesigning.v1+json"
	typeBundlePrefix  = "application/vnd.dev.sigstore.bundle.v0.3"
	typeBundleOther   = "application/vnd.dev.sigstore.bundle+json;version=0.3"
	annotationSig     = "dev.cosignproject.cosign/signature"
	payloadInToto     = "application/vnd.in-toto+json"
	typeStatement     = "https://in-toto.io/Statement/v1"
	predicateSign     = "https://sigstore.dev/cosign/sign/v1"
	typeCosign        = "cosign container image signature"
)

// Limits of what is read for one signature check. Everything is from a registry that
// has proven nothing yet.
const (
	maxSignatures = 32       // tried for one key
	maxPayload    = 64 << 10 // a simple-signing payload has some 300 bytes
	maxBundle     = 1 << 20
)

// verifier is a public key that signatures are checked with.
type verifier struct {
	key crypto.PublicKey
	// id is the sha256 of the key as it is encoded: by it verdicts are kept.
	id string
}

// parseKey reads one PEM public key in PKIX form: ECDSA, RSA or Ed25519.
func parseKey(text string) (verifier, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return verifier{}, errors.New("the verification key must be one public key in PEM form (-----BEGIN PUBLIC KEY-----)")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return verifier{}, errors.New("the verification key is no public key in PKIX form")
	}
	switch k := key.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return verifier{}, fmt.Errorf("the verification key is an RSA key of %d bits: 2048 is the least", k.N.BitLen())
		}
	default:
		return verifier{}, errors.New("the verification key must be an ECDSA, RSA or Ed25519 key")
	}
	sum := sha256.Sum256(block.Bytes)
	return verifier{key: key, id: hex.EncodeToString(sum[:])}, nil
}

// verify reports whether signature is the key's signature of message.
func (v verifier) verify(message, signature []byte) bool {
	switch key := v.key.(type) {
	case *ecdsa.PublicKey:
		// cosign has signed with SHA-256 whatever the curve, and later with the curve's own.
		hashes := []crypto.Hash{crypto.SHA256}
		switch size := key.Curve.Params().BitSize; {
		case size > 384:
			hashes = append(hashes, crypto.SHA512)
		case size > 256:
			hashes = append(hashes, crypto.SHA384)
		}
		for _, h := range hashes {
			if ecdsa.VerifyASN1(key, digestWith(h, message), signature) {
				return true
			}
		}
		return false
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, digestWith(crypto.SHA256, message), signature) == nil
	case ed25519.PublicKey:
		// cosign signs the message's hash (Ed25519ph); other tools, and it with KMS keys, the message.
		return ed25519.Verify(key, message, signature) ||
			ed25519.VerifyWithOptions(key, digestWith(crypto.SHA512, message), signature, &ed25519.Options{Hash: crypto.SHA512}) == nil
	default:
		return false
	}
}

func digestWith(h crypto.Hash, message []byte) []byte {
	w := h.New()
	w.Write(message)
	return w.Sum(nil)
}

// checkSimple reports why a simple-signing payload and its signature, in base64, do not
// say that the key's owner signed the digest; nil if they do. The signature is
// checked first: what is unsigned is not even read.
func (v verifier) checkSimple(payload []byte, signature, digest string) error {
	sig, err := base64.StdEncoding.DecodeString(signature)
	if err != nil || len(sig) == 0 {
		return errors.New("the signature is no base64")
	}
	if !v.verify(payload, sig) {
		return errors.New("signed by another key")
	}
	var p struct {
		Critical struct {
			Image struct {
				Digest string `json:"docker-manifest-digest"`
			} `json:"image"`
			Type string `json:"type"`
		} `json:"critical"`
	}
	if err := json.Unmarshal(payload, &p); err != nil {
		return errors.New("the signed payload is no JSON")
	}
	if p.Critical.Type != typeCosign {
		return fmt.Errorf("the signed payload is of type %q, not %q", clip(p.Critical.Type), typeCosign)
	}
	if p.Critical.Image.Digest != digest {
		return fmt.Errorf("it signs %q, not this image", clip(p.Critical.Image.Digest))
	}
	return nil
}

// checkBundle is checkSimple for a bundle: a DSSE envelope around an in-toto statement
// whose subject is the digest. A statement about something else than a signature, such
// as a bill of materials, is none.
func (v verifier) checkBundle(bundle []byte, digest string) error {
	var b struct {
		MediaType string `json:"mediaType"`
		Envelope  struct {
			Payload     []byte `json:"payload"`
			PayloadType string `json:"payloadType"`
			Signatures  []struct {
				Sig []byte `json:"sig"`
			} `json:"signatures"`
		} `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(bundle, &b); err != nil {
		return errors.New("the bundle is no JSON that can be read")
	}
	if !isBundle(b.MediaType) {
		return fmt.Errorf("the bundle has the media type %q", clip(b.MediaType))
	}
	e := b.Envelope
	if e.PayloadType != payloadInToto {
		return fmt.Errorf("the envelope holds %q, no in-toto statement", clip(e.PayloadType))
	}
	if len(e.Signatures) != 1 {
		return fmt.Errorf("the envelope has %d signatures, and must have one", len(e.Signatures))
	}
	if !v.verify(preAuthentication(e.PayloadType, e.Payload), e.Signatures[0].Sig) {
		return errors.New("signed by another key")
	}
	var s struct {
		Type          string `json:"_type"`
		PredicateType string `json:"predicateType"`
		Subject       []struct {
			Digest map[string]string `json:"digest"`
		} `json:"subject"`
	}
	if err := json.Unmarshal(e.Payload, &s); err != nil {
		return errors.New("the signed statement is no JSON")
	}
	if s.Type != typeStatement || s.PredicateType != predicateSign {
		return fmt.Errorf("the signed statement is a %q, no signature", clip(s.PredicateType))
	}
	for _, subject := range s.Subject {
		if "sha256:"+subject.Digest["sha256"] == digest {
			return nil
		}
	}
	return errors.New("it signs something else than this image")
}

func isBundle(mediaType string) bool {
	return strings.HasPrefix(mediaType, typeBundlePrefix) || mediaType == typeBundleOther
}

// preAuthentication is what a DSSE envelope signs.
func preAuthentication(payloadType string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
}
