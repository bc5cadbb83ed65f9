package xds

import (
	"slices"
	"strings"
)

// accepted notes that the proxy applied the answer in flight.
func (s *stream) accepted(w *watch) {
	a := w.flight
	w.flight = nil
	for _, i := range a.items {
		if i.mends {
			// The ledger goes on to say what was refused.
			if w.subscribes(i.name) {
				w.held[i.name] = i.holding
				s.loads(w, i)
			}
			continue
		}
		state := Accepted
		if w.kind == extensions && s.server.rejections.get(s.key, rejectionKey{w.kind, i.name, i.version}).tries > i.try {
			state = Unproven // Envoy says yes to bytes that it has refused, and does nothing
		}
		if i.plain {
			state = Sent // said before the code was there
			s.retryIn(w, i.name, proofAfter)
		}
		s.holds(w, i, state, "")
		if (state == Accepted || i.plain) && w.subscribes(i.name) {
			s.loads(w, i)
		}
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
		case i.mends:
			s.server.rejections.add(s.key, key, i.try, message)
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
			s.breaks(w, i)
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
