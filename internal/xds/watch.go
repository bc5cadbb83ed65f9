package xds

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/anypb"
)

// watch is what one stream asks for of one type and what its proxy holds of it. It belongs to
// the stream's goroutine.
type watch struct {
	kind  int // index in servedTypes
	delta bool

	wildcard bool
	named    bool                // state of the world: names were given once, so an empty list means none
	names    map[string]struct{} // asked for by name
	asked    map[string]ask      // of those: not answered since they were asked for
	owed     bool                // an answer is owed though there may be nothing in it
	fresh    bool                // the proxy held nothing of this type when it connected, and has been sent nothing
	began    bool                // the proxy held nothing of this type when it connected

	held     map[string]holding   // what the proxy is known to have
	reported described            // what a state-of-the-world proxy said it had when it connected
	retryAt  map[string]time.Time // when a remote module is sent again
	loaded   map[string]loaded    // extensions that the proxy said it loaded, on this stream
	mends    map[string]struct{}  // extensions that were refused, and are to be followed by something that loads
	requests int                  // how many requests there were

	nonce  string  // of the last answer
	flight *answer // the last answer, until the proxy says yes or no to it
	last   string  // state of the world: version of the set last sent
}

// holding is one version of a resource at a proxy.
type holding struct {
	version  string // of the resource, whatever the try
	try      int
	plain    bool      // it was sent in the form whose acceptance proves nothing
	resource *Resource // clusters alone: to name it once more until nothing refers to it
	told     bool      // known by a state-of-the-world proxy's word alone: good for keeping, not for sending nothing
}

// ask is a name that awaits its answer.
type ask struct {
	at    time.Time
	first bool // it came with the stream's first request of its type
}

// String returns the version as it is told to the proxy.
func (h holding) String() string {
	if h.plain {
		return h.version + plainSuffix
	}
	if h.try == 0 {
		return h.version
	}
	return h.version + "~" + strconv.Itoa(h.try)
}

// plainSuffix marks, in a version, the plain form of a remote module.
const plainSuffix = "~plain"

// parseHolding reads a version that a proxy reports.
func parseHolding(s string) holding {
	if version, ok := strings.CutSuffix(s, plainSuffix); ok {
		return holding{version: version, plain: true}
	}
	base, try, ok := strings.Cut(s, "~")
	if n, err := strconv.Atoi(try); ok && err == nil && n > 0 {
		return holding{version: base, try: n}
	}
	return holding{version: s}
}

// answer is one response, before it is put into the words of the protocol.
type answer struct {
	items   []item
	removed []string
	set     string // state of the world, whole types: the version of the set
}

type item struct {
	name string
	holding
	any    *anypb.Any
	remote bool
	of     *Resource // extensions alone
	mends  bool      // it follows a refusal: see mend.go
}

func newWatch(kind int, delta bool) *watch {
	return &watch{kind: kind, delta: delta, names: map[string]struct{}{}, asked: map[string]ask{}, held: map[string]holding{}}
}

// whole reports whether the watch's type is answered with everything there is: listeners and
// clusters. Of the others the proxy names each.
func (w *watch) whole() bool { return w.kind == listeners || w.kind == clusters }

// subscribes reports whether the proxy asks for a name.
func (w *watch) subscribes(name string) bool {
	if w.wildcard {
		return true
	}
	_, ok := w.names[name]
	return ok
}

// subscribe adds a name; the proxy awaits an answer for it.
func (w *watch) subscribe(name string, now time.Time) {
	if name == "*" {
		if w.whole() {
			w.wildcard, w.owed = true, true
		}
		return
	}
	w.names[name] = struct{}{}
	w.asked[name] = ask{at: now, first: w.requests <= 1}
}

