package v1alpha1

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Validate returns all faults of c, joined, each with the path of its field; nil if
// there is none.
func (c *Config) Validate() error {
	var errs []error
	for _, f := range c.Findings() {
		errs = append(errs, fmt.Errorf("%s: %s", f.Field, f.Message))
	}
	return errors.Join(errs...)
}

// Findings returns all faults of c, each an error, in the order of its fields.
func (c *Config) Findings() []Finding {
	var f findings
	if c.APIVersion != ConfigAPIVersion {
		f.add(SeverityError, "apiVersion", ReasonUnknownAPIVersion, "must be %s", ConfigAPIVersion)
	}
	if c.Kind != ConfigKind {
		f.add(SeverityError, "kind", ReasonUnknownKind, "must be %s", ConfigKind)
	}
	if c.RootNamespace == "" {
		f.required("rootNamespace", "must not be empty")
	} else {
		namespaces(&f, "rootNamespace", c.RootNamespace)
	}
	c.validateResources(&f)
	c.validateEnvoy(&f)
	c.validateAnchors(&f)
	if c.Store.Directory == "" {
		f.required("store.directory", "must not be empty")
	}
	positive(&f, "store.maxSize", c.Store.MaxSize)
	positive(&f, "store.maxPerNamespace", c.Store.MaxPerNamespace)
	c.validateServers(&f)
	c.validateAccess(&f)
	positive(&f, "fetch.maxModuleSize", c.Fetch.MaxModuleSize)
	positive(&f, "fetch.timeout", c.Fetch.Timeout.Duration)
	notNegative(&f, "fetch.refreshAlways", c.Fetch.RefreshAlways.Duration)
	for i, entry := range c.Fetch.Allow {
		if !isHostPort(strings.TrimPrefix(entry, "*.")) {
			f.invalid(fmt.Sprintf("fetch.allow[%d]", i), "must be host, host:port or *.domain")
		}
	}
	positive(&f, "fetch.maxInFlight", c.Fetch.MaxInFlight)
	c.validateRegistries(&f)
	for i, name := range c.Wasm.HostEnvAllow {
		if !cIdentifier.MatchString(name) {
			f.invalid(fmt.Sprintf("wasm.hostEnvAllow[%d]", i), "must be letters, digits and '_', not beginning with a digit")
		}
	}
	oneOf(&f, "wasm.preflight", c.Wasm.Preflight, PreflightOff, PreflightWarn, PreflightEnforce)
	c.validatePlacement(&f)
	c.validateWebhook(&f)
	return f.list
}

func (c *Config) validateResources(f *findings) {
	k := c.Resources.Kubernetes
	switch {
	case c.Resources.Directory == "" && k == nil:
		f.required("resources", "set directory or kubernetes")
	case c.Resources.Directory != "" && k != nil:
		f.invalid("resources", "set only one of directory and kubernetes")
	}
	if k == nil {
		return
	}
	for i, ns := range k.Namespaces {
		namespaces(f, fmt.Sprintf("resources.kubernetes.namespaces[%d]", i), ns)
	}
	if k.Namespace != "" {
		namespaces(f, "resources.kubernetes.namespace", k.Namespace)
	}
	if _, err := metav1.ParseToLabelSelector(k.Selector); err != nil {
		f.invalid("resources.kubernetes.selector", "must be a label selector such as app=edge,tier!=test")
	}
}

func (c *Config) validateEnvoy(f *findings) {
	if c.Envoy.Directory == "" && c.Resources.Kubernetes == nil && (c.Envoy.Default != "" || slices.ContainsFunc(c.Envoy.Nodes, func(n EnvoyNode) bool { return n.File != "" })) {
		f.required("envoy.directory", "must not be empty where files are named")
	}
	fileName(f, "envoy.default", c.Envoy.Default)
	for i, n := range c.Envoy.Nodes {
		at := fmt.Sprintf("envoy.nodes[%d]", i)
		if n.Cluster == "" && n.ID == "" {
			f.required(at, `set cluster or id, or cluster: "*" for every proxy`)
		}
		fileName(f, at+".file", n.File)
		if n.Namespace != "" {
			namespaces(f, at+".namespace", n.Namespace)
		}
		if slices.Contains(n.Services, "") {
			f.required(at+".services", "must hold names: remove the empty one")
		}
		if slices.Contains(n.ServiceEntries, "") {
			f.required(at+".serviceEntries", "must hold names: remove the empty one")
		}
	}
}

