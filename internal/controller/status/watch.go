package status

import (
	"context"
	"errors"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// watch follows the stored plugins: what somebody else makes of a status is seen, too.
func (t *term) watch(ctx context.Context, all *sync.WaitGroup) {
	namespaces := t.cfg.Namespaces
	if len(namespaces) == 0 {
		namespaces = []string{metav1.NamespaceAll}
	}
	enqueue := func(o any) {
		if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		if u, ok := o.(*unstructured.Unstructured); ok {
			t.queue.Add(key{u.GetNamespace(), u.GetName()})
		}
	}
	for _, namespace := range namespaces {
		plugins := t.client.Resource(resource).Namespace(namespace)
		informer := cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return reach(ctx, func() (*unstructured.UnstructuredList, error) { return plugins.List(ctx, o) })
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return reach(ctx, func() (watch.Interface, error) { return plugins.Watch(ctx, o) })
			},
		}, t.client), &unstructured.Unstructured{}, 0, cache.Indexers{})
		// The errors of these are that the informer runs already.
		_ = informer.SetTransform(slim)
		_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: enqueue, DeleteFunc: enqueue, UpdateFunc: func(_, o any) { enqueue(o) }})
		t.stores = append(t.stores, informer.GetIndexer())
		all.Go(func() { informer.RunWithContext(ctx) })
	}
}

// slim keeps what a status takes, and drops the rest: a spec may be large.
func slim(o any) (any, error) {
	u, ok := o.(*unstructured.Unstructured)
	if !ok {
		return o, nil
	}
	metadata, _ := u.Object["metadata"].(map[string]any)
	kept := map[string]any{}
	for _, field := range []string{"namespace", "name", "uid", "resourceVersion", "generation"} {
		if v, ok := metadata[field]; ok {
			kept[field] = v
		}
	}
	slim := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": u.Object["apiVersion"], "kind": u.Object["kind"], "metadata": kept}}
	if status, ok := u.Object["status"]; ok {
		slim.Object["status"] = status
	}
	return slim, nil
}

// reach tries until the API server answers, whatever it says. A reflector that reaches
// nobody waits where nothing interrupts it, and so would whoever waits for its end.
func reach[T any](ctx context.Context, try func() (T, error)) (T, error) {
	for delay := firstRetry; ; delay = min(2*delay, reachRetry) {
		v, err := try()
		if status := apierrors.APIStatus(nil); err == nil || ctx.Err() != nil || errors.As(err, &status) {
			return v, err
		}
		select {
		case <-ctx.Done():
			return v, ctx.Err()
		case <-time.After(wait.Jitter(delay, 0.2)):
		}
	}
}
