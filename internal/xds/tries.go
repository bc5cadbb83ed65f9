package xds

import "time"

const (
	// The delay between tries of a remote module doubles with each refusal.
	retryFirst = time.Second
	retryMax   = 5 * time.Minute
	// proofAfter is when a proxy is asked whether it has fetched a module.
	proofAfter = 10 * time.Second
	// fetchPatience is how many refusals of a remote module are taken for fetching: half a minute.
	fetchPatience = 6
)

func retryDelay(refusals int) time.Duration {
	if refusals > 9 {
		return retryMax
	}
	return min(retryFirst<<(refusals-1), retryMax)
}

// retryIn sets when a remote module is sent again.
func (s *stream) retryIn(w *watch, name string, delay time.Duration) {
	if w.retryAt == nil {
		w.retryAt = map[string]time.Time{}
	}
	w.retryAt[name] = s.server.now().Add(delay)
}

// try says whether a resource may be sent, and in which of its bytes: never in bytes that this
// proxy has refused.
func (s *stream) try(w *watch, r *Resource, asked bool) (int, bool) {
	refused := s.server.rejections.get(s.key, rejectionKey{w.kind, r.Name, r.Version}).tries
	switch {
	case refused == 0:
		if try, holds := w.reported.tryOf(r); holds && asked {
			return try, true
		}
		return s.firstTry(w, r), true
	case r.vary == nil:
		// A route has one spelling. A proxy that asks for it anew holds nothing: let it try.
		return 0, asked && w.kind == routes
	case asked:
		return refused, true
	default:
		return refused, r.remote && s.isDue(w, r.Name)
	}
}

// firstTry chooses the bytes for a proxy that is not known to have refused any. One that ran
// before its stream began may have refused the plain ones, of another replica or before a
// restart, and would then say yes to them and do nothing: it gets others. A remote module goes
// without the demand to be refused while the code is missing only to a listener that warms:
// elsewhere Envoy would say yes, skip the filter and never fetch.
func (s *stream) firstTry(w *watch, r *Resource) int {
	if r.plain && s.warms(w, r.Name) {
		return 0
	}
	try := 0
	// Without listeners of ours on the stream there is no telling how long the proxy has run.
	if r.vary != nil && (s.returning || s.watches[listeners] == nil) {
		try = s.server.salt
	}
	if r.plain {
		return max(try, 1)
	}
	return try
}

// warmTime is how long after it was asked for a name is taken to be awaited by a listener that
// warms: below initialFetchTimeout, after which the stand-in goes live.
const warmTime = 20 * time.Second

// warms reports whether the proxy's listeners that name an extension are sure to be warming:
// the proxy has asked for it just now, and not because a stream began while it was running.
func (s *stream) warms(w *watch, name string) bool {
	a, asked := w.asked[name]
	if !asked || s.server.now().Sub(a.at) > warmTime {
		return false
	}
	return !a.first || s.beginsAnew()
}

// provesNow reports whether the proxy is to be asked whether it has a remote module's code. Its
// yes to the plain form said nothing of that; once it says yes to the other the code is there.
func (s *stream) provesNow(w *watch, r *Resource, held holding) bool {
	if !held.plain {
		return false
	}
	if _, waits := w.retryAt[r.Name]; !waits {
		s.retryIn(w, r.Name, proofAfter)
		return false
	}
	return s.isDue(w, r.Name)
}

func (s *stream) isDue(w *watch, name string) bool {
	at, waits := w.retryAt[name]
	return waits && !s.server.now().Before(at)
}
