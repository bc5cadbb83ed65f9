package engine

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/wasm"
)

// version is one complete thing to run: a spec, its module and the right to it.
type version struct {
	spec   *v1alpha1.WasmPlugin
	image  oci.Reference // pinned; zero for http(s) and file
	module content.Module
	proof  access.Proof // zero for http(s) and file
	source content.URLRequest
	path   string // file alone
	// recalled: remembered from before a restart, with nothing but what identifies it.
	recalled bool
	owner    secret.Fingerprint // of the credentials under which it was proven
}

// same reports whether v and w are the same bytes by the same spec and the same right: a
// right that ended and came back is another.
func (v *version) same(w *version) bool {
	return v != nil && w != nil && v.spec == w.spec && v.image == w.image &&
		v.module.SHA256 == w.module.SHA256 && v.path == w.path && v.owner == w.owner && v.proof == w.proof
}

// progress is how far the plugin's wanted version has come.
type progress uint8

const (
	pending progress = iota // nobody has answered yet
	ready                   // the version is at hand
	refused                 // it may not be had, or is no good
	unknown                 // it cannot be had now; asked again by itself
)

// outcome is what the rooms know of the wanted version, and why it is not at hand.
type outcome struct {
	progress progress
	version  *version      // ready alone
	image    oci.Reference // the pinned image, once a tag is resolved
	verdict  access.Verdict
	reason   string // of ResolvedRefs
	message  string
	tagGone  bool
}

func (o outcome) because(p progress, reason, format string, args ...any) outcome {
	o.progress, o.reason, o.message = p, reason, fmt.Sprintf(format, args...)
	return o
}

// resolve asks the rooms, from memory, for the version that the plugin wants.
func (e *Engine) resolve(ps *pluginState, now time.Time) outcome {
	c, spec := ps.claim, ps.spec
	if ps.takesNoPart() {
		return outcome{}.because(refused, v1alpha1.ReasonPending, "nothing is asked for while the document is invalid")
	}
	if c.refused != nil {
		return outcome{}.because(refused, c.refused.reason, "%s", c.refused.message)
	}
	switch c.url.Scheme {
	case v1alpha1.SchemeFile:
		o := outcome{version: &version{spec: spec, path: c.url.Path}}
		return o.because(ready, v1alpha1.ReasonNotVerifiable, "file %s is the proxy's own: stile neither opens nor verifies it", c.url.Path)
	case v1alpha1.SchemeHTTP, v1alpha1.SchemeHTTPS:
		return e.resolveURL(ps, now)
	}
	o := e.pin(ps, now)
	if o.image.IsZero() {
		return o
	}
	proof, v := e.rooms.Gate.Hold(ps.request(o.image, false))
	o.verdict = v
	if v.State != access.Allowed {
		return o.verdictIs(v)
	}
	module, err := e.rooms.Contents.Module(proof)
	if err != nil {
		return o.contentIs(err)
	}
	if err := e.signed(ps, proof); err != nil {
		return o.contentIs(err)
	}
	if o, wrong := o.wrongType(spec, module); wrong {
		return o
	}
	if o, held := e.tried(ps, o, module, func() (io.ReadSeekCloser, error) { return e.rooms.Contents.Open(proof) }); held {
		return o
	}
	o.version = &version{spec: spec, image: o.image, module: module, proof: proof, owner: c.credentials.Fingerprint()}
	if o.tagGone {
		return o.because(ready, v1alpha1.ReasonTagGone, "tag %s is gone from the registry; what runs is pinned to %s", c.url.Image, o.image.Digest())
	}
	o = o.because(ready, v1alpha1.ReasonResolved, "%s", o.image)
	if !v.StaleSince.IsZero() {
		o.message = fmt.Sprintf("%s; the registry has not confirmed it since %s", o.image, v.CheckedAt.UTC().Format(time.RFC3339))
	}
	return o
}

// resolveURL is resolve for http(s): the source is the URL, and no credential goes to it.
func (e *Engine) resolveURL(ps *pluginState, now time.Time) outcome {
	req := content.URLRequest{URL: ps.claim.url.Raw, SHA256: ps.spec.Spec.SHA256, Trust: ps.claim.trust, Namespace: ps.key.Namespace}
	if ps.claim.always {
		req.NotBefore = e.askedSince(ps, now)
	}
	module, err := e.rooms.Contents.URL(req)
	if err != nil {
		return outcome{}.contentIs(err)
	}
	if o, wrong := (outcome{}).wrongType(ps.spec, module); wrong {
		return o
	}
	if o, held := e.tried(ps, outcome{}, module, func() (io.ReadSeekCloser, error) { return e.rooms.Contents.OpenURL(req) }); held {
		return o
	}
	o := outcome{version: &version{spec: ps.spec, module: module, source: req}}
	return o.because(ready, v1alpha1.ReasonResolved, "%s", ps.claim.url)
}

