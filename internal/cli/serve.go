package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/cli/config"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/engine"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/preflight"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/source"
	"github.com/stileproject/stile/internal/source/file"
	"github.com/stileproject/stile/internal/store"
	"github.com/stileproject/stile/internal/xds"
)

func serveVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve [--config FILE]",
		Short: "Run the service: plugins to proxies, modules, status",
		Long: `Watches a folder of resources, proves who may read which image, and sends each proxy its
plugins over xDS. SIGTERM ends it with 0, Ctrl-C with 130.

Each value of the configuration can be set by a flag or a STILE_* variable too; the most
common ones are listed below, "stile config view -o wide" lists all.`,
		Example: `  stile serve --config stile.yaml
  stile serve --resources ./resources --envoy ./envoy --store ./data`,
		Args: arguments(0, 0, ""),
	}
	flags := configFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		loaded, err := a.loadConfig(flags)
		if err != nil {
			return err
		}
		err = runServe(cmd.Context(), loaded.Config, serveHooks{Log: a.logger(slog.LevelInfo), Stdout: a.stdout})
		if err == nil && interruptedBy(cmd.Context()) == os.Interrupt {
			return silent(Interrupted)
		}
		return err
	}
	return cmd
}

// serveHooks is what the caller of runServe gives and is told.
type serveHooks struct {
	Log     *slog.Logger         // nil: nothing is logged
	Stdout  io.Writer            // where an audit file of "-" goes; nil: nowhere
	Started func(serveAddresses) // called once, when every address answers; nil: nobody is told
}

// serveAddresses are those that the service listens on, host:port, also where the
// configuration says port 0. Health is "" if it is on Admin.
type serveAddresses struct{ XDS, Modules, Admin, Health, Webhook string }

// runServe runs the service until ctx ends, and then returns nil with nothing left
// behind. It returns early with an error that says what is wrong and what to do.
func runServe(ctx context.Context, cfg *v1alpha1.Config, hooks serveHooks) (err error) {
	s := &service{cfg: cfg.DeepCopy(), hooks: hooks, log: hooks.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for _, step := range []func() error{s.check, s.reachKubernetes, s.listen, s.openStore, s.openRooms, s.openControllers, s.openServers} {
		if err := step(); err != nil {
			return err
		}
	}
	return s.run(ctx)
}

// service is one run of serve: its rooms, in the order in which they are opened.
type service struct {
	cfg   *v1alpha1.Config
	hooks serveHooks
	log   *slog.Logger

	root     secret.Root
	metrics  *prometheus.Registry
	bound    listeners
	store    *store.Store
	client   *oci.Client
	gate     *access.Gate
	contents *content.Contents
	proxies  *xds.Server
	source   worlds
	engine   *engine.Engine
	state    *state
	trials   *preflight.Trials // nil: modules are not tried
	kube     *kubernetesPart   // nil: resources are in a folder
	servers  []server

	closers []func() error
}

// worlds is where resources come from.
type worlds interface {
	Run(context.Context) error
	Worlds() <-chan *source.World
}

// onClose adds what close does, last first.
func (s *service) onClose(f func() error) { s.closers = append(s.closers, f) }

func (s *service) close() error {
	var faults []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		faults = append(faults, s.closers[i]())
	}
	s.closers = nil
	return errors.Join(faults...)
}

// check refuses what this version cannot do and what is not there.
func (s *service) check() error {
	if s.cfg.XDS.TLS.ClientCAFile != "" && len(s.cfg.XDS.Identities) == 0 {
		s.log.Warn("xds.identities is empty: whoever has a certificate of xds.tls.clientCAFile may be any proxy of any namespace")
	}
	for _, d := range []struct {
		what, path, flag string
		optional         bool
	}{
		{"resources.directory", s.cfg.Resources.Directory, "--resources", false},
		{"envoy.directory", s.cfg.Envoy.Directory, "--envoy", s.cfg.Envoy.Directory == v1alpha1.DefaultConfig().Envoy.Directory},
	} {
		info, err := os.Stat(d.path)
		switch {
		case d.path == "", err == nil && info.IsDir():
		case err == nil:
			return fail(Usage, fmt.Errorf("%s: %s is a file, not a folder", d.what, d.path), "name a folder with "+d.flag)
		case errors.Is(err, fs.ErrNotExist) && d.optional && s.cfg.Resources.Kubernetes != nil: // ConfigMaps hold listeners
		case errors.Is(err, fs.ErrNotExist) && d.optional:
			s.log.Info("no folder of Envoy files: proxies keep their own listeners", "folder", d.path)
		default:
			return fail(Usage, fmt.Errorf("%s: %s: %w", d.what, d.path, withoutPath(err)), "make the folder, or name another with "+d.flag)
		}
	}
	return nil
}

