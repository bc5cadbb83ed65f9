package kube

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/source"
)

// wantsPlugins is who wants the Secrets that plugins name.
const wantsPlugins = "plugins"

// knownPlugin is what is remembered of a plugin from one World to the next.
type knownPlugin struct {
	read        *pluginObject // as the informer has it, which reads it, too
	now         *pluginObject // the same, with the pointers of before where it says the same
	told        *pluginObject // as the last World has it; nil: not yet
	validSecret string        // the pull secret of its last valid generation, which may be what runs
	publication *source.Publication
	urls        map[int64]string // by generation, since the leader's last word
}

// read makes a World of what is known and hands it out if it says anything new. It returns when to look again; 0 is when
// something is heard.
func (s *Source) read(now time.Time) (again time.Duration) {
	if !s.complete() {
		return 0
	}
	s.look()
	waits, again := s.await(now)
	if s.last == nil && len(waits) > 0 {
		return again
	}
	world := s.world(waits)
	if s.last != nil && same(s.last, world) {
		return again
	}
	s.tell(world)
	s.last = world
	s.mu.Lock()
	s.hasRead = true
	s.mu.Unlock()
	s.metrics.worlds.Inc()
	select {
	case <-s.worlds:
	default:
	}
	s.worlds <- world
	return again
}

// look takes over which plugins there are, and says which Secrets they need.
func (s *Source) look() {
	objects := objectsOf[*pluginObject](s.plugins)
	seen := make(map[source.Key]bool, len(objects))
	var wants []source.Key
	want := func(namespace, name string) {
		if name != "" && s.mayRead(namespace) {
			wants = append(wants, source.Key{Namespace: namespace, Name: name})
		}
	}
	for _, o := range objects {
		key := source.Key{Namespace: o.Namespace, Name: o.Name}
		seen[key] = true
		k := s.known[key]
		if k == nil {
			k = &knownPlugin{urls: map[int64]string{}}
			s.known[key] = k
		}
		if k.read != o {
			k.take(o)
		}
		for _, name := range k.secrets() {
			want(key.Namespace, name)
		}
	}
	maps.DeleteFunc(s.known, func(key source.Key, _ *knownPlugin) bool { return !seen[key] })
	s.secrets.Want(wantsPlugins, wants)
	s.metrics.plugins.Set(float64(len(objects)))
}

// take takes over a new state of the object. What it shares with the old one stays the same pointer.
func (k *knownPlugin) take(o *pluginObject) {
	k.read = o
	for _, before := range []*pluginObject{k.told, k.now} {
		if before != nil && before.sameAs(o) {
			same := *o
			same.plugin, same.invalid, same.findings = before.plugin, before.invalid, before.findings
			o = &same
			break
		}
	}
	k.now = o
	if len(o.invalid) == 0 {
		k.validSecret = o.plugin.Spec.ImagePullSecret
	}
	k.urls[o.plugin.Generation] = o.plugin.Spec.URL
	if o.status.observedGeneration == 0 {
		k.publication = nil
		return
	}
	p := o.status.Publication
	p.URL = k.urls[p.Generation]
	if k.publication == nil || *k.publication != p {
		k.publication = &p
	}
	maps.DeleteFunc(k.urls, func(generation int64, _ string) bool {
		return generation < min(p.Generation, o.plugin.Generation) || generation < o.plugin.Generation-maxGenerations
	})
}

// maxGenerations is how many generations a leader may be behind before their urls are forgotten.
const maxGenerations = 16

// secrets are the names of the Secrets that the plugin needs, or may need again.
func (k *knownPlugin) secrets() []string {
	names := []string{k.now.plugin.Spec.ImagePullSecret, k.validSecret}
	if k.told != nil {
		names = append(names, k.told.plugin.Spec.ImagePullSecret)
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool { return name == "" })
}

// await returns the plugins that name a Secret whose first answer is still awaited, and when that ends.
func (s *Source) await(now time.Time) (waits map[source.Key]bool, again time.Duration) {
	waits = map[source.Key]bool{}
	for key, k := range s.known {
		name := k.now.plugin.Spec.ImagePullSecret
		if name == "" || !s.mayRead(key.Namespace) {
			continue
		}
		named := source.Key{Namespace: key.Namespace, Name: name}
		if _, known := s.secrets.Get(named); known {
			continue
		}
		if left := s.secrets.since(named).Add(s.firstAnswer).Sub(now); left > 0 {
			waits[key] = true
			if again == 0 || left < again {
				again = left
			}
		}
	}
	return waits, again
}

