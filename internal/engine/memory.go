package engine

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"time"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/plugin"
)

// Memory keeps what the engine must know again after a restart (DESIGN P9).
type Memory interface {
	// Recall returns what was remembered last; it is called once, before the first turn.
	Recall() map[plugin.Key]Remembered
	// Remember takes all that is to be known again, and does not wait for a disk. The
	// caller changes neither the map nor what is in it afterwards.
	Remember(map[plugin.Key]Remembered)
}

// Remembered is what the engine knows of one plugin and cannot find out again from
// resources, proofs and content alone.
type Remembered struct {
	Document  string             `json:"document"`           // hash of the document as last read
	ChangedAt time.Time          `json:"changedAt,omitzero"` // when it last changed, for pull policy Always
	Tag       string             `json:"tag,omitempty"`      // the image whose tag was resolved …
	Digest    string             `json:"digest,omitempty"`   // … and to what
	Epoch     uint64             `json:"epoch,omitempty"`    // of the module's URL
	Runs      *RememberedVersion `json:"runs,omitempty"`
	// InForce is the document that was in force, if there was a valid one.
	InForce *v1alpha1.WasmPlugin `json:"inForce,omitempty"`
}

// RememberedVersion is what proxies run of a plugin.
type RememberedVersion struct {
	Plugin *v1alpha1.WasmPlugin `json:"plugin"`           // the document that it was made from
	Image  string               `json:"image,omitempty"`  // pinned
	SHA256 string               `json:"sha256,omitempty"` // of the module
	Size   int64                `json:"size,omitempty"`
	Inline bool                 `json:"inline,omitempty"` // it travels within xDS
	Ended  bool                 `json:"ended,omitempty"`  // the right to it has ended
}

// documentHash identifies what a plugin's author wrote. Generation and resourceVersion
// are a server's counters, and not written by anybody.
func documentHash(p *v1alpha1.WasmPlugin) string {
	written := struct {
		Labels, Annotations map[string]string
		Spec                v1alpha1.WasmPluginSpec
	}{p.Labels, p.Annotations, p.Spec}
	text, err := json.Marshal(written)
	if err != nil {
		return "" // never equal to a hash: the plugin counts as changed
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// recall gives a plugin that is read for the first time since the start what was
// remembered of it. A document that changed meanwhile counts as changed now.
func (ps *pluginState) recall(r Remembered, now time.Time) {
	ps.epoch = r.Epoch
	ps.changedAt = r.ChangedAt
	if r.Document != documentHash(ps.latest) {
		ps.changedAt = now
	}
	if image, err := oci.ParseReference(r.Tag); err == nil {
		ps.pin = pin{image: image, digest: r.Digest}
	}
	if r.Runs == nil || r.Runs.Plugin == nil {
		return
	}
	v := &version{spec: r.Runs.Plugin, recalled: true}
	v.module = content.Module{SHA256: r.Runs.SHA256, Size: r.Runs.Size}
	if r.Runs.Inline {
		v.module.Inline = []byte{} // the bytes come with revive
	}
	if image, err := oci.ParseReference(r.Runs.Image); err == nil {
		v.image, v.module.Digest = image, image.Digest()
	}
	if documentHash(v.spec) == r.Document && documentHash(ps.latest) == r.Document {
		v.spec = ps.latest
	}
	ps.good, ps.ended, ps.served = v, r.Runs.Ended, r.Epoch
	if r.Runs.Ended && r.Epoch > 0 {
		ps.served--
	}
	if !ps.valid {
		ps.spec, ps.valid = v.spec, true
	}
}

// revive gives a recalled version its module, by the right that the plugin has now. It
// reports whether the version can be delivered to proxies that do not hold it.
func (e *Engine) revive(ps *pluginState) bool {
	v := ps.good
	if !v.recalled {
		return true
	}
	if v.image.IsZero() {
		return false // http(s) and file: the wanted version is at hand as soon as this one
	}
	request, ok := e.lastGood(ps)
	if !ok {
		return false
	}
	proof, verdict := e.rooms.Gate.Hold(request)
	if verdict.State != access.Allowed {
		return false
	}
	module, err := e.rooms.Contents.Module(proof)
	if err != nil || module.SHA256 != v.module.SHA256 {
		return false
	}
	ps.good = &version{spec: v.spec, image: v.image, module: module, proof: proof, owner: request.Credentials.Fingerprint()}
	return true
}

// remember hands over what must be known again after a restart, if that has changed.
func (e *Engine) remember() {
	if e.cfg.Memory == nil {
		return
	}
	next := make(map[plugin.Key]Remembered, len(e.plugins))
	for key, ps := range e.plugins {
		r := Remembered{Document: ps.hash, ChangedAt: ps.changedAt, Digest: ps.pin.digest, Epoch: ps.epoch}
		if ps.valid {
			r.InForce = ps.spec
		}
		if ps.pin.digest != "" {
			r.Tag = ps.pin.image.String()
		}
		if v := ps.good; v != nil && v.path == "" {
			if ps.runs == nil || ps.runsOf != v || ps.runs.Ended != ps.ended {
				ps.runsOf = v
				ps.runs = &RememberedVersion{
					Plugin: v.spec, Image: v.image.String(), SHA256: v.module.SHA256, Size: v.module.Size,
					Inline: v.module.Inline != nil, Ended: ps.ended,
				}
			}
			r.Runs = ps.runs
		}
		next[key] = r
	}
	if maps.Equal(next, e.remembered) {
		return
	}
	e.remembered = next
	e.cfg.Memory.Remember(next)
}
