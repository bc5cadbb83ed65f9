package content

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/store"
	"github.com/stileproject/stile/internal/wasm"
)

// errNobody says that nobody who asked has a right that stands.
var errNobody = errors.New("content: no proof stands")

// bring makes the item answerable: a record of what was delivered, room in the share
// of the namespace, and the bytes in memory if they are few.
func (c *Contents) bring(ctx context.Context, it *item, namespace string) error {
	c.mu.Lock()
	key, askers := it.verifier, slices.Clone(it.askers)
	c.mu.Unlock()
	if key != nil {
		return c.bringSigned(ctx, it, *key, askers)
	}
	err := c.bringOnce(ctx, it, namespace)
	if errors.Is(err, store.ErrCorrupt) || errors.Is(err, store.ErrNotFound) {
		err = c.bringOnce(ctx, it, namespace) // what the disk lost is fetched again
	}
	return problemOf(err)
}

func (c *Contents) bringOnce(ctx context.Context, it *item, namespace string) error {
	r, err := c.obtain(ctx, it)
	if err != nil {
		return err
	}
	c.mu.Lock()
	ok := c.adopt(it, r)
	usable := it.invalid() == nil
	inline := ok && it.module.Size <= c.config.InlineMax
	c.mu.Unlock()
	if !ok {
		return &Problem{Reason: ReasonStoreFull, Message: "the record of what was fetched cannot be read back", Retry: true}
	}
	if usable {
		err = c.ready(r.Module, namespace, inline)
	}
	return err
}

// ready charges the namespace for the module and loads its bytes if they are wanted.
func (c *Contents) ready(digest, namespace string, inline bool) error {
	if err := c.store.Use(digest, namespace); err != nil || !inline {
		return err
	}
	c.mu.Lock()
	in := c.inline[digest]
	c.mu.Unlock()
	if in != nil {
		return nil
	}
	b, err := c.store.Read(digest)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.inline[digest] = &inlined{bytes: b, asked: true}
	c.mu.Unlock()
	return nil
}

// obtain returns the record of the item: the store's, if its module is there and new
// enough, else that of a new delivery.
func (c *Contents) obtain(ctx context.Context, it *item) (store.Record, error) {
	c.mu.Lock()
	var request URLRequest
	isURL := it.url != nil
	if isURL {
		request = *it.url
	}
	askers := slices.Clone(it.askers)
	again := it.mendable() && it.invalid() != nil
	c.mu.Unlock()
	if r, ok := c.store.Get(it.key.source, it.key.name); ok && !again && c.store.Has(r.Module) && (!isURL || !request.stale(r.At)) {
		return r, nil
	}
	if isURL {
		return c.fetchURL(ctx, it.key, request)
	}
	return c.fetchFor(ctx, it, askers)
}

// fetchFor fetches with the right of one who asked.
func (c *Contents) fetchFor(ctx context.Context, it *item, askers []access.Proof) (r store.Record, err error) {
	err = each(askers, func(p access.Proof) error {
		r, err = c.fetchImage(ctx, it.key, p)
		return err
	})
	return r, err
}

// each does with the right of one who asked, the latest first. One whom the registry
// refuses, or who has no room, does not spoil it for the others.
func each(askers []access.Proof, do func(access.Proof) error) error {
	err := errNobody
	tried := map[right]bool{}
	for _, p := range slices.Backward(askers) {
		if !p.Stands() || tried[whose(p)] {
			continue
		}
		tried[whose(p)] = true
		if err = problemOf(do(p)); err == nil {
			return nil
		}
		if problem, _ := errors.AsType[*Problem](err); !concernsRight(problem.Reason) {
			break
		}
	}
	return err
}

