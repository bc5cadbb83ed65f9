// Package sandbox is a small proxy that takes its configuration as Envoy does, and
// runs the Proxy-Wasm plugins it is given: for the demo where no Envoy is at hand, and
// for tests that need to see what a proxy does. Its one rule: where it cannot do what
// Envoy does, it says so; what it does, it does as Envoy, and package proxytest tells
// both the same stories.
//
// It speaks ADS, state of the world: clusters, then listeners, then routes and
// extension configurations (ECDS) through config_discovery. It runs the HTTP filters
// Wasm, HTTPFault and Router of the first filter chain that speaks HTTP, in order, on
// a loopback port of its own for each listener. Every other filter lets everything
// pass and is listed as not run; filter chains are not matched, TLS and upgrades are
// not served, network filters do nothing; each plugin has a VM of its own, whatever its
// vm_id. It is no proxy for production.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"golang.org/x/sync/errgroup"
)

// ErrStopped is what a proxy that was stopped answers.
var ErrStopped = errors.New("the sandbox proxy is stopped")

// defaultFetchTimeout is how long Envoy waits for a first answer that a configuration
// source sets no time-out for.
const defaultFetchTimeout = 15 * time.Second

// Options say where the proxy gets its configuration, and what it stands before.
// XDSAddress is required.
type Options struct {
	XDSAddress string            // host:port of the xDS server, plain gRPC
	Node       Node              // how it names itself
	Upstream   string            // host:port that every request goes to; "" = the routes and clusters of the configuration say
	HostEnv    map[string]string // what plugins may take from "the host's environment"; nothing of the process's own
	Log        *slog.Logger      // nil = silent
}

// Sandbox is one proxy. Its methods may be called concurrently.
type Sandbox struct {
	options   Options
	log       *slog.Logger
	events    chan func() // what happened, for the loop
	questions chan func() // what somebody wants to know, for the loop
	upstream  *http.Transport
	clusters  atomic.Pointer[map[string]*clusterv3.Cluster] // written by the loop, read by requests

	mu      sync.Mutex // guards the four below
	changed chan struct{}
	cancel  context.CancelFunc
	running bool
	stopped bool
	done    chan struct{} // closed when Run has returned

	// Everything below belongs to the loop of Run.
	ctx          context.Context //nolint:containedctx // of Run, for what the loop starts
	group        *errgroup.Group
	stream       *stream
	listenersDue bool // the first answer about clusters is there, or late
	started      bool // all listeners of the start were warm once
	types        map[string]*typeState
	routes       map[string]*routev3.RouteConfiguration
	listeners    map[string]*listener
	extensions   map[string]*extension
	modules      map[string][]byte // the code cache, by sha256
	fetching     map[string]bool   // background fetches, by sha256
	never        map[string]bool   // fetches that Envoy believes to run and that never began, by sha256
}

var _ Proxy = (*Sandbox)(nil)

// New returns a proxy that does nothing until Run.
func New(o Options) *Sandbox {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Sandbox{
		options:    o,
		log:        o.Log.With("proxy", o.Node.ID),
		events:     make(chan func()),
		questions:  make(chan func()),
		upstream:   newUpstream(),
		changed:    make(chan struct{}),
		done:       make(chan struct{}),
		types:      map[string]*typeState{},
		routes:     map[string]*routev3.RouteConfiguration{},
		listeners:  map[string]*listener{},
		extensions: map[string]*extension{},
		modules:    map[string][]byte{},
		fetching:   map[string]bool{},
		never:      map[string]bool{},
	}
	s.clusters.Store(&map[string]*clusterv3.Cluster{})
	return s
}

// Start is New and Run in a goroutine, which Stop ends.
func Start(o Options) *Sandbox {
	s := New(o)
	go func() {
		if err := s.Run(context.Background()); err != nil {
			s.log.Error("sandbox proxy ended", "err", err)
		}
	}()
	return s
}

