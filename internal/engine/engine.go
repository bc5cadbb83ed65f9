// Package engine is the one event loop that joins the rooms: what resources say,
// what the gate and the contents know of them, and what each proxy is sent. Its one
// rule: nothing in the loop waits for a network or a disk. Every answer comes from
// memory; what is not known yet is asked for elsewhere and arrives as an event.
package engine

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/source"
	"github.com/stileproject/stile/internal/xds"
)

// Config is what the operator decides. Zero durations are the defaults named at each.
type Config struct {
	// RootNamespace is the namespace whose plugins reach the proxies of all namespaces.
	RootNamespace string
	// EnvoyDefault names the Envoy file of clusters that have none; empty: they get nothing.
	EnvoyDefault string
	// Nodes assigns files, namespaces, labels and gateways to proxies; the first match counts.
	Nodes []v1alpha1.EnvoyNode
	// Anchors are filters that are anchors of the phases beside the known ones.
	Anchors plugin.Anchors
	// ModulesURL is how proxies reach the module server.
	ModulesURL string
	// Runtime is Envoy's name for the Wasm runtime.
	Runtime string
	// HostEnvAllow are the names that plugins may read from a proxy's environment.
	HostEnvAllow []string
	// OnRevoked says what becomes of a plugin whose yes has ended: v1alpha1.OnRevokedKeep (default) or
	// v1alpha1.OnRevokedFailStrategy.
	OnRevoked string
	// WarmHold is how long a first answer is held up for a plugin that is Pending. Zero is 20 s.
	WarmHold time.Duration
	// Rotation is how long what runs stays after its Secret was edited, while the new
	// credential has no verdict. Zero is 2 min.
	Rotation time.Duration
	// RefreshAlways is the interval at which sources with pull policy Always are asked
	// again. Zero: only when the plugin changes.
	RefreshAlways time.Duration
	// HoldOff is how long events are gathered before one plan is made of them. Zero is 5 ms.
	HoldOff time.Duration
	// Fingerprints is the key under which credentials are compared.
	Fingerprints secret.Key
	// URLs is the key of the unguessable part of module URLs.
	URLs secret.Key
	// Preflight says whether modules are tried before they ship: v1alpha1.PreflightOff
	// (default), PreflightWarn or PreflightEnforce.
	Preflight string
	// InlineMax is the size in bytes up to and including which modules travel within xDS.
	InlineMax int64
	// Leads reports whether this replica is the one that the others follow; nil: there are
	// no others. It must not wait. Reconsider says that it has changed.
	Leads func() bool
	// Others counts the proxies of other replicas; nil: there are none. It must not wait.
	Others func(plugin.Key) xds.Counts
	// Memory keeps what must be known again after a restart; nil: nothing is.
	Memory Memory
	// Log receives what happens; nil discards it.
	Log *slog.Logger
}

// Gate is what the engine asks of package access. No method waits.
type Gate interface {
	Check(access.Request) access.Verdict
	Hold(access.Request) (access.Proof, access.Verdict)
	Release(access.Holder)
	Forget(secret.Fingerprint, access.Holder)
	Changes() <-chan struct{}
	Opened(access.Proof)
	Closed(access.Proof)
}

// Contents is what the engine asks of package content. No method of the loop waits;
// OpenModule, which the module server calls, reads a file.
type Contents interface {
	Module(access.Proof) (content.Module, error)
	Signed(p access.Proof, pemKey string) error
	URL(content.URLRequest) (content.Module, error)
	Retain(sha256s []string)
	Changes() <-chan struct{}
	modules
}

// Proxies is what the engine asks of package xds. No method waits.
type Proxies interface {
	Events() <-chan xds.Event
	Join(stream xds.StreamID, group string)
	Publish(group string, snapshot *xds.Snapshot)
	Counts(plugin.Key) xds.Counts
}

// Registries says how a host may be reached, and for whom.
type Registries interface {
	Trust(host, namespace string) (oci.Trust, error)
}

// Rooms are the parts that the engine joins. All but Trials are required.
type Rooms struct {
	Trials     Trials // nil: no module is tried
	Gate       Gate
	Contents   Contents
	Proxies    Proxies
	Registries Registries
}

// Engine is the loop and what it knows. Ready, Plugins and OpenModule may be called
// at any time from anywhere; everything else belongs to Run.
type Engine struct {
	cfg   Config
	rooms Rooms
	log   *slog.Logger

	ready   atomic.Bool
	status  atomic.Pointer[[]PluginStatus]
	tokens  tokens
	broken  atomic.Pointer[[]string] // see BrokenFiles
	running sync.Mutex               // held by Run: one at a time

	reconsider chan struct{}
	changed    chan struct{}
	waiters    chan struct{} // as many as wait for a module

	world    *source.World
	plugins  map[plugin.Key]*pluginState
	order    []plugin.Key // of plugins, sorted
	keyrings map[*secretSource]oci.Keyring
	files    map[string]*envoyFile
	classes  map[plugin.Key]string   // of Gateways
	streams  map[xds.StreamID]string // to its group
	groups   map[string]*group

	reported  time.Time     // when statuses were last made
	reporting time.Duration // how long that took

	recalled   map[plugin.Key]Remembered // until each plugin is read for the first time
	remembered map[plugin.Key]Remembered
}

