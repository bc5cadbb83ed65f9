package xds

import (
	"fmt"
	"runtime"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"
)

// What is remembered of refusals is bounded in all, and what proxies ran before is kept for them in
// memory only up to a bound: neither many proxies nor many versions make stile grow.
func TestP7_WhatIsRememberedOfRefusalsIsBounded(t *testing.T) {
	t.Parallel()
	var r rejections
	node := func(i int) nodeKey { return nodeKey{id: fmt.Sprint(i)} }
	for i := range 3000 {
		for v := range 40 {
			r.add(node(i), rejectionKey{extensions, "p", fmt.Sprint(v)}, 0, "no")
		}
	}
	if r.total > maxRemembered || r.total < maxRemembered-40 {
		t.Errorf("%d refusals are remembered, want at most %d and nearly so many", r.total, maxRemembered)
	}
	if r.get(node(0), rejectionKey{extensions, "p", "0"}).tries != 0 || r.get(node(2999), rejectionKey{extensions, "p", "0"}).tries != 1 {
		t.Error("not the least lately seen were forgotten")
	}
	for range 2 { // again and again the same adds nothing
		for v := range 400 {
			r.add(node(2999), rejectionKey{extensions, "p", fmt.Sprint(v)}, 0, "no")
		}
	}
	counted := 0
	for e := r.order.Front(); e != nil; e = e.Next() {
		counted += len(e.Value.(*nodeRejections).versions)
	}
	if counted != r.total || len(r.nodes) != r.order.Len() {
		t.Errorf("%d are counted and %d there; %d nodes, %d in order", r.total, counted, len(r.nodes), r.order.Len())
	}

	const each = 8 << 20
	for i := range 40 {
		r.keep(node(i), "p", loaded{resource: &Resource{Any: &anypb.Any{Value: make([]byte, each)}}, try: i})
	}
	runtime.GC()
	alive := 0
	for i := range 40 {
		good, ok := r.kept(node(i), "p")
		if ok {
			alive++
		}
		if ok && good.try != i {
			t.Errorf("node %d is said to have run try %d", i, good.try)
		}
	}
	if alive*each > maxKeptBytes || alive == 0 {
		t.Errorf("%d modules of 8 MiB are kept", alive)
	}
	r.forget(node(39), extensions)
	if _, ok := r.kept(node(39), "p"); ok {
		t.Error("a new process runs nothing, and what it ran is kept")
	}
}