// fetchImage has the source of the proof deliver what the proof's digest names: the
// manifest, the manifest under it if that is an index, and the layer with the module;
// each asked for by its digest from that very repository, and verified.
func (c *Contents) fetchImage(ctx context.Context, k itemKey, p access.Proof) (store.Record, error) {
	m, _, err := c.fetchManifest(ctx, p, p.Digest())
	for depth := 0; err == nil && m.index; depth++ {
		if depth == maxIndexes {
			return store.Record{}, invalid("the index leads to an index, %d times: give one that leads to a manifest", maxIndexes)
		}
		var d descriptor
		if d, err = m.choose(); err == nil {
			m, _, err = c.fetchManifest(ctx, p, d.Digest)
		}
	}
	if err != nil {
		return store.Record{}, err
	}
	layers, packaging, err := m.candidates()
	if err != nil {
		return store.Record{}, err
	}
	form := wasm.FormAny
	if packaging == "tar" {
		form = wasm.FormLayer
	}
	for i, l := range layers {
		var r store.Record
		r, err = c.fetchLayer(ctx, k, p, l, form, packaging)
		if err == nil || i == len(layers)-1 || !errors.Is(err, wasm.ErrNoModule) {
			return r, err
		}
	}
	return store.Record{}, err
}

// fetchManifest has the proof's source deliver the manifest with the digest. Whatever
// a header or a descriptor said, it is the bytes that are held against the digest.
func (c *Contents) fetchManifest(ctx context.Context, p access.Proof, digest string) (manifest, oci.Manifest, error) {
	raw, err := c.fetcher.Manifest(ctx, p.Image().At(digest), p.Credential(), p.Trust())
	if err != nil {
		return manifest{}, raw, err
	}
	if got := newDigest(sha256.Sum256(raw.Raw)); got != digest {
		return manifest{}, raw, &Problem{
			Reason:  ReasonDigestMismatch,
			Message: fmt.Sprintf("%s delivered a manifest with the digest %s instead of %s", p.Source(), got, digest),
			Retry:   true,
		}
	}
	m, err := parseManifest(raw.Raw, raw.MediaType)
	return m, raw, err
}

func (c *Contents) fetchLayer(ctx context.Context, k itemKey, p access.Proof, l descriptor, form wasm.Form, packaging string) (store.Record, error) {
	limits := wasm.Limits{Module: c.config.MaxModule}
	if most := limits.Most(); l.Size > most {
		return store.Record{}, &Problem{
			Reason:  ReasonModuleTooLarge,
			Message: fmt.Sprintf("layer %s has %d bytes, the limit is %d; raise fetch.maxModuleSize if the module is really that large", l.Digest, l.Size, most),
		}
	}
	progressOf(ctx).Total.Add(l.Size)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	blob, err := c.fetcher.Blob(ctx, p.Image(), l.oci(), p.Credential(), p.Trust())
	if err != nil {
		return store.Record{}, err
	}
	defer func() { _ = blob.Close() }()
	return c.take(ctx, taking{
		blob: blob, abandon: cancel, form: form, limits: limits, namespace: p.Namespace(),
		record: store.Record{Source: k.source, Name: k.name},
		facts:  moduleFacts{Digest: p.Digest(), Packaging: packaging},
	})
}

// taking is one delivery on its way into the store.
type taking struct {
	blob      io.Reader
	abandon   func() // has a Read of blob that waits return
	form      wasm.Form
	limits    wasm.Limits
	namespace string
	sha256    string // what the module must have; empty = anything
	record    store.Record
	facts     moduleFacts
	pin       bool // record the delivery under the module's sha256 too
}

