package oci

import (
	"net/netip"
	"testing"
)

func TestGuard(t *testing.T) {
	t.Parallel()
	const no, private, loopback, yes = "never", "private", "loopback", "yes"
	for addr, class := range map[string]string{
		"8.8.8.8": yes, "2606:4700::1111": yes, "::ffff:8.8.8.8": yes, "64:ff9b::808:808": yes, "2002:808:808::1": yes, "169.253.255.255": yes,
		"127.0.0.1": loopback, "127.255.0.1": loopback, "::1": loopback, "::ffff:127.0.0.1": loopback, "64:ff9b::7f00:1": loopback, "2002:7f00:1::": loopback, "64:ff9b:1::7f00:1": loopback,
		"10.1.2.3": private, "172.16.0.1": private, "172.31.255.255": private, "192.168.1.1": private, "100.64.0.1": private, "fd12::1": private, "fc00::1": private,
		"::ffff:10.1.2.3": private, "64:ff9b::a01:203": private, "2002:a01:203::": private, "198.18.0.1": private, "203.0.113.9": private, "2001:db8::1": private, "fec0::1": private,
		"0.0.0.0": no, "0.1.2.3": no, "::": no, "169.254.169.254": no, "169.254.0.1": no, "fe80::1": no, "224.0.0.1": no, "ff02::1": no, "255.255.255.255": no, "240.0.0.1": no,
		"::ffff:169.254.169.254": no, "64:ff9b::a9fe:a9fe": no, "2002:a9fe:a9fe::": no, "64:ff9b:1::a9fe:a9fe": no, "::ffff:0.0.0.0": no, "::169.254.169.254": no, "::7f00:1": no,
		"2001:0:1::1": no, "::ffff:0:169.254.169.254": no, "fd00:ec2::254": no, "fd20:ce::254": no, "100.100.100.200": no, "168.63.129.16": no, "192.0.0.192": no, "fe80::1%eth0": no, "4000::1": no, "1::1": no,
	} {
		for name, one := range map[string]struct {
			guard guard
			host  string
			let   map[string]bool
		}{
			"unnamed":              {guard{}, "r.example:443", map[string]bool{yes: true}},
			"loopback is allowed":  {guard{loopback: true}, "r.example:443", map[string]bool{yes: true, loopback: true}},
			"private is allowed":   {guard{private: true}, "r.example:443", map[string]bool{yes: true, private: true}},
			"named":                {guard{named: map[string]bool{"r.example:443": true}}, "r.example:443", map[string]bool{yes: true, loopback: true, private: true}},
			"named, another port":  {guard{named: map[string]bool{"r.example:443": true}}, "r.example:5000", map[string]bool{yes: true}},
			"named, but forbidden": {guard{named: map[string]bool{"r.example:443": true}, forbidden: func(netip.AddrPort) bool { return true }}, "r.example:443", nil},
		} {
			err := one.guard.check(one.host, netip.AddrPortFrom(netip.MustParseAddr(addr), 443))
			if (err == nil) != one.let[class] {
				t.Errorf("%s (%s), %s: %v", addr, class, name, err)
			}
		}
	}
}

// Whatever form a forbidden listener's address takes, it is recognised.
func TestGuard_ForbiddenInEveryForm(t *testing.T) {
	t.Parallel()
	own := netip.MustParseAddrPort("10.0.0.1:18001")
	g := guard{private: true, forbidden: func(a netip.AddrPort) bool { return a == own }}
	for _, addr := range []string{"10.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::"} {
		if g.check("x:18001", netip.AddrPortFrom(netip.MustParseAddr(addr), 18001)) == nil {
			t.Errorf("%s is let through", addr)
		}
		if err := g.check("x:443", netip.AddrPortFrom(netip.MustParseAddr(addr), 443)); err != nil {
			t.Errorf("%s on another port: %v", addr, err)
		}
	}
}

func FuzzGuard(f *testing.F) {
	f.Add([]byte{127, 0, 0, 1})
	f.Add(netip.MustParseAddr("64:ff9b::a9fe:a9fe").AsSlice())
	f.Add(netip.MustParseAddr("::1").AsSlice())
	f.Fuzz(func(t *testing.T, raw []byte) {
		addr, ok := netip.AddrFromSlice(raw)
		if !ok {
			return
		}
		if (&guard{}).check("r.example:443", netip.AddrPortFrom(addr, 443)) != nil {
			return
		}
		if a := addr.Unmap(); !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() {
			t.Errorf("%s is let through", addr)
		}
	})
}
