package oci

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// guard decides which addresses may be dialled. It sees each address after the name
// was looked up and just before the connection is made, on every hop, so that no
// name and no redirect leads where a literal address may not.
type guard struct {
	named     map[string]bool // host:port that the operator named
	loopback  bool
	private   bool
	forbidden func(netip.AddrPort) bool
	resolver  *net.Resolver // nil = the system's
	keepAlive net.KeepAliveConfig
}

// errGuard is why a dial was refused. Its text holds an address and no name.
type errGuard struct{ text string }

func (e errGuard) Error() string { return e.text }

// dial connects to hostport if the address that it leads to is allowed.
func (g *guard) dial(ctx context.Context, network, hostport string) (net.Conn, error) {
	d := net.Dialer{
		Resolver:        g.resolver,
		KeepAliveConfig: g.keepAlive,
		Control: func(_, address string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return errGuard{"the address is not understood"}
			}
			return g.check(hostport, to)
		},
	}
	return d.DialContext(ctx, network, hostport)
}

// check returns why to may not be dialled for hostport, or nil.
func (g *guard) check(hostport string, to netip.AddrPort) error {
	addr, ok := embedded(to.Addr())
	if !ok || never(addr) {
		return errGuard{fmt.Sprintf("%s is an address that is never asked (link-local, metadata, unspecified, multicast or reserved)", to.Addr())}
	}
	if g.forbidden != nil && (g.forbidden(to) || g.forbidden(netip.AddrPortFrom(addr, to.Port()))) {
		return errGuard{fmt.Sprintf("%s is stile's own or the cluster's", to)}
	}
	if g.named[hostport] {
		return nil
	}
	if addr.IsLoopback() && !g.loopback {
		return errGuard{fmt.Sprintf("%s is a loopback address: name the host under registries to allow it", to.Addr())}
	}
	if within(addr, privateRanges) && !g.private {
		return errGuard{fmt.Sprintf("%s is a private address: name the host under registries to allow it", to.Addr())}
	}
	return nil
}

// embedded returns the address that a packet to a ends at: IPv4 addresses travel in
// IPv6 form too. It reports false for forms that only ever serve to hide one.
func embedded(a netip.Addr) (netip.Addr, bool) {
	a = a.WithZone("").Unmap()
	if a.Is4() {
		return a, true
	}
	b := a.As16()
	switch {
	case nat64.Contains(a), nat64Local.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case sixToFour.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	case teredo.Contains(a), v4Compatible.Contains(a) && a != netip.IPv6Loopback(), v4Translated.Contains(a):
		return netip.Addr{}, false
	}
	return a, true
}

var (
	nat64        = netip.MustParsePrefix("64:ff9b::/96")
	nat64Local   = netip.MustParsePrefix("64:ff9b:1::/48")
	sixToFour    = netip.MustParsePrefix("2002::/16")
	teredo       = netip.MustParsePrefix("2001::/32")
	v4Compatible = netip.MustParsePrefix("::/96")
	v4Translated = netip.MustParsePrefix("::ffff:0:0:0/96")

	global6 = netip.MustParsePrefix("2000::/3")

	// neverRanges are refused whoever is named: this host's own other names, link-local
	// and the metadata services of the clouds, which hand out credentials to who asks.
	neverRanges = prefixes(
		"0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
		"100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32",
		"::/128", "fe80::/10", "ff00::/8", "fd00:ec2::/32", "fd20:ce::/32", "100::/64",
	)
	// privateRanges are refused unless the host is named.
	privateRanges = prefixes(
		"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "192.0.0.0/24",
		"198.18.0.0/15", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24",
		"fc00::/7", "fec0::/10", "2001:db8::/32",
	)
)

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, p := range list {
		out[i] = netip.MustParsePrefix(p)
	}
	return out
}

func within(a netip.Addr, ranges []netip.Prefix) bool {
	for _, p := range ranges {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// never also holds for IPv6 that nobody was given: what is neither global unicast nor
// private nor loopback.
func never(a netip.Addr) bool {
	if within(a, neverRanges) {
		return true
	}
	return a.Is6() && !global6.Contains(a) && !a.IsLoopback() && !within(a, privateRanges)
}

// guarded returns the guard's refusal in err's chain, if there is one.
func guarded(err error) (errGuard, bool) { return errors.AsType[errGuard](err) }
