package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/admin"
	"github.com/stileproject/stile/internal/engine"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/serve"
	"github.com/stileproject/stile/internal/xds"
)

// openServers makes the servers of the bound addresses.
func (s *service) openServers() error {
	options := xds.ServerOptions()
	xdsTLS, err := serverTLS("xds.tls", s.cfg.XDS.TLS, s.log, "h2")
	if err != nil {
		return err
	}
	if xdsTLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(xdsTLS)))
	}
	g := grpc.NewServer(options...)
	s.proxies.Register(g)
	s.servers = append(s.servers, server{"xds", func() error { return g.Serve(s.bound.xds) }, g.Stop})

	modulesTLS, err := serverTLS("modules.tls", s.cfg.Modules.TLS, s.log, "h2", "http/1.1")
	if err != nil {
		return err
	}
	if s.bound.modules != nil {
		modules := serve.New(opener{s.engine}, serve.Options{
			Log: s.log, Registerer: s.metrics,
			Downloaded: func(m serve.Module) {
				namespace, name, _ := strings.Cut(m.Plugin, "/")
				s.engine.Downloaded(plugin.Key{Namespace: namespace, Name: name}, m.SHA256)
			},
		})
		s.serveHTTP("modules", withTLS(s.bound.modules, modulesTLS), modules)
	}

	show := s.adminOptions()
	adminTLS, err := reloadingTLS("admin.tls", &reloading{files: s.cfg.Admin.TLS, protocols: []string{"h2", "http/1.1"}, clients: tls.VerifyClientCertIfGiven})
	if err != nil {
		return err
	}
	if !v1alpha1.IsLoopback(s.cfg.Admin.Address) {
		show.Admit = s.admit
		if adminTLS == nil {
			s.log.Warn("admin.address is not loopback and admin.tls is not set: tokens cross the network in clear")
		}
	}
	s.serveHTTP("admin", withTLS(s.bound.admin, adminTLS), admin.New(show))
	if s.bound.health != nil {
		s.serveHTTP("health", s.bound.health, admin.Health(show))
	}
	return nil
}

// serveHTTP adds an HTTP server. It has no limit on how long an answer may take: a
// module may be large and a proxy far.
func (s *service) serveHTTP(name string, l net.Listener, h http.Handler) {
	one := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	s.servers = append(s.servers, server{
		name: name,
		serve: func() error {
			if err := one.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		},
		stop: func() {
			ctx, cancel := context.WithTimeout(context.Background(), drainTime)
			defer cancel()
			if one.Shutdown(ctx) != nil {
				_ = one.Close()
			}
		},
	})
}

func (s *service) adminOptions() admin.Options {
	return admin.Options{
		Plugins: func() any { return s.engine.Plugins() },
		Proofs:  func() any { return s.gate.List() },
		Proxies: func() any { return s.proxies.Proxies() },
		Recheck: rechecker{s.gate, s.engine},
		Ready: append([]admin.Check{{Name: "plan", Fault: func() error {
			if s.engine.Ready() {
				return nil
			}
			return errors.New("the first complete plan is not made yet")
		}}}, s.kubernetesChecks()...),
		Notes:    s.notes,
		Gatherer: s.metrics,
		Log:      s.log,
	}
}

// notes are what an operator should know that does not make the service unready: another
// replica could not do better.
func (s *service) notes() (notes []string) {
	for _, name := range s.engine.BrokenFiles() {
		notes = append(notes, fmt.Sprintf("envoy file %s: nothing good has been read of it since the start, and the proxies that it is for are not answered; the log names its faults", name))
	}
	return append(notes, s.kubernetesNotes()...)
}

// opener opens modules for the module server.
type opener struct{ engine *engine.Engine }

func (o opener) OpenModule(ctx context.Context, token string) (io.ReadSeekCloser, serve.Module, error) {
	f, info, err := o.engine.OpenModule(ctx, token)
	if errors.Is(err, engine.ErrNoModule) {
		return nil, serve.Module{}, serve.ErrGone
	}
	if err != nil {
		return nil, serve.Module{}, err
	}
	return f, serve.Module{Plugin: info.Plugin.String(), SHA256: info.SHA256, Size: info.Size, Stands: info.Stands}, nil
}

// rechecker takes the admin API's orders to the gate.
type rechecker struct {
	gate   *access.Gate
	engine *engine.Engine
}

func (r rechecker) RecheckImage(image string) error {
	ref, err := oci.ParseReference(strings.TrimPrefix(image, "oci://"))
	if err != nil {
		return fmt.Errorf("%w: %w", admin.ErrInvalid, err)
	}
	return r.recheck("image "+ref.String(), ref)
}

func (r rechecker) RecheckPlugin(name string) error {
	namespace, rest, ok := strings.Cut(name, "/")
	if !ok || namespace == "" || rest == "" || strings.Contains(rest, "/") {
		return fmt.Errorf("%w: want namespace/name, have %q", admin.ErrInvalid, name)
	}
	plugins := r.engine.Plugins()
	i := slices.IndexFunc(plugins, func(p engine.PluginStatus) bool { return p.Namespace == namespace && p.Name == rest })
	if i < 0 {
		return fmt.Errorf("plugin %s: %w", name, admin.ErrUnknown)
	}
	u, err := v1alpha1.ParseModuleURL(plugins[i].URL)
	if err != nil || u.Image.IsZero() {
		return fmt.Errorf("plugin %s: its module is no image, and there is no right to ask for: %w", name, admin.ErrUnknown)
	}
	refs := []oci.Reference{u.Image}
	if d := plugins[i].Digest; d != "" {
		refs = append(refs, u.Image.At(d))
	}
	return r.recheck("plugin "+name, refs...)
}

// recheck asks again for the first of refs that anybody holds. Of a tag the gate asks
// the digest too.
func (r rechecker) recheck(what string, refs ...oci.Reference) error {
	for _, ref := range refs {
		n, err := r.gate.Recheck(ref)
		switch {
		case errors.Is(err, access.ErrTooSoon):
			return fmt.Errorf("%s: %w", what, admin.ErrTooSoon)
		case err != nil:
			return fmt.Errorf("%s: %w", what, err)
		case n > 0 || r.held(ref):
			return nil
		}
	}
	return fmt.Errorf("%s: %w", what, admin.ErrUnknown)
}

// held reports whether there is a proof for ref: one that is being asked right now is
// not asked twice, and not unknown either.
func (r rechecker) held(ref oci.Reference) bool {
	return slices.ContainsFunc(r.gate.List(), func(e access.Entry) bool { return e.Image == ref.String() })
}
