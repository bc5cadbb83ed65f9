package placement

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/stileproject/stile/internal/placement"
)

// errStale says that a proof ended before the patch was sent.
var errStale = errors.New("let go: the right to what was decided by ended")

const (
	patchers     = 16
	patchTimeout = 30 * time.Second
	retryFirst   = 100 * time.Millisecond
	retryMax     = 30 * time.Second
	patience     = 3 // times that a patch is forbidden before the pod goes as it is

	// watchDelay is how long the watch may take to show what a patch came too late for.
	watchDelay = 3 * time.Second
)

// job is one patch.
type job struct {
	held    *held
	pod     *corev1.Pod // as it was decided about
	asks    []ask       // by which it was decided
	verdict verdict
}

// outcome is what became of a job.
type outcome struct {
	job
	err error
}

// patches sends patches, so many at a time and namespace by namespace in turn, so that a
// thousand pods of one wait behind one another and not before everybody else's.
type patches struct {
	client  kubernetes.Interface
	metrics *metrics
	wake    func()

	mu      sync.Mutex
	some    *sync.Cond
	ended   bool
	queue   turns[job]
	results []outcome
}

func newPatches(client kubernetes.Interface, m *metrics, wake func()) *patches {
	p := &patches{client: client, metrics: m, wake: wake}
	p.some = sync.NewCond(&p.mu)
	return p
}

func (p *patches) start(ctx context.Context, owned *sync.WaitGroup) {
	for range patchers {
		owned.Go(func() { p.work(ctx) })
	}
	owned.Go(func() {
		<-ctx.Done()
		p.mu.Lock()
		p.ended = true
		p.mu.Unlock()
		p.some.Broadcast()
	})
}

func (p *patches) push(j job) {
	p.mu.Lock()
	p.queue.push(j.pod.Namespace, j)
	p.mu.Unlock()
	p.some.Signal()
}

func (p *patches) work(ctx context.Context) {
	for {
		p.mu.Lock()
		for p.queue.empty() && !p.ended {
			p.some.Wait()
		}
		if p.ended {
			p.mu.Unlock()
			return
		}
		j, _ := p.queue.pop(nil)
		p.mu.Unlock()
		err := p.patch(ctx, j)
		p.mu.Lock()
		p.results = append(p.results, outcome{j, err})
		p.mu.Unlock()
		p.wake()
	}
}

// patch lets one pod go: one request, which the API server refuses if the pod is no
// longer the one that was decided about.
func (p *patches) patch(ctx context.Context, j job) error {
	body, err := j.verdict.Patch(j.pod)
	if err != nil {
		return err
	}
	if !standing(j.asks) {
		return errStale
	}
	ctx, cancel := context.WithTimeout(ctx, patchTimeout)
	defer cancel()
	// Of the answer nothing is wanted but that it is one: as little as there is comes back.
	return p.client.CoreV1().RESTClient().Patch(types.MergePatchType).
		Namespace(j.pod.Namespace).Resource("pods").Name(j.pod.Name).
		VersionedParams(&metav1.PatchOptions{FieldManager: "stile-placement"}, metav1.ParameterCodec).
		SetHeader("Accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1").
		Body(body).Do(ctx).Error()
}

func (p *patches) take() []outcome {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.results
	p.results = nil
	return all
}

// letGo has the pod patched.
func (c *Controller) letGo(h *held, v verdict) {
	if h.plain {
		v.Decision = placement.Decision{Outcome: placement.NotInspected, Reason: ReasonPatchRefused,
			Message: "the API server refused what was decided: nothing is set"}
	}
	h.patching = true
	asks := make([]ask, len(h.asks))
	copy(asks, h.asks)
	c.patches.push(job{held: h, pod: h.pod, asks: asks, verdict: v})
}

// takeResults notes what became of the patches.
func (c *Controller) takeResults(now time.Time) {
	for _, o := range c.patches.take() {
		h := o.held
		h.patching = false
		current := c.pods[h.key] == h
		result := "ok"
		switch {
		case o.err == nil:
			c.letGoDone(h, o, current, now)
		case errors.Is(o.err, errStale):
			result = "stale"
		case apierrors.IsNotFound(o.err), apierrors.IsGone(o.err):
			result = "gone" // the watch says so, too
			h.tooLate(o.pod.ResourceVersion, now)
		case apierrors.IsConflict(o.err):
			result = "conflict"
			h.tooLate(o.pod.ResourceVersion, now)
			h.retryAt = time.Time{}
		case !h.plain && refused(o.err, h.failures):
			// Nobody is stranded for what was decided wrongly, for what there is no room
			// for, or for what somebody's admission will not have.
			result, h.plain = "refused", true
			c.log.Error("placement: the API server refuses what was decided; the pod is let go as it is", "pod", h.key.String(), "error", words(o.err))
		default:
			result = "failed"
			h.failures++
			h.retryAt = now.Add(min(retryMax, retryFirst<<min(h.failures, 10)))
			if h.failures%10 == 1 {
				c.log.Warn("placement: a pod could not be let go; it is tried again", "pod", h.key.String(), "failures", h.failures, "error", words(o.err))
			}
		}
		c.metrics.patched(result)
		if current && !h.done {
			c.dirty[h.key] = struct{}{}
		}
	}
}

// tooLate notes that the API server has another version of the pod, or none: the watch
// shows it. If it does not, somebody's admission may have answered so, and the patch is
// tried again, at growing distances.
func (h *held) tooLate(version string, now time.Time) {
	if h.conflict != version {
		h.conflict, h.repeated = version, 0
	}
	h.againAt = now.Add(min(retryMax, watchDelay<<min(h.repeated, 10)))
	h.repeated++
}

// refused reports an answer that the API server gives to what is in the patch, and would
// give again. (Forbidden may also be a role that is being changed, and what is bad to an
// admission webhook one that is: it is asked some times more.)
func refused(err error, failures int) bool {
	switch {
	case apierrors.IsInvalid(err), apierrors.IsRequestEntityTooLargeError(err):
		return true
	case apierrors.IsForbidden(err), apierrors.IsBadRequest(err):
		return failures >= patience
	}
	// What etcd has no room for is passed on as it says it, of no known kind.
	status, ok := errors.AsType[*apierrors.StatusError](err)
	return ok && slices.ContainsFunc([]string{"request is too large", "message larger than max"}, func(s string) bool {
		return strings.Contains(status.Status().Message, s)
	})
}

// letGoDone notes that a pod went.
func (c *Controller) letGoDone(h *held, o outcome, current bool, now time.Time) {
	c.metrics.letGo(o.verdict.Outcome, now.Sub(o.pod.CreationTimestamp.Time))
	switch o.verdict.Outcome {
	case placement.NotAllowed, placement.NotInspected, placement.FellBack, placement.NoCommonPlatform:
		c.events.tell(o.pod, corev1.EventTypeWarning, o.verdict.Reason, message(o.verdict))
	}
	if !current {
		return
	}
	h.done = true
	c.release(h)
	c.leaveSecrets(h)
	h.asks = nil
	delete(c.waiting, h.key)
}

// message is what the pod's owner is told.
func message(v verdict) string {
	if v.why == hintNone || v.why == hintUnreadable {
		return v.Message
	}
	return v.Message + " (" + string(v.why) + ")"
}
