package sandbox

import (
	"net/http"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/stileproject/stile/internal/proxywasm"
)

// route says where a request goes, or what is answered directly. With Options.Upstream
// every request goes there; else the first route that matches by path decides.
func (s *Sandbox) route(h proxywasm.Headers, routes *routev3.RouteConfiguration) (upstream string, direct *answer) {
	if s.options.Upstream != "" {
		return s.options.Upstream, nil
	}
	host, _ := h.Get(":authority")
	path, _ := h.Get(":path")
	found := matchRoute(routes, host, path)
	if found == nil {
		a := local(http.StatusNotFound, "")
		return "", &a
	}
	if d := found.GetDirectResponse(); d != nil {
		a := local(int(d.GetStatus()), d.GetBody().GetInlineString())
		return "", &a
	}
	upstream, err := s.endpoint(found.GetRoute().GetCluster())
	if err != nil {
		a := local(http.StatusServiceUnavailable, "no healthy upstream")
		return "", &a
	}
	return upstream, nil
}

// matchRoute matches a host exactly or by "*", and a path exactly or by prefix. Routes
// with other conditions never match.
func matchRoute(routes *routev3.RouteConfiguration, host, path string) *routev3.Route {
	path, _, _ = strings.Cut(path, "?")
	var exact, other *routev3.VirtualHost
	for _, v := range routes.GetVirtualHosts() {
		if slices.Contains(v.GetDomains(), host) && exact == nil {
			exact = v
		}
		if slices.Contains(v.GetDomains(), "*") && other == nil {
			other = v
		}
	}
	if exact == nil {
		exact = other
	}
	for _, route := range exact.GetRoutes() {
		m := route.GetMatch()
		if len(m.GetHeaders()) > 0 || len(m.GetQueryParameters()) > 0 {
			continue
		}
		switch p := m.GetPathSpecifier().(type) {
		case *routev3.RouteMatch_Prefix:
			if strings.HasPrefix(path, p.Prefix) {
				return route
			}
		case *routev3.RouteMatch_Path:
			if path == p.Path {
				return route
			}
		}
	}
	return nil
}

// newUpstream is the client that requests are sent on with.
func newUpstream() *http.Transport {
	return &http.Transport{DisableCompression: true, ResponseHeaderTimeout: upstreamTimeout, MaxIdleConnsPerHost: 16}
}
