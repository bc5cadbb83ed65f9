// Package serve gives modules to proxies over HTTP. Its one rule: a module is sent only
// while its right stands, which is asked at opening, at every request, and again before
// every MiB of a body.
package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// PathPrefix is what the path of a module's URL begins with; the token follows. The
// token is a capability: it is never logged, and shown as "<redacted>".
const PathPrefix = "/modules/"

// Redacted is a module's URL path as it may be shown.
const Redacted = PathPrefix + "<redacted>"

// ErrGone is what an Opener returns for a token that opens nothing: unknown, of an
// earlier epoch, or of a proof that no longer stands. Which of these is not told.
var ErrGone = errors.New("module: this URL opens nothing")

// Module is what a token opens.
type Module struct {
	Plugin string // namespace/name, for logs and counts
	SHA256 string // of the bytes, 64 hexadecimal digits: the ETag
	Size   int64
	// Stands reports whether the right to the bytes still stands. It is asked often
	// and must not wait. Nil means that the right does not end.
	Stands func() bool
}

// Opener opens the module that a token is for. It returns ErrGone if there is none, and
// any other error if the bytes cannot be had at the moment. It may wait for a while, and
// no longer than ctx.
type Opener interface {
	OpenModule(ctx context.Context, token string) (io.ReadSeekCloser, Module, error)
}

// Options are the optional parts of a Handler. The zero value has none.
type Options struct {
	Log        *slog.Logger          // nil: no log
	Registerer prometheus.Registerer // nil: no metrics
	// Downloaded is told of each complete transfer of a module. Nil: nobody is.
	Downloaded func(Module)
}

// Handler serves modules by their URLs. It is safe for concurrent use.
type Handler struct {
	opener     Opener
	log        *slog.Logger
	downloaded func(Module)
	requests   *prometheus.CounterVec
	bytes      prometheus.Counter
}

// New returns a Handler of what opener opens.
func New(opener Opener, o Options) *Handler {
	h := &Handler{
		opener: opener, log: o.Log, downloaded: o.Downloaded,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stile_module_requests_total", Help: "Requests for modules, by HTTP status; \"closed\" is a body that ended with its right.",
		}, []string{"code"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stile_module_bytes_total", Help: "Bytes of modules sent to proxies.",
		}),
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if h.downloaded == nil {
		h.downloaded = func(Module) {}
	}
	if o.Registerer != nil {
		o.Registerer.MustRegister(h.requests, h.bytes)
	}
	return h
}

// ServeHTTP answers GET and HEAD, whole or by Range, with an ETag that is the module's
// sum and a Cache-Control that lets only the proxy itself keep it.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token, ok := strings.CutPrefix(r.URL.Path, PathPrefix)
	if !ok || token == "" || strings.Contains(token, "/") {
		h.refuse(w, http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		h.refuse(w, http.StatusMethodNotAllowed)
		return
	}
	body, module, err := h.opener.OpenModule(r.Context(), token)
	switch {
	case errors.Is(err, ErrGone):
		h.refuse(w, http.StatusNotFound)
		return
	case err != nil:
		h.log.Warn("module cannot be opened", "error", err)
		w.Header().Set("Retry-After", "1")
		h.refuse(w, http.StatusServiceUnavailable)
		return
	}
	defer func() { _ = body.Close() }()
	if module.Stands != nil && !module.Stands() {
		h.refuse(w, http.StatusNotFound)
		return
	}
	h.send(w, r, body, module)
}

// send answers with the module, or the range of it that was asked for.
func (h *Handler) send(w http.ResponseWriter, r *http.Request, body io.ReadSeeker, module Module) {
	header := w.Header()
	header.Set("Content-Type", "application/wasm")
	header.Set("Cache-Control", "private, immutable, max-age=31536000")
	header.Set("ETag", `"`+module.SHA256+`"`)
	header.Set("X-Content-Type-Options", "nosniff")
	begin := time.Now()
	connection := http.NewResponseController(w)
	guard := &guarded{ReadSeeker: body, stands: module.Stands, step: func() {
		// Without support for deadlines the server's own limits hold.
		_ = connection.SetWriteDeadline(time.Now().Add(stepTime))
	}}
	defer func() { _ = connection.SetWriteDeadline(time.Time{}) }() // the connection may live on
	answer := &counted{ResponseWriter: w, status: http.StatusOK}
	http.ServeContent(answer, r, "", time.Time{}, guard)
	h.bytes.Add(float64(answer.sent))
	log := h.log.With("plugin", module.Plugin, "sha256", module.SHA256, "bytes", answer.sent, "took", time.Since(begin))
	switch {
	case guard.ended:
		h.requests.WithLabelValues("closed").Inc()
		log.Info("module transfer closed: the right to it has ended")
		// The connection is cut, so that nobody takes what was sent for the whole.
		panic(http.ErrAbortHandler)
	case guard.broken != nil:
		h.requests.WithLabelValues("broken").Inc()
		log.Error("module transfer broken off", "error", guard.broken)
		panic(http.ErrAbortHandler)
	}
	h.requests.WithLabelValues(strconv.Itoa(answer.status)).Inc()
	if r.Method == http.MethodGet && answer.sent == module.Size && module.Size > 0 {
		h.downloaded(module)
		log.Debug("module sent")
	}
}

