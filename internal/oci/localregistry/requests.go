package localregistry

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// maxRecorded is how many requests are remembered; older ones are only counted.
const maxRecorded = 10_000

// Recorded is one request that was answered. It holds no credential.
type Recorded struct {
	Time       time.Time
	Method     string
	Path       string
	Query      string
	User       string // who it was, as far as known
	Credential string // "", "Basic" or "Bearer": what kind was brought
	Status     int    // 0 if there was no answer
}

// Fault makes the registry misbehave towards requests that fit.
type Fault struct {
	Method string // empty = every
	Path   string // prefix; empty = every
	Times  int    // how often; 0 = always

	Delay  time.Duration // before the answer
	Hang   bool          // no answer until the faults change or the client goes
	Drop   bool          // the connection is closed without an answer
	Status int           // answered instead of the registry's own; 0 = the registry answers
	Header http.Header   // with Status
	Body   string        // with Status
}

// SetFaults replaces the faults; the first one that fits a request acts. None = the
// registry behaves.
func (r *Registry) SetFaults(faults ...Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
	for _, f := range faults {
		if f.Times == 0 {
			f.Times = -1
		}
		r.faults = append(r.faults, &f)
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// fault returns the fault for a request, and what is closed when the faults change.
func (r *Registry) fault(req *http.Request) (Fault, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.faults {
		if f.Times == 0 || f.Method != "" && f.Method != req.Method || !strings.HasPrefix(req.URL.Path, f.Path) {
			continue
		}
		if f.Times > 0 {
			f.Times--
		}
		return *f, r.changed
	}
	return Fault{}, r.changed
}

// Requests returns what was asked, oldest first.
func (r *Registry) Requests() []Recorded {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// RequestCount returns how many requests there were, tokens and pings included.
func (r *Registry) RequestCount() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}

// begin records a request before it is answered, so that one that hangs counts too.
func (r *Registry) begin(req *http.Request) (done func(user string, status int)) {
	kind, _, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	if kind != "Basic" && kind != "Bearer" {
		kind = ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count++
	number := r.count
	r.requests = append(r.requests, Recorded{
		Time: time.Now(), Method: req.Method, Path: req.URL.Path, Query: req.URL.RawQuery, Credential: kind,
	})
	if len(r.requests) > maxRecorded {
		r.requests = slices.Delete(r.requests, 0, len(r.requests)-maxRecorded)
	}
	return func(user string, status int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if i := len(r.requests) - 1 - (r.count - number); i >= 0 {
			r.requests[i].User, r.requests[i].Status = user, status
		}
	}
}

// ServeHTTP answers one request.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	s := &statusWriter{ResponseWriter: w}
	f, changed := r.fault(req) // before it counts: whoever sees it counted may change the faults
	done := r.begin(req)
	user := Anonymous
	defer func() { done(user, s.status) }()
	if f.act(s, req, changed) {
		return
	}
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if req.URL.Path == "/token" && r.options.Mode == Bearer {
		user = r.token(s, req)
		return
	}
	var no *refusedAs
	if user, no = r.judge(req); no != nil {
		refuse(s, no)
		return
	}
	r.backend.ServeHTTP(s, req)
}

// act acts a fault out, and reports whether that was all. changed is closed when the
// faults change.
func (f Fault) act(w http.ResponseWriter, req *http.Request, changed <-chan struct{}) bool {
	if f.Hang {
		select {
		case <-changed:
		case <-req.Context().Done():
		}
		f.Drop = true
	}
	if f.Drop {
		panic(http.ErrAbortHandler)
	}
	if f.Delay > 0 {
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-changed:
		case <-req.Context().Done():
		}
	}
	if f.Status == 0 {
		return false
	}
	for name, values := range f.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(f.Status)
	_, _ = w.Write([]byte(f.Body))
	return true
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (s *statusWriter) WriteHeader(status int) {
	if s.status == 0 {
		s.status = status
	}
	s.ResponseWriter.WriteHeader(status)
}

func (s *statusWriter) Write(b []byte) (int, error) {
	if s.status == 0 {
		s.status = http.StatusOK
	}
	return s.ResponseWriter.Write(b)
}
