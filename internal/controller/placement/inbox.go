package placement

import (
	"context"
	"log/slog"
	"sync"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
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

// watch follows the pods until ctx ends. A broken watch is taken up again, with growing
// delay, where it broke.
func (i *inbox) watch(ctx context.Context, client kubernetes.Interface, log *slog.Logger) {
	lw := cache.ToListWatcherWithWatchListSemantics(cache.NewFilteredListWatchFromClient(client.CoreV1().RESTClient(), "pods", metav1.NamespaceAll,
		func(o *metav1.ListOptions) { o.FieldSelector = unscheduled }), client)
	logger := logr.FromSlogHandler(log.Handler())
	r := cache.NewReflectorWithOptions(lw, &corev1.Pod{}, i, cache.ReflectorOptions{Name: "pods", Logger: &logger})
	r.RunWithContext(klog.NewContext(ctx, logger))
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
