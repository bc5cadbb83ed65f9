package xds

import (
	"container/list"
	"maps"
	"sync"
	"weak"
)

const (
	// maxRememberedNodes bounds the proxies whose refusals are remembered: the least lately
	// seen is forgotten first. Forgetting costs one repeated refusal.
	maxRememberedNodes = 20_000
	// maxRememberedVersions bounds the refusals remembered of one proxy, maxRemembered those of all:
	// a few hundred bytes each.
	maxRememberedVersions = 256
	maxRemembered         = 100_000
	// maxKeptBytes bounds the configuration, modules within, that is kept only so that a proxy which
	// refused another version can be sent again what it ran before.
	maxKeptBytes = 64 << 20
	// keptOverhead is what a resource counts beside its bytes: it bounds their number to 4,096, and is
	// more than any costs.
	keptOverhead = 16 << 10
)

// rejections remembers, by proxy and over reconnects, which bytes it has refused. A proxy that
// has refused nothing costs nothing.
type rejections struct {
	mu    sync.Mutex
	nodes map[nodeKey]*list.Element // of *nodeRejections
	order list.List                 // the most lately used first
	total int                       // of versions, of all nodes

	keptOrder list.List // of *Resource, the most lately kept first
	keptBytes int
	keeping   map[*Resource]*list.Element
}

type nodeRejections struct {
	key      nodeKey
	versions map[rejectionKey]rejection
	loaded   map[string]keptLoaded // extensions: what the proxy ran when it refused another version
}

// keptLoaded is a loaded that keeps nothing in memory: a proxy that is long gone must not keep a module.
type keptLoaded struct {
	resource weak.Pointer[Resource]
	try      int
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
		r.forgetOldest()
	}
	return n
}

// forgetOldest forgets the proxy that was seen least lately. r.mu is held.
func (r *rejections) forgetOldest() {
	oldest := r.order.Remove(r.order.Back()).(*nodeRejections)
	delete(r.nodes, oldest.key)
	r.total -= len(oldest.versions)
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
	before := len(versions)
	if _, known := versions[k]; !known && before >= maxRememberedVersions {
		for other := range versions { // any one: each costs the same
			delete(versions, other)
			break
		}
	}
	count := versions[k].count + 1
	versions[k] = rejection{tries: max(versions[k].tries, try+1), count: count, message: message}
	r.total += len(versions) - before
	for r.total > maxRemembered && r.order.Len() > 1 {
		r.forgetOldest() // never n, which is the latest
	}
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
		n.loaded = map[string]keptLoaded{}
	}
	n.loaded[name] = keptLoaded{weak.Make(good.resource), good.try}
	r.keepAlive(good.resource)
}

// keepAlive keeps a resource in memory while it is among those lately kept. r.mu is held.
func (r *rejections) keepAlive(x *Resource) {
	if e := r.keeping[x]; e != nil {
		r.keptOrder.MoveToFront(e)
		return
	}
	if r.keeping == nil {
		r.keeping = map[*Resource]*list.Element{}
	}
	r.keeping[x] = r.keptOrder.PushFront(x)
	r.keptBytes += keptCost(x)
	for r.keptBytes > maxKeptBytes && r.keptOrder.Len() > 1 {
		oldest := r.keptOrder.Remove(r.keptOrder.Back()).(*Resource)
		delete(r.keeping, oldest)
		r.keptBytes -= keptCost(oldest)
	}
}

func keptCost(x *Resource) int { return len(x.Any.GetValue()) + keptOverhead }

func (r *rejections) kept(node nodeKey, name string) (loaded, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.nodes[node]
	if e == nil {
		return loaded{}, false
	}
	good, ok := e.Value.(*nodeRejections).loaded[name]
	resource := good.resource.Value()
	return loaded{resource, good.try}, ok && resource != nil
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
	r.total -= before - len(versions)
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
	n := e.Value.(*nodeRejections)
	before := len(n.versions)
	maps.DeleteFunc(n.versions, func(k rejectionKey, _ rejection) bool { return k.kind == kind })
	r.total -= before - len(n.versions)
	if kind == extensions {
		n.loaded = nil // it runs nothing
	}
}
