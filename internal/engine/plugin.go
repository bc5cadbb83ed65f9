package engine

import (
	"cmp"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/source"
	"github.com/stileproject/stile/internal/xds"
)

// pluginState is what the engine remembers of one plugin.
type pluginState struct {
	key     plugin.Key
	latest  *v1alpha1.WasmPlugin // as last read
	hash    string               // of latest, as documentHash has it
	invalid []v1alpha1.Finding   // what is wrong with latest; empty: nothing
	spec    *v1alpha1.WasmPlugin // what is in force: latest, or the last valid one before it
	valid   bool                 // spec is valid
	absent  bool                 // known from before a restart alone: its file may be one that cannot be read

	claim     claim
	claimFrom claimInputs
	owner     secret.Fingerprint // of claim's credentials
	firstSeen time.Time
	changedAt time.Time // for pull policy Always; zero: not since the start
	rotatedAt time.Time // the credentials changed while something ran
	waitedAt  time.Time // Pending since

	pin      pin
	outcome  outcome
	good     *version // what is delivered, or was last
	ended    bool     // the right to good has ended
	delivery xds.Delivery
	token    string // in the URL of good's module, for remote delivery
	epoch    uint64 // grows with each end of a right
	served   uint64 // the epoch under which good was delivered

	published *source.Publication // by the leader; nil: nothing

	runs       *RememberedVersion // of runsOf, as it was last remembered
	runsOf     *version
	shownURL   string // of latest, as statuses show it; shownOf is the url that it was made from
	shownOf    string
	warned     string    // the module that a warning of its trial was logged of
	wake       time.Time // when to decide again at the latest; zero: never
	conditions []Condition
}

// pin is the digest that a plugin's tag was resolved to.
type pin struct {
	image  oci.Reference
	digest string
}

// claimInputs are what a claim is made of: while they are the same, so is the claim.
type claimInputs struct {
	spec       *v1alpha1.WasmPlugin
	secret     *document.Secret
	unreadable bool // some file is, in which the Secret may be
	hidden     source.UnreadableSecret
}

// request asks for image with the credentials that the plugin has now.
func (ps *pluginState) request(image oci.Reference, lastGood bool) access.Request {
	return access.Request{
		Image: image, Credentials: ps.claim.credentials, Trust: ps.claim.trust,
		Holder: access.Holder{Namespace: ps.key.Namespace, Name: ps.key.Name, LastGood: lastGood},
	}
}

func (ps *pluginState) wakeAt(t time.Time) {
	if ps.wake.IsZero() || t.Before(ps.wake) {
		ps.wake = t
	}
}

// news is what a world changed for plans.
type news struct {
	all     bool                   // every plan
	files   map[string]bool        // of the groups with these Envoy files
	plugins []*v1alpha1.WasmPlugin // of the groups that these concern: as they were, and as they are
}

// setWorld takes over what the sources say: plugins come, change and go.
func (e *Engine) setWorld(w *source.World, now time.Time) (n news) {
	first := e.world == nil
	n.all = first || !maps.EqualFunc(e.world.Gateways, w.Gateways, func(a, b *document.Gateway) bool { return *a == *b })
	before := e.keyrings
	e.world = w
	e.classes = make(map[plugin.Key]string, len(w.Gateways))
	for key, g := range w.Gateways {
		e.classes[key] = g.Class
	}
	e.keyrings = map[*secretSource]oci.Keyring{}
	for _, s := range w.Secrets {
		if k, ok := before[s]; ok {
			e.keyrings[s] = k
		}
	}
	seen := map[plugin.Key]bool{}
	for _, p := range w.Plugins {
		key := plugin.Key{Namespace: p.Namespace, Name: p.Name}
		seen[key] = true
		ps := e.plugins[key]
		if ps == nil {
			ps = &pluginState{key: key, firstSeen: now}
			e.plugins[key] = ps
		}
		before, wasInvalid := ps.spec, ps.takesNoPart()
		fresh := ps.latest == nil
		ps.absent = false
		ps.read(p, slices.Concat(w.Invalid[key], p.ValidateHostEnv(e.cfg.HostEnvAllow)), now)
		if r, ok := e.recalled[key]; fresh && ok {
			ps.recall(r, now)
		} else if fresh && !first {
			ps.changedAt = now
		}
		if ps.spec != before || ps.takesNoPart() != wasInvalid {
			n.plugins = append(n.plugins, ps.spec)
			if before != nil {
				n.plugins = append(n.plugins, before)
			}
		}
		e.renew(ps, now)
		e.follow(ps, w.Published[key], fresh)
	}
	if first && len(w.Unreadable) > 0 {
		e.resurrect(seen, now)
	}
	for key, ps := range e.plugins {
		if !seen[key] && (!ps.absent || len(w.Unreadable) == 0) {
			e.release(ps)
			delete(e.plugins, key)
			n.plugins = append(n.plugins, ps.spec)
		}
	}
	if first {
		e.recalled = nil // what was deleted meanwhile is forgotten
	}
	e.order = slices.SortedFunc(maps.Keys(e.plugins), byName)
	n.files = e.setFiles(w.EnvoyFiles)
	return n
}

