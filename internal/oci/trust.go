package oci

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"unique"

	"github.com/stileproject/stile/internal/reference"
	"github.com/stileproject/stile/internal/secret"
)

// Trust says how one host is spoken to on behalf of one namespace: with which
// certificate authorities, which client certificate, in clear or not. Only
// Client.Trust makes one; the zero Trust is refused by every operation. It is
// comparable, one word long and has no secrets in it.
type Trust struct{ of unique.Handle[trusted] }

// trusted is what a Trust stands for.
type trusted struct {
	host                  string
	certificate           bool // stile's own client certificate is presented
	fingerprint, previous secret.Fingerprint
}

func (t Trust) value() trusted {
	if t == (Trust{}) {
		return trusted{}
	}
	return t.of.Value()
}

// Host returns the canonical host that t is for.
func (t Trust) Host() string { return t.value().host }

// Fingerprint identifies the settings: equal for namespaces that speak to the host in
// the same way, zero for the zero Trust.
func (t Trust) Fingerprint() secret.Fingerprint { return t.value().fingerprint }

// Previous returns what Fingerprint was before the last rotation of the root key: only
// for finding what was kept under it. Zero if there was none.
func (t Trust) Previous() secret.Fingerprint { return t.value().previous }

// registry is a Registry, checked and prepared.
type registry struct {
	Registry
	host  string         // canonical
	roots *x509.CertPool // nil = the system's
}

// canonicalHost puts a host as references put it: lower case, without port 443, and
// Docker Hub under one name.
func canonicalHost(s string) string {
	host, port := splitHost(strings.ToLower(strings.TrimSpace(s)))
	if ip, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		host = ip.String()
		if ip.Is6() {
			host = "[" + host + "]"
		}
	}
	switch host {
	case "docker.io", "registry-1.docker.io", reference.DockerHub:
		host = reference.DockerHub
	}
	if port == "" {
		return host
	}
	return host + ":" + port
}

// prepare checks the operator's registries; it returns all faults at once.
func prepare(registries []Registry) (map[string]*registry, error) {
	prepared := make(map[string]*registry, len(registries))
	var faults []error
	for i, r := range registries {
		fault := func(what string) {
			faults = append(faults, fmt.Errorf("registries[%d] %s: %s", i, r.Host, what))
		}
		p := &registry{Registry: r, host: canonicalHost(r.Host)}
		if p.host == "" || strings.ContainsAny(p.host, "/@?# ") {
			fault("host: want host or host:port, without scheme or path")
			continue
		}
		if prepared[p.host] != nil {
			fault("the host is named twice")
		}
		if len(r.CA) > 0 {
			p.roots = x509.NewCertPool()
			if !p.roots.AppendCertsFromPEM(r.CA) {
				fault("CA: no certificate in PEM form")
			}
		}
		if r.PlainHTTP && (len(r.CA) > 0 || r.Certificate != nil) {
			fault("plainHTTP: excludes CA and client certificate")
		}
		prepared[p.host] = p
	}
	return prepared, errors.Join(faults...)
}

// Trust returns how host is spoken to for a namespace (Operator for the operator's
// own doing). It fails with Kind Blocked if the allow-list or the registry's
// namespaces do not let it.
func (c *Client) Trust(host, namespace string) (Trust, error) {
	host = canonicalHost(host)
	blocked := func(format string, args ...any) (Trust, error) {
		return Trust{}, &Error{Op: "trust", Ref: host, Kind: Blocked, Err: fmt.Errorf(format, args...)}
	}
	if host == "" {
		return blocked("no host is named")
	}
	if !c.allowed(host) {
		return blocked("the host is not in the allow-list (fetch.allow)")
	}
	t := trusted{host: host}
	sealed := func(parts ...[]byte) (Trust, error) {
		t.fingerprint, t.previous = sumBoth(c.settings.Key, append([][]byte{[]byte("trust"), []byte(host)}, parts...)...)
		return Trust{unique.Make(t)}, nil
	}
	r := c.registries[host]
	if r == nil {
		return sealed()
	}
	named := namespace == Operator || slices.Contains(r.Namespaces, namespace) || slices.Contains(r.Namespaces, "*")
	if len(r.Namespaces) > 0 && !named {
		return blocked("namespace %q is not among the registry's namespaces", namespace)
	}
	t.certificate = r.Certificate != nil && named
	scheme := "https"
	if r.PlainHTTP {
		scheme = "http"
	}
	parts := [][]byte{[]byte(scheme), r.CA, fmt.Append(nil, len(r.TokenHosts))}
	for _, host := range slices.Sorted(slices.Values(r.TokenHosts)) {
		parts = append(parts, []byte(canonicalHost(host)))
	}
	if t.certificate {
		parts = append(parts, r.Certificate.Certificate...)
	}
	return sealed(parts...)
}