// refuse answers with a status and its words, and nothing that tells more.
func (h *Handler) refuse(w http.ResponseWriter, status int) {
	h.requests.WithLabelValues(strconv.Itoa(status)).Inc()
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, http.StatusText(status), status)
}

// errEnded ends a body whose right has ended.
var errEnded = errors.New("module: the right to it has ended")

const (
	// step is after how many bytes the right is asked for again.
	step = 1 << 20
	// stepTime is how long a proxy may take for them: one that takes nothing any more must
	// not hold a file and a connection for ever.
	stepTime = time.Minute
)

// guarded is a body that ends when its right does. It hides every other method of the
// file, so that nothing can send it past the guard but counted.ReadFrom, which asks as often.
type guarded struct {
	io.ReadSeeker
	stands func() bool
	step   func() // called at the beginning of each step
	left   int    // bytes until the right is asked for again
	ended  bool   // the right has ended
	broken error  // the file could not be read
}

// ask begins a step, unless the right has ended.
func (g *guarded) ask() error {
	if g.stands != nil && !g.stands() {
		g.ended = true
		return errEnded
	}
	g.left = step
	g.step()
	return nil
}

func (g *guarded) Read(p []byte) (int, error) {
	if g.left <= 0 {
		if err := g.ask(); err != nil {
			return 0, err
		}
	}
	if len(p) > g.left {
		p = p[:g.left]
	}
	n, err := g.ReadSeeker.Read(p)
	g.left -= n
	if err != nil && !errors.Is(err, io.EOF) {
		g.broken = fmt.Errorf("read module: %w", err)
	}
	return n, err
}

// counted counts what was answered.
type counted struct {
	http.ResponseWriter
	status int
	sent   int64
	wrote  bool
}

func (c *counted) WriteHeader(status int) {
	if !c.wrote && status >= 200 {
		c.status, c.wrote = status, true
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *counted) Write(p []byte) (int, error) {
	c.wrote = true
	n, err := c.ResponseWriter.Write(p)
	c.sent += int64(n)
	return n, err
}

// plainly hides ReadFrom from io.Copy.
type plainly struct{ io.Writer }

// ReadFrom sends a guarded file step by step, each of them from the file to the connection
// without a copy where the system can do that; everything else as it comes.
func (c *counted) ReadFrom(from io.Reader) (int64, error) {
	limited, _ := from.(*io.LimitedReader)
	to, _ := c.ResponseWriter.(io.ReaderFrom)
	if limited == nil || to == nil {
		return io.Copy(plainly{c}, from)
	}
	g, _ := limited.R.(*guarded)
	if g == nil || !g.isFile() {
		return io.Copy(plainly{c}, from)
	}
	var sent int64
	for limited.N > 0 {
		if err := g.ask(); err != nil {
			return sent, err
		}
		want := min(limited.N, step)
		n, err := to.ReadFrom(&io.LimitedReader{R: g.ReadSeeker, N: want})
		c.wrote = c.wrote || n > 0
		c.sent += n
		sent += n
		limited.N -= n
		switch {
		case err != nil:
			return sent, err
		case n < want:
			g.broken = fmt.Errorf("read module: %w", io.ErrUnexpectedEOF)
			return sent, g.broken
		}
	}
	return sent, nil
}

// isFile reports whether the body is a file that the system can send.
func (g *guarded) isFile() bool {
	f, ok := g.ReadSeeker.(syscall.Conn)
	if !ok {
		return false
	}
	_, err := f.SyscallConn()
	return err == nil
}
