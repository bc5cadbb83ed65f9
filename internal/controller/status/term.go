package status

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/stileproject/stile/api/v1alpha1"
)

// term is one time of leading, from taking the lead to losing it.
type term struct {
	*Writer
	queue  workqueue.TypedRateLimitingInterface[key]
	stores []cache.Indexer

	book    sync.Mutex // guards plugins
	plugins map[key]*progress
}

// progress is what this term knows of one plugin. The queue lets one worker have it at a time.
type progress struct {
	latest  object    // the answer to our last write, until the watch shows it or something newer
	said    report    // what we wrote last
	written time.Time // when
	flips   allowance // turns of Programmed that may still be written at once
	again   allowance // times that our word may still be put back at once where somebody took it away
	told    map[string]told

	// What the API server did not keep as it was written, and what it has instead: writing
	// it again would be for ever.
	sent, got report
}

func (t *term) work(ctx context.Context) {
	for {
		k, shutdown := t.queue.Get()
		if shutdown {
			return
		}
		t.turn(ctx, k)
		t.queue.Done(k)
		t.metrics.behind.Set(float64(t.queue.Len()))
	}
}

// turn brings one status up to date, or sees to it that another turn comes.
func (t *term) turn(ctx context.Context, k key) {
	want, known := t.want(k)
	have, stored := t.stored(k)
	if !stored {
		t.forget(k)
		return
	}
	if !known || !want.of(have) {
		return // the engine will speak of it, or the watch will show it
	}
	p := t.progress(k, have)
	if newer(p.latest.Version, have.Version) && p.latest.UID == have.UID {
		have = p.latest
	}
	wait, err := t.settle(ctx, k, p, have, want)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		t.metrics.writes.WithLabelValues(resultFailed).Inc()
		level := slog.LevelWarn
		if t.queue.NumRequeues(k) > 0 {
			level = slog.LevelDebug // it was said
		}
		t.log.Log(ctx, level, "status cannot be written, it is tried again", "plugin", k.String(), "error", err)
		t.queue.AddRateLimited(k)
	default:
		t.queue.Forget(k)
		if wait > 0 {
			t.queue.AddAfter(k, wait)
		}
	}
}

// maxConflicts is how often a turn reads again before it lets others go first.
const maxConflicts = 5

// settle writes if there is anything to write now; else it returns how long that waits.
func (t *term) settle(ctx context.Context, k key, p *progress, have object, want report) (time.Duration, error) {
	plugins := t.client.Resource(resource).Namespace(k.namespace)
	for conflicts := 0; ; conflicts++ {
		now := time.Now()
		// An epoch never goes back: URLs that were closed would open again.
		if have.Report.Epoch < v1alpha1.MaxEpoch {
			want.Epoch = max(want.Epoch, have.Report.Epoch)
		}
		change := have.Report.changeTo(want)
		if have.Report.same(p.got) && want.same(p.sent) {
			change = none
		}
		contested := change != none && want.same(p.said)
		wait := p.due(change, contested, now)
		if contested && wait > 0 {
			t.log.Warn("somebody else keeps writing stile's conditions: if there is another stile in this cluster, give each a revision of its own", "plugin", k.String())
		}
		if wait != 0 || !t.cfg.Leads() {
			return max(0, wait), nil
		}
		body := have.patch(want, now)
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		u, err := plugins.Patch(ctx, k.name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: fieldManager}, "status")
		switch {
		case apierrors.IsConflict(err) && conflicts < maxConflicts:
			t.metrics.writes.WithLabelValues(resultConflict).Inc()
			u, err = plugins.Get(ctx, k.name, metav1.GetOptions{})
			cancel()
			if err != nil {
				return 0, t.unlessGone(k, err)
			}
			have = read(u)
			if !want.of(have) {
				return 0, nil // the watch will show it
			}
			continue
		case err != nil:
			if apierrors.IsNotFound(err) {
				// It is gone, or its schema has no status: the API server says the same.
				if u, there := plugins.Get(ctx, k.name, metav1.GetOptions{}); there == nil && u.GetUID() == have.UID {
					err = errNoStatus
				}
			}
			cancel()
			if apierrors.IsInvalid(err) || errors.Is(err, errNoStatus) {
				t.metrics.writes.WithLabelValues(resultFailed).Inc()
				t.log.Warn("the cluster's WasmPlugin CRD takes no status of stile: compare it with stile's", "plugin", k.String(), "again", refusedRetry, "error", err)
				return refusedRetry, nil
			}
			return 0, t.unlessGone(k, err)
		}
		cancel()
		t.metrics.writes.WithLabelValues(resultWritten).Inc()
		t.log.Log(ctx, slog.LevelDebug, "status is written", "plugin", k.String(), "conditions", len(want.Conditions))
		have = read(u)
		p.wrote(have, want, now)
		if have.Report.changeTo(want) != none {
			p.notKept(want, have)
			t.log.Warn("the API server keeps another status than was written: compare the WasmPlugin CRD and webhooks with stile's", "plugin", k.String())
		}
		t.tell(k, have, want, p)
		return 0, nil
	}
}

