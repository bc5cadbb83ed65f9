package oci

import (
	"container/list"
	"crypto/x509"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/stileproject/stile/internal/secret"
)

// maxSessions bounds the sessions that are kept, each with its tokens and idle
// connections. The least recently used one goes; its credential then pays a ping and
// a token again.
const maxSessions = 4096

// Client asks registries. It follows redirects only where no credential goes along,
// dials only what its guard allows, and keeps connections and tokens per (registry,
// credential, trust), never across. It is safe for concurrent use.
//
// It ignores HTTP_PROXY and its like: behind a proxy the addresses that are dialled
// are the proxy's to choose, and the guard could promise nothing.
type Client struct {
	settings   Settings
	registries map[string]*registry
	allow      []string
	guard      *guard
	roots      *x509.CertPool // for hosts without their own; nil = the system's
	total      hostSlots      // over all registries
	metrics    *metrics
	log        *slog.Logger

	mu       sync.Mutex // guards what follows; never held while a network is waited for
	sessions map[sessionKey]*list.Element
	recent   *list.List // of *session, the most recently used first
	hosts    map[string]*hostSlots
	closed   bool
}

type sessionKey struct {
	host       string
	trust      secret.Fingerprint
	credential secret.Fingerprint
}

// NewClient returns a Client. It fails if the settings make no sense, with all faults.
func NewClient(s Settings) (*Client, error) {
	registries, err := prepare(s.Registries)
	if err != nil {
		return nil, &Error{Op: "registry settings", Kind: Invalid, Err: err}
	}
	allow, err := allowRules(s.Allow)
	if err != nil {
		return nil, &Error{Op: "registry settings", Kind: Invalid, Err: err}
	}
	if s.RequestTimeout <= 0 {
		s.RequestTimeout = DefaultRequestTimeout
	}
	if s.TokenMaxAge <= 0 {
		s.TokenMaxAge = DefaultTokenMaxAge
	}
	if s.MaxInFlight <= 0 {
		s.MaxInFlight = DefaultMaxInFlight
	}
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{
		settings:   s,
		registries: registries,
		allow:      allow,
		guard: &guard{
			named:     namedHosts(registries),
			loopback:  s.AllowLoopback,
			private:   s.AllowPrivate,
			forbidden: s.Forbidden,
			keepAlive: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 3},
		},
		total:    hostSlots{questions: make(slots, s.MaxInFlight), bodies: make(slots, s.MaxInFlight)},
		log:      s.Log,
		sessions: make(map[sessionKey]*list.Element),
		recent:   list.New(),
		hosts:    make(map[string]*hostSlots),
	}
	c.metrics, err = newMetrics(s.Registerer)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Close drops all tokens and idle connections. Requests under way end by themselves;
// new ones fail.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	ended := c.take(func(*session) bool { return true })
	c.mu.Unlock()
	end(ended)
}

// Forget drops the tokens and connections of the credential with this fingerprint,
// at every registry. A request under way ends by itself and leaves nothing behind.
func (c *Client) Forget(credential secret.Fingerprint) {
	c.mu.Lock()
	ended := c.take(func(s *session) bool { return s.credential.fingerprint == credential })
	c.mu.Unlock()
	end(ended)
}

// take removes and returns the sessions that fit. The caller holds c.mu.
func (c *Client) take(fits func(*session) bool) []*session {
	var taken []*session
	for e := c.recent.Front(); e != nil; {
		next := e.Next()
		if s := e.Value.(*session); fits(s) {
			c.recent.Remove(e)
			delete(c.sessions, s.key)
			taken = append(taken, s)
		}
		e = next
	}
	return taken
}

func end(sessions []*session) {
	for _, s := range sessions {
		s.end()
	}
}

// session returns the session of a credential at t's registry. It fails for a Trust
// that is not t's or is zero.
func (c *Client) session(host string, cred Credential, t Trust) (*session, error) {
	if t == (Trust{}) || t.Host() != host {
		return nil, &Error{Kind: Blocked, Err: errTrust}
	}
	key := sessionKey{host: host, trust: t.Fingerprint(), credential: cred.fingerprint}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, &Error{Kind: Unavailable, Err: errClosed}
	}
	if e := c.sessions[key]; e != nil {
		c.recent.MoveToFront(e)
		return e.Value.(*session), nil
	}
	s := newSession(c, key, cred, t, c.hostSlots(host))
	c.sessions[key] = c.recent.PushFront(s)
	if c.recent.Len() > maxSessions {
		oldest := c.recent.Back().Value.(*session)
		c.recent.Remove(c.recent.Back())
		delete(c.sessions, oldest.key)
		go oldest.end() // closing connections may take a lock of the transport; it waits for nothing
	}
	return s, nil
}

// hostSlots returns the slots of a host. The caller holds c.mu.
func (c *Client) hostSlots(host string) *hostSlots {
	if h := c.hosts[host]; h != nil {
		return h
	}
	size := DefaultPerRegistry
	if r := c.registries[host]; r != nil && r.MaxInFlight > 0 {
		size = r.MaxInFlight
	}
	if len(c.hosts) >= maxSessions { // hosts that tenants name are bounded too
		for name, h := range c.hosts {
			if len(h.questions) == 0 && len(h.bodies) == 0 {
				delete(c.hosts, name)
				break
			}
		}
	}
	h := &hostSlots{questions: make(slots, size), bodies: make(slots, size)}
	c.hosts[host] = h
	return h
}
