// Package lease decides which replica of stile leads. Its one rule: leading is for
// writing status alone, so losing the lease ends nothing; a replica serves on and
// tries again.
//
// Rights it needs, in stile's own namespace:
//
//	coordination.k8s.io leases          create
//	coordination.k8s.io leases/<Name>   get, update
package lease

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// Config says which lease is held by whom. Namespace, Name and Identity are required.
type Config struct {
	REST *rest.Config
	// Namespace and Name are those of the Lease.
	Namespace, Name string
	// Identity tells this replica from all others, as the name of its pod does.
	Identity string
	// Duration is how long the others wait for a leader that is gone without giving the lease
	// back; whole seconds, zero is 15 s. Deadline is how long a leader that cannot renew
	// believes in itself, zero is 10 s; it must be shorter than Duration. Retry is the pause
	// between tries, zero is 2 s.
	Duration, Deadline, Retry time.Duration
	// Log may be nil.
	Log *slog.Logger
	// Registerer takes the gauge stile_leader; it may be nil.
	Registerer prometheus.Registerer
}

// Lease is this replica's part in the election. It is safe for concurrent use.
type Lease struct {
	cfg     Config
	log     *slog.Logger
	lock    resourcelock.Interface
	close   func() // lets go of idle connections
	release bool   // give the lease back at the end; tests of a replica that is killed do not

	leads   atomic.Bool
	changes chan struct{}

	mu    sync.Mutex // guards what follows
	until *time.Timer
	term  int // counts renewals, so that an old timer ends no newer one
}

// New returns a Lease that does not lead. It asks nothing of the API server yet.
func New(cfg Config) (*Lease, error) {
	if cfg.Namespace == "" || cfg.Name == "" || cfg.Identity == "" {
		return nil, fmt.Errorf("leader election: namespace, name and identity must be set")
	}
	for d, preset := range map[*time.Duration]time.Duration{
		&cfg.Duration: 15 * time.Second, &cfg.Deadline: 10 * time.Second, &cfg.Retry: 2 * time.Second} {
		if *d == 0 {
			*d = preset
		}
	}
	if cfg.Duration < time.Second {
		return nil, fmt.Errorf("leader election: a lease lasts 1s or more, not %s", cfg.Duration)
	}
	l := &Lease{cfg: cfg, log: cfg.Log, release: true, changes: make(chan struct{}, 1)}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	config := rest.CopyConfig(cfg.REST)
	config.QPS = -1                   // a handful of requests a minute
	config.Timeout = cfg.Deadline / 2 // one request that hangs must not cost the lead
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("leader election: make a client: %w", err)
	}
	client, err := coordination.NewForConfigAndClient(config, httpClient)
	if err != nil {
		return nil, fmt.Errorf("leader election: make a client: %w", err)
	}
	l.close = httpClient.CloseIdleConnections
	l.lock = &watched{lease: l, Interface: &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: cfg.Namespace, Name: cfg.Name},
		Client:     client,
		LockConfig: resourcelock.ResourceLockConfig{Identity: cfg.Identity},
	}}
	if _, err := l.elector(); err != nil {
		return nil, fmt.Errorf("leader election: %w", err)
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "stile_leader", Help: "1 in the replica that writes status, 0 in the others.",
		}, func() float64 {
			if l.Leads() {
				return 1
			}
			return 0
		}))
	}
	return l, nil
}

func (l *Lease) elector() (*leaderelection.LeaderElector, error) {
	return leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: l.lock, Name: l.cfg.Name, ReleaseOnCancel: l.release,
		LeaseDuration: l.cfg.Duration, RenewDeadline: l.cfg.Deadline, RetryPeriod: l.cfg.Retry,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) {}, // the lock knows sooner
			OnStoppedLeading: l.lost,
		},
	})
}

// Run takes part in the election until ctx ends, and gives the lease back then. It
// fails only where its configuration is wrong.
func (l *Lease) Run(ctx context.Context) error {
	defer l.close()
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(l.log.With("lease", l.cfg.Namespace+"/"+l.cfg.Name).Handler()))
	for ctx.Err() == nil {
		elector, err := l.elector()
		if err != nil {
			return fmt.Errorf("leader election: %w", err)
		}
		elector.Run(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(wait.Jitter(l.cfg.Retry, 1)):
		}
	}
	return nil
}

// Leads reports whether this replica may write status now: one atomic load. It turns
// false before another replica can take the lead.
func (l *Lease) Leads() bool { return l.leads.Load() }

// Changes receives after Leads has changed; changes that nobody waited for are one.
func (l *Lease) Changes() <-chan struct{} { return l.changes }

// held is told of each success: the lead lasts from when the request was made, never
// from when it was answered.
func (l *Lease) held(since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := time.Until(since.Add(l.cfg.Deadline))
	if left <= 0 {
		return
	}
	l.term++
	term := l.term
	if l.until != nil {
		l.until.Stop()
	}
	l.until = time.AfterFunc(left, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.term == term {
			l.set(false)
		}
	})
	l.set(true)
}

func (l *Lease) lost() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.term++
	if l.until != nil {
		l.until.Stop()
	}
	l.set(false)
}

// set is called with mu held.
func (l *Lease) set(leads bool) {
	if l.leads.Swap(leads) == leads {
		return
	}
	l.log.Info("leadership has changed", "leads", leads, "identity", l.cfg.Identity)
	select {
	case l.changes <- struct{}{}:
	default:
	}
}

// watched is a lock that tells the Lease what becomes of it. The callbacks of the
// election would be too late: they end a lead after the lease was given back, and after
// more time than the others wait.
type watched struct {
	resourcelock.Interface
	lease *Lease
}

func (w *watched) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	err := w.Interface.Create(ctx, r)
	if err == nil {
		w.lease.held(r.RenewTime.Time)
	}
	return err
}

func (w *watched) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	mine := r.HolderIdentity == w.Identity()
	if !mine {
		w.lease.lost() // it is about to be given back
	}
	err := w.Interface.Update(ctx, r)
	if err == nil && mine {
		w.lease.held(r.RenewTime.Time)
	}
	return err
}
