package content

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/store"
)

// ReasonSignatureInvalid says that no signature of the image fits the key.
const ReasonSignatureInvalid = "SignatureInvalid"

// referrers is what a Fetcher may have besides: the index of what refers to a digest,
// by the registry's own API.
type referrers interface {
	Referrers(context.Context, oci.Reference, oci.Credential, oci.Trust) (oci.Manifest, error)
}

// signedName is under what a verified signature is recorded: for a digest and a key.
func signedName(digest, keyID string) string { return "signed " + keyID + " " + digest }

// Signed reports whether a cosign signature of the proof's digest by the PEM public key
// was verified. Like Module it answers from memory and never waits: nil, ErrPending,
// ErrNotProven or a *Problem, which is tried again in the background: a signature may
// be pushed after its image.
func (c *Contents) Signed(p access.Proof, pemKey string) error {
	if !p.Stands() {
		return ErrNotProven
	}
	key, err := parseKey(pemKey)
	if err != nil {
		return &Problem{Reason: ReasonSignatureInvalid, Message: err.Error()}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.ask(itemKey{p.Source(), signedName(p.Digest(), key.id)}, p)
	it.verifier = &key
	if !it.signed {
		_, it.signed = c.store.Get(it.key.source, it.key.name)
	}
	switch {
	case it.signed:
		return nil
	case it.problem != nil:
		return it.problem
	default:
		c.enqueue(it, p.Namespace())
		return ErrPending
	}
}

// VerifySignature is Signed for those who may wait, with or without Run. It asks the
// registry unless the signature was verified before.
func (c *Contents) VerifySignature(ctx context.Context, p access.Proof, pemKey string) error {
	if !p.Stands() {
		return ErrNotProven
	}
	key, err := parseKey(pemKey)
	if err != nil {
		return &Problem{Reason: ReasonSignatureInvalid, Message: err.Error()}
	}
	k := itemKey{p.Source(), signedName(p.Digest(), key.id)}
	if _, ok := c.store.Get(k.source, k.name); ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.config.Timeout)
	defer cancel()
	return problemOf(c.verify(ctx, k, p, key))
}

// bringSigned verifies with the right of one who asked.
func (c *Contents) bringSigned(ctx context.Context, it *item, key verifier, askers []access.Proof) error {
	if _, ok := c.store.Get(it.key.source, it.key.name); !ok {
		err := each(askers, func(p access.Proof) error { return c.verify(ctx, it.key, p, key) })
		if err != nil {
			return problemOf(err)
		}
	}
	c.mu.Lock()
	it.signed, it.problem = true, nil
	c.mu.Unlock()
	return nil
}

// verify looks for a signature in both of cosign's places, and keeps that there is one.
func (c *Contents) verify(ctx context.Context, k itemKey, p access.Proof, key verifier) error {
	var found []string // why those that are there do not count
	for _, look := range []func(context.Context, access.Proof, verifier) ([]string, error){c.inTag, c.inReferrers} {
		why, err := look(ctx, p, key)
		if errors.Is(err, errSigned) {
			if err := c.store.Put(store.Record{Source: k.source, Name: k.name, Namespace: p.Namespace()}); err != nil {
				c.log.Warn("content: a verified signature cannot be kept", "image", p.Image().String(), "error", err)
			}
			return nil
		}
		if err != nil {
			return err
		}
		found = append(found, why...)
	}
	message := "there is no signature of " + p.Image().String() + " in its repository: sign it with cosign sign --key"
	if len(found) > 0 {
		message = fmt.Sprintf("none of the %d signatures of %s fits the verification key: %s", len(found), p.Image(), listing(found))
	}
	return &Problem{Reason: ReasonSignatureInvalid, Message: message, Retry: true}
}

// errSigned ends the search: one signature fits.
var errSigned = errors.New("signed")