// Run connects, serves, and connects again whenever the server goes away, until ctx
// ends or Stop is called; then it closes its listeners and returns nil. It may be
// called once.
func (s *Sandbox) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.running || s.stopped {
		s.mu.Unlock()
		return ErrStopped
	}
	s.running = true
	ctx, s.cancel = context.WithCancel(ctx)
	s.mu.Unlock()
	defer close(s.done)
	defer s.cancel()

	s.group, s.ctx = errgroup.WithContext(ctx)
	s.group.Go(func() error { return s.connect(s.ctx) })
	s.loop()
	s.shutdown()
	s.cancel()
	err := s.group.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// loop owns the configuration: all that happens comes by here, one thing at a time,
// as on Envoy's main thread. A module is loaded within the update that brings it.
func (s *Sandbox) loop() {
	for {
		select {
		case event := <-s.events:
			event()
			s.mu.Lock()
			close(s.changed)
			s.changed = make(chan struct{})
			s.mu.Unlock()
		case question := <-s.questions:
			question() // changes nothing
		case <-s.ctx.Done():
			return
		}
	}
}

// post hands an event to the loop; once the loop is over it is dropped.
func (s *Sandbox) post(ctx context.Context, event func()) {
	select {
	case s.events <- event:
	case <-ctx.Done():
	case <-s.done:
	}
}

// after posts an event when d is over.
func (s *Sandbox) after(d time.Duration, event func()) *time.Timer {
	ctx := s.ctx
	return time.AfterFunc(d, func() { s.post(ctx, event) })
}

// shutdown closes what serves. The loop is over.
func (s *Sandbox) shutdown() {
	for _, l := range s.listeners {
		l.close()
	}
	for _, x := range s.extensions {
		x.close()
	}
	s.upstream.CloseIdleConnections()
}

// ask runs f in the loop and waits for it.
func (s *Sandbox) ask(ctx context.Context, f func()) error {
	asked := make(chan struct{})
	select {
	case s.questions <- func() { f(); close(asked) }:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.done:
		return ErrStopped
	}
	select {
	case <-asked:
		return nil
	case <-s.done:
		return ErrStopped
	}
}

// Address waits until the listener serves.
func (s *Sandbox) Address(ctx context.Context, name string) (string, error) {
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		state, err := s.State(ctx)
		if err != nil {
			return "", fmt.Errorf("wait for listener %s: %w", name, err)
		}
		l, _ := state.Listener(name)
		if l.Address != "" {
			return l.Address, nil
		}
		select {
		case <-changed:
		case <-s.done:
			return "", fmt.Errorf("wait for listener %s: %w", name, ErrStopped)
		case <-ctx.Done():
			if l.Message != "" {
				return "", fmt.Errorf("wait for listener %s: %w: %s", name, ctx.Err(), l.Message)
			}
			return "", fmt.Errorf("wait for listener %s: %w", name, ctx.Err())
		}
	}
}

// State returns what the proxy holds.
func (s *Sandbox) State(ctx context.Context) (State, error) {
	var state State
	err := s.ask(ctx, func() { state = s.state() })
	return state, err
}

func (s *Sandbox) state() State {
	state := State{Node: s.options.Node, Connected: s.stream != nil && s.stream.answered}
	for _, name := range slices.Sorted(maps.Keys(s.listeners)) {
		state.Listeners = append(state.Listeners, s.listeners[name].report())
	}
	for _, name := range slices.Sorted(maps.Keys(s.extensions)) {
		state.Extensions = append(state.Extensions, s.extensions[name].report())
	}
	return state
}

// Stop ends Run and waits for it. A proxy that never ran will not run any more.
func (s *Sandbox) Stop() error {
	s.mu.Lock()
	s.stopped = true
	running := s.running
	if running {
		s.cancel()
	}
	s.mu.Unlock()
	if running {
		<-s.done
	}
	return nil
}
