package xds

import (
	"container/list"
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
}

type rejectionKey struct {
	kind    int    // index in servedTypes
	name    string // empty for a whole state-of-the-world set
	version string // without the try
}

type rejection struct {
	tries   int    // how many different bytes of that version were refused
	message string // the proxy's words, shortened
}

func (r *rejections) add(node nodeKey, k rejectionKey, try int, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.nodes == nil {
		r.nodes = map[nodeKey]*list.Element{}
	}
	e := r.nodes[node]
	if e == nil {
		e = r.order.PushFront(&nodeRejections{key: node, versions: map[rejectionKey]rejection{}})
		r.nodes[node] = e
		if r.order.Len() > maxRememberedNodes {
			oldest := r.order.Remove(r.order.Back()).(*nodeRejections)
			delete(r.nodes, oldest.key)
		}
	}
	r.order.MoveToFront(e)
	versions := e.Value.(*nodeRejections).versions
	if len(versions) >= maxRememberedVersions {
		for other := range versions { // any one: each costs the same
			delete(versions, other)
			break
		}
	}
	versions[k] = rejection{tries: max(versions[k].tries, try+1), message: message}
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
