package xds

import "sync"

// eventQueue hands events to one reader without ever making a writer wait. It is bounded by the
// number of streams: a Gone takes back a Connected that nobody has read yet, and any number of
// ledger changes are one.
type eventQueue struct {
	out  chan Event
	stop chan struct{}
	done sync.WaitGroup

	mu      sync.Mutex
	waiting []Event // Connected and Gone, in order
	changed bool    // the ledger
	wake    chan struct{}
}

func newEventQueue() *eventQueue {
	q := &eventQueue{out: make(chan Event), stop: make(chan struct{}), wake: make(chan struct{}, 1)}
	q.done.Go(q.pump)
	return q
}

func (q *eventQueue) add(e Event) {
	q.mu.Lock()
	switch e.Kind {
	case LedgerChanged:
		q.changed = true
	case Gone:
		taken := false
		for i, w := range q.waiting {
			if w.Stream == e.Stream {
				q.waiting = append(q.waiting[:i], q.waiting[i+1:]...)
				taken = true
				break
			}
		}
		if !taken {
			q.waiting = append(q.waiting, e)
		}
	default:
		q.waiting = append(q.waiting, e)
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// next takes the next event: who comes and goes first, then the ledger.
func (q *eventQueue) next() (Event, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) > 0 {
		e := q.waiting[0]
		q.waiting = q.waiting[1:]
		if len(q.waiting) == 0 {
			q.waiting = nil
		}
		return e, true
	}
	if q.changed {
		q.changed = false
		return Event{Kind: LedgerChanged}, true
	}
	return Event{}, false
}

func (q *eventQueue) pump() {
	for {
		e, ok := q.next()
		if !ok {
			select {
			case <-q.wake:
				continue
			case <-q.stop:
				return
			}
		}
		select {
		case q.out <- e:
		case <-q.stop:
			return
		}
	}
}

func (q *eventQueue) close() {
	close(q.stop)
	q.done.Wait()
}