// world makes a World. Plugins that wait stay as they were told last, or untold: that a Secret has not been read yet is no
// reason to say that there is none.
func (s *Source) world(waits map[source.Key]bool) *source.World {
	w := &source.World{
		Invalid: map[source.Key][]v1alpha1.Finding{}, Secrets: map[source.Key]*document.Secret{}, Gateways: map[source.Key]*document.Gateway{},
		EnvoyFiles: map[string][]byte{}, UnreadableEnvoy: map[string]bool{}, UnreadableSecrets: map[source.Key]source.UnreadableSecret{},
		Published: map[source.Key]*source.Publication{},
	}
	states := map[string]int{secretPresent: 0, secretAbsent: 0, secretUnreadable: 0}
	for _, key := range slices.SortedFunc(maps.Keys(s.known), compareKeys) {
		k := s.known[key]
		if !waits[key] {
			k.told = k.now
		}
		if k.told == nil {
			continue
		}
		w.Plugins = append(w.Plugins, k.told.plugin)
		w.Findings = append(w.Findings, k.told.findings...)
		if len(k.told.invalid) > 0 {
			w.Invalid[key] = k.told.invalid
		}
		if k.publication != nil {
			w.Published[key] = k.publication
		}
		for _, name := range k.secrets() {
			states[s.addSecret(w, source.Key{Namespace: key.Namespace, Name: name})]++
		}
	}
	for state, n := range states {
		s.metrics.secrets.WithLabelValues(state).Set(float64(n))
	}
	s.addGateways(w)
	s.files.add(w, objectsOf[*listenerObject](s.configs))
	return w
}

// addSecret adds what is known of a Secret.
func (s *Source) addSecret(w *source.World, key source.Key) (state string) {
	if !s.mayRead(key.Namespace) {
		where := strings.Join(s.cfg.SecretNamespaces, ", ") + " alone"
		if len(s.cfg.SecretNamespaces) == 0 {
			where = "no namespace"
		}
		w.UnreadableSecrets[key] = source.UnreadableSecret{Why: fmt.Sprintf(
			"pull secret %s may not be read: stile reads Secrets in %s: put the plugin where it does, or add its namespace to the ones that stile may read",
			key, where)}
		return secretUnreadable
	}
	found, known := s.secrets.Get(key)
	why := s.secrets.Why(key)
	switch {
	case found != nil:
		w.Secrets[key] = found
		return secretPresent
	case why != nil:
		w.UnreadableSecrets[key] = source.UnreadableSecret{Why: why.Error(), Unsure: !known}
	case !known:
		w.UnreadableSecrets[key] = source.UnreadableSecret{Why: fmt.Sprintf("pull secret %s has not been read yet: the API server does not answer", key), Unsure: true}
	default:
		return secretAbsent
	}
	return secretUnreadable
}

// addGateways adds the Gateways; those of the last World while new ones are being read.
func (s *Source) addGateways(w *source.World) {
	if s.gateways != nil && !s.gateways.synced() && s.last != nil {
		w.Gateways = s.last.Gateways
		return
	}
	for _, o := range objectsOf[*gatewayObject](s.gateways) {
		key, g := source.Key{Namespace: o.Namespace, Name: o.Name}, o.gateway
		if s.last != nil {
			if old := s.last.Gateways[key]; old != nil && *old == *g {
				g = old
			}
		}
		w.Gateways[key] = g
	}
}

// same reports whether two Worlds say the same. Objects are compared by pointer: what did not change kept its own.
func same(a, b *source.World) bool {
	return slices.Equal(a.Plugins, b.Plugins) && maps.Equal(a.Secrets, b.Secrets) && maps.Equal(a.Gateways, b.Gateways) &&
		maps.EqualFunc(a.EnvoyFiles, b.EnvoyFiles, func(v, w []byte) bool { return string(v) == string(w) }) &&
		maps.Equal(a.UnreadableEnvoy, b.UnreadableEnvoy) && maps.Equal(a.UnreadableSecrets, b.UnreadableSecrets) &&
		maps.Equal(a.Published, b.Published) &&
		reflect.DeepEqual(a.Findings, b.Findings) && reflect.DeepEqual(a.Invalid, b.Invalid)
}

// tell logs what is new: each finding once, and the size of the first World.
func (s *Source) tell(w *source.World) {
	known := map[document.Finding]bool{}
	if s.last != nil {
		for _, f := range s.last.Findings {
			known[f] = true
		}
	}
	for _, f := range w.Findings {
		if !known[f] {
			s.log.Warn("resource", "kind", f.Kind, "namespace", f.Namespace, "name", f.Name,
				"field", f.Field, "severity", f.Severity, "reason", f.Reason, "message", f.Message)
		}
	}
	say := s.log.Debug
	if s.last == nil {
		say = s.log.Info
	}
	say("resources read", "plugins", len(w.Plugins), "secrets", len(w.Secrets), "gateways", len(w.Gateways), "envoyFiles", len(w.EnvoyFiles), "findings", len(w.Findings))
}
