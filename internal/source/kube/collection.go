package kube

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
)

// kind says which objects a collection holds.
type kind struct {
	name       string // for people
	resource   schema.GroupVersionResource
	namespaces []string                                        // none: all
	labels     string                                          // label selector
	read       func(u *unstructured.Unstructured, old any) any // makes what is kept; old is what is kept now
	same       func(a, b any) bool                             // whether a change is none; nil: never
}

// collection holds the objects of one kind and is kept up to date until it is stopped. An informer's reflector lists once,
// watches, and begins anew whenever the watch breaks; meanwhile what was known stays.
type collection struct {
	kind      kind
	informers []cache.SharedIndexInformer
	stop      context.CancelFunc
	running   sync.WaitGroup

	mu    sync.Mutex
	fault string // why it could not be read when that was tried last; "" if it could
}

// startCollection begins to read. changed is called at each change and when all has been read; it must not wait.
func startCollection(ctx context.Context, client dynamic.Interface, k kind, log *slog.Logger, failures counter, changed func()) *collection {
	ctx, stop := context.WithCancel(ctx)
	c := &collection{kind: k, stop: stop}
	say := func(err error) {
		failures.Inc()
		if fault := describe(err); c.failed(fault) {
			log.Warn("resources cannot be watched; what was known stays", "resource", k.resource.GroupResource().String(), "fault", fault)
			changed()
		}
	}
	namespaces := k.namespaces
	if len(namespaces) == 0 {
		namespaces = []string{metav1.NamespaceAll}
	}
	for _, namespace := range namespaces {
		objects := client.Resource(k.resource).Namespace(namespace)
		informer := cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (l runtime.Object, err error) {
				o.LabelSelector = k.labels
				err = c.reach(ctx, say, func() (err error) { l, err = objects.List(ctx, o); return err })
				return l, err
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (w watch.Interface, err error) {
				o.LabelSelector = k.labels
				err = c.reach(ctx, say, func() (err error) { w, err = objects.Watch(ctx, o); return err })
				return w, err
			},
		}, client), &unstructured.Unstructured{}, 0, cache.Indexers{})
		// None of these fails before the informer runs.
		_ = informer.SetTransform(func(in any) (any, error) {
			u, ok := in.(*unstructured.Unstructured)
			if !ok {
				return in, nil // made already
			}
			old, _, _ := informer.GetStore().GetByKey(cache.ObjectName{Namespace: u.GetNamespace(), Name: u.GetName()}.String())
			return k.read(u, old), nil
		})
		_ = informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) { say(err) })
		_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { changed() },
			UpdateFunc: func(old, now any) {
				if k.same == nil || !k.same(old, now) {
					changed()
				}
			},
			DeleteFunc: func(any) { changed() },
		})
		c.informers = append(c.informers, informer)
		c.running.Go(func() { informer.RunWithContext(ctx) })
		c.running.Go(func() {
			select {
			case <-informer.HasSyncedChecker().Done():
				changed()
			case <-ctx.Done():
			}
		})
	}
	return c
}

// reach tries until the API server answers, whatever it says. A reflector that cannot reach it would wait where nothing
// can interrupt it, and tell nobody.
func (c *collection) reach(ctx context.Context, say func(error), try func() error) error {
	for delay := retryFirst; ; delay = min(2*delay, retryMost) {
		err := try()
		if err == nil {
			c.failed("")
		}
		if err == nil || ctx.Err() != nil || answered(err) {
			return err
		}
		say(err)
		t := time.NewTimer(delay*9/10 + rand.N(delay/5)) //nolint:gosec // it spreads load
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// failed takes why the objects cannot be read and reports whether that is new.
func (c *collection) failed(fault string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := c.fault != fault
	c.fault = fault
	return changed
}

// waiting returns why not everything has been read yet; "" if it has, or nothing is known to be wrong.
func (c *collection) waiting() string {
	if c == nil || c.synced() {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fault
}

// synced reports whether everything has been read once.
func (c *collection) synced() bool {
	for _, i := range c.informers {
		if !i.HasSynced() {
			return false
		}
	}
	return true
}

// end stops it and waits for its goroutines.
func (c *collection) end() {
	if c != nil {
		c.stop()
		c.running.Wait()
	}
}

// objectsOf returns what a collection holds, in no order; nil of none.
func objectsOf[T any](c *collection) []T {
	if c == nil {
		return nil
	}
	var all []T
	for _, i := range c.informers {
		for _, o := range i.GetStore().List() {
			if o, ok := o.(T); ok {
				all = append(all, o)
			}
		}
	}
	return all
}