// inTag looks into the manifest under the tag sha256-<hex>.sig.
func (c *Contents) inTag(ctx context.Context, p access.Proof, key verifier) ([]string, error) {
	m, err := c.tagged(ctx, p, ".sig")
	if err != nil || m == nil {
		return nil, err
	}
	var found []string
	for _, l := range m.Layers {
		if l.MediaType != typeSimpleSigning || len(found) == maxSignatures {
			continue
		}
		payload, why := c.small(ctx, p, l, maxPayload)
		if why == nil {
			why = key.checkSimple(payload, l.Annotations[annotationSig], p.Digest())
		} else if !itself(why) {
			return nil, why
		}
		if why == nil {
			return nil, errSigned
		}
		found = append(found, why.Error())
	}
	return found, nil
}

// inReferrers looks into the bundles that refer to the digest, by the registry's API or
// where it has none by the tag sha256-<hex>.
func (c *Contents) inReferrers(ctx context.Context, p access.Proof, key verifier) ([]string, error) {
	index, err := c.refersTo(ctx, p)
	if err != nil || index == nil {
		return nil, err
	}
	// Some registries give the config's type for the artifact's: what says that it is a
	// bundle comes first, and the rest is not left out.
	slices.SortStableFunc(index.Manifests, func(a, b descriptor) int {
		return cmp.Compare(place(a.ArtifactType), place(b.ArtifactType))
	})
	var found []string
	for _, d := range index.Manifests[:min(len(index.Manifests), maxSignatures)] {
		why := c.inBundle(ctx, p, key, d.Digest)
		switch {
		case why == nil: // it refers to the image and is no signature
		case errors.Is(why, errSigned):
			return nil, why
		case itself(why):
			found = append(found, why.Error())
		default:
			return nil, why
		}
	}
	return found, nil
}

func place(artifactType string) int {
	if isBundle(artifactType) {
		return 0
	}
	return 1
}

// inBundle looks into one manifest that refers to the image: errSigned, why its bundle
// does not count, or nil if it has none.
func (c *Contents) inBundle(ctx context.Context, p access.Proof, key verifier, digest string) error {
	m, _, err := c.fetchManifest(ctx, p, digest)
	if err != nil {
		return err
	}
	for _, l := range m.Layers {
		if !isBundle(l.MediaType) {
			continue
		}
		bundle, err := c.small(ctx, p, l, maxBundle)
		if err == nil {
			err = key.checkBundle(bundle, p.Digest())
		}
		if err == nil {
			return errSigned
		}
		return err // bundles come one to a manifest
	}
	return nil
}

// itself reports whether an error is about one signature, and says nothing of others:
// what was delivered is no good, or was not delivered.
func itself(err error) bool {
	switch oci.KindOf(err) {
	case oci.NotFound, oci.Mismatch, oci.Invalid, oci.TooLarge:
		return true
	case 0:
		return !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
	default:
		return false
	}
}

// refersTo returns the index of what refers to the proof's digest; nil if nothing does.
func (c *Contents) refersTo(ctx context.Context, p access.Proof) (*manifest, error) {
	if api, ok := c.fetcher.(referrers); ok {
		raw, err := api.Referrers(ctx, p.Image(), p.Credential(), p.Trust())
		if err == nil {
			m, err := parseManifest(raw.Raw, raw.MediaType)
			return &m, err
		}
		if !errors.Is(err, oci.NotFound) {
			return nil, err
		}
	}
	return c.tagged(ctx, p, "")
}

// tagged returns the manifest under the tag that is made of the proof's digest; nil if
// there is none.
func (c *Contents) tagged(ctx context.Context, p access.Proof, suffix string) (*manifest, error) {
	tag := strings.Replace(p.Digest(), ":", "-", 1) + suffix
	ref, err := oci.ParseReference(p.Source() + ":" + tag)
	if err != nil {
		return nil, fmt.Errorf("signature tag: %w", err)
	}
	raw, err := c.fetcher.Manifest(ctx, ref, p.Credential(), p.Trust())
	if errors.Is(err, oci.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(raw.Raw, raw.MediaType)
	return &m, err
}

// small reads a blob of at most limit bytes.
func (c *Contents) small(ctx context.Context, p access.Proof, d descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, fmt.Errorf("it has %d bytes, the limit is %d", d.Size, limit)
	}
	blob, err := c.fetcher.Blob(ctx, p.Image(), d.oci(), p.Credential(), p.Trust())
	if err != nil {
		return nil, err
	}
	defer func() { _ = blob.Close() }()
	return readSmall(blob, limit)
}