// listeners are the bound addresses.
type listeners struct{ xds, modules, admin, health, webhook net.Listener }

// listen binds every address before anything else is done: a port in use is the
// likeliest fault, and the cheapest to find.
func (s *service) listen() error {
	for _, l := range []struct {
		key, address string
		to           *net.Listener
	}{
		{"xds.address", s.cfg.XDS.Address, &s.bound.xds},
		{"modules.address", s.cfg.Modules.Address, &s.bound.modules},
		{"admin.address", s.cfg.Admin.Address, &s.bound.admin},
		{"health.address", s.cfg.Health.Address, &s.bound.health},
		{"webhook.address", s.cfg.Webhook.Address, &s.bound.webhook},
	} {
		if l.address == "" {
			continue
		}
		bound, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", l.address)
		if err != nil {
			return listenFailure(l.key, l.address, err)
		}
		*l.to = bound
		s.onClose(func() error { _ = bound.Close(); return nil }) // its server has closed it, if there was one
	}
	if s.cfg.Modules.URL == "" && s.bound.modules != nil {
		scheme := "http"
		if !s.cfg.Modules.TLS.IsZero() {
			scheme = "https"
		}
		s.cfg.Modules.URL = scheme + "://" + s.bound.modules.Addr().String()
	}
	return nil
}

func listenFailure(key, address string, err error) error {
	reason := err
	if oe, ok := errors.AsType[*os.SyscallError](err); ok {
		reason = oe.Err
	}
	remedy := "choose another address with --" + flagName(config.Key{Path: key}) + " (" + key + ")"
	if errors.Is(err, syscall.EADDRINUSE) {
		remedy = "end the program that listens there, or " + remedy
	}
	return fail(Failed, fmt.Errorf("%s: listen on %s: %w", key, address, reason), remedy)
}

// own reports whether an address is one of the service's own listeners: no tenant's
// url may lead there.
func (s *service) own(to netip.AddrPort) bool {
	for _, l := range []net.Listener{s.bound.xds, s.bound.modules, s.bound.admin, s.bound.health, s.bound.webhook} {
		if l == nil {
			continue
		}
		tcp, ok := l.Addr().(*net.TCPAddr)
		if !ok || int(to.Port()) != tcp.Port {
			continue
		}
		at := tcp.AddrPort().Addr().Unmap()
		if at.IsUnspecified() || at == to.Addr().Unmap() {
			return true
		}
	}
	return false
}

// openStore reads the root key and opens the store.
func (s *service) openStore() (err error) {
	if s.root, err = loadRoot(s.cfg); err != nil {
		return err
	}
	s.metrics = prometheus.NewRegistry()
	s.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())
	s.store, err = store.Open(s.cfg.Store.Directory, store.Options{
		MaxSize: int64(s.cfg.Store.MaxSize), MaxPerNamespace: int64(s.cfg.Store.MaxPerNamespace),
		Keys: rowKeys(s.root), Log: s.log, Registerer: s.metrics,
	})
	switch {
	case errors.Is(err, store.ErrInUse):
		return fail(Failed, err, "end the other stile that uses this folder, or choose another with --store (store.directory)")
	case err != nil:
		return fail(Failed, err, "make the folder writable for this user, or choose another with --store (store.directory)")
	}
	s.onClose(s.store.Close)
	return nil
}

func buildInfo() prometheus.Collector {
	v := currentVersion()
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "stile_build_info", Help: "Always 1; the labels say which stile this is.",
		ConstLabels: prometheus.Labels{"version": v.Version, "commit": v.Commit, "go": v.Go},
	})
	g.Set(1)
	return g
}

