package xds

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/stileproject/stile/internal/plugin"
)

// stream is one xDS stream. One goroutine reads requests and hands each over; another, the
// stream's own, does everything else: so its watches need no lock, and a proxy that does not
// read holds up itself alone.
type stream struct {
	server *Server
	only   string // the one type of a single-type service; empty for ADS
	delta  bool

	// Set when the first request has said who it is, and never changed.
	id    StreamID
	node  plugin.Node
	key   nodeKey
	since time.Time
	// returning: the proxy ran before this stream began, with another stile perhaps, and may have
	// refused what is not remembered here.
	returning bool

	wake    chan struct{}
	watches [len(servedTypes)]*watch
	nonces  uint64

	// Guarded by Server.mu.
	group    string
	snapshot *Snapshot
	entries  map[entryKey]*entry
}

// isProxy reports whether the stream stands for its proxy in the counts of plugins: of several
// single-type streams the one for extensions does.
func (s *stream) isProxy() bool { return s.only == "" || s.only == ExtensionType }

// wakeUp makes the stream look whether something is due. It never waits.
func (s *stream) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// request is what a request of either protocol says.
type request struct {
	node        *corev3.Node
	typeURL     string
	nonce       string
	version     string   // state of the world
	names       []string // state of the world
	subscribe   []string
	unsubscribe []string
	initial     map[string]string // delta: versions that the proxy has
	refused     *status.Status
}

// transport is a gRPC stream of either protocol.
type transport interface {
	Context() context.Context
	recv() (request, error)
	send(kind int, a *answer, version, nonce string) error
}

// serve runs one stream to its end.
func (s *Server) serve(t transport, only string, delta bool) error {
	if !s.reserve() {
		return grpcstatus.Error(codes.ResourceExhausted, "too many streams")
	}
	st := &stream{server: s, only: only, delta: delta, wake: make(chan struct{}, 1), entries: map[entryKey]*entry{}}
	defer s.release(st)

	ctx := t.Context()
	requests := make(chan request)
	ended := make(chan error, 1)
	// The reader ends with the RPC: recv fails once this function has returned.
	go func() {
		for {
			r, err := t.recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				ended <- ctx.Err()
				return
			}
		}
	}()
	return st.run(ctx, t, requests, ended)
}

func (s *stream) run(ctx context.Context, t transport, requests <-chan request, ended <-chan error) error {
	var retry *time.Timer
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.server.stop:
			return grpcstatus.Error(codes.Unavailable, "stile is stopping")
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case r := <-requests:
			if err := s.handle(ctx, r); err != nil {
				return err
			}
		case <-s.wake:
		case <-due:
		}
		if err := s.push(t); err != nil {
			return err
		}
		if retry != nil {
			retry.Stop()
		}
		retry, due = nil, nil
		if at, ok := s.nextRetry(); ok {
			retry = time.NewTimer(at.Sub(s.server.now()))
			due = retry.C
		}
	}
}

