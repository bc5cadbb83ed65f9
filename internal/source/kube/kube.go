// Package kube reads resources from a Kubernetes API. Its one rule: nothing is handed out before everything has been read
// once, and from then on what is known stays until the API server itself says otherwise.
//
// WasmPlugins, Gateways and the ConfigMaps of listeners are watched; Secrets are read by name alone, see Secrets. Nothing
// is ever written.
package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/stileproject/stile/internal/source"
)

// revisionLabel is how an object says which revision of a mesh it is for.
const revisionLabel = "istio.io/rev"

// Config says which API server to read, and what of it.
type Config struct {
	// REST is how the API server is reached. It is copied; its limit on requests does not count here, where the number
	// of requests in flight is bounded instead.
	REST *rest.Config
	// Namespaces whose WasmPlugins and Gateways count; none is all of them.
	Namespaces []string
	// Revision, if set, is the value of the label istio.io/rev that WasmPlugins must carry, and Selector a label selector
	// that they must match. Others are not seen at all.
	Revision, Selector string
	// Namespace is stile's own: its ConfigMaps labelled stile.dev/envoy=true hold listeners, in keys <cluster>.yaml. Empty: there
	// are none.
	Namespace string
	// SecretNamespaces are where pull secrets may be read; nil is wherever plugins are.
	SecretNamespaces []string
	// Log takes what happens; nil discards.
	Log *slog.Logger
	// Registerer takes the metrics; nil is none.
	Registerer prometheus.Registerer
}

// Source watches a Kubernetes API.
type Source struct {
	cfg     Config
	log     *slog.Logger
	metrics metrics
	labels  labels.Selector // of WasmPlugins

	http       *http.Client
	dynamic    dynamic.Interface
	core       kubernetes.Interface
	extensions apiextensions.Interface
	secrets    *Secrets

	worlds chan *source.World
	heard  chan struct{} // capacity 1: something has changed

	// How long it must be quiet before a World is made, how long that may be put off, and how long a Secret's first
	// answer is waited for.
	settle, patience, firstAnswer time.Duration

	mu      sync.Mutex // guards what follows
	crds    map[string]presence
	absent  []string // what Missing returns
	hasRead bool

	// What follows belongs to Run.
	plugins, gateways, configs *collection
	gatewayVersion             string
	generation                 int64     // of the definition under which plugins are watched
	renew                      time.Time // when that watch is begun anew; zero: it is not
	files                      listeners
	known                      map[source.Key]*knownPlugin
	last                       *source.World
}

// New returns a Source that has not begun, or an error if the Config cannot be used. It asks nothing.
func New(c Config) (*Source, error) {
	if c.REST == nil {
		return nil, errors.New("kubernetes source: no API server is given")
	}
	s := &Source{
		cfg: c, log: c.Log, metrics: newMetrics(c.Registerer),
		worlds: make(chan *source.World, 1), heard: make(chan struct{}, 1),
		settle: 20 * time.Millisecond, patience: 200 * time.Millisecond, firstAnswer: 10 * time.Second,
		crds: map[string]presence{}, files: listeners{}, known: map[source.Key]*knownPlugin{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	selector, err := labels.Parse(c.Selector)
	if err != nil {
		return nil, fmt.Errorf("kubernetes source: selector: %w", err)
	}
	if c.Revision != "" {
		r, err := labels.NewRequirement(revisionLabel, selection.Equals, []string{c.Revision})
		if err != nil {
			return nil, fmt.Errorf("kubernetes source: revision: %w", err)
		}
		selector = selector.Add(*r)
	}
	s.labels = selector
	return s, s.connect()
}

// Owns reports whether a plugin of that namespace and with those labels is one that the Source reads.
func (s *Source) Owns(namespace string, set map[string]string) bool {
	return (len(s.cfg.Namespaces) == 0 || slices.Contains(s.cfg.Namespaces, namespace)) && s.labels.Matches(labels.Set(set))
}

func (s *Source) connect() (err error) {
	config := rest.CopyConfig(s.cfg.REST)
	config.QPS = -1
	config.Timeout = 0 // it would end watches; what must end has its own
	if s.http, err = rest.HTTPClientFor(config); err != nil {
		return fmt.Errorf("kubernetes source: %w", err)
	}
	if s.dynamic, err = dynamic.NewForConfigAndClient(config, s.http); err != nil {
		return fmt.Errorf("kubernetes source: %w", err)
	}
	if s.extensions, err = apiextensions.NewForConfigAndClient(config, s.http); err != nil {
		return fmt.Errorf("kubernetes source: %w", err)
	}
	binary := rest.CopyConfig(config)
	binary.ContentType = runtime.ContentTypeProtobuf
	binary.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	if s.core, err = kubernetes.NewForConfigAndClient(binary, s.http); err != nil {
		return fmt.Errorf("kubernetes source: %w", err)
	}
	s.secrets = NewSecrets(s.core, s.log)
	s.secrets.OnChange(func(source.Key) { s.changed() })
	return nil
}

// Secrets returns the Secrets that plugins name, so that others who read Secrets share their watches. It runs with Run.
func (s *Source) Secrets() *Secrets { return s.secrets }

// Worlds returns the channel on which each new World arrives, the first one once everything has been read. It holds one
// World; a later one takes the place of one that nobody has taken.
func (s *Source) Worlds() <-chan *source.World { return s.worlds }

// Synced reports whether the first World has been made.
func (s *Source) Synced() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hasRead
}

// Missing returns, one sentence each, what the cluster's WasmPlugin lacks beside the one that stile comes with, that it is
// not there at all, and what else cannot be read. It may be called at any time.
func (s *Source) Missing() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.absent)
}

