package xds

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stileproject/stile/internal/plugin"
)

// clusters returns the operator's clusters and the one that modules are fetched from. That one
// is there whether or not a plugin needs it now, so that it never goes while an extension names
// it; the operator's own cluster of its name wins.
func (t *translation) clusters() []*Resource {
	var out []*Resource
	if t.in.File != nil {
		out = append(out, t.in.File.clusters...)
		if slices.ContainsFunc(out, func(r *Resource) bool { return r.Name == ModulesCluster }) {
			return out
		}
	}
	if t.in.ModulesURL == "" {
		return out
	}
	c, err := modulesCluster(t.in.ModulesURL)
	if err != nil {
		t.problems = append(t.problems, Problem{Severity: SeverityError, Reason: "Invalid", Message: "modules.url: " + err.Error()})
		return out
	}
	return append(out, newResource(ClusterType, ModulesCluster, c))
}

func modulesCluster(text string) (*clusterv3.Cluster, error) {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("must be http://host[:port] or https://host[:port]")
	}
	host := u.Hostname()
	port := uint64(80)
	if u.Scheme == "https" {
		port = 443
	}
	if u.Port() != "" {
		if port, err = strconv.ParseUint(u.Port(), 10, 16); err != nil || port == 0 {
			return nil, fmt.Errorf("the port must be a number from 1 to 65535")
		}
	}
	discovery := clusterv3.Cluster_STRICT_DNS
	address, isIP := netip.ParseAddr(host)
	if isIP == nil {
		discovery = clusterv3.Cluster_STATIC
		host = address.String()
	}
	c := &clusterv3.Cluster{
		Name:                 ModulesCluster,
		ConnectTimeout:       durationpb.New(5 * time.Second),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: discovery},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: ModulesCluster,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
					Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
						Address:       host,
						PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
					}}},
				}},
			}}}},
		},
	}
	if u.Scheme == "https" {
		c.TransportSocket = &corev3.TransportSocket{
			Name:       "envoy.transport_sockets.tls",
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: mustAny(upstreamTLS(u.Hostname()))},
		}
	}
	return c, nil
}

// upstreamTLS trusts the system's roots for this one host. An operator whose module server has
// another root, or asks for client certificates, writes the cluster himself.
func upstreamTLS(host string) *tlsv3.UpstreamTlsContext {
	san := &tlsv3.SubjectAltNameMatcher{
		SanType: tlsv3.SubjectAltNameMatcher_DNS,
		Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: host}},
	}
	c := &tlsv3.UpstreamTlsContext{
		CommonTlsContext: &tlsv3.CommonTlsContext{
			ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
				SystemRootCerts:           &tlsv3.CertificateValidationContext_SystemRootCerts{},
				MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{san},
			}},
		},
	}
	if net.ParseIP(host) != nil {
		san.SanType = tlsv3.SubjectAltNameMatcher_IP_ADDRESS
	} else {
		c.Sni = host
	}
	return c
}

func comparePlugins(a, b plugin.Key) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
