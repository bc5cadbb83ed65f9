package oci

import (
	"context"
	"sync"
)

// flights lets callers who want the same thing at the same time share one request for
// it, and its failure too: those who wait for a registry that does not answer wait
// once, and not one after the other. The zero value is ready.
type flights[K comparable, V any] struct {
	mu    sync.Mutex // guards under
	under map[K]*flight[V]
}

type flight[V any] struct {
	done      chan struct{} // closed when what follows is set
	value     V
	err       error
	abandoned bool // the caller who flew it gave up: that says nothing to the others
}

// do returns what fly returns, flown by this caller or by one who began before. A
// caller who gives up leaves alone.
func (f *flights[K, V]) do(ctx context.Context, key K, fly func(context.Context) (V, error)) (V, error) {
	for {
		f.mu.Lock()
		other := f.under[key]
		if other == nil {
			own := &flight[V]{done: make(chan struct{}), abandoned: true}
			if f.under == nil {
				f.under = make(map[K]*flight[V])
			}
			f.under[key] = own
			f.mu.Unlock()
			return f.fly(ctx, key, own, fly)
		}
		f.mu.Unlock()
		select {
		case <-other.done:
			if !other.abandoned {
				return other.value, other.err
			}
		case <-ctx.Done():
			var none V
			return none, &Error{Kind: Unavailable, Err: ctx.Err()}
		}
	}
}

func (f *flights[K, V]) fly(ctx context.Context, key K, own *flight[V], fly func(context.Context) (V, error)) (V, error) {
	defer func() { // also if fly panics: nobody must wait for ever
		f.mu.Lock()
		delete(f.under, key)
		f.mu.Unlock()
		close(own.done)
	}()
	own.value, own.err = fly(ctx)
	own.abandoned = own.err != nil && ctx.Err() != nil
	return own.value, own.err
}