// pin finds the digest that the plugin runs. A digest in the URL decides; a tag is
// resolved once and remembered for this plugin (IfNotPresent), or whenever the plugin
// changes and on the refresh interval (Always). While a resolution is asked again the
// one before stands, and a tag that is gone ends nothing.
func (e *Engine) pin(ps *pluginState, now time.Time) outcome {
	image, spec := ps.claim.url.Image, ps.spec.Spec
	if image.Digest() != "" {
		return outcome{image: image}
	}
	if ps.pin.image != image {
		ps.pin = pin{image: image}
	}
	want := ""
	if spec.SHA256 != "" {
		want = "sha256:" + spec.SHA256
	}
	pinned := ps.pin.digest != "" && (want == "" || want == ps.pin.digest)
	if pinned && (!ps.claim.always || e.follows(ps)) {
		return outcome{image: image.At(ps.pin.digest)}
	}
	req := ps.request(image, false)
	if ps.claim.always {
		req.NotBefore = e.askedSince(ps, now)
	}
	v := e.rooms.Gate.Check(req)
	o := outcome{verdict: v}
	if v.State != access.Allowed {
		if !pinned {
			return o.verdictIs(v)
		}
		o.image = image.At(ps.pin.digest)
		return o
	}
	if want != "" && want != v.Digest {
		return o.because(refused, v1alpha1.ReasonDigestMismatch, "%s is %s, but spec.sha256 says %s: correct spec.sha256 or the tag", image, v.Digest, want)
	}
	if v.Digest != ps.pin.digest {
		e.log.Info("tag resolved", "plugin", ps.key, "image", image.String(), "digest", v.Digest)
	}
	ps.pin.digest = v.Digest
	o.image, o.tagGone = image.At(v.Digest), v.Reason == access.TagGone
	return o
}

// askedSince returns the time before which an answer is too old for pull policy Always:
// the plugin's last change, or the last tick of the refresh interval after it.
func (e *Engine) askedSince(ps *pluginState, now time.Time) time.Time {
	every := e.cfg.RefreshAlways
	if every <= 0 {
		return ps.changedAt
	}
	since := ps.firstSeen
	if ps.changedAt.After(since) {
		since = ps.changedAt
	}
	ticks := now.Sub(since) / every
	ps.wakeAt(since.Add((ticks + 1) * every))
	if ticks == 0 {
		return ps.changedAt
	}
	return since.Add(ticks * every)
}

// verdictIs turns a verdict that is not a yes into an outcome.
func (o outcome) verdictIs(v access.Verdict) outcome {
	switch v.State {
	case access.Denied:
		return o.because(refused, string(v.Reason), "%s", v.Message)
	case access.Unknown:
		return o.because(unknown, reasonOr(string(v.Reason), v1alpha1.ReasonRegistryUnreachable), "%s", v.Message)
	default:
		return o.because(pending, v1alpha1.ReasonPending, "the registry has been asked and has not answered yet")
	}
}

// contentIs turns an error of package content into an outcome.
func (o outcome) contentIs(err error) outcome {
	var problem *content.Problem
	switch {
	case errors.Is(err, content.ErrPending), errors.Is(err, content.ErrNotProven):
		return o.because(pending, v1alpha1.ReasonPending, "the module is being fetched")
	case !errors.As(err, &problem):
		return o.because(unknown, v1alpha1.ReasonRegistryUnreachable, "%s", message(err))
	case problem.Retry:
		return o.because(unknown, problem.Reason, "%s", problem.Message)
	default:
		return o.because(refused, problem.Reason, "%s", problem.Message)
	}
}

// wrongType refuses a module that cannot do what the plugin's type asks of it.
func (o outcome) wrongType(spec *v1alpha1.WasmPlugin, m content.Module) (outcome, bool) {
	for _, f := range wasm.CheckType(m.Info, string(spec.Spec.EffectiveType())) {
		if f.Severity == v1alpha1.SeverityError {
			return o.because(refused, v1alpha1.ReasonModuleInvalid, "%s: %s", f.Message, f.Fix), true
		}
	}
	return o, false
}

func reasonOr(reason, otherwise string) string {
	if reason == "" {
		return otherwise
	}
	return reason
}