// nextRetry returns when the next module is to be sent again.
func (s *stream) nextRetry() (time.Time, bool) {
	var next time.Time
	w := s.watches[extensions]
	if w == nil || w.flight != nil {
		return next, false
	}
	for _, at := range w.retryAt {
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next, !next.IsZero()
}

// push sends whatever is due: clusters before the listeners and extensions that refer to them,
// and clusters that nothing refers to any longer after those.
func (s *stream) push(t transport) error {
	if s.id == 0 {
		return nil
	}
	for sent := true; sent; {
		sent = false
		// Asked anew each time: while one response was being sent a newer snapshot may have come.
		snap := s.server.snapshotOf(s)
		if snap == nil {
			return nil
		}
		for _, w := range s.watches {
			if w == nil {
				continue
			}
			a := s.next(w, snap)
			if a == nil {
				continue
			}
			if err := s.send(t, w, a); err != nil {
				return err
			}
			sent = true
			break
		}
	}
	s.clearRetries()
	return nil
}

// clearRetries forgets tries of versions that are no longer wanted, or that have been made.
func (s *stream) clearRetries() {
	w := s.watches[extensions]
	if w == nil || w.flight != nil {
		return
	}
	for name := range w.retryAt {
		if s.isDue(w, name) {
			delete(w.retryAt, name)
		}
	}
}

func (s *stream) send(t transport, w *watch, a *answer) error {
	s.nonces++
	w.nonce = strconv.FormatUint(s.nonces, 10)
	version := a.set
	if version == "" && !s.delta {
		version = w.describeAfter(a)
	}
	for _, i := range a.items {
		if !i.mends && (w.held[i.name].String() != i.holding.String() || !w.whole()) {
			s.server.setEntry(s, w.kind, i.name, i.holding, Sent, "")
		}
	}
	w.flight = a
	s.server.metrics.pushed(w.kind)
	err := t.send(w.kind, a, version, w.nonce)
	for i := range a.items {
		a.items[i].any = nil // what is in flight keeps no module in memory
	}
	return err
}

// handle applies one request. An error ends the stream.
func (s *stream) handle(ctx context.Context, r request) error {
	if err := s.identify(ctx, r); err != nil {
		return err
	}
	typeURL := r.typeURL
	if s.only != "" {
		if typeURL != "" && typeURL != s.only {
			return grpcstatus.Errorf(codes.InvalidArgument, "this service serves %s alone", s.only)
		}
		typeURL = s.only
	}
	if typeURL == "" {
		return grpcstatus.Error(codes.InvalidArgument, "a request on ADS must name a type")
	}
	kind := typeIndex(typeURL)
	if kind < 0 {
		// Other types do not end the stream: a proxy may ask for them in vain, as its own
		// configuration says, and still have what is served here.
		s.server.log.Debug("a type that is not served was asked for", "node", s.node.ID, "type", typeURL)
		return nil
	}
	if err := s.checkNames(r); err != nil {
		return err
	}
	w := s.watches[kind]
	if w == nil {
		w = newWatch(kind, s.delta)
		s.watches[kind] = w
		s.begin(w, r)
	}
	w.requests++
	s.acknowledge(ctx, w, r)
	if s.delta {
		s.applyDelta(w, r)
	} else {
		for _, name := range w.setNames(r.names, s.server.now()) {
			s.server.dropEntry(s, kind, name)
		}
	}
	if len(w.names) > s.server.limits.names {
		return grpcstatus.Errorf(codes.ResourceExhausted, "more than %d names", s.server.limits.names)
	}
	return nil
}

// identify reads who the proxy is from the first request, and holds it to that in the others.
func (s *stream) identify(ctx context.Context, r request) error {
	if s.id == 0 {
		if r.node == nil {
			return grpcstatus.Error(codes.InvalidArgument, "the first request must say which node it is from")
		}
		node, version := readNode(r.node)
		if err := checkNode(&node, version); err != nil {
			return grpcstatus.Error(codes.InvalidArgument, err.Error())
		}
		if s.server.authorize != nil {
			if err := s.server.authorize(ctx, node); err != nil {
				s.server.log.Warn("a proxy was turned away", "node", node.ID, "cluster", node.Cluster, "namespace", node.Namespace, "error", err)
				return grpcstatus.Errorf(codes.PermissionDenied, "%v", err)
			}
		}
		s.node, s.key = node, keyOf(&node)
		s.server.opened(s, version)
		return nil
	}
	if r.node == nil || r.node.GetId() == "" && r.node.GetCluster() == "" {
		return nil
	}
	if node, _ := readNode(r.node); !sameNode(&node, &s.node) {
		return grpcstatus.Error(codes.InvalidArgument, "a stream keeps the node it began with")
	}
	return nil
}

func (s *stream) checkNames(r request) error {
	for _, names := range [][]string{r.names, r.subscribe, r.unsubscribe} {
		if len(names) > s.server.limits.names {
			return grpcstatus.Errorf(codes.ResourceExhausted, "more than %d names", s.server.limits.names)
		}
		if slices.ContainsFunc(names, func(n string) bool { return len(n) > maxName }) {
			return grpcstatus.Errorf(codes.InvalidArgument, "a resource name is longer than %d bytes", maxName)
		}
	}
	if len(r.initial) > s.server.limits.names {
		return grpcstatus.Errorf(codes.ResourceExhausted, "more than %d resources", s.server.limits.names)
	}
	return nil
}

// begin starts a watch with what the proxy says that it holds already.
func (s *stream) begin(w *watch, r request) {
	if !s.delta {
		w.fresh = r.version == ""
		if !w.whole() {
			w.reported = parseDescribed(r.version)
		}
	} else {
		w.fresh = len(r.initial) == 0
		for name, version := range r.initial {
			if version == "" || len(name) > maxName || len(version) > maxName {
				continue
			}
			h := parseHolding(version)
			w.held[name] = h
			state := Accepted
			if w.kind == extensions && s.server.rejections.get(s.key, rejectionKey{w.kind, name, h.version}).tries > h.try {
				state = Unproven
			}
			if h.plain {
				state = Sent
			}
			s.server.setEntry(s, w.kind, name, h, state, "")
		}
		if w.whole() && len(r.subscribe) == 0 {
			w.wildcard = true
		}
		w.owed = w.whole() && w.fresh
	}
	w.began = w.fresh
	s.returning = s.returning || !w.fresh
	// A new process refuses nothing yet. Of extensions alone that could not be told: a process
	// that has refused the only one it was ever sent holds none either, and would say yes to the
	// same bytes without looking.
	if w.fresh && (w.kind != extensions || s.beginsAnew()) {
		s.server.rejections.forget(s.key, w.kind)
	}
}

// beginsAnew reports whether the proxy held no listeners when its stream began, and no clusters
// if it asks for any: its process is new.
func (s *stream) beginsAnew() bool {
	l, c := s.watches[listeners], s.watches[clusters]
	return l != nil && l.began && (c == nil || c.began)
}

// acknowledge takes a request as the proxy's answer to the last response, if that is what it is.
func (s *stream) acknowledge(ctx context.Context, w *watch, r request) {
	if w.flight == nil || r.nonce == "" || r.nonce != w.nonce {
		return // the first request of its type, new names alone, or an answer overtaken by events
	}
	if r.refused == nil {
		s.accepted(w)
		return
	}
	s.server.metrics.refused(w.kind)
	level := slog.LevelWarn
	if slices.ContainsFunc(w.flight.items, func(i item) bool { return i.remote }) {
		level = slog.LevelDebug // it is fetching, as it was asked to; the ledger says if that goes on
	}
	s.server.log.Log(ctx, level, "a proxy rejected its configuration", "node", s.node.ID, "cluster", s.node.Cluster,
		"type", shortType(w.kind), "message", cleanMessage(r.refused.GetMessage()))
	s.rejected(w, r.refused.GetMessage())
}

// applyDelta adds and drops names as a delta request says.
func (s *stream) applyDelta(w *watch, r request) {
	for _, name := range r.unsubscribe {
		w.unsubscribe(name)
		if name != "*" && !w.subscribes(name) {
			s.server.dropEntry(s, w.kind, name)
		}
	}
	if slices.Contains(r.unsubscribe, "*") { // all were asked for, and are no longer
		for name := range w.held {
			if !w.subscribes(name) {
				delete(w.held, name)
				s.server.dropEntry(s, w.kind, name)
			}
		}
	}
	for _, name := range r.subscribe {
		if _, known := r.initial[name]; known && name != "*" {
			w.names[name] = struct{}{} // it has told its version: send what differs
			continue
		}
		was := w.wildcard
		w.subscribe(name, s.server.now())
		if name == "*" && (was || !w.fresh) {
			w.owed = false
		}
	}
}

// sotwTransport speaks the state of the world.
type sotwTransport struct {
	sotwStream
}

type sotwStream interface {
	Context() context.Context
	Recv() (*discoveryv3.DiscoveryRequest, error)
	SendMsg(any) error
}

func (t sotwTransport) recv() (request, error) {
	r, err := t.Recv()
	return request{
		node: r.GetNode(), typeURL: r.GetTypeUrl(), nonce: r.GetResponseNonce(), version: r.GetVersionInfo(),
		names: r.GetResourceNames(), refused: r.GetErrorDetail(),
	}, err
}

func (t sotwTransport) send(kind int, a *answer, version, nonce string) error {
	r := &discoveryv3.DiscoveryResponse{VersionInfo: version, TypeUrl: servedTypes[kind], Nonce: nonce, Resources: make([]*anypb.Any, 0, len(a.items))}
	for _, i := range a.items {
		r.Resources = append(r.Resources, i.any)
	}
	return t.SendMsg(sharedResponse{r})
}

// deltaTransport speaks the incremental protocol.
type deltaTransport struct {
	deltaStream
}

type deltaStream interface {
	Context() context.Context
	Recv() (*discoveryv3.DeltaDiscoveryRequest, error)
	SendMsg(any) error
}

func (t deltaTransport) recv() (request, error) {
	r, err := t.Recv()
	return request{
		node: r.GetNode(), typeURL: r.GetTypeUrl(), nonce: r.GetResponseNonce(), refused: r.GetErrorDetail(),
		subscribe: r.GetResourceNamesSubscribe(), unsubscribe: r.GetResourceNamesUnsubscribe(), initial: r.GetInitialResourceVersions(),
	}, err
}

func (t deltaTransport) send(kind int, a *answer, version, nonce string) error {
	r := &discoveryv3.DeltaDiscoveryResponse{SystemVersionInfo: version, TypeUrl: servedTypes[kind], Nonce: nonce, RemovedResources: a.removed}
	for _, i := range a.items {
		r.Resources = append(r.Resources, &discoveryv3.Resource{Name: i.name, Version: i.holding.String(), Resource: i.any})
	}
	return t.SendMsg(sharedResponse{r})
}
