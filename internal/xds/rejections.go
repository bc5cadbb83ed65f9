package xds

import (
	"container/list"
	"maps"
	"sync"
)

const (
	// maxRememberedNodes bounds the proxies whose refusals are remembered: the least lately
	// seen is forgotten first. Forgetting costs one repeated refusal.
	maxRememberedNodes = 20_000
	// maxRememberedVersions bounds the refusals remembered of one proxy.
	maxRememberedVersions = 256
)

// rejections remembers, by proxy and over reconnects, which bytes it has refused. A proxy that
// has refused nothing costs nothing.
type rejections struct {
	mu    sync.Mutex
	nodes map[nodeKey]*list.Element // of *nodeRejections
	order list.List                 // the most lately used first
}

type nodeRejections struct {
	key      nodeKey
	versions map[rejectionKey]rejection
	loaded   map[string]loaded // extensions: what the proxy ran when it refused another version
}

type rejectionKey struct {
	kind    int    // index in servedTypes
	name    string // empty for a whole state-of-the-world set
	version string // without the try
}

type rejection struct {
	tries   int    // the next try, higher than any that was refused; 0 if none was
	count   int    // how often it was refused
	message string // the proxy's words, shortened
}

// node returns what is remembered of a proxy, new if need be. r.mu is held.
func (r *rejections) node(key nodeKey) *nodeRejections {
	if e := r.nodes[key]; e != nil {
		r.order.MoveToFront(e)
		return e.Value.(*nodeRejections)
	}
	if r.nodes == nil {
		r.nodes = map[nodeKey]*list.Element{}
	}
	n := &nodeRejections{key: key}
	r.nodes[key] = r.order.PushFront(n)
	if r.order.Len() > maxRememberedNodes {
		oldest := r.order.Remove(r.order.Back()).(*nodeRejections)
		delete(r.nodes, oldest.key)
	}
	return n
}

// add notes that a proxy refused a try of a version, and returns how often it has refused that
// version.
func (r *rejections) add(node nodeKey, k rejectionKey, try int, message string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.node(node)
	if n.versions == nil {
		n.versions = map[rejectionKey]rejection{}
	}
	versions := n.versions
	if len(versions) >= maxRememberedVersions {
		for other := range versions { // any one: each costs the same
			delete(versions, other)
			break
		}
	}
	count := versions[k].count + 1
	versions[k] = rejection{tries: max(versions[k].tries, try+1), count: count, message: message}
	return count
}

func (r *rejections) get(node nodeKey, k rejectionKey) rejection {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.nodes[node]
	if e == nil {
		return rejection{}
	}
	r.order.MoveToFront(e)
	return e.Value.(*nodeRejections).versions[k]
}

// keep remembers what a proxy has loaded of an extension that it refuses another version of.
func (r *rejections) keep(node nodeKey, name string, good loaded) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.node(node)
	if n.loaded == nil {
		n.loaded = map[string]loaded{}
	}
	n.loaded[name] = good
}

func (r *rejections) kept(node nodeKey, name string) (loaded, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.nodes[node]
	if e == nil {
		return loaded{}, false
	}
	good, ok := e.Value.(*nodeRejections).loaded[name]
	return good, ok
}

// forgive forgets that a proxy refused a resource, or the set that it was in, and reports
// whether it had.
func (r *rejections) forgive(node nodeKey, kind int, name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.nodes[node]
	if e == nil {
		return false
	}
	versions := e.Value.(*nodeRejections).versions
	before := len(versions)
	maps.DeleteFunc(versions, func(k rejectionKey, _ rejection) bool {
		return k.kind == kind && (k.name == name || k.name == "")
	})
	return len(versions) < before
}

// forget drops what a proxy refused of one type: a process that holds nothing of the type is
// a new one, or nearly so.
func (r *rejections) forget(node nodeKey, kind int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.nodes[node]
	if e == nil {
		return
	}
	versions := e.Value.(*nodeRejections).versions
	for k := range versions {
		if k.kind == kind {
			delete(versions, k)
		}
	}
}
