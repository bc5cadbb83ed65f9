package sandbox

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// apply applies a response; an error rejects all of it, though its good parts may act
// already, as in Envoy.
func (s *Sandbox) apply(r *discoveryv3.DiscoveryResponse) error {
	switch r.GetTypeUrl() {
	case clusterType:
		return s.applyClusters(r)
	case listenerType:
		return s.applyListeners(r)
	case routeType:
		return s.applyRoutes(r)
	case extensionType:
		return s.applyExtensions(r)
	}
	return nil
}

// unpack reads a resource, which may be wrapped.
func unpack(a *anypb.Any, to proto.Message) error {
	if a.MessageIs((*discoveryv3.Resource)(nil)) {
		var wrapped discoveryv3.Resource
		if err := a.UnmarshalTo(&wrapped); err != nil {
			return err
		}
		a = wrapped.GetResource()
	}
	return a.UnmarshalTo(to)
}

func (s *Sandbox) applyClusters(r *discoveryv3.DiscoveryResponse) error {
	var problems []string
	named := map[string]*clusterv3.Cluster{}
	for _, a := range r.GetResources() {
		c := &clusterv3.Cluster{}
		if err := unpack(a, c); err != nil {
			return err
		}
		if err := c.ValidateAll(); err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", c.GetName(), err))
			continue
		}
		named[c.GetName()] = c
	}
	s.clusters.Store(&named)
	if len(problems) > 0 {
		return errors.New("Error adding/updating cluster(s) " + strings.Join(problems, ", "))
	}
	return nil
}

func (s *Sandbox) applyListeners(r *discoveryv3.DiscoveryResponse) error {
	var problems []string
	named := map[string]bool{}
	for _, a := range r.GetResources() {
		l := &listenerv3.Listener{}
		if err := unpack(a, l); err != nil {
			return err
		}
		name := l.GetName()
		if named[name] {
			problems = append(problems, fmt.Sprintf("%s: duplicate listener %s found", name, name))
			continue
		}
		named[name] = true
		if err := s.applyListener(name, r.GetVersionInfo(), l); err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", name, err))
			if held := s.listeners[name]; held != nil {
				held.message = err.Error()
			}
		}
	}
	for name, l := range s.listeners {
		if !named[name] {
			l.close()
			delete(s.listeners, name)
		}
	}
	s.settleAll()
	if len(problems) > 0 {
		return errors.New("Error adding/updating listener(s) " + strings.Join(problems, "\n"))
	}
	return nil
}

// applyListener makes a version of a listener and warms it; the one that serves goes
// on serving until it is warm. A version that is there already changes nothing.
func (s *Sandbox) applyListener(name, version string, message *listenerv3.Listener) error {
	if err := message.ValidateAll(); err != nil {
		return err
	}
	l := s.listeners[name]
	if l != nil && l.newest() != nil && proto.Equal(l.newest().message, message) {
		l.newest().version = version
		l.message = ""
		return nil
	}
	config, err := s.buildListener(message)
	if err != nil {
		return err
	}
	config.version = version
	if l == nil {
		l = &listener{name: name, owner: s}
		s.listeners[name] = l
	}
	if l.warming != nil {
		l.warming.release()
	}
	l.warming, l.message = config, ""
	return nil
}

// settle lets a listener's warming version serve if nothing is missing any more. While
// the proxy starts, no listener serves before all of them are warm: as in Envoy, one
// extension that is not answered holds its neighbours too.
func (s *Sandbox) settle(l *listener) {
	if l.warming == nil || !s.started || !l.warming.warm(s) {
		return
	}
	if err := l.serve(); err != nil {
		l.message = err.Error()
		s.log.Warn("listener does not serve", "listener", l.name, "err", err)
	}
}

func (s *Sandbox) settleAll() {
	if !s.started && s.allWarm() {
		s.started = true
	}
	for _, name := range slices.Sorted(maps.Keys(s.listeners)) {
		s.settle(s.listeners[name])
	}
	s.dropUnused()
}

// allWarm reports whether no listener waits for anything.
func (s *Sandbox) allWarm() bool {
	for _, l := range s.listeners {
		if !l.warming.warm(s) {
			return false
		}
	}
	return true
}

// dropUnused forgets the extensions that no listener names any more.
func (s *Sandbox) dropUnused() {
	used := map[string]bool{}
	for _, l := range s.listeners {
		for _, c := range []*listenerConfig{l.warming, l.config()} {
			if c == nil {
				continue
			}
			for _, f := range c.filters {
				if f.extension != nil {
					used[f.extension.name] = true
				}
			}
		}
	}
	for name, x := range s.extensions {
		if !used[name] {
			x.close()
			delete(s.extensions, name)
		}
	}
}

func (s *Sandbox) applyRoutes(r *discoveryv3.DiscoveryResponse) error {
	for _, a := range r.GetResources() {
		route := &routev3.RouteConfiguration{}
		if err := unpack(a, route); err != nil {
			return err
		}
		if err := route.ValidateAll(); err != nil {
			return err
		}
		s.routes[route.GetName()] = route
		for _, l := range s.listeners {
			l.reroute(route)
		}
	}
	s.settleAll()
	return nil
}

// routeNames are the route configurations that listeners name, sorted.
func (s *Sandbox) routeNames() []string {
	names := map[string]bool{}
	for _, l := range s.listeners {
		for _, c := range []*listenerConfig{l.warming, l.config()} {
			if c != nil && c.routeName != "" {
				names[c.routeName] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func (s *Sandbox) applyExtensions(r *discoveryv3.DiscoveryResponse) error {
	var problems []error
	for _, a := range r.GetResources() {
		config := &corev3.TypedExtensionConfig{}
		if err := unpack(a, config); err != nil {
			return err
		}
		if x := s.extensions[config.GetName()]; x != nil {
			problems = append(problems, s.applyExtension(x, r.GetVersionInfo(), config.GetTypedConfig()))
		}
	}
	s.settleAll()
	return errors.Join(problems...)
}