// New returns an Engine that has not begun.
func New(cfg Config, rooms Rooms) *Engine {
	defaults(&cfg)
	e := &Engine{
		cfg: cfg, rooms: rooms, log: cfg.Log,
		plugins: map[plugin.Key]*pluginState{},
		files:   map[string]*envoyFile{},
		streams: map[xds.StreamID]string{},
		groups:  map[string]*group{},

		reconsider: make(chan struct{}, 1),
		changed:    make(chan struct{}, 1),
		waiters:    make(chan struct{}, maxWaiters),
	}
	e.status.Store(&[]PluginStatus{})
	return e
}

func defaults(cfg *Config) {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&cfg.WarmHold, 20*time.Second)
	set(&cfg.Rotation, 2*time.Minute)
	set(&cfg.HoldOff, 5*time.Millisecond)
	if cfg.OnRevoked == "" {
		cfg.OnRevoked = v1alpha1.OnRevokedKeep
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
}

// Run turns until ctx ends, and then returns nil. Every event marks what it concerns;
// after the hold-off one turn brings everything marked up to date.
func (e *Engine) Run(ctx context.Context, worlds <-chan *source.World) error {
	e.running.Lock()
	defer e.running.Unlock()
	if e.cfg.Memory != nil && e.remembered == nil {
		e.recalled = e.cfg.Memory.Recall()
		e.remembered = e.recalled
	}
	var (
		due     marks
		holdOff = stopped(time.NewTimer(0))
		wake    = stopped(time.NewTimer(0)) // the earliest deadline of any plugin
		waiting bool
		tried   <-chan struct{}
	)
	if e.rooms.Trials != nil {
		tried = e.rooms.Trials.Changes()
	}
	defer holdOff.Stop()
	defer wake.Stop()
	mark := func() {
		if !waiting {
			waiting = true
			holdOff.Reset(e.cfg.HoldOff)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case w, ok := <-worlds:
			if !ok {
				worlds = nil
				continue
			}
			due.world = w
			mark()
		case <-e.rooms.Gate.Changes():
			due.facts = true
			mark()
		case <-e.rooms.Contents.Changes():
			due.facts = true
			mark()
		case <-e.reconsider:
			due.facts = true
			mark()
		case <-tried:
			due.facts = true
			mark()
		case now := <-wake.C:
			deadline := e.nextDeadline()
			due.facts = due.facts || !deadline.IsZero() && !deadline.After(now)
			mark()
		case ev := <-e.rooms.Proxies.Events():
			due.proxies = append(due.proxies, ev)
			mark()
		case <-holdOff.C:
			waiting = false
			next := e.turn(due, time.Now())
			due = marks{}
			if !next.IsZero() {
				wake.Reset(max(time.Until(next), time.Millisecond))
			} else {
				wake.Stop()
			}
		}
	}
}

// marks are the events since the last turn.
type marks struct {
	world   *source.World // nil: unchanged
	facts   bool          // the gate, the contents or a deadline have news
	proxies []xds.Event
}

// turn brings everything up to date and returns when it must be called again, at the
// latest, though nothing happens; zero is never.
func (e *Engine) turn(due marks, now time.Time) (next time.Time) {
	for _, ev := range due.proxies {
		e.proxyEvent(ev)
	}
	var news news
	if due.world != nil {
		news = e.setWorld(due.world, now)
	}
	if e.world == nil {
		return time.Time{} // nobody is answered before the first world
	}
	var changed map[plugin.Key]bool
	if due.world != nil || due.facts {
		changed, next = e.decideAll(now)
	} else {
		next = e.nextDeadline()
	}
	e.publish(news, changed)
	if due.world != nil || due.facts {
		e.retain()
		e.remember()
		e.announce()
	} else if again := e.reported.Add(min(max(reportEvery, reportShare*e.reporting), reportLatest)); now.Before(again) {
		// Proxies alone have news, thousands of them perhaps: their counts can wait.
		if next.IsZero() || again.Before(next) {
			next = again
		}
		return next
	}
	began := time.Now()
	e.report(now)
	e.reported, e.reporting = now, time.Since(began)
	e.ready.Store(true)
	return next
}

// reportEvery is how often statuses are made anew for what proxies say alone.
const reportEvery = 100 * time.Millisecond

// With thousands of plugins a report takes longer than one proxy's news are worth: such reports
// may take one part in reportShare of the time, and come within reportLatest.
const (
	reportShare  = 20
	reportLatest = time.Second
)

// Changed tells one reader that statuses have been made anew since it last received.
func (e *Engine) Changed() <-chan struct{} { return e.changed }

// Ready reports whether the first complete plan has been made.
func (e *Engine) Ready() bool { return e.ready.Load() }

// stopped returns t stopped and drained.
func stopped(t *time.Timer) *time.Timer {
	t.Stop()
	return t
}
