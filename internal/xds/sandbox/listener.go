package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// listener is one listener: the version that serves and the one that warms.
type listener struct {
	name    string
	owner   *Sandbox
	warming *listenerConfig // the loop's
	message string          // the loop's
	server  *http.Server    // the loop's
	address string          // the loop's

	mu      sync.Mutex // guards serving, and its filters while a request takes hold of them
	serving *listenerConfig
}

// listenerConfig is one version of a listener.
type listenerConfig struct {
	message   *listenerv3.Listener
	version   string
	http      bool // there is a chain that speaks HTTP
	filters   []configuredFilter
	notRun    []string
	routes    *routev3.RouteConfiguration
	routeName string // of routes that come by RDS
}

// configuredFilter is one HTTP filter of a chain.
type configuredFilter struct {
	name      string
	own       *slot      // a filter of the listener, or the default_config of an extension
	extension *extension // nil: the filter is the listener's own
	passes    bool       // not run, or the router
}

func (l *listener) config() *listenerConfig {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.serving
}

// newest is the version that came last.
func (l *listener) newest() *listenerConfig {
	if l.warming != nil {
		return l.warming
	}
	return l.config()
}

// buildListener reads a listener as far as it is run.
func (s *Sandbox) buildListener(m *listenerv3.Listener) (*listenerConfig, error) {
	c := &listenerConfig{message: m}
	manager, notRun, err := findManager(m)
	if err != nil {
		return nil, err
	}
	c.notRun = notRun
	if manager == nil {
		return c, nil
	}
	c.http = true
	if err := s.buildRoutes(c, manager); err != nil {
		return nil, err
	}
	filters := manager.GetHttpFilters()
	for i, f := range filters {
		built, err := s.buildFilter(f, i == len(filters)-1)
		if err != nil {
			c.release()
			return nil, err
		}
		if built.passes && i < len(filters)-1 {
			c.notRun = append(c.notRun, f.GetName())
		}
		c.filters = append(c.filters, built)
	}
	return c, nil
}

// findManager returns the HTTP connection manager of the first chain that has one, and
// the network filters before it; nil if there is none.
func findManager(m *listenerv3.Listener) (*hcmv3.HttpConnectionManager, []string, error) {
	chains := m.GetFilterChains()
	if d := m.GetDefaultFilterChain(); d != nil {
		chains = append(slices.Clone(chains), d)
	}
	for _, chain := range chains {
		var before []string
		for _, f := range chain.GetFilters() {
			manager := &hcmv3.HttpConnectionManager{}
			if !f.GetTypedConfig().MessageIs(manager) {
				before = append(before, f.GetName())
				continue
			}
			if err := f.GetTypedConfig().UnmarshalTo(manager); err != nil {
				return nil, nil, err
			}
			if err := manager.ValidateAll(); err != nil {
				return nil, nil, err
			}
			return manager, before, nil
		}
	}
	return nil, nil, nil
}

func (s *Sandbox) buildRoutes(c *listenerConfig, manager *hcmv3.HttpConnectionManager) error {
	c.routes = manager.GetRouteConfig()
	if rds := manager.GetRds(); rds != nil {
		if rds.GetConfigSource().GetAds() == nil {
			return fmt.Errorf("routes %s come from another source than ADS, which the sandbox proxy does not ask", rds.GetRouteConfigName())
		}
		c.routeName = rds.GetRouteConfigName()
	}
	return nil
}

func (s *Sandbox) buildFilter(f *hcmv3.HttpFilter, last bool) (configuredFilter, error) {
	out := configuredFilter{name: f.GetName()}
	if source := f.GetConfigDiscovery(); source != nil {
		return s.buildDiscovered(out, source, last)
	}
	config := f.GetTypedConfig()
	switch {
	case last && config.GetTypeUrl() != routerType:
		return out, fmt.Errorf("Error: non-terminal filter named %s of type %s is the last filter in a http filter chain", f.GetName(), shortName(config.GetTypeUrl()))
	case !last && config.GetTypeUrl() == routerType:
		return out, fmt.Errorf("Error: terminal filter named %s of type %s must be the last filter in a http filter chain", f.GetName(), shortName(config.GetTypeUrl()))
	case config.GetTypeUrl() == wasmType || config.GetTypeUrl() == faultType:
		loaded, err := s.newFilter(config, false)
		if err != nil {
			return out, err
		}
		out.own = &slot{}
		out.own.set(loaded)
	case !f.GetIsOptional() && !knownType(config.GetTypeUrl()):
		return out, fmt.Errorf("Didn't find a registered implementation for '%s' with type URL: '%s'", f.GetName(), shortName(config.GetTypeUrl())) //nolint:staticcheck // as Envoy says it
	default:
		out.passes = true
	}
	return out, nil
}

