package xds

import "slices"

// Envoy keeps the extension that it was sent last, though it refused it, and makes every
// listener that names the extension anew from that: one bad plugin would hold up all
// later changes of the listener, its neighbours' among them. So a refusal is followed by
// something that loads: what the proxy ran before, or the plugin's stand-in where it ran
// nothing. And listeners that were refused are sent again once an extension of theirs loads.

// loaded is a resource in bytes that a proxy has loaded.
type loaded struct {
	resource *Resource
	try      int
}

// names reports whether a listener of ours refers to an extension.
func (r *Resource) names(extension string) bool {
	_, found := slices.BinarySearch(r.carries, extension)
	return found
}

// loads notes that the proxy has loaded an extension.
func (s *stream) loads(w *watch, i item) {
	if i.of == nil {
		return
	}
	if i.plain { // an ACK that says nothing
		delete(w.loaded, i.name)
		return
	}
	if w.loaded == nil {
		w.loaded = map[string]loaded{}
	}
	w.loaded[i.name] = loaded{i.of, i.try}
	delete(w.mends, i.name)
	s.thaw(i.name)
}

// breaks notes that the proxy refused an extension, and that it is to be given something
// that loads: also while it fetches a remote module, whose refusal says as little of the
// cause. What it refuses though it is meant to mend is not tried again.
func (s *stream) breaks(w *watch, i item) {
	if w.kind != extensions || i.mends {
		return
	}
	// With the code there the proof of a plain form is accepted. Refused, it says that the
	// plain form does not run, whatever its ACK seemed to say.
	if h := w.held[i.name]; h.plain && h.version == i.version {
		delete(w.held, i.name)
		delete(w.reported, nameBits(i.name))
	}
	if good, ok := w.loaded[i.name]; ok {
		s.server.rejections.keep(s.key, i.name, good)
	}
	if w.mends == nil {
		w.mends = map[string]struct{}{}
	}
	w.mends[i.name] = struct{}{}
}

// mend returns what a proxy is to be sent in place of a version of r that it refused: what
// it loaded last or, if it runs no module, the stand-in. A proxy that runs something that
// is not at hand here is left alone.
func (s *stream) mend(w *watch, snap *Snapshot, r *Resource) (item, bool) {
	if _, due := w.mends[r.Name]; !due {
		return item{}, false
	}
	delete(w.mends, r.Name)
	if s.server.rejections.get(s.key, rejectionKey{w.kind, r.Name, r.Version}).tries == 0 {
		return item{}, false // another version is on its way
	}
	good, ok := w.loaded[r.Name]
	if !ok {
		good, ok = s.server.rejections.kept(s.key, r.Name)
	}
	switch {
	case !w.runs(r.Name):
		good = loaded{resource: snap.standIns[r.Name]}
	case !ok || !w.holdsVersion(r.Name, good.resource.Version):
		return item{}, false
	}
	if good.resource == nil {
		return item{}, false
	}
	i := s.item(w, good.resource, good.try)
	i.mends = true
	return i, true
}

// runs reports whether the proxy is known to hold a real version of an extension.
func (w *watch) runs(name string) bool {
	if h, ok := w.held[name]; ok {
		return !isStandIn(h.version)
	}
	v, ok := w.reported[nameBits(name)]
	return ok && v.bits != ([describedBits]byte{})
}

// holdsVersion reports whether the proxy is known to hold a version of an extension.
func (w *watch) holdsVersion(name, version string) bool {
	if h, ok := w.held[name]; ok {
		return h.version == version
	}
	v, ok := w.reported[nameBits(name)]
	return ok && v.bits == versionBits(version)
}

// thaw lets listeners that were refused be sent again, if they name an extension that now
// loads.
func (s *stream) thaw(name string) {
	w := s.watches[listeners]
	snap := s.server.snapshotOf(s)
	if w == nil || snap == nil {
		return
	}
	for _, l := range snap.resources[listeners] {
		if l.names(name) && w.held[l.Name].version != l.Version && s.server.rejections.forgive(s.key, listeners, l.Name) {
			w.owed = w.owed || !w.delta
		}
	}
}
