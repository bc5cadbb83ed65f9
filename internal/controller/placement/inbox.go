package placement

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/stileproject/stile/internal/placement"
	"github.com/stileproject/stile/internal/source"
)

// unscheduled are the pods among which the gated ones are: nothing selects by gate.
var unscheduled = fields.AndSelectors(
	fields.OneTermEqualSelector("spec.nodeName", ""),
	fields.OneTermEqualSelector("status.phase", string(corev1.PodPending)),
).String()

// inbox takes what the API server says of pods, and keeps it until the loop asks: of each
// pod the latest, and only of those that carry the gate. It is the store of a Reflector.
type inbox struct {
	wake func()

	mu     sync.Mutex
	gated  map[source.Key]struct{} // those that were last seen with the gate
	news   map[source.Key]*corev1.Pod
	synced bool
}

func newInbox(wake func()) *inbox {
	return &inbox{wake: wake, gated: map[source.Key]struct{}{}, news: map[source.Key]*corev1.Pod{}}
}

// Bounds of asking for pods again while the API server is away or busy.
const (
	followFirst = 500 * time.Millisecond
	followMax   = 15 * time.Second
)

// watch follows the pods until ctx ends. A watch that breaks is taken up where it broke.
func (i *inbox) watch(ctx context.Context, client kubernetes.Interface, log *slog.Logger) {
	pods := client.CoreV1().Pods(metav1.NamespaceAll)
	f := &follower{log: log}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (list runtime.Object, err error) {
			o.FieldSelector = unscheduled
			err = f.try(ctx, func() error { list, err = pods.List(ctx, o); return err })
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (w watch.Interface, err error) {
			o.FieldSelector = unscheduled
			err = f.try(ctx, func() error { w, err = pods.Watch(ctx, o); return err })
			return w, err
		},
	}
	logger := logr.FromSlogHandler(log.Handler())
	r := cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, client), &corev1.Pod{}, i, cache.ReflectorOptions{Name: "pods", Logger: &logger})
	r.RunWithContext(klog.NewContext(ctx, logger))
}

// follower tries again what the Reflector would try again deaf to the end of its context,
// and tells of what is wrong once.
type follower struct {
	log   *slog.Logger
	fault string
}

func (f *follower) try(ctx context.Context, do func() error) error {
	for delay := followFirst; ; delay = min(2*delay, followMax) {
		err := do()
		if err == nil {
			if f.fault != "" {
				f.log.Info("placement: pods can be read again")
				f.fault = ""
			}
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err() // the Reflector would wait for what can be tried again
		}
		if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) && f.fault != words(err) {
			f.fault = words(err)
			f.log.Warn("placement: pods cannot be read; it is tried again", "error", f.fault)
		}
		if !utilnet.IsConnectionRefused(err) && !apierrors.IsTooManyRequests(err) {
			return err
		}
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// words returns what an error of the API's client says, without the URL that was asked.
func words(err error) string {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err.Error()
	}
	return err.Error()
}

// take returns what is new since it was last called: nil for a pod that is gone, or
// carries the gate no more. synced says that all pods were seen.
func (i *inbox) take() (news map[source.Key]*corev1.Pod, synced bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.news) == 0 {
		return nil, i.synced
	}
	news, i.news = i.news, map[source.Key]*corev1.Pod{}
	return news, i.synced
}

// put notes a pod. inbox.mu is held.
func (i *inbox) put(p *corev1.Pod) {
	key := keyOf(p)
	if placement.Gated(p) {
		i.gated[key] = struct{}{}
		i.news[key] = stripped(p)
		return
	}
	i.drop(key)
}

// drop notes that a pod is gone. inbox.mu is held.
func (i *inbox) drop(key source.Key) {
	if _, ok := i.gated[key]; ok {
		delete(i.gated, key)
		i.news[key] = nil
	}
}

// Add is part of cache.ReflectorStore.
func (i *inbox) Add(obj any) error { return i.Update(obj) }

// Update is part of cache.ReflectorStore.
func (i *inbox) Update(obj any) error {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return nil
	}
	i.mu.Lock()
	i.put(p)
	news := len(i.news) > 0
	i.mu.Unlock()
	if news {
		i.wake()
	}
	return nil
}

// Delete is part of cache.ReflectorStore.
func (i *inbox) Delete(obj any) error {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return nil
	}
	i.mu.Lock()
	i.drop(keyOf(p))
	i.mu.Unlock()
	i.wake()
	return nil
}

// Replace is part of cache.ReflectorStore.
func (i *inbox) Replace(list []any, _ string) error {
	i.mu.Lock()
	gone := map[source.Key]struct{}{}
	for key := range i.gated {
		gone[key] = struct{}{}
	}
	for _, obj := range list {
		if p, ok := obj.(*corev1.Pod); ok {
			i.put(p)
			delete(gone, keyOf(p))
		}
	}
	for key := range gone {
		i.drop(key)
	}
	i.synced = true
	i.mu.Unlock()
	i.wake()
	return nil
}

// Resync is part of cache.ReflectorStore.
func (i *inbox) Resync() error { return nil }

// Transformer is part of cache.TransformingStore: pods are stripped as they come, so that
// a first sight of all pods does not hold all that they say.
func (i *inbox) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		if p, ok := obj.(*corev1.Pod); ok {
			return stripped(p), nil
		}
		return obj, nil
	}
}

func keyOf(p *corev1.Pod) source.Key { return source.Key{Namespace: p.Namespace, Name: p.Name} }

// stripped returns as much of a pod as is decided by and patched; of one without the
// gate, its name.
func stripped(p *corev1.Pod) *corev1.Pod {
	s := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion}}
	if !placement.Gated(p) {
		return s
	}
	s.CreationTimestamp, s.DeletionTimestamp, s.OwnerReferences = p.CreationTimestamp, p.DeletionTimestamp, p.OwnerReferences
	s.Spec = corev1.PodSpec{
		NodeName: p.Spec.NodeName, NodeSelector: p.Spec.NodeSelector, SchedulingGates: p.Spec.SchedulingGates,
		ImagePullSecrets: p.Spec.ImagePullSecrets, OS: p.Spec.OS, RuntimeClassName: p.Spec.RuntimeClassName,
	}
	if a := p.Spec.Affinity; a != nil && a.NodeAffinity != nil {
		s.Spec.Affinity = &corev1.Affinity{NodeAffinity: a.NodeAffinity}
	}
	for _, c := range p.Spec.InitContainers {
		s.Spec.InitContainers = append(s.Spec.InitContainers, corev1.Container{Name: c.Name, Image: c.Image, ImagePullPolicy: c.ImagePullPolicy})
	}
	for _, c := range p.Spec.Containers {
		s.Spec.Containers = append(s.Spec.Containers, corev1.Container{Name: c.Name, Image: c.Image, ImagePullPolicy: c.ImagePullPolicy})
	}
	for _, v := range p.Spec.Volumes {
		if v.Image != nil {
			s.Spec.Volumes = append(s.Spec.Volumes, corev1.Volume{Name: v.Name, VolumeSource: corev1.VolumeSource{Image: v.Image}})
		}
	}
	return s
}