// resurrect brings back the plugins that were there before a restart and are in no file
// now, while there are files that cannot be read: theirs may be among them.
func (e *Engine) resurrect(seen map[plugin.Key]bool, now time.Time) {
	for key, r := range e.recalled {
		if seen[key] || r.InForce == nil {
			continue
		}
		ps := &pluginState{key: key, firstSeen: now, absent: true, latest: r.InForce, hash: r.Document, spec: r.InForce, valid: true}
		ps.invalid = []v1alpha1.Finding{{
			Severity: v1alpha1.SeverityError, Reason: v1alpha1.ReasonSyntax,
			Message: "is in no file that can be read, and was there before the restart; cannot be read: " + strings.Join(e.world.Unreadable, ", "),
		}}
		ps.recall(r, now)
		e.plugins[key] = ps
		e.renew(ps, now)
	}
}

// takesNoPart reports whether what is in force of a plugin is invalid: a plan then gives
// it a stand-in at most.
func (ps *pluginState) takesNoPart() bool { return !ps.valid }

func byName(a, b plugin.Key) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// read takes a document as it is now. An invalid one leaves the last valid one in force.
func (ps *pluginState) read(p *v1alpha1.WasmPlugin, invalid []v1alpha1.Finding, now time.Time) {
	ps.invalid = invalid
	if ps.latest == nil || !equal(ps.latest, p) { // else keep the pointer: it is what claims and versions compare
		if ps.latest != nil {
			ps.changedAt = now
		}
		ps.latest, ps.hash = p, documentHash(p)
	}
	if len(invalid) == 0 {
		ps.spec, ps.valid = ps.latest, true
	} else if !ps.valid {
		ps.spec = ps.latest
	}
}

// equal compares all that a plugin's author writes.
func equal(a, b *v1alpha1.WasmPlugin) bool {
	return reflect.DeepEqual(a.Spec, b.Spec) && reflect.DeepEqual(a.ObjectMeta, b.ObjectMeta)
}

// renew makes the plugin's claim again if what it is made of has changed. A claim that
// no longer uses a credential gives it up.
func (e *Engine) renew(ps *pluginState, now time.Time) {
	inputs := claimInputs{spec: ps.spec, unreadable: len(e.world.Unreadable) > 0, secret: e.world.Secrets[secretOf(ps.spec)], hidden: e.world.UnreadableSecrets[secretOf(ps.spec)]}
	if ps.claimFrom == inputs {
		return
	}
	old := ps.claim
	ps.claim, ps.claimFrom = e.claim(ps.spec), inputs
	owner := ps.claim.credentials.Fingerprint()
	if owner != ps.owner && ps.good != nil && !ps.good.recalled {
		ps.rotatedAt = now
	}
	if owner != ps.owner {
		kept := map[secret.Fingerprint]bool{}
		for _, c := range ps.claim.credentials.Candidates() {
			kept[c.Fingerprint()] = true
		}
		for _, c := range old.credentials.Candidates() {
			if !c.Anonymous() && !kept[c.Fingerprint()] {
				e.rooms.Gate.Forget(c.Fingerprint(), access.Holder{Namespace: ps.key.Namespace, Name: ps.key.Name})
			}
		}
	}
	ps.owner = owner
	ps.waitedAt = time.Time{}
}

// release gives up all that the plugin holds.
func (e *Engine) release(ps *pluginState) {
	for _, lastGood := range []bool{false, true} {
		e.rooms.Gate.Release(access.Holder{Namespace: ps.key.Namespace, Name: ps.key.Name, LastGood: lastGood})
	}
	e.closeURL(ps)
	e.tokens.forget(ps.key)
}

// decideAll decides every plugin, and returns those whose delivery changed and the
// earliest time at which one must be decided again.
func (e *Engine) decideAll(now time.Time) (changed map[plugin.Key]bool, next time.Time) {
	changed = map[plugin.Key]bool{}
	for _, key := range e.order {
		ps := e.plugins[key]
		before := ps.delivery
		beforeSpec := ps.delivered()
		e.decide(ps, now)
		if !sameDelivery(before, ps.delivery) || beforeSpec != ps.delivered() {
			changed[key] = true
			e.log.Info("delivery changed", "plugin", key, "delivery", ps.delivery.Mode.String(), "keep", ps.delivery.Keep, "reason", ps.outcome.reason)
		}
	}
	return changed, e.nextDeadline()
}

func (e *Engine) nextDeadline() (next time.Time) {
	for _, ps := range e.plugins {
		if !ps.wake.IsZero() && (next.IsZero() || ps.wake.Before(next)) {
			next = ps.wake
		}
	}
	return next
}

// decide finds out what the plugin delivers now.
func (e *Engine) decide(ps *pluginState, now time.Time) {
	ps.wake = time.Time{}
	ps.outcome = e.resolve(ps, now)
	if v := ps.outcome.verdict; v.State != access.Allowed && v.NextCheck.After(now) {
		ps.wakeAt(v.NextCheck)
	}
	stands := false
	if ps.outcome.progress == ready {
		e.take(ps, ps.outcome.version)
		stands = true
	} else if ps.good != nil {
		stands = e.stands(ps, now)
	}
	e.end(ps, ps.good != nil && !stands)
	e.deliver(ps, now)
}

