package content

import "slices"

// queue decides whose turn it is: the namespace with the fewest fetches under way,
// among equals the one whose turn was longest ago, and in it what was asked first. A
// namespace, and a host, has at most its share, and a host in a namespace half of
// that: a slow registry, or a tenant with many plugins, leaves the rest to the
// others. Its owner's mutex guards it.
type queue struct {
	limit, share int
	running      int
	namespaces   map[string]*line
	hosts        map[string]int // fetches under way
	turn         uint64
}

// line is what waits in one namespace.
type line struct {
	waiting []*entry
	running int
	hosts   map[string]int // fetches under way
	turn    uint64         // of its last start
}

type entry struct {
	it        *item
	namespace string
	host      string
}

func newQueue(limit int) queue {
	return queue{limit: limit, share: max(1, limit/4), namespaces: map[string]*line{}, hosts: map[string]int{}}
}

func (q *queue) push(it *item, namespace string) {
	l := q.namespaces[namespace]
	if l == nil {
		l = &line{hosts: map[string]int{}}
		q.namespaces[namespace] = l
	}
	l.waiting = append(l.waiting, &entry{it: it, namespace: namespace, host: it.host()})
}

// next takes the entry whose turn it is; nil if none may start.
func (q *queue) next() *entry {
	if q.running >= q.limit {
		return nil
	}
	var best *line
	bestAt := 0
	for _, l := range q.namespaces {
		if l.running >= q.share || best != nil && !l.before(best) {
			continue
		}
		at := slices.IndexFunc(l.waiting, func(e *entry) bool {
			return q.hosts[e.host] < q.share && l.hosts[e.host] < max(1, q.share/2)
		})
		if at >= 0 {
			best, bestAt = l, at
		}
	}
	if best == nil {
		return nil
	}
	e := best.waiting[bestAt]
	best.waiting = slices.Delete(best.waiting, bestAt, bestAt+1)
	q.turn++
	best.turn = q.turn
	best.running++
	q.running++
	q.hosts[e.host]++
	best.hosts[e.host]++
	return e
}

func (l *line) before(other *line) bool {
	if l.running != other.running {
		return l.running < other.running
	}
	return l.turn < other.turn
}

func (q *queue) done(e *entry) {
	q.running--
	if q.hosts[e.host]--; q.hosts[e.host] == 0 {
		delete(q.hosts, e.host)
	}
	l := q.namespaces[e.namespace]
	l.running--
	if l.hosts[e.host]--; l.hosts[e.host] == 0 {
		delete(l.hosts, e.host)
	}
	if l.running == 0 && len(l.waiting) == 0 {
		delete(q.namespaces, e.namespace)
	}
}

// take removes an item that waits, for a caller that does the work itself.
func (q *queue) take(it *item) bool {
	for namespace, l := range q.namespaces {
		at := slices.IndexFunc(l.waiting, func(e *entry) bool { return e.it == it })
		if at < 0 {
			continue
		}
		l.waiting = slices.Delete(l.waiting, at, at+1)
		if l.running == 0 && len(l.waiting) == 0 {
			delete(q.namespaces, namespace)
		}
		return true
	}
	return false
}

// drain empties the queue of what waits.
func (q *queue) drain() []*item {
	var items []*item
	for namespace, l := range q.namespaces {
		for _, e := range l.waiting {
			items = append(items, e.it)
		}
		l.waiting = nil
		if l.running == 0 {
			delete(q.namespaces, namespace)
		}
	}
	return items
}