// fieldManager is how stile is called in managedFields.
const fieldManager = "stile"

var errNoStatus = errors.New("write a status: the WasmPlugin CRD has no status subresource: add it, as stile's has")

// unlessGone takes a deleted plugin for what it is.
func (t *term) unlessGone(k key, err error) error {
	if apierrors.IsNotFound(err) {
		t.metrics.writes.WithLabelValues(resultGone).Inc()
		t.forget(k)
		return nil
	}
	return err
}

// never is a wait for something that is no time.
const never = -1

// due returns how long a change has to wait: 0 is not at all, never is until something
// happens. A change is contested where we wrote what we want already.
func (p *progress) due(c change, contested bool, now time.Time) time.Duration {
	switch {
	case c == none:
		return never
	case contested:
		return p.again.take(againBurst, againEvery, now)
	case c == major:
		return 0
	case c == flip:
		return p.flips.take(flipBurst, countsEvery, now)
	}
	return max(0, p.written.Add(countsEvery).Sub(now))
}

// allowance is for things that may be done a few times at once, then one in a while.
type allowance struct {
	used float64
	at   time.Time
}

// take takes one, or returns how long there is none.
func (a *allowance) take(burst int, every time.Duration, now time.Time) time.Duration {
	a.used = max(0, a.used-float64(now.Sub(a.at))/float64(every))
	a.at = now
	if over := a.used + 1 - float64(burst); over > 0 {
		return max(time.Millisecond, time.Duration(over*float64(every)))
	}
	a.used++
	return 0
}

func (p *progress) wrote(o object, want report, now time.Time) {
	p.latest, p.said, p.written = o, want, now
	p.sent, p.got = report{}, report{}
}

func (p *progress) notKept(want report, have object) { p.sent, p.got = want, have.Report }

// stored returns what the watch last showed.
func (t *term) stored(k key) (object, bool) {
	for _, s := range t.stores {
		if o, ok, _ := s.GetByKey(k.String()); ok {
			if u, ok := o.(*unstructured.Unstructured); ok {
				return read(u), true
			}
		}
	}
	return object{}, false
}

// newer reports whether version a is after b; what cannot be compared is not.
func newer(a, b string) bool {
	n, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && n > 0
}

// progress returns what is known of a plugin. What its status says already was told by
// whoever wrote it.
func (t *term) progress(k key, have object) *progress {
	t.book.Lock()
	defer t.book.Unlock()
	p := t.plugins[k]
	if p == nil || p.latest.UID != have.UID {
		p = &progress{latest: have, told: map[string]told{}}
		for _, c := range have.Report.Conditions {
			p.told[c.Type] = told{c.Reason, c.Generation}
		}
		t.plugins[k] = p
	}
	return p
}

func (t *term) forget(k key) {
	t.book.Lock()
	delete(t.plugins, k)
	t.book.Unlock()
	t.queue.Forget(k)
}
