// Package localregistry is an OCI registry on loopback that asks who is there: for
// the demo and for tests. Its one rule: it behaves as the registries do that stile
// must live with, token endpoint, empty grants, error answers and all.
package localregistry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/stileproject/stile/internal/secret"
)

// Mode is how a Registry asks who is there.
type Mode string

// The modes. The zero Mode is Bearer.
const (
	Bearer Mode = "bearer" // tokens from its own token endpoint, /token
	Basic  Mode = "basic"  // user name and password with each request
	Open   Mode = "open"   // nobody is asked
)

// Right is what a user may do in a repository.
type Right string

// The rights.
const (
	Pull Right = "pull"
	Push Right = "push"
)

// Everywhere stands for every repository in Allow and Revoke; Anonymous for whoever
// brings no credential.
const (
	Everywhere = "*"
	Anonymous  = ""
)

// DefaultTokenLife is how long tokens are good for if Options do not say.
const DefaultTokenLife = 5 * time.Minute

// Options configure a Registry. The zero value is a bearer registry without users.
type Options struct {
	Mode  Mode
	Users map[string]string // name to password
	// Address is host:port to listen on; empty = 127.0.0.1 and any free port.
	Address string
	// TLS makes the registry speak https; nil = http.
	TLS *tls.Config
	// TokenMarker is part of every token, so that tests find tokens that leaked.
	TokenMarker string
	// TokenLife is how long a token is good for, and how long its rights outlive a
	// revocation: as with a JWT, they are those of its making. 0 = DefaultTokenLife.
	TokenLife time.Duration
	// Realm is the URL of the token endpoint that challenges name; empty = its own.
	Realm string
}

// Registry is a running registry. All methods are safe for concurrent use.
type Registry struct {
	options  Options
	backend  http.Handler
	listener *gate
	server   *http.Server
	host     string
	serving  sync.WaitGroup

	mu       sync.Mutex // guards what follows
	open     bool
	users    map[string]secret.Secret
	rights   map[grant]bool
	tokens   map[string]issued
	faults   []*Fault
	changed  chan struct{} // closed when the faults change
	requests []Recorded
	count    int
}

// Start starts a registry; Close ends it.
func Start(o Options) (*Registry, error) {
	if o.Mode == "" {
		o.Mode = Bearer
	}
	if o.TokenLife == 0 {
		o.TokenLife = DefaultTokenLife
	}
	if o.Address == "" {
		o.Address = "127.0.0.1:0"
	}
	var config net.ListenConfig
	l, err := config.Listen(context.Background(), "tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("start local registry: %w", err)
	}
	r := &Registry{
		options:  o,
		backend:  registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)), registry.WithReferrersSupport(true)),
		listener: &gate{Listener: l, conns: make(map[net.Conn]bool)},
		host:     l.Addr().String(),
		open:     o.Mode == Open,
		users:    make(map[string]secret.Secret, len(o.Users)),
		rights:   make(map[grant]bool),
		tokens:   make(map[string]issued),
		changed:  make(chan struct{}),
	}
	for name, password := range o.Users {
		r.users[name] = secret.New([]byte(password))
	}
	r.server = &http.Server{
		Handler:           r,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	var serve net.Listener = r.listener
	if o.TLS != nil {
		serve = tls.NewListener(serve, o.TLS)
	}
	r.serving.Go(func() { _ = r.server.Serve(serve) }) // ends by Close alone
	return r, nil
}

// Host returns host:port, as references name it.
func (r *Registry) Host() string { return r.host }

// Close ends the registry and waits until nothing of it runs.
func (r *Registry) Close() error {
	r.SetFaults()
	err := r.server.Close()
	r.serving.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close local registry: %w", err)
	}
	return nil
}

// Down makes the registry unreachable: connections are closed without an answer,
// those that are open at once. The port stays its own.
func (r *Registry) Down() { r.listener.set(true) }

// Up makes it reachable again.
func (r *Registry) Up() { r.listener.set(false) }

// SetOpen lets everybody do everything, or ends that.
func (r *Registry) SetOpen(open bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open = open
}

// SetUser adds a user or changes the password; an empty password removes the user.
func (r *Registry) SetUser(name, password string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if password == "" {
		delete(r.users, name)
		return
	}
	r.users[name] = secret.New([]byte(password))
}

// gate is a listener that can play dead.
type gate struct {
	net.Listener
	mu    sync.Mutex // guards what follows
	down  bool
	conns map[net.Conn]bool
}

func (g *gate) set(down bool) {
	g.mu.Lock()
	g.down = down
	var open []net.Conn
	if down {
		for c := range g.conns {
			open = append(open, c)
		}
	}
	g.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
}

// Accept returns the next connection that is to be served.
func (g *gate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if tracked, ok := g.admit(c); ok {
			return tracked, nil
		}
		_ = c.Close()
	}
}

func (g *gate) admit(c net.Conn) (net.Conn, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.down {
		return nil, false
	}
	t := &tracked{Conn: c, gate: g}
	g.conns[t] = true
	return t, true
}

type tracked struct {
	net.Conn
	gate *gate
}

// Close closes the connection, and the gate forgets it.
func (t *tracked) Close() error {
	t.gate.mu.Lock()
	delete(t.gate.conns, t)
	t.gate.mu.Unlock()
	return t.Conn.Close()
}
