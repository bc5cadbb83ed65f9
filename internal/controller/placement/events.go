package placement

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Reasons of events besides the outcomes of a decision: with NotAllowed, NotInspected,
// FellBack and NoCommonPlatform they are all that there are.
const (
	ReasonWaiting      = "WaitingForRegistry" // the pod is held until its registry answers
	ReasonPatchRefused = "PatchRefused"       // the API server refused what was decided
)

const (
	eventWriters = 2
	maxEvents    = 1000 // that wait to be written, of all namespaces
	maxNote      = 1000 // the API takes 1 KiB
	eventTimeout = 10 * time.Second
)

// events tells the owners of pods, in the pod's namespace. It never holds up a decision:
// what is too much is dropped, a namespace's own first.
type events struct {
	client kubernetes.Interface
	log    *slog.Logger

	mu    sync.Mutex
	some  *sync.Cond
	ended bool
	count int
	queue turns[*eventsv1.Event]
	share map[string]int
}

func newEvents(client kubernetes.Interface, log *slog.Logger) *events {
	e := &events{client: client, log: log, share: map[string]int{}}
	e.some = sync.NewCond(&e.mu)
	return e
}

func (e *events) start(ctx context.Context, owned *sync.WaitGroup) {
	for range eventWriters {
		owned.Go(func() { e.write(ctx) })
	}
	owned.Go(func() {
		<-ctx.Done()
		e.mu.Lock()
		e.ended = true
		e.mu.Unlock()
		e.some.Broadcast()
	})
}

// tell has an event written about a pod. Its name is made of pod and reason: the same is
// not told twice, by whichever replica, before or after a restart.
func (e *events) tell(pod *corev1.Pod, kind, reason, note string) {
	if len(note) > maxNote {
		note = strings.ToValidUTF8(note[:maxNote-3], "") + "..."
	}
	event := &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: eventName(pod, reason)},
		EventTime:  metav1.NowMicro(), ReportingController: "stile.dev/placement", ReportingInstance: "stile",
		Action: "LetGo", Reason: reason, Type: kind, Note: note,
		Regarding: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion},
	}
	if reason == ReasonWaiting {
		event.Action = "Hold"
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.count >= maxEvents || e.share[pod.Namespace] >= maxEvents/4 {
		return
	}
	e.count++
	e.share[pod.Namespace]++
	e.queue.push(pod.Namespace, event)
	e.some.Signal()
}

func (e *events) write(ctx context.Context) {
	for {
		e.mu.Lock()
		for e.queue.empty() && !e.ended {
			e.some.Wait()
		}
		if e.ended {
			e.mu.Unlock()
			return
		}
		event, _ := e.queue.pop(nil)
		e.count--
		if e.share[event.Namespace]--; e.share[event.Namespace] == 0 {
			delete(e.share, event.Namespace)
		}
		e.mu.Unlock()
		ctx, cancel := context.WithTimeout(ctx, eventTimeout)
		_, err := e.client.EventsV1().Events(event.Namespace).Create(ctx, event, metav1.CreateOptions{})
		cancel()
		if err != nil && !apierrors.IsAlreadyExists(err) && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			e.log.Debug("placement: an event could not be written", "namespace", event.Namespace, "reason", event.Reason, "error", words(err))
		}
	}
}

// eventName is the same for the same pod and reason, and may be a name.
func eventName(pod *corev1.Pod, reason string) string {
	const most = 180
	name := strings.TrimRight(pod.Name[:min(len(pod.Name), most)], "-.")
	return name + "." + string(pod.UID)[:min(len(pod.UID), 8)] + "." + strings.ToLower(reason)
}
