package oci

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var (
	errTrust  = errors.New("the trust settings given are for another host")
	errClosed = errors.New("the client is closed")
)

const (
	// maxRedirects is how often one request may be sent elsewhere. Registries redirect
	// blobs once or twice.
	maxRedirects = 5
	userAgent    = "stile"
	// maxDrained is how much of an answer that nobody wants is read, so that its
	// connection can be used again.
	maxDrained = 4 << 10
)

// session is what is kept of one credential at one registry: connections, what the
// registry asks for, and tokens. Nothing of it is shared with another credential.
type session struct {
	client     *Client
	key        sessionKey
	credential Credential
	trust      Trust
	base       *url.URL // of the registry, ending in /v2/
	slots      *hostSlots
	transport  *http.Transport
	ended      atomic.Bool

	pings flights[struct{}, challenge]
	mints flights[mintKey, token]

	mu     sync.Mutex // guards what follows
	asked  *challenge // what the registry asks for; nil = not known yet
	tokens map[tokenKey]token
}

func newSession(c *Client, key sessionKey, cred Credential, t Trust, h *hostSlots) *session {
	s := &session{
		client: c, key: key, credential: cred, trust: t, base: c.base(t), slots: h,
		tokens: make(map[tokenKey]token),
	}
	s.transport = &http.Transport{
		Proxy:                  nil, // see Client
		DialContext:            s.dial,
		DialTLSContext:         s.dialTLS,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // digests are of the bytes as they are stored
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        60 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
	}
	return s
}

// dial connects. It has a deadline of its own: the transport lets a dial go on after
// the request that wanted it was given up.
func (s *session) dial(ctx context.Context, network, hostport string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.client.settings.RequestTimeout)
	defer cancel()
	conn, err := s.client.guard.dial(ctx, network, hostport)
	if err != nil {
		return nil, err
	}
	return s.live(conn)
}

// dialTLS connects and verifies who answers. There is no other way to https and no
// way back from it to http.
func (s *session) dialTLS(ctx context.Context, network, hostport string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.client.settings.RequestTimeout)
	defer cancel()
	raw, err := s.client.guard.dial(ctx, network, hostport)
	if err != nil {
		return nil, err
	}
	name, _, err := net.SplitHostPort(hostport)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	conn := tls.Client(raw, s.client.tlsConfig(s.trust, canonicalHost(hostport), name))
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return s.live(conn)
}

// live returns conn, unless the session ended meanwhile: nobody would close it.
func (s *session) live(conn net.Conn) (net.Conn, error) {
	if s.ended.Load() {
		_ = conn.Close()
		return nil, errClosed
	}
	return conn, nil
}

// end closes the idle connections; those in use close when their answer is read.
func (s *session) end() {
	s.ended.Store(true)
	s.transport.CloseIdleConnections()
}

// call is one question and where it may lead.
type call struct {
	method        string
	url           *url.URL
	header        http.Header
	authorization string // sent to url's own scheme, host and port alone
	body          []byte
	redirects     bool // may be followed
	stream        bool // the body is long: the deadline is for each piece of it
}

// answer is a response whose body must be closed, which gives the slot back.
type answer struct {
	*http.Response
	redirected bool
	account    bool // it refuses the user name and password that were sent
}

// send asks and follows redirects. Any HTTP status is an answer; an error is an *Error
// without Op and Ref.
func (s *session) send(ctx context.Context, q call) (*answer, error) {
	own, total := s.slots.questions, s.client.total.questions
	if q.stream {
		own, total = s.slots.bodies, s.client.total.bodies
	}
	if err := own.take(ctx); err != nil {
		return nil, err
	}
	if err := total.take(ctx); err != nil {
		own.give()
		return nil, err
	}
	give := func() {
		total.give()
		own.give()
		if s.ended.Load() {
			s.transport.CloseIdleConnections()
		}
	}
	w := watch(ctx, s.client.settings.RequestTimeout, q.stream)
	a, err := s.hops(w, q)
	if err != nil {
		w.stop()
		give()
		return nil, err
	}
	w.pause()
	a.Body = &body{ReadCloser: a.Body, watch: w, give: sync.OnceFunc(give)}
	return a, nil
}

