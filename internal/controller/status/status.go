// Package status writes into each WasmPlugin what has become of it, and tells it in
// events. Its one rule: the leader alone writes, once per change, and nothing but what
// is stile's own in a status.
//
// Rights it needs, in the namespaces whose plugins are read:
//
//	extensions.istio.io wasmplugins          get, list, watch
//	extensions.istio.io wasmplugins/status   patch
//	events.k8s.io       events               create, patch
//
// A status costs one request per change: a merge patch of the status subresource with the
// version that it was made from. What is stored is known from a watch that lasts as long
// as this replica leads. Proxies that come and go are written at most every 10 s.
package status

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	eventsv1 "k8s.io/client-go/kubernetes/typed/events/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/engine"
)

// Statuses is what the writer needs of the engine.
type Statuses interface {
	// Plugins are all plugins of now.
	Plugins() []engine.PluginStatus
	// Changed receives after any of them has changed. The writer is its one reader.
	Changed() <-chan struct{}
}

// Config says what is written where. REST and Statuses are required.
type Config struct {
	REST     *rest.Config
	Statuses Statuses
	// Leads reports whether this replica may write; nil is always. LeadChanges receives when
	// that may have changed.
	Leads       func() bool
	LeadChanges <-chan struct{}
	// Namespaces are those whose plugins are read; none is all.
	Namespaces []string
	// Identity names this replica in events: its pod. Empty is "stile".
	Identity string
	// Log and Registerer may be nil.
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// The pace of writing.
const (
	holdOff      = 100 * time.Millisecond // statuses that change together are looked at once
	countsEvery  = 10 * time.Second       // between writes of one plugin that tell of counts
	flipBurst    = 3                      // turns of Programmed alone that are told at once, then one per countsEvery
	againBurst   = 3                      // times that a word somebody else took away is put back at once, then one per againEvery
	againEvery   = time.Minute            // as between two stiles that both believe the plugin theirs
	writers      = 8                      // requests in flight
	writeTimeout = 10 * time.Second       // of one request
	firstRetry   = 200 * time.Millisecond
	lastRetry    = 30 * time.Second
	reachRetry   = 5 * time.Second // of an API server that is not there; once it is back, all that waits is looked at
	refusedRetry = 5 * time.Minute // of what a schema refuses, which only its author can change
)

var resource = schema.GroupVersionResource{Group: v1alpha1.Group, Version: v1alpha1.Version, Resource: "wasmplugins"}

// key names a plugin.
type key struct{ namespace, name string }

func (k key) String() string { return k.namespace + "/" + k.name }

// Writer keeps statuses as the engine says they are.
type Writer struct {
	cfg     Config
	log     *slog.Logger
	http    *http.Client
	client  dynamic.Interface
	events  *recorder
	metrics *metrics

	mu     sync.Mutex     // guards what follows
	wanted map[key]report // what the engine said last
}

// New returns a Writer that does nothing yet.
func New(cfg Config) (*Writer, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Leads == nil {
		cfg.Leads = func() bool { return true }
	}
	if cfg.Identity == "" {
		cfg.Identity = "stile"
	}
	config := rest.CopyConfig(cfg.REST)
	config.QPS = -1 // so many requests at a time as there are writers; the API server shares itself out
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("status: make a client: %w", err)
	}
	client, err := dynamic.NewForConfigAndClient(config, httpClient)
	if err != nil {
		return nil, fmt.Errorf("status: make a client: %w", err)
	}
	events, err := eventsv1.NewForConfigAndClient(config, httpClient)
	if err != nil {
		return nil, fmt.Errorf("status: make a client: %w", err)
	}
	w := &Writer{cfg: cfg, log: cfg.Log, http: httpClient, client: client, metrics: newMetrics(cfg.Registerer)}
	w.events = newRecorder(events, cfg.Identity, cfg.Log, w.metrics)
	return w, nil
}

// Run writes while this replica leads, until ctx ends; then it tells the events that wait
// for 2 s at most. It never fails: what cannot be written is tried again.
func (w *Writer) Run(ctx context.Context) error {
	defer w.http.CloseIdleConnections()
	w.events.open()
	var events sync.WaitGroup
	events.Go(func() { w.events.run(ctx) })
	defer events.Wait()
	for ctx.Err() == nil {
		if w.cfg.Leads() {
			w.lead(ctx)
			continue
		}
		select {
		case <-ctx.Done():
		case <-w.cfg.LeadChanges:
		}
	}
	return nil
}

// lead writes until the lead is lost or ctx ends.
func (w *Writer) lead(ctx context.Context) {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(w.log.Handler()))
	ctx, cancel := context.WithCancel(ctx)
	t := &term{Writer: w, plugins: map[key]*progress{}, queue: workqueue.NewTypedRateLimitingQueue(
		workqueue.NewTypedItemExponentialFailureRateLimiter[key](firstRetry, lastRetry))}
	var all sync.WaitGroup
	defer all.Wait()
	defer t.queue.ShutDown()
	defer cancel()
	t.watch(ctx, &all)
	for range writers {
		all.Go(func() { t.work(ctx) })
	}

	look := time.NewTimer(0)
	defer look.Stop()
	waiting := true
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.cfg.LeadChanges:
			if !w.cfg.Leads() {
				return
			}
		case <-w.cfg.Statuses.Changed():
			if !waiting {
				waiting = true
				look.Reset(holdOff)
			}
		case <-look.C:
			waiting = false
			for _, k := range w.look() {
				t.queue.Add(k)
			}
			w.metrics.behind.Set(float64(t.queue.Len()))
		}
	}
}

// look takes over what the engine says and returns what is new in it.
func (w *Writer) look() (news []key) {
	list := w.cfg.Statuses.Plugins()
	wanted := make(map[key]report, len(list))
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range list {
		k := key{s.Namespace, s.Name}
		r := reportOf(s)
		wanted[k] = r
		if old, ok := w.wanted[k]; !ok || old.UID != r.UID || !old.same(r) {
			news = append(news, k)
		}
	}
	w.wanted = wanted
	return news
}

func (w *Writer) want(k key) (report, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, ok := w.wanted[k]
	return r, ok
}
