// Package admin is how operators ask a running stile what it does. Its one rule: it
// shows, and takes one order (ask again now), to those who reach loopback or prove that
// they may; nothing it shows is a credential or opens anything.
package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// The errors of a Rechecker that have an HTTP status of their own.
var (
	ErrUnknown = errors.New("nothing of that name is held")                  // 404
	ErrTooSoon = errors.New("was asked again less than 10 s ago: try later") // 429
	ErrInvalid = errors.New("the name is malformed")                         // 400
)

// The errors of Options.Admit that have an HTTP status of their own; any other is 503.
var (
	ErrNobody    = errors.New("the caller does not say who it is") // 401
	ErrForbidden = errors.New("the caller may not do this")        // 403
)

// Rechecker asks registries again. Its methods do not wait for the answers.
type Rechecker interface {
	// RecheckPlugin asks again for the image of the plugin namespace/name.
	RecheckPlugin(name string) error
	// RecheckImage asks again for an image, whoever holds it.
	RecheckImage(image string) error
}

// Check is one condition of readiness. Fault is nil while the condition holds.
type Check struct {
	Name  string
	Fault func() error
}

// Options are what the handlers show. Plugins, Proofs and Proxies return slices, sorted,
// that nobody changes; nil functions show empty lists.
type Options struct {
	Plugins, Proofs, Proxies func() any
	Recheck                  Rechecker // nil: POST /api/v1/recheck is 404
	Ready                    []Check
	Notes                    func() []string     // what is wrong without making the service unready: "/readyz?verbose" has it; nil: nothing
	Gatherer                 prometheus.Gatherer // nil: /metrics is empty
	Log                      *slog.Logger        // nil: no log
	// Admit says whether a caller may do what it asks of New's handler; nil: whoever reaches
	// the address may, which must then be loopback. Probes are answered to everybody.
	Admit func(*http.Request) error
}

// Health returns the handler of /livez, /readyz and /metrics alone, which may be
// reached from anywhere.
func Health(o Options) http.Handler {
	mux := http.NewServeMux()
	o.health(mux)
	return mux
}

// New returns the handler of the whole admin address: health, the API and profiles. It
// answers no request that a page of another origin makes a browser send. Without
// Options.Admit it answers only those whose Host is an IP address or localhost.
func New(o Options) http.Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	o.health(mux)
	mux.HandleFunc("GET /api/v1/plugins", list(o.Plugins))
	mux.HandleFunc("GET /api/v1/proofs", list(o.Proofs))
	mux.HandleFunc("GET /api/v1/proxies", list(o.Proxies))
	if o.Recheck != nil {
		mux.HandleFunc("POST /api/v1/recheck", o.recheck)
	}
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	reached := onlyLocalNames(mux)
	if o.Admit != nil {
		reached = o.admitted(mux)
	}
	return http.NewCrossOriginProtection().Handler(reached)
}

// admitted asks of everything but probes whether the caller may.
func (o Options) admitted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/livez" || r.URL.Path == "/readyz" && r.URL.RawQuery == "" {
			next.ServeHTTP(w, r)
			return
		}
		err := o.Admit(r)
		switch {
		case err == nil:
			next.ServeHTTP(w, r)
		case errors.Is(err, ErrNobody):
			w.Header().Set("WWW-Authenticate", `Bearer realm="stile"`)
			fault(w, http.StatusUnauthorized, err.Error())
		case errors.Is(err, ErrForbidden):
			fault(w, http.StatusForbidden, err.Error())
		default:
			fault(w, http.StatusServiceUnavailable, err.Error())
		}
	})
}

// onlyLocalNames refuses requests that a browser was led to by a name: a stranger's
// page may let its own name resolve to loopback (DNS rebinding), but cannot be an address.
func onlyLocalNames(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
		if _, err := netip.ParseAddr(host); err != nil && !strings.EqualFold(host, "localhost") {
			fault(w, http.StatusMisdirectedRequest, "the Host header must be an IP address or localhost")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (o Options) health(mux *http.ServeMux) {
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) { report(w, r, nil, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { report(w, r, o.Ready, o.Notes) })
	gatherer := o.Gatherer
	if gatherer == nil {
		gatherer = prometheus.NewRegistry()
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
}

// report answers 200 "ok" if all checks hold, else 503 and the faults; "?verbose" names
// every check, and the notes.
func report(w http.ResponseWriter, r *http.Request, checks []Check, notes func() []string) {
	var text strings.Builder
	status := http.StatusOK
	verbose := r.URL.Query().Has("verbose")
	for _, c := range checks {
		if err := c.Fault(); err != nil {
			status = http.StatusServiceUnavailable
			_, _ = fmt.Fprintf(&text, "[-]%s: %v\n", c.Name, err)
		} else if verbose {
			_, _ = fmt.Fprintf(&text, "[+]%s ok\n", c.Name)
		}
	}
	if verbose && notes != nil {
		for _, note := range notes() {
			_, _ = fmt.Fprintf(&text, "[!]%s\n", note)
		}
	}
	if status == http.StatusOK {
		text.WriteString("ok\n")
	} else {
		text.WriteString("not ready\n")
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text.String())
}

// list answers {"items": […]}; no items are an empty list, never null.
func list(items func() any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		var all any = []struct{}{}
		if items != nil {
			all = items()
		}
		if v := reflect.ValueOf(all); !v.IsValid() || (v.Kind() == reflect.Slice && v.IsNil()) {
			all = []struct{}{}
		}
		answer(w, http.StatusOK, struct {
			Items any `json:"items"`
		}{all})
	}
}

// maxOrder bounds the body of an order: a plugin's or an image's name and its frame.
const maxOrder = 16 << 10

// recheck takes {"plugin": "namespace/name"} or {"image": "…"}.
func (o Options) recheck(w http.ResponseWriter, r *http.Request) {
	var order struct{ Plugin, Image string }
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxOrder))
	d.DisallowUnknownFields()
	err := d.Decode(&order)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("more than one value")
		}
	}
	const want = `want {"plugin": "namespace/name"} or {"image": "…"}`
	switch {
	case err != nil:
		fault(w, http.StatusBadRequest, "not an order: "+want)
		return
	case (order.Plugin == "") == (order.Image == ""):
		fault(w, http.StatusBadRequest, "one of plugin and image: "+want)
		return
	case order.Plugin != "":
		err = o.Recheck.RecheckPlugin(order.Plugin)
	default:
		err = o.Recheck.RecheckImage(order.Image)
	}
	i := slices.IndexFunc(orderErrors, func(e orderError) bool { return errors.Is(err, e.err) })
	switch {
	case err == nil:
		answer(w, http.StatusAccepted, struct{}{})
	case i < 0:
		o.Log.Error("recheck failed", "error", err)
		fault(w, http.StatusInternalServerError, "the order failed; the log says why")
	default:
		if orderErrors[i].status == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", "10")
		}
		fault(w, orderErrors[i].status, err.Error())
	}
}

type orderError struct {
	err    error
	status int
}

var orderErrors = []orderError{
	{ErrUnknown, http.StatusNotFound},
	{ErrTooSoon, http.StatusTooManyRequests},
	{ErrInvalid, http.StatusBadRequest},
}

func fault(w http.ResponseWriter, status int, message string) {
	answer(w, status, struct {
		Error string `json:"error"`
	}{message})
}

func answer(w http.ResponseWriter, status int, value any) {
	text, err := json.Marshal(value)
	if err != nil {
		http.Error(w, `{"error":"the answer could not be written as JSON"}`, http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(text, '\n'))
}
