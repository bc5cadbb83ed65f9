package kube

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// How objects that are known by name are followed.
const (
	// A watch ends and the object is asked for anew within this bound, whatever becomes of the watch.
	renewAtMost  = 5 * time.Minute
	renewAtLeast = 4 * time.Minute
	// askTimeout bounds a get, and the wait for a watch to begin.
	askTimeout = 15 * time.Second
	// At most so many objects are asked for at the same time.
	askSlots = 16
	// A failed try is followed by another one after this, doubled each time; a success of anybody wakes all.
	retryFirst, retryMost = 250 * time.Millisecond, 30 * time.Second
	// A right that is missing is asked for again this soon, while somebody may be mending it, and later less often.
	refusedFirst, refusedMost = 600 * time.Millisecond, time.Minute
	refusedFresh              = 10 * time.Minute
	// refusedPace is the time that tries for missing rights take of all together at least.
	refusedPace = 50 * time.Millisecond
)

// client is how objects of one kind are read: with get, and with a watch on one name, never with a list.
type client struct {
	get   func(ctx context.Context, name string, o metav1.GetOptions) (runtime.Object, error)
	watch func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// pace is shared by those who follow objects of one API server.
type pace struct {
	slots chan struct{}

	mu      sync.Mutex
	wakes   map[string]chan struct{} // by what is waited for; closed when it has come
	refused int                      // how many wait for a right
}

func newPace() *pace {
	return &pace{slots: make(chan struct{}, askSlots), wakes: map[string]chan struct{}{}}
}

// wake ends the wait of all who wait for what.
func (p *pace) wake(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.wakes[what]; c != nil {
		close(c)
		delete(p.wakes, what)
	}
}

func (p *pace) woken(what string) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.wakes[what]
	if c == nil {
		c = make(chan struct{})
		p.wakes[what] = c
	}
	return c
}

// countRefused adds n to those who wait for a right and returns how far apart the tries of each must be.
func (p *pace) countRefused(n int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused += n
	return max(refusedFirst, time.Duration(p.refused)*refusedPace)
}

const reachable = "reachable"

// livedLongEnough is how long a watch must last for its end to be nothing special.
const livedLongEnough = 5 * time.Second

var errShortWatch = errors.New("the watch ended as soon as it had begun")

// followed is one object that is known by name.
type followed struct {
	client
	pace *pace
	name string
	// right names what one right opens, such as a namespace: who is let in wakes the others.
	right string
	// seen is told what the object is, nil if there is none; failed why that is not known. Both are called by one
	// goroutine, in order, and must not wait.
	seen   func(o runtime.Object)
	failed func(err error)

	version      uint64 // the resource version that was seen last
	tries        int    // in a row that failed
	refusedSince time.Time
}

// run follows the object until ctx ends.
func (f *followed) run(ctx context.Context) {
	defer f.allowed()
	for ctx.Err() == nil {
		err := f.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		f.wait(ctx, err)
	}
}

// follow asks for the object and watches it until the watch ends. The watch begins first, so that nothing that happens
// between the two is missed.
func (f *followed) follow(ctx context.Context) (failure error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, watchErr, err := f.ask(ctx)
	if w != nil {
		defer w.Stop()
	}
	if err != nil {
		f.failed(err)
		return err
	}
	if watchErr != nil {
		f.pace.wake(reachable)
		f.allowed()
		return &brokenWatch{watchErr}
	}
	f.pace.wake(reachable)
	f.allowed()
	begun := time.Now()
	defer func() {
		if time.Since(begun) > livedLongEnough {
			f.tries = 0
		} else if failure == nil {
			failure = &brokenWatch{errShortWatch}
		}
	}()
	for event := range w.ResultChan() {
		switch event.Type {
		case watch.Added, watch.Modified:
			f.take(event.Object)
		case watch.Deleted:
			if v := versionOf(event.Object); v == 0 || v >= f.version {
				f.version = v
				f.seen(nil)
			}
		case watch.Error:
			return &brokenWatch{apierrors.FromObject(event.Object)}
		}
	}
	return nil
}

// ask begins the watch and gets the object as it is now.
func (f *followed) ask(ctx context.Context) (w watch.Interface, watchErr, err error) {
	select {
	case f.pace.slots <- struct{}{}:
		defer func() { <-f.pace.slots }()
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	seconds := int64((renewAtLeast + rand.N(renewAtMost-renewAtLeast)) / time.Second) //nolint:gosec // it spreads load
	begun, giveUp := context.WithCancel(ctx)                                          // ends with ctx: the watch goes on
	late := time.AfterFunc(askTimeout, giveUp)
	w, watchErr = f.watch(begun, metav1.ListOptions{
		FieldSelector:  fields.OneTermEqualSelector(metav1.ObjectNameField, f.name).String(),
		TimeoutSeconds: &seconds,
	})
	late.Stop()
	if watchErr != nil {
		giveUp()
	}
	asked, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	o, err := f.get(asked, f.name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		f.version = 0
		f.seen(nil)
		err = nil
	case err == nil:
		f.version = 0 // whatever was seen before: this is how it is
		f.take(o)
	}
	return w, watchErr, err
}

// take passes on an object unless a newer one was seen.
func (f *followed) take(o runtime.Object) {
	v := versionOf(o)
	if v != 0 && v < f.version {
		return
	}
	f.version = v
	f.seen(o)
}

func versionOf(o runtime.Object) uint64 {
	m, err := meta.Accessor(o)
	if err != nil {
		return 0
	}
	v, _ := strconv.ParseUint(m.GetResourceVersion(), 10, 64)
	return v
}

// brokenWatch is the error of an object that could be read and not watched.
type brokenWatch struct{ err error }

func (b *brokenWatch) Error() string { return b.err.Error() }
func (b *brokenWatch) Unwrap() error { return b.err }

// wait waits until the next try is due.
func (f *followed) wait(ctx context.Context, err error) {
	delay, what := time.Duration(0), reachable
	_, broken := errors.AsType[*brokenWatch](err)
	switch {
	case err == nil: // the watch has lived its time
		what = ""
	case broken:
		delay = min(retryFirst<<min(f.tries, 12), renewAtMost)
		if apierrors.IsGone(err) || apierrors.IsResourceExpired(err) {
			delay = retryFirst
		}
		f.tries++
		what = ""
	case refused(err):
		if f.refusedSince.IsZero() {
			f.refusedSince = time.Now()
			f.pace.countRefused(1)
		}
		delay, what = f.pace.countRefused(0), f.right
		if age := time.Since(f.refusedSince); age > refusedFresh {
			delay = max(delay, min(age-refusedFresh, refusedMost))
		}
	default:
		delay = min(retryFirst<<min(f.tries, 10), retryMost)
		f.tries++
	}
	delay = delay*9/10 + rand.N(max(1, delay/5)) //nolint:gosec // it spreads load
	var woken <-chan struct{}
	if what != "" {
		woken = f.pace.woken(what)
	}
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-woken:
	}
}

// allowed ends the time in which the object was refused.
func (f *followed) allowed() {
	if f.refusedSince.IsZero() {
		return
	}
	f.refusedSince = time.Time{}
	f.pace.countRefused(-1)
	f.pace.wake(f.right)
}
