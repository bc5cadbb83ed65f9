package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
)

// serverTLS returns the TLS configuration of a listener, or nil where none is set. Its
// files are read again when they change; files that are broken then leave the last good
// ones in force. What keeps clients away or a certificate old is said in log, now and then.
func serverTLS(field string, c v1alpha1.TLSConfig, log *slog.Logger, protocols ...string) (*tls.Config, error) {
	return reloadingTLS(field, &reloading{files: c, protocols: protocols, clients: tls.RequireAndVerifyClientCert, log: log})
}

func reloadingTLS(field string, r *reloading) (*tls.Config, error) {
	if r.files.IsZero() {
		return nil, nil
	}
	first, err := r.load()
	if err != nil {
		return nil, fail(Usage, fmt.Errorf("%s: %w", field, err), "name PEM files that this user may read")
	}
	r.current, r.field = first, field
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: r.protocols, GetConfigForClient: r.config}, nil
}

// reloading is a TLS configuration that follows its files.
type reloading struct {
	files     v1alpha1.TLSConfig
	protocols []string
	clients   tls.ClientAuthType // where clientCAFile is set
	log       *slog.Logger       // nil: nothing is said
	field     string

	mu      sync.Mutex // guards what follows; reading the files happens under it, once per second at most
	current *tls.Config
	looked  time.Time
	stamps  [3]time.Time
	said    map[string]time.Time // when each warning was last logged
}

const (
	// lookAgain is how often the files are looked at.
	lookAgain = time.Second
	// sayAgain is how often one warning is logged: a proxy that cannot connect tries for ever.
	sayAgain = time.Minute
)

func (r *reloading) config(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if hello != nil && !slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
		r.warn("old", "a client was turned away: it speaks TLS 1.2 at most, and stile 1.3 alone; for Envoy set tls_params.tls_maximum_protocol_version: TLSv1_3 "+
			"in its cluster's common_tls_context (examples/bootstrap/mtls.yaml)", "from", hostOf(hello.Conn))
	}
	if time.Since(r.looked) < lookAgain {
		return r.current, nil
	}
	before := r.stamps
	if next, err := r.load(); err == nil {
		r.current = next
	} else {
		r.stamps = before
		r.warn("files", "the TLS files have changed and cannot be used: those read before stay in force", "error", err)
	}
	return r.current, nil
}

// warn logs one kind of warning, now and then. r.mu is held.
func (r *reloading) warn(kind, message string, args ...any) {
	if r.log == nil || time.Since(r.said[kind]) < sayAgain {
		return
	}
	if r.said == nil {
		r.said = map[string]time.Time{}
	}
	r.said[kind] = time.Now()
	r.log.Warn(message, append([]any{"listener", r.field}, args...)...)
}

// hostOf is the address that a connection comes from, without its port.
func hostOf(c net.Conn) string {
	if c == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		return c.RemoteAddr().String()
	}
	return host
}

// load reads the files if any has changed since they were read.
func (r *reloading) load() (*tls.Config, error) {
	r.looked = time.Now()
	var stamps [3]time.Time
	for i, name := range []string{r.files.CertFile, r.files.KeyFile, r.files.ClientCAFile} {
		if name == "" {
			continue
		}
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		stamps[i] = info.ModTime()
	}
	if r.current != nil && stamps == r.stamps {
		return r.current, nil
	}
	pair, err := tls.LoadX509KeyPair(r.files.CertFile, r.files.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("certFile and keyFile: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: r.protocols, Certificates: []tls.Certificate{pair}}
	if r.files.ClientCAFile != "" {
		pem, err := os.ReadFile(r.files.ClientCAFile)
		if err != nil {
			return nil, err
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("clientCAFile %s: holds no certificate in PEM form", r.files.ClientCAFile)
		}
		c.ClientAuth = r.clients
	}
	r.stamps = stamps
	return c, nil
}

// authorize returns who may be which node: with identities, the URI of a client's
// certificate must be among them and let it be of that namespace and cluster. Without,
// whoever may connect may be any.
//
// What counts is the namespace that a node is assigned in nodes, since it is given the
// plugins of that one: by its id, which no certificate binds, it could be assigned any.
func authorize(identities []v1alpha1.Identity, nodes []v1alpha1.EnvoyNode) func(context.Context, plugin.Node) error {
	if len(identities) == 0 {
		return nil
	}
	patterns := make([]*regexp.Regexp, len(identities))
	for i, id := range identities {
		patterns[i] = globPattern(id.SPIFFE)
	}
	return func(ctx context.Context, node plugin.Node) error {
		names, err := peerURIs(ctx)
		if err != nil {
			return err
		}
		node, _ = node.Assigned(nodes)
		for _, name := range names {
			for i, id := range identities {
				if patterns[i].MatchString(name) && may(id.Namespaces, node.Namespace) && may(id.Clusters, node.Cluster) {
					return nil
				}
			}
		}
		return fmt.Errorf("the certificate does not let its owner be a node of namespace %q and cluster %q: see xds.identities", node.Namespace, node.Cluster)
	}
}

// may reports whether a list of patterns, of which none means any, lets value be.
func may(list []string, value string) bool {
	for _, p := range list {
		if globPattern(p).MatchString(value) {
			return true
		}
	}
	return len(list) == 0
}

// globPattern is a pattern in which "*" stands for any text.
func globPattern(glob string) *regexp.Regexp {
	parts := strings.Split(glob, "*")
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	return regexp.MustCompile(`\A` + strings.Join(parts, `.*`) + `\z`)
}

// peerURIs are the URIs of the client certificate of a stream.
func peerURIs(ctx context.Context) ([]string, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, errors.New("the peer is not known")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil, errors.New("a client certificate is needed")
	}
	var names []string
	for _, u := range info.State.PeerCertificates[0].URIs {
		names = append(names, u.String())
	}
	if len(names) == 0 {
		return nil, errors.New("the client certificate names no URI, which is what identities are compared with")
	}
	return names, nil
}