// take unpacks the module into the store, reads the delivery to its last byte, for
// only there it is verified, looks at the module and commits. It holds a few buffers,
// whatever the sizes are.
func (c *Contents) take(ctx context.Context, t taking) (store.Record, error) {
	start := time.Now()
	w, err := c.store.Create(t.namespace)
	if err != nil {
		return store.Record{}, err
	}
	defer w.Abort()
	blob := readAhead(&counting{r: contextReader{ctx, t.blob}, n: &progressOf(ctx).Read})
	defer blob.stop(t.abandon)
	size, packaging, unpackErr := wasm.Unpack(w, blob, t.form, t.limits)
	// A damaged archive may be the sign of damaged bytes, and a module may end before its
	// layer does: the verdict on the bytes comes first, and comes at their end.
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{blob}, make([]byte, 64<<10)); err != nil && !isLimit(unpackErr) {
		return store.Record{}, err
	}
	if unpackErr != nil {
		return store.Record{}, unpackErr
	}
	digest := w.SHA256()
	if t.sha256 != "" && digest != t.sha256 {
		return store.Record{}, &Problem{
			Reason:  ReasonDigestMismatch,
			Message: fmt.Sprintf("the module delivered has the sha256 %s, the plugin wants %s", digest, t.sha256),
			Retry:   true,
		}
	}
	if t.facts.Packaging == "" {
		t.facts.Packaging = packaging
	}
	t.facts.Size = size
	t.facts.Info, t.facts.Findings, err = wasm.InspectReader(w.Reader())
	if err != nil {
		return store.Record{}, fmt.Errorf("read module back: %w", err)
	}
	if t.record.Data, err = json.Marshal(t.facts); err != nil {
		return store.Record{}, fmt.Errorf("encode facts: %w", err)
	}
	t.record.At = start
	records := []store.Record{t.record}
	if t.pin {
		other := t.record
		other.Name = pinned(digest)
		records = append(records, other)
	}
	if _, err := w.Commit(records...); err != nil {
		return store.Record{}, err
	}
	r, ok := c.store.Get(t.record.Source, t.record.Name)
	if !ok {
		return store.Record{}, fmt.Errorf("%w: evicted at once", store.ErrFull)
	}
	c.metrics.bytes.Add(float64(size))
	return r, nil
}

// isLimit reports whether unpacking was given up because there is too much: reading a
// bomb to its end to verify it would be its success.
func isLimit(err error) bool {
	_, ok := errors.AsType[*wasm.LimitError](err)
	return ok
}

// contextReader ends with its context, for readers that do not by themselves.
type contextReader struct {
	ctx context.Context //nolint:containedctx // it lives as long as one call
	r   io.Reader
}

func (r contextReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

// problemOf tells what an error means for a plugin, and whether a retry may help.
func problemOf(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*Problem](err); ok || errors.Is(err, errNobody) {
		return err
	}
	p := &Problem{Message: err.Error(), Retry: true}
	switch {
	case errors.Is(err, store.ErrFull), errors.Is(err, store.ErrNamespaceFull), errors.Is(err, store.ErrCorrupt), errors.Is(err, store.ErrNotFound):
		p.Reason = ReasonStoreFull
	case isLimit(err):
		p.Reason, p.Retry = ReasonModuleTooLarge, false
	case errors.Is(err, wasm.ErrNoModule), errors.Is(err, wasm.ErrArchive):
		p.Reason, p.Retry = ReasonModuleInvalid, false
	default:
		p.Reason, p.Retry = reasonOf(oci.KindOf(err))
	}
	return &wrapped{p, err}
}

// wrapped is a Problem that still knows its cause.
type wrapped struct {
	*Problem
	cause error
}

func (w *wrapped) Unwrap() []error { return []error{w.Problem, w.cause} }

func reasonOf(k oci.Kind) (reason string, retry bool) {
	switch k {
	case oci.Unauthorized:
		return ReasonUnauthorized, true
	case oci.NotFound:
		return ReasonImageNotFound, true
	case oci.Mismatch:
		return ReasonDigestMismatch, true
	case oci.TooLarge:
		return ReasonModuleTooLarge, false
	case oci.Invalid:
		return ReasonModuleInvalid, false
	case oci.Blocked:
		return ReasonSourceNotAllowed, true // names may resolve otherwise tomorrow
	default: // oci.Unavailable, time-outs, and what nobody foresaw
		return ReasonRegistryUnreachable, true
	}
}

func newDigest(sum [32]byte) string { return "sha256:" + hex.EncodeToString(sum[:]) }

// readSmall bounds what is read of a small document.
func readSmall(r io.Reader, limit int64) ([]byte, error) {
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(r, limit+1))
	if err == nil && n > limit {
		err = &Problem{Reason: ReasonModuleTooLarge, Message: fmt.Sprintf("a document is larger than %d bytes", limit)}
	}
	return b.Bytes(), err
}