// unsubscribe drops a name; whatever the proxy held of it is gone.
func (w *watch) unsubscribe(name string) {
	if name == "*" {
		w.wildcard = false
		return
	}
	delete(w.names, name)
	delete(w.asked, name)
	delete(w.retryAt, name)
	delete(w.loaded, name)
	delete(w.mends, name)
	delete(w.reported, nameBits(name))
	if !w.wildcard {
		delete(w.held, name)
	}
}

// setNames applies the list of names of a state-of-the-world request and returns the names
// that are no longer asked for.
func (w *watch) setNames(names []string, now time.Time) (dropped []string) {
	if len(names) == 0 && !w.named {
		if w.whole() && !w.wildcard {
			w.wildcard, w.owed = true, true
		}
		return nil
	}
	w.named = true
	wildcard := false
	wanted := make(map[string]struct{}, len(names))
	for _, n := range names {
		if n == "*" {
			wildcard = w.whole()
			continue
		}
		wanted[n] = struct{}{}
	}
	for _, n := range slices.Sorted(maps.Keys(w.names)) {
		if _, ok := wanted[n]; !ok {
			w.unsubscribe(n)
			dropped = append(dropped, n)
		}
	}
	for n := range wanted {
		if _, ok := w.names[n]; !ok {
			w.subscribe(n, now)
			w.owed = w.owed || w.whole()
		}
	}
	if wildcard != w.wildcard {
		w.wildcard = wildcard
		w.owed = true
	}
	return dropped
}

// next returns the answer that is due; nil if none is. At most one is in flight: what a slow
// proxy has not taken yet is never more than that one, and the next is made of what is then the
// latest.
func (s *stream) next(w *watch, snap *Snapshot) *answer {
	switch {
	case w.flight != nil:
		return nil
	case !w.whole():
		return s.nextNamed(w, snap)
	case w.delta:
		return s.nextDifference(w, snap)
	default:
		return s.nextSet(w, snap)
	}
}

// nextNamed answers for one name, of the types that proxies ask for by name. One resource in
// each response: a refusal covers a response. What is not there is answered nothing: a proxy that
// is told so waits for it without end, where it would have gone on after a time-out.
func (s *stream) nextNamed(w *watch, snap *Snapshot) *answer {
	// What there is, not what is asked for: a proxy may ask for thousands of names.
	for _, r := range snap.resources[w.kind] {
		name := r.Name
		_, asked := w.asked[name]
		if !w.subscribes(name) {
			continue
		}
		if s.keeps(w, r) || r.Hold {
			continue
		}
		if i, due := s.mend(w, snap, r); due {
			return &answer{items: []item{i}}
		}
		held, has := w.held[name]
		if has && !asked && !held.told && held.version == r.Version && !s.provesNow(w, r, held) {
			continue
		}
		if asked && w.reported.plain(r) {
			// Sent again it could be a live update by plain remote. Its proof will follow.
			delete(w.asked, name)
			w.held[name] = holding{version: r.Version, plain: true}
			s.server.setEntry(s, w.kind, name, w.held[name], Sent, "")
			s.retryIn(w, name, proofAfter)
			continue
		}
		try, send := s.try(w, r, asked)
		if !send {
			s.markRejected(w, r)
			continue
		}
		delete(w.asked, name)
		delete(w.retryAt, name)
		return &answer{items: []item{s.item(w, r, try)}}
	}
	return nil
}

// keeps reports whether the proxy shall keep what it runs: r is kept and the proxy has a real
// version of it.
func (s *stream) keeps(w *watch, r *Resource) bool {
	if !r.Keep {
		return false
	}
	held, has := w.held[r.Name]
	if !has {
		if v, ok := w.reported.real(r); ok {
			held, has = v, true
			w.held[r.Name] = held
			s.server.setEntry(s, w.kind, r.Name, held, Accepted, "")
		}
	}
	if !has || isStandIn(held.version) {
		return false
	}
	delete(w.asked, r.Name)
	return true
}