// openRooms makes the rooms; none of them does anything yet.
func (s *service) openRooms() error {
	settings, err := ociSettings(s.cfg, s.root.Key(secret.ForFingerprints), s.log, s.metrics)
	if err != nil {
		return fail(Usage, err, "name PEM files that this user may read")
	}
	settings.Forbidden = s.own
	if s.client, err = oci.NewClient(settings); err != nil {
		return fail(Usage, fmt.Errorf("configuration: %w", err), "")
	}
	s.onClose(func() error { s.client.Close(); return nil })
	audit, err := s.audit()
	if err != nil {
		return err
	}
	proofs, err := access.OpenArchive(filepath.Join(s.cfg.Store.Directory, proofsFile), s.root, s.log)
	if err != nil {
		return storeFailure(s.cfg.Store.Directory, err)
	}
	s.onClose(proofs.Close)
	gate := gateConfig(s.cfg, s.log, s.metrics, audit)
	gate.Archive = proofs
	s.gate = access.New(s.client, gate)
	s.contents = content.New(s.store, s.client, contentConfig(s.cfg, s.root, s.log, s.metrics))
	s.proxies = xds.NewServer(xds.Options{Log: s.log, Registerer: s.metrics, Authorize: authorize(s.cfg.XDS.Identities, s.cfg.Envoy.Nodes)})
	s.onClose(func() error { s.proxies.Close(); return nil })
	s.state = newState(s.cfg.Store.Directory, s.root.Box(secret.ForState), s.log)
	turning := engineConfig(s.cfg, s.root, s.log)
	turning.Memory = s.state
	if s.kube == nil {
		s.source = file.New(s.cfg.Resources.Directory, s.cfg.Envoy.Directory, s.log)
	} else if err := s.openKubernetes(&turning); err != nil {
		return err
	}
	rooms := engine.Rooms{Gate: s.gate, Contents: s.contents, Proxies: s.proxies, Registries: s.client}
	if s.cfg.Wasm.Preflight != v1alpha1.PreflightOff {
		s.trials = preflight.New(preflight.Config{Log: s.log, Registerer: s.metrics})
		rooms.Trials = s.trials
	}
	s.engine = engine.New(turning, rooms)
	s.metrics.MustRegister(newServiceMetrics(s.engine.Plugins, int64(s.cfg.Store.MaxSize)))
	return nil
}

// audit opens the stream of decisions, if there is one.
func (s *service) audit() (io.Writer, error) {
	switch name := s.cfg.Audit.File; name {
	case "":
		return nil, nil
	case "-":
		return s.hooks.Stdout, nil
	default:
		f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, fail(Failed, fmt.Errorf("audit.file: %w", err), "name a file that this user may write with --audit-file")
		}
		s.onClose(f.Close)
		return f, nil
	}
}

// run runs every room and server until ctx ends or one of them fails.
func (s *service) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	room := func(name string, run func(context.Context) error) {
		group.Go(func() error {
			if err := ignoreCancel(run(ctx)); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	room("source", s.source.Run)
	room("access", s.gate.Run)
	room("content", s.contents.Run)
	room("state", s.state.Run)
	if s.trials != nil {
		room("preflight", s.trials.Run)
	}
	room("engine", func(ctx context.Context) error { return s.engine.Run(ctx, s.source.Worlds()) })
	s.runKubernetes(room)
	for _, one := range s.servers {
		group.Go(func() error {
			if err := one.serve(); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", one.name, err)
			}
			return nil
		})
		group.Go(func() error { <-ctx.Done(); one.stop(); return nil })
	}
	bound := s.addresses()
	s.log.Info("serving", "xds", bound.XDS, "modules", bound.Modules, "admin", bound.Admin, "health", bound.Health, "webhook", bound.Webhook, "resources", s.resources())
	if s.hooks.Started != nil {
		s.hooks.Started(bound)
	}
	err := group.Wait()
	s.log.Info("ended")
	return err
}

// resources says where they come from.
func (s *service) resources() string {
	if s.kube == nil {
		return s.cfg.Resources.Directory
	}
	return s.kube.api.Host
}

func (s *service) addresses() serveAddresses {
	at := func(l net.Listener) string {
		if l == nil {
			return ""
		}
		return l.Addr().String()
	}
	return serveAddresses{XDS: at(s.bound.xds), Modules: at(s.bound.modules), Admin: at(s.bound.admin), Health: at(s.bound.health), Webhook: at(s.bound.webhook)}
}

// drainTime is how long requests under way may take once the service is to end.
const drainTime = 3 * time.Second

// server is one listener's server.
type server struct {
	name  string
	serve func() error
	stop  func()
}

// withTLS wraps a listener where TLS is configured.
func withTLS(l net.Listener, c *tls.Config) net.Listener {
	if c == nil {
		return l
	}
	return tls.NewListener(l, c)
}
