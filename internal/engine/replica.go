package engine

import (
	"context"
	"time"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/source"
)

// Several replicas serve the same bytes at the same URLs because they follow one of
// them: what the leader resolved a tag to, and the epoch of each module's URL. A replica
// proves and fetches for itself all the same; a publication opens nothing.

// leads reports whether this replica's own resolutions and epochs count.
func (e *Engine) leads() bool { return e.cfg.Leads == nil || e.cfg.Leads() }

// Reconsider makes the engine decide every plugin again: the lead has changed, or what
// Config.Others says. It does not wait and may be called at any time from anywhere.
func (e *Engine) Reconsider() {
	select {
	case e.reconsider <- struct{}{}:
	default:
	}
}

// follow takes over what the leader has published. The leader itself does so for a
// plugin that it reads for the first time alone: from then on it is the one to know. A
// higher epoch all take over, for a status may be written by others, too, and what it says
// is what a replica that starts begins with.
func (e *Engine) follow(ps *pluginState, p *source.Publication, fresh bool) {
	ps.published = p
	if p == nil {
		return
	}
	if p.Epoch > ps.epoch && p.Epoch < v1alpha1.MaxEpoch {
		ps.epoch = p.Epoch
	}
	if e.leads() && !fresh {
		return
	}
	image := ps.claim.url.Image
	if p.URL != ps.spec.Spec.URL || image.IsZero() {
		return
	}
	if image.Digest() == "" && isDigest(image, p.Resolved) {
		ps.pin = pin{image: image, digest: p.Resolved}
	}
	// What the others serve and was made from the spec that is in force is what this one
	// serves too, before it has found out by itself.
	if fresh && ps.good == nil && p.SHA256 != "" && p.ServedGeneration == ps.spec.Generation && isDigest(image, p.Digest) {
		v := &version{spec: ps.spec, image: image.At(p.Digest), recalled: true}
		v.module = content.Module{Digest: p.Digest, SHA256: p.SHA256, Size: p.Size}
		if p.Size <= e.cfg.InlineMax {
			v.module.Inline = []byte{} // the bytes come with revive
		}
		ps.good, ps.served, ps.ended = v, min(p.ServedEpoch, ps.epoch), p.ServedEpoch < p.Epoch
	}
}

// follows reports whether the leader has resolved the tag that the plugin names now: it
// is not asked here.
func (e *Engine) follows(ps *pluginState) bool {
	p := ps.published
	return p != nil && !e.leads() && p.URL == ps.spec.Spec.URL && p.Resolved != "" && p.Resolved == ps.pin.digest
}

func isDigest(image oci.Reference, digest string) bool {
	_, err := oci.ParseReference(image.Source() + "@" + digest)
	return err == nil && digest != ""
}

// How long, and how many, requests for a module wait for a replica that has not heard
// of it yet, or is still proving and fetching it.
const (
	waitForModule = 15 * time.Second
	waitForToken  = 2 * time.Second // one that nobody has announced may be a stranger's guess
	maxWaiters    = 256
)

// await waits until the token is open, and reports whether it is.
func (e *Engine) await(ctx context.Context, token string) (opening, bool) {
	if v, open := e.tokens.get(token); open || e.cfg.Leads == nil {
		return v, open
	}
	select {
	case e.waiters <- struct{}{}:
		defer func() { <-e.waiters }()
	default:
		return opening{}, false
	}
	patience := time.NewTimer(waitForToken)
	defer patience.Stop()
	extended := false
	for {
		v, open, announced, changed := e.tokens.watch(token)
		if open {
			return v, true
		}
		if announced && !extended {
			extended = true
			patience.Reset(waitForModule)
		}
		select {
		case <-ctx.Done():
			return opening{}, false
		case <-patience.C:
			return opening{}, false
		case <-changed:
		}
	}
}

// announce tells which URLs other replicas give out whose modules are not at hand here.
func (e *Engine) announce() {
	if e.cfg.Leads == nil {
		return
	}
	announced := map[string]bool{}
	for _, ps := range e.plugins {
		p := ps.published
		if p == nil || p.SHA256 == "" || ps.token != "" {
			continue
		}
		announced[e.tokenOf(ps.key, p.SHA256, p.ServedEpoch)] = true
	}
	e.tokens.announce(announced)
}
