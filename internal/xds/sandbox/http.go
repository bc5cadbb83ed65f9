package sandbox

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/stileproject/stile/internal/proxywasm"
)

const (
	maxBody         = 1 << 20 // of a body that a plugin reads: Envoy's default buffer
	upstreamTimeout = 15 * time.Second
)

// hopByHop headers belong to one connection.
var hopByHop = []string{"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}

// way is one request's way through the filters of a chain.
type way struct {
	held    []*filter
	filters []streamFilter
	missing bool // an extension without any configuration: 500
	routes  *routev3.RouteConfiguration
}

// take begins a request's way through the filters that act now. They stay as they are
// for this request, whatever updates come.
func (l *listener) take() *way {
	w := l.hold()
	if w.missing {
		return w
	}
	for _, f := range w.held {
		if f.impl == nil {
			continue
		}
		if s := f.impl.open(); s != nil { // may wait for its turn in a plugin: no lock is held
			w.filters = append(w.filters, s)
		}
	}
	return w
}

// hold takes hold of the filters that act now.
func (l *listener) hold() *way {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &way{}
	if l.serving == nil {
		w.missing = true
		return w
	}
	w.routes = l.serving.routes
	for _, f := range l.serving.filters {
		if f.passes {
			continue
		}
		var acts *filter
		if f.extension != nil {
			acts = f.extension.slot.acquire()
		}
		if acts == nil && f.own != nil {
			acts = f.own.acquire()
		}
		if acts == nil {
			w.missing = true
			return w
		}
		w.held = append(w.held, acts)
	}
	return w
}

func (w *way) end() {
	for _, f := range w.filters {
		f.done()
	}
	for _, f := range w.held {
		f.release()
	}
}

// ServeHTTP is the HTTP connection manager.
func (l *listener) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w := l.take()
	defer w.end()
	if w.missing {
		write(rw, local(http.StatusInternalServerError, ""), nil)
		return
	}
	h := requestHeaders(r)
	body, stream, err := readBody(rw, r.Body, w.filters, streamFilter.readsRequestBody)
	if err != nil {
		write(rw, local(http.StatusRequestEntityTooLarge, "Payload Too Large"), nil)
		return
	}
	before := body
	for i, f := range w.filters {
		if answer := f.request(&h, &body); answer != nil {
			w.respond(rw, fromLocal(answer), i)
			return
		}
	}
	length := r.ContentLength
	if stream == nil {
		stream, length = bytes.NewReader(body), int64(len(body))
		if !bytes.Equal(before, body) {
			h.Del("content-length")
		}
	}
	resp := l.forward(r, h, w.routes, stream, length)
	w.respond(rw, resp, len(w.filters)-1)
}

// readBody reads a body that a filter wants to see, and leaves it as a stream if none
// does.
func readBody(rw http.ResponseWriter, from io.ReadCloser, filters []streamFilter, reads func(streamFilter) bool) ([]byte, io.Reader, error) {
	if from == nil || from == http.NoBody {
		return nil, nil, nil
	}
	if !slices.ContainsFunc(filters, reads) {
		return nil, from, nil
	}
	if rw != nil {
		from = http.MaxBytesReader(rw, from, maxBody)
	}
	b, err := io.ReadAll(io.LimitReader(from, maxBody+1))
	if err == nil && len(b) > maxBody {
		err = errors.New("too large")
	}
	return b, nil, err
}

// answer is a response on its way back.
type answer struct {
	headers proxywasm.Headers // with :status
	body    []byte
	stream  io.ReadCloser // the body, while nobody has read it
}

func local(status int, text string) answer {
	a := answer{headers: proxywasm.Headers{{Name: ":status", Value: strconv.Itoa(status)}}, body: []byte(text)}
	if text != "" {
		a.headers.Add("content-type", "text/plain")
	}
	return a
}

func fromLocal(r *proxywasm.LocalResponse) answer {
	a := local(r.Status, string(r.Body))
	for _, h := range r.Headers {
		a.headers.Set(h.Name, h.Value)
	}
	return a
}

