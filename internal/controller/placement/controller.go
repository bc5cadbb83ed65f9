// Package placement lets gated pods go, each to nodes that can run its images: the
// controller behind the scheduling gate. Its one rule: what is known of an image is used
// for a pod only through a proof of that pod's own credentials, and no pod waits for
// another's registry.
package placement

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/placement"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/source"
)

// The defaults of Config.
const (
	DefaultMaxWait = 5 * time.Minute
	DefaultTagAge  = time.Hour
)

// Gate is what the controller needs of *access.Gate.
type Gate interface {
	Check(access.Request) access.Verdict
	Hold(access.Request) (access.Proof, access.Verdict)
	Release(access.Holder)
	Forget(secret.Fingerprint, access.Holder)
	Changed() <-chan struct{}
}

// Contents is what the controller needs of *content.Contents.
type Contents interface {
	KnownFacts(access.Proof) (content.Facts, bool)
	Facts(context.Context, access.Proof) (content.Facts, error)
}

// Registries is what the controller needs of *oci.Client.
type Registries interface {
	Trust(host, namespace string) (oci.Trust, error)
}

// Secrets is what the controller needs of *kube.Secrets. Whoever made them runs them.
type Secrets interface {
	Want(user string, keys []source.Key)
	Get(source.Key) (s *document.Secret, known bool)
	Why(source.Key) error
	OnChange(func(source.Key))
}

// Config is what a Controller works with. REST, Gate, Contents, Registries, Secrets and
// Fingerprints are required.
type Config struct {
	REST       *rest.Config
	Gate       Gate
	Contents   Contents
	Registries Registries
	Secrets    Secrets
	// Fingerprints is the key that credentials are told apart by (secret.ForFingerprints).
	Fingerprints secret.Key
	// Namespace is stile's own: pods there are let go as they are. Empty = none.
	Namespace string
	// PullSecret is the cluster-wide one, tried after the pod's own; zero = none.
	PullSecret source.Key
	// Settings say what is preferred and fallen back on.
	Settings placement.Settings
	// MaxWait is how long a pod is held for an answer; of a pod that was there before the
	// controller began, at least a minute of it from then. 0 = 5 min.
	MaxWait time.Duration
	// TagAge is how old the resolution of a tag may be, for pods that do not ask for
	// imagePullPolicy Always: those want one of after their creation. 0 = 1 h.
	TagAge time.Duration
	// Leads reports whether this replica lets pods go; nil = always. The others watch, and
	// ask no registry.
	Leads func() bool
	// Log receives what is odd; nil = nothing is logged.
	Log *slog.Logger
	// Registerer receives the metrics; nil = none.
	Registerer prometheus.Registerer
}

// Controller lets gated pods go. Nothing that it decides waits for a registry, for the
// disk or for the API server: one goroutine decides from memory, others fetch and patch.
type Controller struct {
	config  Config
	log     *slog.Logger
	client  kubernetes.Interface
	metrics *metrics
	inbox   *inbox
	facts   *facts
	patches *patches
	events  *events

	wake    chan struct{} // something is to be looked at
	secrets struct {
		sync.Mutex
		changed map[source.Key]struct{}
	}

	// What follows is the loop's alone.
	pods    map[source.Key]*held
	waiting map[source.Key]*held // those of pods that are not being patched
	rings   map[source.Key]*ring
	wanted  map[source.Key]struct{}
	leading bool
	dirty   map[source.Key]struct{} // to be judged in the next pass
	all     bool                    // all that wait are
	swept   time.Time               // when all last were
}

// New returns a Controller. Nothing happens until Run.
func New(c Config) (*Controller, error) {
	if c.REST == nil || c.Gate == nil || c.Contents == nil || c.Registries == nil || c.Secrets == nil {
		return nil, errors.New("new placement controller: REST, Gate, Contents, Registries and Secrets are required")
	}
	if c.MaxWait <= 0 {
		c.MaxWait = DefaultMaxWait
	}
	if c.TagAge <= 0 {
		c.TagAge = DefaultTagAge
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	// The API server shares its time out itself (priority and fairness).
	quick := rest.CopyConfig(c.REST)
	quick.QPS = -1
	quick.AcceptContentTypes, quick.ContentType = "application/vnd.kubernetes.protobuf,application/json", "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(quick)
	if err != nil {
		return nil, fmt.Errorf("new placement controller: %w", err)
	}
	k := &Controller{
		config: c, log: c.Log, client: client,
		wake: make(chan struct{}, 1), pods: map[source.Key]*held{}, waiting: map[source.Key]*held{},
		rings: map[source.Key]*ring{}, wanted: map[source.Key]struct{}{}, dirty: map[source.Key]struct{}{},
	}
	k.secrets.changed = map[source.Key]struct{}{}
	if k.metrics, err = newMetrics(c.Registerer); err != nil {
		return nil, fmt.Errorf("new placement controller: %w", err)
	}
	k.inbox = newInbox(k.poke)
	k.facts = newFacts(c.Contents, k.log, k.poke)
	k.patches = newPatches(client, k.metrics, k.poke)
	k.events = newEvents(client, c.Log)
	c.Secrets.OnChange(k.secretChanged)
	return k, nil
}

// Run lets pods go until ctx ends, and returns when all that it started has ended. It
// may be called once.
func (c *Controller) Run(ctx context.Context) error {
	var owned sync.WaitGroup
	owned.Go(func() { c.inbox.watch(ctx, c.client, c.log) })
	c.facts.start(ctx, &owned)
	c.patches.start(ctx, &owned)
	c.events.start(ctx, &owned)
	c.loop(ctx)
	owned.Wait()
	c.config.Secrets.Want(user, nil)
	for _, h := range c.pods {
		c.release(h)
	}
	return nil
}

// poke wakes the loop.
func (c *Controller) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *Controller) secretChanged(key source.Key) {
	c.secrets.Lock()
	c.secrets.changed[key] = struct{}{}
	c.secrets.Unlock()
	c.poke()
}

// Bounds of the loop: at rest it looks around once in a second; however much changes, it
// takes a tenth of the time of one core, and pods that came are not kept waiting for it.
const (
	look   = time.Second
	pause  = 2 * time.Millisecond
	leaves = 10
)

// loop decides, pass by pass.
func (c *Controller) loop(ctx context.Context) {
	timer := time.NewTimer(look)
	defer timer.Stop()
	for {
		changed := c.config.Gate.Changed() // before the pass, so that nothing is missed
		begin := time.Now()
		next := c.pass(begin)
		rest := max(pause, leaves*time.Since(begin))
		timer.Reset(min(rest, look))
		select { // what comes in this time is looked at together
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(max(0, min(next, look)))
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-changed:
		case <-timer.C:
		}
		select {
		case <-changed:
			c.all = true
		default:
		}
	}
}