// changed tells Run that something has. It never waits.
func (s *Source) changed() {
	select {
	case s.heard <- struct{}{}:
	default:
	}
}

// Run reads and watches until ctx ends, and then returns nil. It is called once.
func (s *Source) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer func() {
		cancel()
		running.Wait()
		s.plugins.end()
		s.gateways.end()
		s.configs.end()
		s.http.CloseIdleConnections()
	}()
	running.Go(func() { _ = s.secrets.Run(ctx) })
	s.followDefinitions(ctx, &running)
	if s.cfg.Namespace != "" {
		s.configs = s.start(ctx, kind{
			name: "ConfigMaps", resource: configMaps, namespaces: []string{s.cfg.Namespace},
			labels: ListenersLabel + "=true", read: readListeners,
		})
	}

	settled := time.NewTimer(0)
	defer settled.Stop()
	var first time.Time // when something was heard first since the last World
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.heard:
			if first.IsZero() {
				first = time.Now()
			}
			settled.Reset(max(0, min(s.settle, time.Until(first.Add(s.patience)))))
		case <-settled.C:
			first = time.Time{}
			now := time.Now()
			s.turn(ctx, now)
			again := s.read(now)
			if !s.renew.IsZero() && (again == 0 || s.renew.Sub(now) < again) {
				again = s.renew.Sub(now)
			}
			if again > 0 {
				settled.Reset(again)
			}
		}
	}
}

func (s *Source) start(ctx context.Context, k kind) *collection {
	return startCollection(ctx, s.dynamic, k, s.log, s.metrics.failures.WithLabelValues(k.resource.Resource), s.changed)
}

// renewAfterUpgrade is how long after a new definition plugins are watched anew for the second time: an API server takes a
// moment to take it up, and there may be several.
const renewAfterUpgrade = 10 * time.Second

// turn starts and ends what the cluster's definitions have made possible or impossible, and says what is missing.
func (s *Source) turn(ctx context.Context, now time.Time) {
	s.mu.Lock()
	plugin, gateway := s.crds[pluginsCRD], s.crds[gatewaysCRD]
	s.mu.Unlock()

	// A watch that began under another definition goes on for minutes to drop the fields that are new.
	changed := s.plugins != nil && plugin.is(there) && plugin.generation != s.generation
	due := !s.renew.IsZero() && !now.Before(s.renew)
	if s.plugins != nil && (plugin.is(notThere) || changed || due) {
		s.plugins.end()
		s.plugins = nil
		s.renew = time.Time{}
	}
	if s.plugins == nil && plugin.is(there) {
		s.generation = plugin.generation
		s.plugins = s.start(ctx, kind{name: "WasmPlugins", resource: wasmPlugins, namespaces: s.cfg.Namespaces, labels: s.labels.String(), read: readPlugin, same: samePlugin})
		if changed {
			s.renew = now.Add(renewAfterUpgrade)
		}
	}
	if s.gateways != nil && (gateway.is(notThere) || gateway.version != s.gatewayVersion) {
		s.gateways.end()
		s.gateways = nil
	}
	if s.gateways == nil && gateway.is(there) {
		s.gatewayVersion = gateway.version
		s.gateways = s.start(ctx, kind{name: "Gateways", resource: gatewaysOf(gateway.version), namespaces: s.cfg.Namespaces, read: readGateway})
	}

	var absent []string
	if plugin.is(unknown) && plugin.fault != "" {
		absent = append(absent, "the definition of WasmPlugin cannot be read: "+plugin.fault+": it is tried again")
	}
	absent = append(absent, plugin.missing...)
	absent = append(absent, gateway.missing...)
	for _, c := range []*collection{s.plugins, s.gateways, s.configs} {
		if fault := c.waiting(); fault != "" {
			where := ""
			if len(c.kind.namespaces) > 0 {
				where = " in " + strings.Join(c.kind.namespaces, ", ")
			}
			remedy := "it is tried again"
			if strings.HasPrefix(fault, "forbidden") {
				remedy = "allow stile's ServiceAccount list and watch on them"
			}
			absent = append(absent, fmt.Sprintf("%s%s cannot be read: %s: %s", c.kind.name, where, fault, remedy))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(absent, s.absent) {
		for _, a := range absent {
			if !slices.Contains(s.absent, a) {
				s.log.Warn("the cluster lacks something", "missing", a)
			}
		}
		s.absent = absent
	}
}

// complete reports whether all there is has been read once.
func (s *Source) complete() bool {
	s.mu.Lock()
	plugin, gateway := s.crds[pluginsCRD], s.crds[gatewaysCRD]
	s.mu.Unlock()
	if s.plugins == nil && s.last == nil || plugin.is(unknown) || gateway.is(unknown) {
		return false
	}
	for _, c := range []*collection{s.plugins, s.configs} {
		if c != nil && !c.synced() {
			return false
		}
	}
	// Gateways that come to a cluster later hold up nobody.
	return s.last != nil || s.gateways == nil || s.gateways.synced()
}

// mayRead reports whether Secrets of a namespace may be read.
func (s *Source) mayRead(namespace string) bool {
	return s.cfg.SecretNamespaces == nil || slices.Contains(s.cfg.SecretNamespaces, namespace)
}

func compareKeys(a, b source.Key) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}