// respond leads an answer back through the filters, from the one at index last.
func (w *way) respond(rw http.ResponseWriter, a answer, last int) {
	if a.stream != nil {
		defer a.stream.Close()
	}
	passed := w.filters[:last+1]
	if a.stream != nil && slices.ContainsFunc(passed, streamFilter.readsResponseBody) {
		b, _, err := readBody(nil, a.stream, passed, streamFilter.readsResponseBody)
		if err != nil {
			write(rw, local(http.StatusBadGateway, "upstream response too large or cut short"), nil)
			return
		}
		a.body, a.stream = b, nil
	}
	before := a.body
	for i := last; i >= 0; i-- {
		if instead := w.filters[i].response(&a.headers, &a.body); instead != nil {
			a = fromLocal(instead)
		}
	}
	if !bytes.Equal(before, a.body) {
		a.headers.Del("content-length")
	}
	write(rw, a, a.stream)
}

func write(rw http.ResponseWriter, a answer, stream io.Reader) {
	status := http.StatusOK
	for _, h := range a.headers {
		switch {
		case h.Name == ":status":
			if n, err := strconv.Atoi(h.Value); err == nil && n >= 200 && n <= 599 {
				status = n
			}
		case !strings.HasPrefix(h.Name, ":") && !slices.Contains(hopByHop, h.Name):
			rw.Header().Add(h.Name, h.Value)
		}
	}
	rw.WriteHeader(status)
	if stream != nil {
		_, _ = io.Copy(rw, stream) // the client went away, or the upstream did: both are over
		return
	}
	_, _ = rw.Write(a.body)
}

// requestHeaders is a request as filters see it: pseudo headers, then the others by name,
// then what Envoy adds to each request before its filters.
func requestHeaders(r *http.Request) proxywasm.Headers {
	h := proxywasm.Headers{
		{Name: ":authority", Value: r.Host},
		{Name: ":path", Value: r.URL.RequestURI()},
		{Name: ":method", Value: r.Method},
		{Name: ":scheme", Value: "http"},
	}
	h = appendHeaders(h, r.Header)
	if _, given := h.Get("x-forwarded-proto"); !given {
		h.Add("x-forwarded-proto", "http")
	}
	if _, given := h.Get("x-request-id"); !given {
		h.Add("x-request-id", requestID())
	}
	return h
}

// requestID is a random UUID.
func requestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func appendHeaders(h proxywasm.Headers, from http.Header) proxywasm.Headers {
	names := make([]string, 0, len(from))
	for name := range from {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if slices.Contains(hopByHop, strings.ToLower(name)) {
			continue
		}
		for _, value := range from[name] {
			h.Add(name, value)
		}
	}
	return h
}

// forward is the router.
func (l *listener) forward(r *http.Request, h proxywasm.Headers, routes *routev3.RouteConfiguration, body io.Reader, length int64) answer {
	upstream, direct := l.owner.route(h, routes)
	if direct != nil {
		return *direct
	}
	path, _ := h.Get(":path")
	method, _ := h.Get(":method")
	if !strings.HasPrefix(path, "/") { // what a plugin wrote there must not become a host
		return local(http.StatusBadRequest, "the request cannot be sent on: its path begins with no slash")
	}
	req, err := http.NewRequestWithContext(r.Context(), method, "http://"+upstream+path, body)
	if err != nil {
		return local(http.StatusBadRequest, "the request cannot be sent on: its path or method is none")
	}
	req.ContentLength = length
	if length == 0 {
		req.Body = http.NoBody
	}
	req.Header = http.Header{"User-Agent": nil} // nil: the client library adds none of its own
	for _, e := range h {
		switch {
		case e.Name == ":authority":
			req.Host = e.Value
		case e.Name == "user-agent" && req.Header["User-Agent"] == nil:
			req.Header.Set(e.Name, e.Value)
		case !strings.HasPrefix(e.Name, ":") && e.Name != "content-length" && !slices.Contains(hopByHop, e.Name):
			req.Header.Add(e.Name, e.Value)
		}
	}
	resp, err := l.owner.upstream.RoundTrip(req) //nolint:bodyclose // whoever sends the answer on closes it
	if err != nil {
		return local(http.StatusServiceUnavailable, "upstream connect error or disconnect/reset before headers")
	}
	headers := appendHeaders(proxywasm.Headers{{Name: ":status", Value: strconv.Itoa(resp.StatusCode)}}, resp.Header)
	return answer{headers: headers, stream: resp.Body}
}
