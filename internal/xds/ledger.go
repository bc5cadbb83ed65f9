package xds

import (
	"cmp"
	"slices"

	"github.com/stileproject/stile/internal/plugin"
)

// The ledger is kept with each stream, in entries: what it was sent of each resource, and what
// it said. What a proxy refused outlives its streams, in rejections. The counts by plugin are
// kept as entries change, so that asking for them costs nothing. All of it is guarded by
// Server.mu.

type entryKey struct {
	kind int
	name string
}

type entry struct {
	holding
	state   State
	message string
	counted State // the state under which it is in the counts; empty if it is not at its present version
}

// setEntry writes what is known of one resource at one proxy.
func (s *Server) setEntry(st *stream, kind int, name string, h holding, state State, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.entries == nil {
		return // the stream has ended
	}
	key := entryKey{kind, name}
	e := st.entries[key]
	if e == nil {
		e = &entry{}
		st.entries[key] = e
	} else if e.holding.String() == h.String() && e.state == state && e.message == message {
		return
	}
	h.resource = nil
	e.holding, e.state, e.message = h, state, message
	s.count(key, e, st.countable(kind, name, e))
	if kind == listeners {
		s.recount(st) // a plugin is no further than its listeners
	}
	s.events.add(Event{Kind: LedgerChanged})
}

func (s *Server) dropEntry(st *stream, kind int, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := entryKey{kind, name}
	if e := st.entries[key]; e != nil {
		s.count(key, e, "")
		delete(st.entries, key)
		s.events.add(Event{Kind: LedgerChanged})
	}
}

// markRejected notes that a resource is not sent because this proxy has refused it.
func (s *stream) markRejected(w *watch, r *Resource) {
	known := s.server.rejections.get(s.key, rejectionKey{w.kind, r.Name, r.Version})
	if known.tries > 0 && (!r.remote || known.count >= fetchPatience) {
		s.server.setEntry(s, w.kind, r.Name, holding{version: r.Version, try: known.tries - 1}, Rejected, known.message)
	}
}

// countable returns the state under which an entry counts for its plugin: its own if it is at
// the version that the proxy shall have, none if it is not.
func (s *stream) countable(kind int, name string, e *entry) State {
	if kind != extensions || !s.isProxy() || s.snapshot == nil {
		return ""
	}
	r := s.snapshot.names[extensions][name]
	if r == nil || r.Version != e.version && (!r.Keep || isStandIn(e.version)) {
		return ""
	}
	if e.state != Accepted {
		return e.state
	}
	return s.inPlace(name)
}

// inPlace returns how far the listeners are that refer to an extension: Accepted if all of them
// are, as far as the proxy has them of us.
func (s *stream) inPlace(name string) State {
	for _, l := range s.snapshot.resources[listeners] {
		if !l.names(name) {
			continue
		}
		e := s.entries[entryKey{listeners, l.Name}]
		switch {
		case e == nil || e.version == l.Version && e.state == Accepted:
		case e.version == l.Version:
			return e.state
		default:
			return Sent
		}
	}
	return Accepted
}

// recount looks again how far the extensions of a proxy are.
func (s *Server) recount(st *stream) {
	for key, e := range st.entries {
		if key.kind == extensions {
			s.count(key, e, st.countable(extensions, key.name, e))
		}
	}
}

// count moves an entry from the state under which it is counted to another.
func (s *Server) count(key entryKey, e *entry, next State) {
	if e.counted == next {
		return
	}
	s.tally(key.name, e.counted, -1)
	s.tally(key.name, next, 1)
	e.counted = next
}

func (s *Server) tally(name string, state State, by int) {
	if state == "" {
		return
	}
	c := s.counts[name]
	if c == nil {
		c = &Counts{}
		s.counts[name] = c
	}
	c.Sent += by
	switch state {
	case Accepted:
		c.Accepted += by
	case Rejected:
		c.Rejected += by
	case Unproven:
		c.Unproven += by
	}
	s.dropIfZero(name, c)
}

// carry counts a stream among the proxies that shall have the extensions of next, and no longer
// among those of its present snapshot.
func (s *Server) carry(st *stream, next *Snapshot) {
	if !st.isProxy() || st.snapshot == next {
		return
	}
	before := st.snapshot
	if before != nil {
		for _, r := range before.resources[extensions] {
			if next.Resource(ExtensionType, r.Name) == nil {
				s.matched(r.Name, -1)
				if e := st.entries[entryKey{extensions, r.Name}]; e != nil {
					s.count(entryKey{extensions, r.Name}, e, "")
				}
			}
		}
	}
	if next != nil {
		for _, r := range next.resources[extensions] {
			if before.Resource(ExtensionType, r.Name) == nil {
				s.matched(r.Name, 1)
			}
		}
	}
}

func (s *Server) matched(name string, by int) {
	c := s.counts[name]
	if c == nil {
		c = &Counts{}
		s.counts[name] = c
	}
	c.Matched += by
	s.dropIfZero(name, c)
}

func (s *Server) dropIfZero(name string, c *Counts) {
	if *c == (Counts{}) {
		delete(s.counts, name)
	}
}

// Counts returns how many proxies concern a plugin, and how far they are.
func (s *Server) Counts(k plugin.Key) Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.counts[ResourceName(k)]; c != nil {
		return *c
	}
	return Counts{}
}

// Proxies returns the connected proxies and what is known of each resource at each, sorted by
// namespace, cluster, id and the time of connecting. The single-type streams of one proxy are
// one item; two proxies with one id, as copied bootstraps have, are two.
func (s *Server) Proxies() []Proxy {
	s.mu.Lock()
	defer s.mu.Unlock()
	streams := make([]*stream, 0, len(s.streams))
	for _, st := range s.streams {
		streams = append(streams, st)
	}
	slices.SortFunc(streams, func(a, b *stream) int {
		return cmp.Or(cmp.Compare(a.key.namespace, b.key.namespace), cmp.Compare(a.key.cluster, b.key.cluster),
			cmp.Compare(a.key.id, b.key.id), cmp.Compare(a.id, b.id))
	})
	out := make([]Proxy, 0, len(streams))
	var last nodeKey
	first := 0                                     // index in out of the first item of that node
	served := make([]map[string]bool, 0, cap(out)) // by item: the types of its streams; "" is all
	for _, st := range streams {
		if len(out) == 0 || st.key != last {
			last, first = st.key, len(out)
		}
		at := -1
		for i := first; i < len(out); i++ {
			if st.only != "" && !served[i][""] && !served[i][st.only] {
				at = i
				break
			}
		}
		if at < 0 {
			at = len(out)
			out = append(out, Proxy{ID: st.key.id, Cluster: st.key.cluster, Namespace: st.key.namespace, ConnectedSince: st.since, Resources: []ProxyResource{}})
			served = append(served, map[string]bool{})
		}
		served[at][st.only] = true
		out[at].Waiting = out[at].Waiting || st.snapshot == nil
		out[at].Resources = append(out[at].Resources, st.resources()...)
	}
	for i := range out {
		slices.SortFunc(out[i].Resources, func(a, b ProxyResource) int {
			return cmp.Or(cmp.Compare(typeIndex(a.Type), typeIndex(b.Type)), cmp.Compare(a.Name, b.Name))
		})
	}
	return out
}

func (s *stream) resources() []ProxyResource {
	out := make([]ProxyResource, 0, len(s.entries))
	for key, e := range s.entries {
		out = append(out, ProxyResource{Type: servedTypes[key.kind], Name: key.name, Version: e.holding.String(), State: e.state, Message: e.message})
	}
	return out
}