// buildDiscovered subscribes to an extension, and loads its default.
func (s *Sandbox) buildDiscovered(out configuredFilter, source *corev3.ExtensionConfigSource, last bool) (configuredFilter, error) {
	if last {
		return out, fmt.Errorf("filter %s: a terminal filter whose configuration is discovered is not run by the sandbox proxy", out.name)
	}
	if source.GetConfigSource().GetAds() == nil {
		return out, fmt.Errorf("extension configuration %s comes from another source than ADS, which the sandbox proxy does not ask", out.name)
	}
	for _, t := range source.GetTypeUrls() {
		if !knownType(t) {
			return out, fmt.Errorf("Error: no HTTP filter factory found for type URL %s", t)
		}
	}
	out.own = &slot{}
	fallback := source.GetDefaultConfig()
	if fallback != nil {
		loaded, err := s.newFallback(fallback, source.GetTypeUrls())
		if err != nil {
			return out, err
		}
		out.own.set(loaded)
	}
	timeout := defaultFetchTimeout
	if t := source.GetConfigSource().GetInitialFetchTimeout(); t != nil {
		timeout = t.AsDuration()
	}
	out.extension = s.extensionOf(out.name, source.GetTypeUrls(), timeout)
	if fallback != nil && out.extension.fallback == "" {
		out.extension.fallback = fallback.GetTypeUrl()
	}
	if source.GetApplyDefaultConfigWithoutWarming() {
		out.extension.answered = true
	}
	return out, nil
}

func (s *Sandbox) newFallback(config *anypb.Any, typeURLs []string) (*filter, error) {
	if !slices.Contains(typeURLs, config.GetTypeUrl()) {
		return nil, fmt.Errorf("Error: cannot find filter factory for default filter configuration with type URL %s", config.GetTypeUrl())
	}
	return s.newFilter(config, false)
}

// warm reports whether a version has all it needs.
func (c *listenerConfig) warm(s *Sandbox) bool {
	if c.routeName != "" {
		if c.routes = s.routes[c.routeName]; c.routes == nil {
			return false
		}
	}
	for _, f := range c.filters {
		if f.extension != nil && !f.extension.answered {
			return false
		}
	}
	return true
}

// release closes the filters that are the version's own.
func (c *listenerConfig) release() {
	for _, f := range c.filters {
		if f.own != nil {
			f.own.set(nil)
		}
	}
}

// serve puts the warm version in the place of the one that serves, and opens the port
// if this is the first.
func (l *listener) serve() error {
	l.mu.Lock()
	old := l.serving
	l.serving = l.warming
	l.mu.Unlock()
	if old != nil {
		old.release()
	}
	l.warming = nil
	if !l.serving.http {
		return errors.New("no filter chain speaks HTTP: the sandbox proxy does not serve it")
	}
	if l.server != nil {
		return nil
	}
	port, err := (&net.ListenConfig{}).Listen(l.owner.ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listener %s: %w", l.name, err)
	}
	l.address = port.Addr().String()
	l.server = &http.Server{Handler: l, ReadHeaderTimeout: 10 * time.Second}
	server := l.server
	l.owner.group.Go(func() error {
		if err := server.Serve(port); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("listener %s: %w", l.name, err)
		}
		return nil
	})
	return nil
}

// reroute gives the version that serves its new routes, if it names them.
func (l *listener) reroute(routes *routev3.RouteConfiguration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.serving != nil && l.serving.routeName == routes.GetName() {
		l.serving.routes = routes
	}
}

// close stops serving; requests under way get a moment to end.
func (l *listener) close() {
	if l.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if l.server.Shutdown(ctx) != nil {
			_ = l.server.Close()
		}
	}
	l.mu.Lock()
	serving := l.serving
	l.serving = nil
	l.mu.Unlock()
	for _, c := range []*listenerConfig{l.warming, serving} {
		if c != nil {
			c.release()
		}
	}
	l.warming = nil
}

// report says what the listener holds.
func (l *listener) report() Listener {
	out := Listener{Name: l.name, Address: l.address, Warming: l.warming != nil, Message: l.message}
	c := l.config()
	if c == nil {
		c = l.warming
	}
	if c == nil {
		return out
	}
	out.Version = c.version
	out.NotRun = slices.Clone(c.notRun)
	for _, f := range c.filters {
		out.Filters = append(out.Filters, f.name)
	}
	return out
}