// validateAnchors adds a finding for each anchor that is no type URL, or of two phases.
func (c *Config) validateAnchors(f *findings) {
	seen := map[string]string{}
	for _, class := range []struct {
		name string
		urls []string
	}{{"first", c.Envoy.Anchors.First}, {"authn", c.Envoy.Anchors.AuthN}, {"authz", c.Envoy.Anchors.AuthZ}, {"stats", c.Envoy.Anchors.Stats}} {
		for i, u := range class.urls {
			at := fmt.Sprintf("envoy.anchors.%s[%d]", class.name, i)
			bare := u[strings.LastIndexByte(u, '/')+1:]
			if !strings.Contains(bare, ".") || strings.ContainsAny(bare, " \t") {
				f.invalid(at, "must be a type such as envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor")
			} else if first, twice := seen[bare]; twice {
				f.duplicate(at, "is already listed at %s: a filter is an anchor of one kind", first)
			} else {
				seen[bare] = at
			}
		}
	}
}

// fileName adds a finding if name could lead out of its folder.
func fileName(f *findings, field, name string) {
	if strings.ContainsAny(name, `/\`) || name == "." || name == ".." {
		f.invalid(field, "must be the name of a file in envoy.directory, without a path")
	}
}

func (c *Config) validateServers(f *findings) {
	serverTLS(f, "xds.tls", c.XDS.TLS)
	if listenAddress(f, "xds.address", c.XDS.Address) && !IsLoopback(c.XDS.Address) && c.XDS.TLS.ClientCAFile == "" && !c.XDS.Insecure {
		f.invalid("xds.address", "is not loopback: set xds.tls with clientCAFile, or write xds.insecure: true")
	}
	for i, id := range c.XDS.Identities {
		at := fmt.Sprintf("xds.identities[%d]", i)
		if !strings.HasPrefix(id.SPIFFE, "spiffe://") {
			f.invalid(at+".spiffe", "must begin with spiffe://")
		}
		for j, ns := range id.Namespaces {
			namespaces(f, fmt.Sprintf("%s.namespaces[%d]", at, j), ns)
		}
	}
	if len(c.XDS.Identities) > 0 && c.XDS.TLS.ClientCAFile == "" {
		f.required("xds.tls.clientCAFile", "must be set where xds.identities are: without it no certificate is asked for")
	}
	notNegative(f, "xds.inlineMaxModule", c.XDS.InlineMaxModule)
	notNegative(f, "xds.warmHold", c.XDS.WarmHold.Duration)

	serverTLS(f, "modules.tls", c.Modules.TLS)
	if listenAddress(f, "modules.address", c.Modules.Address) && !IsLoopback(c.Modules.Address) && c.Modules.TLS.ClientCAFile == "" && !c.Modules.Insecure {
		f.invalid("modules.address", "is not loopback: set modules.tls with clientCAFile, or write modules.insecure: true")
	}
	u, err := url.Parse(c.Modules.URL)
	if err != nil || u.Scheme != SchemeHTTP && u.Scheme != SchemeHTTPS || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		f.invalid("modules.url", "must be http(s)://host[:port][/path], by which proxies reach modules.address")
	}
	serverTLS(f, "admin.tls", c.Admin.TLS)
	if listenAddress(f, "admin.address", c.Admin.Address) && !IsLoopback(c.Admin.Address) && c.Admin.TLS.ClientCAFile == "" && c.Resources.Kubernetes == nil {
		f.invalid("admin.address", "must be loopback: off it, callers prove themselves by a client certificate, which needs admin.tls.clientCAFile, or by a Kubernetes token, which needs resources.kubernetes")
	}
	if c.Health.Address != "" {
		listenAddress(f, "health.address", c.Health.Address)
	}
	seen := map[string]string{}
	for _, s := range []struct{ field, address string }{
		{"xds.address", c.XDS.Address}, {"modules.address", c.Modules.Address},
		{"admin.address", c.Admin.Address}, {"health.address", c.Health.Address}, {"webhook.address", c.Webhook.Address},
	} {
		if s.address == "" || strings.HasSuffix(s.address, ":0") {
			continue
		}
		if first, twice := seen[s.address]; twice && s.field != "health.address" {
			f.duplicate(s.field, "is already the address of %s: choose another port", first)
		}
		seen[s.address] = s.field
	}
}

func serverTLS(f *findings, field string, t TLSConfig) {
	if t.CertFile == "" && (t.KeyFile != "" || t.ClientCAFile != "") {
		f.required(field+".certFile", "must be set where keyFile or clientCAFile is")
	}
	if t.KeyFile == "" && (t.CertFile != "" || t.ClientCAFile != "") {
		f.required(field+".keyFile", "must be set where certFile or clientCAFile is")
	}
}

func (c *Config) validateAccess(f *findings) {
	a := c.Access
	positive(f, "access.recheck", a.Recheck.Duration)
	positive(f, "access.forget", a.Forget.Duration)
	notNegative(f, "access.grace", a.Grace.Duration)
	notNegative(f, "access.graceWhileAnswering", a.GraceWhileAnswering.Duration)
	positive(f, "access.tokenMaxAge", a.TokenMaxAge.Duration)
	notNegative(f, "access.rotation", a.Rotation.Duration)
	positive(f, "access.timeout", a.Timeout.Duration)
	if a.Retry.Attempts < 1 || a.Retry.Attempts > 10 {
		f.invalid("access.retry.attempts", "must be from 1 to 10")
	}
	positive(f, "access.denied.first", a.Denied.First.Duration)
	if a.Denied.Max.Duration < a.Denied.First.Duration {
		f.invalid("access.denied.max", "must not be shorter than access.denied.first")
	}
	notNegative(f, "access.denied.confirmAfter", a.Denied.ConfirmAfter.Duration)
	positive(f, "access.unauthorized.first", a.Unauthorized.First.Duration)
	if a.Unauthorized.Max.Duration < a.Unauthorized.First.Duration {
		f.invalid("access.unauthorized.max", "must not be shorter than access.unauthorized.first")
	}
	if a.OnRevoked != OnRevokedKeep && a.OnRevoked != OnRevokedFailStrategy {
		f.invalid("access.onRevoked", "must be one of %s, %s", OnRevokedKeep, OnRevokedFailStrategy)
	}
	positive(f, "access.maxProofs", a.MaxProofs)
	positive(f, "access.maxPerNamespace", a.MaxPerNamespace)
}

func (c *Config) validateRegistries(f *findings) {
	seen := map[string]int{}
	for i, r := range c.Registries {
		at := fmt.Sprintf("registries[%d]", i)
		host := strings.TrimSuffix(strings.ToLower(r.Host), ":443")
		switch first, twice := seen[host]; {
		case r.Host == "":
			f.required(at+".host", "must not be empty")
		case !isHostPort(r.Host):
			f.invalid(at+".host", "must be host or host:port, without a scheme or path")
		case twice:
			f.duplicate(at+".host", "is already set by registries[%d]: merge the two", first)
		default:
			seen[host] = i
		}
		if (r.CertFile == "") != (r.KeyFile == "") {
			f.required(at, "set both certFile and keyFile, or neither")
		}
		if r.PlainHTTP && (r.CAFile != "" || r.CertFile != "") {
			f.invalid(at+".plainHTTP", "contradicts caFile and certFile: without TLS there are no certificates")
		}
		for j, ns := range r.Namespaces {
			if ns != "*" {
				namespaces(f, fmt.Sprintf("%s.namespaces[%d]", at, j), ns)
			}
		}
		for j, h := range r.TokenHosts {
			if !isHostPort(h) {
				f.invalid(fmt.Sprintf("%s.tokenHosts[%d]", at, j), "must be host or host:port")
			}
		}
		notNegative(f, at+".grace", r.Grace.Duration)
		notNegative(f, at+".maxInFlight", r.MaxInFlight)
	}
}

func (c *Config) validatePlacement(f *findings) {
	p := c.Placement
	if p.Enabled && c.Resources.Kubernetes == nil {
		f.invalid("placement.enabled", "needs resources.kubernetes: there are no pods in a folder")
	}
	if _, err := metav1.LabelSelectorAsSelector(&p.NamespaceSelector); err != nil {
		f.invalid("placement.namespaceSelector", "must be a label selector with matchLabels and matchExpressions")
	}
	if (p.PullSecret.Namespace == "") != (p.PullSecret.Name == "") {
		f.required("placement.pullSecret", "set both namespace and name, or neither")
	}
	seen := map[string]int{}
	for i, a := range p.Preferred {
		at := fmt.Sprintf("placement.preferred[%d]", i)
		if first, twice := seen[a.Architecture]; twice {
			f.duplicate(at+".architecture", "is already listed at placement.preferred[%d]", first)
		}
		seen[a.Architecture] = i
		if a.Architecture == "" {
			f.required(at+".architecture", "must not be empty")
		}
		if a.Weight < 1 || a.Weight > 100 {
			f.invalid(at+".weight", "must be from 1 to 100")
		}
	}
	notNegative(f, "placement.maxWait", p.MaxWait.Duration)
}

func (c *Config) validateWebhook(f *findings) {
	w := c.Webhook
	if (w.CertFile == "") != (w.KeyFile == "") {
		f.required("webhook.certFile", "set both certFile and keyFile, or neither")
	}
	if w.Address == "" {
		return
	}
	if listenAddress(f, "webhook.address", w.Address) && c.Resources.Kubernetes == nil {
		f.invalid("webhook.address", "needs resources.kubernetes: an API server asks it")
	}
	if !dnsLabel.MatchString(w.Service) {
		f.invalid("webhook.service", "must be the name of a Service")
	}
}

func namespaces(f *findings, field, name string) {
	if len(name) > maxNamespace || !dnsLabel.MatchString(name) {
		f.invalid(field, "must be the name of a namespace")
	}
}

func positive[T ~int | ~int64](f *findings, field string, v T) {
	if v <= 0 {
		f.invalid(field, "must be greater than 0")
	}
}

func notNegative[T ~int | ~int64](f *findings, field string, v T) {
	if v < 0 {
		f.invalid(field, "must not be negative")
	}
}

// listenAddress adds a finding, and returns false, unless address is host:port.
func listenAddress(f *findings, field, address string) bool {
	_, port, err := net.SplitHostPort(address)
	n, perr := strconv.Atoi(port)
	if err != nil || perr != nil || n < 0 || n > 65535 {
		f.invalid(field, "must be host:port")
		return false
	}
	return true
}

// IsLoopback reports whether only this machine can reach address, host:port. A name other than
// localhost is not: what it means may change.
func IsLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// isHostPort reports whether s is a host name or address with an optional port.
func isHostPort(s string) bool {
	if s == "" || strings.ContainsAny(s, "/@?#* \t") {
		return false
	}
	u, err := url.Parse("//" + s)
	if err != nil || u.Hostname() == "" || u.Host != s || strings.HasSuffix(s, ":") {
		return false
	}
	if p := u.Port(); p != "" {
		n, err := strconv.Atoi(p)
		return err == nil && n >= 1 && n <= 65535
	}
	return true
}