// take makes v what the plugin runs.
func (e *Engine) take(ps *pluginState, v *version) {
	e.rooms.Gate.Release(access.Holder{Namespace: ps.key.Namespace, Name: ps.key.Name, LastGood: true})
	if ps.good.same(v) {
		return
	}
	if ps.good != nil && ps.good.module.SHA256 != v.module.SHA256 {
		e.closeURL(ps)
	}
	ps.good = v
	ps.rotatedAt = time.Time{}
}

// stands reports whether the right to what runs still stands though the wanted version
// is not at hand. What runs is asked for by its own digest with the credentials that
// the plugin has now: a Secret that went ends it at once, an edited one at its first
// verdict or after Config.Rotation. Where the plugin names a key, what runs must be
// signed by it, too.
func (e *Engine) stands(ps *pluginState, now time.Time) bool {
	good := ps.good
	if good.image.IsZero() {
		return true // http(s) and file: nobody's right to lose
	}
	if ps.claim.refused != nil && ps.claim.url.Scheme == v1alpha1.SchemeOCI {
		return ps.claim.unsure
	}
	request := ps.request(good.image, false)
	if ps.outcome.image != good.image || ps.claim.url.Scheme != v1alpha1.SchemeOCI {
		var ok bool
		if request, ok = e.lastGood(ps); !ok {
			return false
		}
	}
	proof, v := e.rooms.Gate.Hold(request)
	switch v.State {
	case access.Allowed:
		err := e.signed(ps, proof)
		return err == nil || errors.Is(err, content.ErrPending)
	case access.Denied:
		return false
	}
	if ps.rotatedAt.IsZero() {
		return v.State == access.Pending
	}
	until := ps.rotatedAt.Add(e.cfg.Rotation)
	ps.wakeAt(until)
	return now.Before(until)
}

// signed asks whether what a proof is for is signed by the key that the plugin names, if
// it names one.
func (e *Engine) signed(ps *pluginState, proof access.Proof) error {
	key := ps.spec.Spec.VerificationKey
	if key == "" {
		return nil
	}
	return e.rooms.Contents.Signed(proof, key)
}

// lastGood asks for what runs by its own digest, with the credentials that the plugin
// has now. It is false if those are no good or the registry may not be asked.
func (e *Engine) lastGood(ps *pluginState) (access.Request, bool) {
	request := ps.request(ps.good.image, true)
	if ps.claim.refused != nil {
		return request, false
	}
	var err error
	if request.Credentials, err = ps.claim.keyring.For(ps.good.image); err != nil {
		return request, false
	}
	request.Trust, err = e.rooms.Registries.Trust(ps.good.image.Host(), ps.key.Namespace)
	return request, err == nil
}

// end records that the right to what runs has ended, or that it has come back.
func (e *Engine) end(ps *pluginState, ended bool) {
	if ended && !ps.ended {
		e.closeURL(ps)
		e.log.Warn("right ended", "plugin", ps.key, "reason", ps.outcome.reason)
	}
	if ended && ps.epoch == ps.served && e.leads() {
		ps.epoch++ // the URLs given out are closed, and the next ones differ
	}
	ps.ended = ended
}

// deliver says what proxies are given.
func (e *Engine) deliver(ps *pluginState, now time.Time) {
	if ps.outcome.progress != pending {
		ps.waitedAt = time.Time{}
	} else if ps.waitedAt.IsZero() {
		ps.waitedAt = now
	}
	rotating := ps.good != nil && !ps.ended && ps.outcome.progress != ready && !ps.rotatedAt.IsZero()
	if ps.good != nil && !ps.ended && !rotating && e.revive(ps) {
		ps.delivery = e.module(ps)
		return
	}
	keep := ps.good != nil && (!ps.ended || e.cfg.OnRevoked == v1alpha1.OnRevokedKeep)
	ps.delivery = xds.Delivery{Mode: xds.StandIn, Keep: keep}
	if keep {
		ps.delivery.Kept = e.kept(ps)
	}
	if ps.outcome.progress == pending {
		if until := ps.waitedAt.Add(e.cfg.WarmHold); now.Before(until) {
			ps.delivery.Mode = xds.Hold
			ps.wakeAt(until)
		}
	}
}

// delivered returns the spec that what is delivered was made from.
func (ps *pluginState) delivered() *v1alpha1.WasmPlugin {
	switch ps.delivery.Mode {
	case xds.Inline, xds.Remote, xds.File:
		return ps.good.spec
	}
	return ps.spec
}

// sameDelivery compares all but the bytes, for which their sha256 stands.
func sameDelivery(a, b xds.Delivery) bool {
	return a.Mode == b.Mode && a.Keep == b.Keep && a.SHA256 == b.SHA256 && a.URL == b.URL && a.Path == b.Path
}
