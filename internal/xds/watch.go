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
	requests int                  // how many requests there were

	nonce  string  // of the last answer
	flight *answer // the last answer, until the proxy says yes or no to it
	last   string  // state of the world: version of the set last sent
}

// holding is one version of a resource at a proxy.
type holding struct {
	version  string // of the resource, whatever the try
	try      int
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
	if h.try == 0 {
		return h.version
	}
	return h.version + "~" + strconv.Itoa(h.try)
}

// parseHolding reads a version that a proxy reports.
func parseHolding(s string) holding {
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
	plain  bool
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
// each response: a refusal covers a response.
func (s *stream) nextNamed(w *watch, snap *Snapshot) *answer {
	for _, name := range slices.Sorted(maps.Keys(w.names)) {
		r := snap.Resource(servedTypes[w.kind], name)
		_, asked := w.asked[name]
		if r == nil {
			// An extension is never taken from a proxy, nor a route: the proxy drops them when
			// its listeners no longer name them. A route that never was is said to be absent.
			if _, held := w.held[name]; asked && !held && w.kind == routes && w.delta {
				delete(w.asked, name)
				return &answer{removed: []string{name}}
			}
			continue
		}
		if s.keeps(w, r, asked) || r.Hold {
			continue
		}
		held, has := w.held[name]
		if has && !asked && !held.told && held.version == r.Version && !s.provesNow(w, r, held) {
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
func (s *stream) keeps(w *watch, r *Resource, asked bool) bool {
	if !r.Keep {
		return false
	}
	held, has := w.held[r.Name]
	if !has && asked {
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

// try says whether a resource may be sent, and in which of its bytes: never in bytes that this
// proxy has refused.
func (s *stream) try(w *watch, r *Resource, asked bool) (int, bool) {
	refused := s.server.rejections.get(s.key, rejectionKey{w.kind, r.Name, r.Version}).tries
	switch {
	case refused == 0:
		if try, holds := w.reported.tryOf(r); holds {
			return try, true
		}
		return s.firstTry(w, r), true
	case r.vary == nil:
		// A route has one spelling. A proxy that asks for it anew holds nothing: let it try.
		return 0, asked && w.kind == routes
	case asked:
		return refused, true
	default:
		return refused, r.remote && s.isDue(w, r.Name)
	}
}

// firstTry chooses the bytes for a proxy that is not known to have refused any. One that ran
// before this stile did may have refused the plain ones of another stile, and would then say yes
// to them and do nothing: it gets others. A remote module goes without the demand to be refused
// while the code is missing only to a listener that warms: elsewhere Envoy would say yes, skip
// the filter and never fetch.
func (s *stream) firstTry(w *watch, r *Resource) int {
	try := 0
	if r.vary != nil && s.unfamiliar {
		try = s.server.salt
	}
	if r.plain {
		if s.warms(w, r.Name) {
			return 0
		}
		return max(try, 1)
	}
	return try
}

// warmTime is how long after it was asked for a name is taken to be awaited by a listener that
// warms: below initialFetchTimeout, after which the stand-in goes live.
const warmTime = 20 * time.Second

// warms reports whether the proxy's listeners that name an extension are sure to be warming:
// the proxy has asked for it just now, and not because a stream began while it was running.
func (s *stream) warms(w *watch, name string) bool {
	a, asked := w.asked[name]
	if !asked || s.server.now().Sub(a.at) > warmTime {
		return false
	}
	l := s.watches[listeners]
	return !a.first || l != nil && l.began
}

// provesNow reports whether the proxy is to be asked whether it has a remote module's code. Its
// yes to the plain form said nothing of that; once it says yes to the other the code is there.
func (s *stream) provesNow(w *watch, r *Resource, held holding) bool {
	if !r.plain || held.try != 0 {
		return false
	}
	if _, waits := w.retryAt[r.Name]; !waits {
		s.retryIn(w, r.Name, proofAfter)
		return false
	}
	return s.isDue(w, r.Name)
}

func (s *stream) isDue(w *watch, name string) bool {
	at, waits := w.retryAt[name]
	return waits && !s.server.now().Before(at)
}

func (s *stream) item(w *watch, r *Resource, try int) item {
	i := item{name: r.Name, holding: holding{version: r.Version, try: try}, any: r.Any, remote: r.remote, plain: r.plain && try == 0}
	if try > 0 {
		i.any = r.variant(try)
	}
	if w.kind == clusters {
		i.resource = r
	}
	return i
}

// nextSet answers with all listeners or clusters that are asked for, in the state of the world.
func (s *stream) nextSet(w *watch, snap *Snapshot) *answer {
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
		if gone(name) && (w.kind != clusters || s.settled(snap)) {
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

// accepted notes that the proxy applied the answer in flight.
func (s *stream) accepted(w *watch) {
	a := w.flight
	w.flight = nil
	for _, i := range a.items {
		state := Accepted
		if w.kind == extensions && s.server.rejections.get(s.key, rejectionKey{w.kind, i.name, i.version}).tries > i.try {
			state = Unproven // Envoy says yes to bytes that it has refused, and does nothing
		}
		if i.plain {
			state = Sent // said before the code was there
			s.retryIn(w, i.name, proofAfter)
		}
		s.holds(w, i, state, "")
	}
	s.removes(w, a)
}

func (s *stream) holds(w *watch, i item, state State, message string) {
	if w.subscribes(i.name) {
		w.held[i.name] = i.holding
		s.server.setEntry(s, w.kind, i.name, i.holding, state, message)
	}
}

// removes notes what went with an answer: named in a delta, left out of a set.
func (s *stream) removes(w *watch, a *answer) {
	for _, name := range a.removed {
		delete(w.held, name)
		s.server.dropEntry(s, w.kind, name)
	}
	if a.set == "" {
		return
	}
	for name := range w.held {
		if !slices.ContainsFunc(a.items, func(i item) bool { return i.name == name }) {
			delete(w.held, name)
			s.server.dropEntry(s, w.kind, name)
		}
	}
}

// rejected notes that the proxy refused the answer in flight. Of several listeners or clusters
// Envoy applies the good ones all the same and names the others in its message; where it names
// none, nothing is known.
func (s *stream) rejected(w *watch, message string) {
	a := w.flight
	w.flight = nil
	message = cleanMessage(message)
	if a.set != "" {
		s.server.rejections.add(s.key, rejectionKey{w.kind, "", a.set}, 0, message)
	}
	blamed := blame(a.items, message)
	for _, i := range a.items {
		key := rejectionKey{w.kind, i.name, i.version}
		switch {
		case blamed[i.name]:
			count := s.server.rejections.add(s.key, key, i.try, message)
			state := Rejected
			if i.remote {
				if count < fetchPatience {
					state = Sent // it is fetching, most likely: Envoy has the same words for all
				}
				s.retryIn(w, i.name, retryDelay(count))
			}
			s.server.setEntry(s, w.kind, i.name, i.holding, state, message)
		case len(blamed) > 0:
			s.holds(w, i, Accepted, "")
		case w.held[i.name].version != i.version:
			s.server.rejections.add(s.key, key, i.try, message)
			s.server.setEntry(s, w.kind, i.name, i.holding, Unproven, message)
		}
	}
}

// blame returns the items that a refusal is about.
func blame(items []item, message string) map[string]bool {
	blamed := map[string]bool{}
	if len(items) == 1 {
		blamed[items[0].name] = true
		return blamed
	}
	for _, i := range items {
		if containsWord(message, i.name) {
			blamed[i.name] = true
		}
	}
	return blamed
}

// containsWord reports whether a resource's name stands in a message, and not as part of a
// longer name.
func containsWord(message, name string) bool {
	part := func(b byte) bool {
		return b == '_' || b == '-' || b == '.' || b == '/' || b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
	}
	for from := 0; ; {
		at := strings.Index(message[from:], name)
		if at < 0 || name == "" {
			return false
		}
		at += from
		end := at + len(name)
		after := end < len(message) && part(message[end]) && (message[end] != '.' || end+1 < len(message) && part(message[end+1]))
		if (at == 0 || !part(message[at-1])) && !after {
			return true
		}
		from = at + 1
	}
}

const (
	// The delay between tries of a remote module doubles with each refusal.
	retryFirst = time.Second
	retryMax   = 5 * time.Minute
	// proofAfter is when a proxy is asked whether it has fetched a module.
	proofAfter = 10 * time.Second
	// fetchPatience is how many refusals of a remote module are taken for fetching: half a minute.
	fetchPatience = 6
)

func retryDelay(refusals int) time.Duration {
	if refusals > 9 {
		return retryMax
	}
	return min(retryFirst<<(refusals-1), retryMax)
}

// retryIn sets when a remote module is sent again.
func (s *stream) retryIn(w *watch, name string, delay time.Duration) {
	if w.retryAt == nil {
		w.retryAt = map[string]time.Time{}
	}
	w.retryAt[name] = s.server.now().Add(delay)
}
