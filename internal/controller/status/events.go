package status

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	events "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	eventsv1 "k8s.io/client-go/kubernetes/typed/events/v1"
	"k8s.io/client-go/tools/record/util"
	"k8s.io/client-go/util/workqueue"

	"github.com/stileproject/stile/api/v1alpha1"
)

// The pace of events.
const (
	maxNote       = 1024             // bytes, what the API takes
	maxIdentity   = 128              // likewise
	seriesWindow  = 30 * time.Minute // what is told again within it belongs to the same event
	seriesEvery   = time.Minute      // between writes of one series
	eventBurst    = 10               // new events of one plugin that are told at once
	eventEvery    = 30 * time.Second // then one in so much
	eventWriters  = 2
	eventTries    = 5
	lastWords     = 2 * time.Second // what is told at the end may take so long
	reporter      = "stile.dev/status"
	sweepInterval = 10 * time.Minute
)

// subject is the plugin that an event regards.
type subject struct {
	key
	uid types.UID
}

// telling is one thing that is told of one plugin; again, it is a series.
type telling struct {
	subject
	kind, reason, action, note string
}

// series is an event and how often it was told.
type series struct {
	name      string
	count     int32
	first     time.Time
	last      time.Time
	told      int32     // what the API server knows of count
	toldAt    time.Time // when it was told
	tries     int
	abandoned bool
}

// recorder tells events. It is bounded: two requests at a time, and a budget for each
// plugin, so that one that flaps is heard and drowns nobody.
type recorder struct {
	client   eventsv1.EventsV1Interface
	identity string
	log      *slog.Logger
	metrics  *metrics
	queue    workqueue.TypedRateLimitingInterface[telling]

	mu      sync.Mutex // guards what follows
	series  map[telling]*series
	budgets map[subject]*allowance // what a plugin may still tell anew
	swept   time.Time
}

func newRecorder(client eventsv1.EventsV1Interface, identity string, log *slog.Logger, m *metrics) *recorder {
	return &recorder{client: client, identity: cut(identity, maxIdentity), log: log, metrics: m,
		series: map[telling]*series{}, budgets: map[subject]*allowance{}}
}

// open comes before tell and run.
func (r *recorder) open() {
	r.queue = workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[telling](firstRetry, lastRetry))
}

// tell takes an event to be told. It never waits.
func (r *recorder) tell(s subject, kind, reason, action, note string) {
	t := telling{s, kind, reason, action, cut(note, maxNote)}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweep(now)
	known := r.series[t]
	if known == nil || now.Sub(known.last) > seriesWindow {
		if !r.spend(s, now) {
			r.metrics.events.WithLabelValues(resultDropped).Inc()
			return
		}
		known = &series{name: util.GenerateEventName(s.name, now.UnixNano()), first: now}
		r.series[t] = known
	}
	known.count++
	known.last = now
	r.queue.AddAfter(t, max(0, known.toldAt.Add(seriesEvery).Sub(now)))
}

// spend takes one from the plugin's budget, if there is one. It is called with mu held.
func (r *recorder) spend(s subject, now time.Time) bool {
	b := r.budgets[s]
	if b == nil {
		b = &allowance{}
		r.budgets[s] = b
	}
	return b.take(eventBurst, eventEvery, now) == 0
}

// sweep drops what is over. It is called with mu held.
func (r *recorder) sweep(now time.Time) {
	if now.Sub(r.swept) < sweepInterval {
		return
	}
	r.swept = now
	for t, s := range r.series {
		if now.Sub(s.last) > seriesWindow && (s.told == s.count || s.abandoned) {
			delete(r.series, t)
		}
	}
	for s, b := range r.budgets {
		if now.Sub(b.at) > eventBurst*eventEvery {
			delete(r.budgets, s)
		}
	}
}

// run tells until ctx ends, then what is left for a moment.
func (r *recorder) run(ctx context.Context) {
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var workers sync.WaitGroup
	for range eventWriters {
		workers.Go(func() {
			for {
				t, shutdown := r.queue.Get()
				if shutdown {
					return
				}
				r.write(requests, t)
				r.queue.Done(t)
			}
		})
	}
	<-ctx.Done()
	enough := time.AfterFunc(lastWords, cancel)
	defer enough.Stop()
	for _, t := range r.untold() {
		r.queue.Add(t)
	}
	r.queue.ShutDownWithDrain()
	workers.Wait()
	r.queue.ShutDown() // what waits for its time is not drained: it was told above
}

func (r *recorder) untold() []telling {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []telling
	for t, s := range r.series {
		if s.told < s.count && !s.abandoned {
			all = append(all, t)
		}
	}
	return all
}

// write tells the API server what it does not know yet of one series.
func (r *recorder) write(ctx context.Context, t telling) {
	r.mu.Lock()
	known := r.series[t]
	if known == nil || known.told >= known.count || known.abandoned {
		r.mu.Unlock()
		return
	}
	s := *known
	r.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	var err error
	if s.told == 0 {
		_, err = r.client.Events(t.namespace).Create(ctx, r.event(t, s), metav1.CreateOptions{FieldManager: fieldManager})
	} else {
		_, err = r.client.Events(t.namespace).Patch(ctx, s.name, types.MergePatchType, longer(s), metav1.PatchOptions{FieldManager: fieldManager})
	}
	if err == nil || apierrors.IsAlreadyExists(err) {
		r.metrics.events.WithLabelValues(resultWritten).Inc()
		r.queue.Forget(t)
		r.settled(known, s.count)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	known.tries++
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || known.tries >= eventTries {
		// It has expired, its namespace goes, it may not be told, or nobody listens: told anew, it is a new event.
		known.abandoned = true
		delete(r.series, t)
		r.queue.Forget(t)
		r.metrics.events.WithLabelValues(resultDropped).Inc()
		r.log.Debug("an event was not told", "plugin", t.String(), "reason", t.reason, "error", err)
		return
	}
	r.metrics.events.WithLabelValues(resultFailed).Inc()
	r.queue.AddRateLimited(t)
}

func (r *recorder) settled(known *series, told int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known.told, known.toldAt, known.tries = told, time.Now(), 0
}

func (r *recorder) event(t telling, s series) *events.Event {
	e := &events.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: t.namespace, Name: s.name},
		EventTime:           metav1.NewMicroTime(s.first),
		ReportingController: reporter,
		ReportingInstance:   r.identity,
		Type:                t.kind,
		Reason:              t.reason,
		Action:              t.action,
		Note:                t.note,
		Regarding: corev1.ObjectReference{APIVersion: v1alpha1.WasmPluginAPIVersion, Kind: v1alpha1.WasmPluginKind,
			Namespace: t.namespace, Name: t.name, UID: t.uid},
	}
	if s.count > 1 {
		e.Series = &events.EventSeries{Count: s.count, LastObservedTime: metav1.NewMicroTime(s.last)}
	}
	return e
}

// longer is the patch that makes an event a series, or a longer one.
func longer(s series) []byte {
	body, err := json.Marshal(map[string]any{"series": events.EventSeries{Count: s.count, LastObservedTime: metav1.NewMicroTime(s.last)}})
	if err != nil {
		panic(err) // numbers and times
	}
	return body
}
