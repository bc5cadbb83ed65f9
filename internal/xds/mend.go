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
	if i.of == nil || i.plain {
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
// that loads. What it refuses though it is meant to mend is not tried again.
func (s *stream) breaks(w *watch, i item) {
	if w.kind != extensions || i.remote || i.mends {
		return
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
	if !ok || good.resource.Version == r.Version {
		_, reported := w.reported.real(r)
		if held, has := w.held[r.Name]; reported || has && !isStandIn(held.version) {
			return item{}, false
		}
		good = loaded{resource: snap.standIns[r.Name]}
	}
	if good.resource == nil {
		return item{}, false
	}
	i := s.item(w, good.resource, good.try)
	i.mends = true
	return i, true
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