// allowed reports whether the allow-list lets a reference or URL name host.
func (c *Client) allowed(host string) bool {
	return len(c.allow) == 0 || slices.ContainsFunc(c.allow, func(rule string) bool {
		if suffix, ok := strings.CutPrefix(rule, "*"); ok {
			return len(host) > len(suffix) && strings.HasSuffix(host, suffix)
		}
		return rule == host
	})
}

// allowRules puts the allow-list's entries as hosts are put.
func allowRules(list []string) ([]string, error) {
	rules := make([]string, 0, len(list))
	for _, s := range list {
		rule := canonicalHost(s)
		if wild, ok := strings.CutPrefix(rule, "*"); rule == "" || strings.ContainsAny(wild, "*/@ ") || ok && !strings.HasPrefix(wild, ".") {
			return nil, fmt.Errorf("allow: %q: want host, host:port or *.domain", s)
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

// HostOf returns the canonical host of an http or https URL, to be given to
// Client.Trust. It refuses other schemes and URLs with user information. Its errors do
// not repeat the URL.
func HostOf(rawURL string) (string, error) {
	u, err := parseURL(rawURL)
	if err != nil {
		return "", err
	}
	return hostOf(u), nil
}

func parseURL(rawURL string) (*url.URL, error) {
	invalid := func(what string) (*url.URL, error) {
		return nil, &Error{Op: "read URL", Kind: Invalid, Err: errors.New(what)}
	}
	u, err := url.Parse(rawURL)
	switch {
	case err != nil:
		return invalid("it is not a URL")
	case u.Scheme != "https" && u.Scheme != "http":
		return invalid("the scheme must be https or http")
	case u.User != nil:
		return invalid("a user or password in the URL is refused")
	case u.Hostname() == "":
		return invalid("the host is missing")
	}
	return u, nil
}

// hostOf returns u's host as Trust has it: without the port that its scheme implies.
func hostOf(u *url.URL) string {
	if u.Scheme == "http" && u.Port() == "80" {
		return canonicalHost(strings.TrimSuffix(u.Host, ":80"))
	}
	return canonicalHost(u.Host)
}

// hostPort returns host and port as they are dialled.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// base returns where t's registry is.
func (c *Client) base(t Trust) *url.URL {
	u := &url.URL{Scheme: "https", Host: t.Host(), Path: "/v2/"}
	if c.plain(t.Host()) {
		u.Scheme = "http"
	}
	return u
}

// reachable reports whether a request under t may be led to host, by a redirect or as
// a token endpoint. A registry that is for certain namespaces may trust stile's own
// address: one tenant's registry must not lead there for it. It may, if every
// namespace that t can be for may use that registry as well.
func (c *Client) reachable(t Trust, host string) bool {
	to, from := c.registries[host], c.registries[t.Host()]
	if host == t.Host() || to == nil || len(to.Namespaces) == 0 || slices.Contains(to.Namespaces, "*") {
		return true
	}
	return from != nil && len(from.Namespaces) > 0 && !slices.ContainsFunc(from.Namespaces, func(n string) bool {
		return !slices.Contains(to.Namespaces, n)
	})
}

// plain reports whether the operator named host for plain HTTP.
func (c *Client) plain(host string) bool {
	r := c.registries[host]
	return r != nil && r.PlainHTTP
}

// tlsConfig returns how a hop to host is secured under t. The client certificate is
// for t's own host alone; a token host that the registry's entry lists is held to the
// same authorities, unless it has an entry of its own.
func (c *Client) tlsConfig(t Trust, host, serverName string) *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: serverName,
		RootCAs:    c.roots,
		NextProtos: []string{"h2", "http/1.1"},
	}
	own := c.registries[t.Host()]
	entry := c.registries[host]
	if entry == nil && own != nil && own.tokenHost(host) {
		entry = own
	}
	if entry != nil && entry.roots != nil {
		config.RootCAs = entry.roots
	}
	if host == t.Host() && t.value().certificate && own != nil {
		config.Certificates = []tls.Certificate{*own.Certificate}
	}
	return config
}

// tokenHost reports whether the entry lists host among its token hosts.
func (r *registry) tokenHost(host string) bool {
	return slices.ContainsFunc(r.TokenHosts, func(s string) bool { return canonicalHost(s) == host })
}

// namedHosts returns host:port of every host that the operator wrote.
func namedHosts(registries map[string]*registry) map[string]bool {
	named := make(map[string]bool)
	add := func(host string) {
		h, port := splitHost(host)
		h = strings.Trim(h, "[]")
		if port != "" {
			named[net.JoinHostPort(h, port)] = true
			return
		}
		named[net.JoinHostPort(h, "443")] = true
		named[net.JoinHostPort(h, "80")] = true
	}
	for _, r := range registries {
		add(r.host)
		for _, t := range r.TokenHosts {
			add(canonicalHost(t))
		}
	}
	return named
}