// hops sends the request and goes where the answers point.
func (s *session) hops(w *deadline, q call) (*answer, error) {
	origin := hostPort(q.url)
	at, authorization, body := q.url, q.authorization, q.body
	for hop := 0; ; hop++ {
		if at.Scheme == "http" && !s.client.plain(hostOf(at)) {
			return nil, &Error{Kind: Blocked, Err: errors.New("plain HTTP is only for hosts that are named with plainHTTP")}
		}
		if !s.client.reachable(s.trust, hostOf(at)) {
			return nil, &Error{Kind: Blocked, Err: errors.New("it leads to a registry that is for certain namespaces alone")}
		}
		resp, err := s.roundTrip(w.ctx, q, at, authorization, body)
		if err != nil {
			return nil, unanswered(w.ctx, err)
		}
		next, err := redirectTarget(at, resp)
		if next == nil && err == nil || !q.redirects {
			return &answer{Response: resp, redirected: hop > 0}, nil
		}
		_, _ = io.CopyN(io.Discard, resp.Body, maxDrained)
		_ = resp.Body.Close()
		if err != nil {
			return nil, err
		}
		if hop == maxRedirects {
			return nil, &Error{Kind: Unavailable, Status: resp.StatusCode, Err: errors.New("it redirects too often")}
		}
		// Once the question has left its host the credential stays behind, for good.
		if hostPort(next) != origin || next.Scheme != q.url.Scheme {
			authorization = ""
		}
		at = next
	}
}

// redirectTarget returns where resp points, nil if it is no redirect.
func redirectTarget(from *url.URL, resp *http.Response) (*url.URL, error) {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	to, err := destination(from, resp.Header.Get("Location"))
	if e, ok := errors.AsType[*Error](err); ok {
		e.Status = resp.StatusCode
	}
	return to, err
}

// roundTrip sends one HTTP request and counts it.
func (s *session) roundTrip(ctx context.Context, q call, at *url.URL, authorization string, content []byte) (*http.Response, error) {
	var reader io.Reader
	if content != nil {
		reader = bytes.NewReader(content)
	}
	req, err := http.NewRequestWithContext(ctx, q.method, at.String(), reader)
	if err != nil {
		return nil, err
	}
	for name, values := range q.header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", userAgent)
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	for _, n := range counters(ctx) {
		n.Add(1)
	}
	start := time.Now()
	resp, err := s.transport.RoundTrip(req)
	took := time.Since(start)
	s.client.metrics.observe(s.client.registries[s.key.host] != nil, s.key.host, resp, took)
	s.trace(ctx, q, resp, took)
	return resp, err
}

// trace logs a request at level debug. It names what was asked, and not where an answer
// led: what a server writes into a location may hold anything.
func (s *session) trace(ctx context.Context, q call, resp *http.Response, took time.Duration) {
	if !s.client.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	status := 0
	if resp != nil {
		status = resp.StatusCode
	}
	path := "elsewhere"
	if s.only(q.url, "own") != "" && strings.HasPrefix(q.url.Path, s.base.Path) && !strings.Contains(q.url.Path, "/uploads/") {
		path = q.url.Path
	}
	s.client.log.LogAttrs(ctx, slog.LevelDebug, "registry request",
		slog.String("registry", s.key.host), slog.String("method", q.method), slog.String("path", path),
		slog.Int("status", status), slog.Duration("took", took), slog.Any("credential", s.credential))
}

// deadline cancels a request that takes too long; a streamed one that stalls.
type deadline struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
	stream bool
}

func watch(ctx context.Context, limit time.Duration, stream bool) *deadline {
	d := &deadline{limit: limit, stream: stream}
	d.ctx, d.cancel = context.WithCancelCause(ctx)
	d.timer = time.AfterFunc(limit, func() { d.cancel(errStalled) })
	return d
}

// begin starts the time of one read of a streamed answer, pause stops it: a reader
// that takes its time is no stalled server.
func (d *deadline) begin() {
	if d.stream {
		d.timer.Reset(d.limit)
	}
}

func (d *deadline) pause() {
	if d.stream {
		d.timer.Stop()
	}
}

func (d *deadline) stop() {
	d.timer.Stop()
	d.cancel(nil)
}

// body is an answer's body. Its errors are clean, and closing it gives back the slot.
type body struct {
	io.ReadCloser
	watch *deadline
	give  func()
}

func (b *body) Read(p []byte) (int, error) {
	b.watch.begin()
	n, err := b.ReadCloser.Read(p)
	b.watch.pause()
	if err != nil && !errors.Is(err, io.EOF) {
		err = unanswered(b.watch.ctx, err)
	}
	return n, err
}

func (b *body) Close() error {
	if !b.watch.stream {
		_, _ = io.CopyN(io.Discard, b.ReadCloser, maxDrained)
	}
	err := b.ReadCloser.Close()
	b.watch.stop()
	b.give()
	if err != nil {
		return errors.New("the connection broke while it was closed")
	}
	return nil
}

// at returns a URL of the registry's API for the repository of r.
func (s *session) at(r Reference, elements ...string) *url.URL {
	u := *s.base
	u.Path += r.Repository() + "/" + strings.Join(elements, "/")
	return &u
}