func (s *stream) item(w *watch, r *Resource, try int) item {
	i := item{name: r.Name, holding: holding{version: r.Version, try: try, plain: r.plain && try == 0}, any: r.Any, remote: r.remote}
	if try > 0 {
		i.any = r.variant(try)
	}
	switch w.kind {
	case clusters:
		i.resource = r
	case extensions:
		i.of = r
	}
	return i
}

// nextSet answers with all listeners or clusters that are asked for, in the state of the world.
func (s *stream) nextSet(w *watch, snap *Snapshot) *answer {
	if snap.bare && !w.began {
		return nil // what it holds came from somewhere: an answer would take it away
	}
	a := &answer{}
	for _, r := range s.wanted(w, snap) {
		if r.Hold {
			return nil
		}
		a.items = append(a.items, s.item(w, r, 0))
	}
	a.set = setVersion(a.items)
	if !w.owed && a.set == w.last {
		return nil
	}
	refused := s.server.rejections.get(s.key, rejectionKey{w.kind, "", a.set})
	if refused.tries > 0 && !w.fresh {
		w.owed = false
		for _, r := range snap.Resources(servedTypes[w.kind]) {
			if w.subscribes(r.Name) && w.held[r.Name].version != r.Version {
				s.markRejected(w, r)
			}
		}
		return nil
	}
	w.owed, w.fresh, w.last = false, false, a.set
	clear(w.asked)
	return a
}

// wanted returns the resources of a whole type that the proxy shall have, sorted: those of the
// snapshot, and clusters that went while something at the proxy may still refer to them.
func (s *stream) wanted(w *watch, snap *Snapshot) []*Resource {
	var out []*Resource
	for _, r := range snap.Resources(servedTypes[w.kind]) {
		if w.subscribes(r.Name) {
			out = append(out, r)
		}
	}
	if w.kind != clusters || s.settled(snap) {
		return out
	}
	for _, h := range w.held {
		if h.resource != nil && snap.Resource(ClusterType, h.resource.Name) == nil && w.subscribes(h.resource.Name) {
			out = append(out, h.resource)
		}
	}
	sortResources(out)
	return out
}

// settled reports whether the proxy's listeners and routes are those of the snapshot, so that
// clusters which are not in it are referred to by nothing.
func (s *stream) settled(snap *Snapshot) bool {
	for _, kind := range []int{listeners, routes} {
		w := s.watches[kind]
		if w == nil {
			continue
		}
		if w.flight != nil {
			return false
		}
		for name, h := range w.held {
			if r := snap.Resource(servedTypes[kind], name); r == nil && kind == listeners || r != nil && r.Version != h.version {
				return false
			}
		}
	}
	return true
}

// nextDifference answers with the listeners or clusters that differ from what the proxy holds.
func (s *stream) nextDifference(w *watch, snap *Snapshot) *answer {
	a := &answer{}
	wanted := s.wanted(w, snap)
	for _, r := range wanted {
		if r.Hold {
			continue
		}
		_, asked := w.asked[r.Name]
		held, has := w.held[r.Name]
		if has && !asked && held.version == r.Version {
			continue
		}
		if s.server.rejections.get(s.key, rejectionKey{w.kind, r.Name, r.Version}).tries > 0 && !asked && !w.fresh {
			s.markRejected(w, r)
			continue
		}
		delete(w.asked, r.Name)
		a.items = append(a.items, s.item(w, r, 0))
	}
	gone := func(name string) bool {
		return !slices.ContainsFunc(wanted, func(r *Resource) bool { return r.Name == name })
	}
	for _, name := range slices.Sorted(maps.Keys(w.held)) {
		if gone(name) && (w.kind != clusters || s.settled(snap)) && (w.began || !snap.bare) {
			a.removed = append(a.removed, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.asked)) {
		if _, held := w.held[name]; gone(name) && !held {
			a.removed = append(a.removed, name)
		}
		delete(w.asked, name)
	}
	if len(a.items) == 0 && len(a.removed) == 0 && !w.owed {
		return nil
	}
	w.owed, w.fresh = false, false
	return a
}
