// Package oci is the way from a reference and credentials to bytes by digest. Its
// one rule: a credential goes to the registry it was written for and to nobody
// else, and it is the only package that may reveal a secret or import a registry
// library.
package oci

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stileproject/stile/internal/reference"
	"github.com/stileproject/stile/internal/secret"
)

// Reference is one image; see package reference.
type Reference = reference.Reference

// ParseReference reads an image reference; see reference.Parse.
func ParseReference(s string) (Reference, error) { return reference.Parse(s) }

// MaxManifest is the largest manifest or index that is read: what the distribution
// specification asks registries to take.
const MaxManifest = 4 << 20

// Operator is the namespace to give Client.Trust when the operator acts, and no
// tenant: the command line and the demo. No Kubernetes namespace has this name.
const Operator = "*operator*"

// The defaults of Settings.
const (
	DefaultRequestTimeout = 30 * time.Second
	DefaultTokenMaxAge    = 5 * time.Minute
	DefaultMaxInFlight    = 256 // over all registries
	DefaultPerRegistry    = 8   // for one registry
	MaxRetryAfter         = 15 * time.Minute
)

// Settings configure a Client. The zero value of every field but Key is usable.
type Settings struct {
	// Registries are the hosts that the operator named. A named host may be loopback
	// or private; link-local, metadata and unspecified addresses are refused always.
	Registries []Registry
	// Allow lists the hosts that a reference or URL may name: host, host:port or
	// *.domain[:port]. An entry without a port means port 443 (for http URLs, 80).
	// Empty allows every public host and the named ones; otherwise the list decides
	// alone, for named hosts too. Redirects and token endpoints are the dial guard's.
	Allow []string
	// AllowLoopback and AllowPrivate lift the dial guard for hosts that are not named.
	AllowLoopback, AllowPrivate bool
	// RequestTimeout bounds every single request up to its last byte, and for blobs and
	// downloads the wait for the answer and for each further piece. 0 = 30 s.
	RequestTimeout time.Duration
	// TokenMaxAge is the age after which a token is not used, however long its own
	// life: a right that was revoked shows after this at the latest. 0 = 5 min.
	TokenMaxAge time.Duration
	// MaxInFlight bounds the requests under way over all registries. 0 = 256.
	MaxInFlight int
	// Forbidden reports addresses that are refused whatever was named: stile's own
	// listeners, the API server. nil forbids none. It must be safe for concurrent use.
	Forbidden func(netip.AddrPort) bool
	// Key makes the fingerprints of trust settings. It must be the key that the
	// keyrings were parsed with (secret.ForFingerprints).
	Key secret.Key
	// Log receives every request at level debug, without queries and with credentials as
	// fingerprints; nil = nothing is logged.
	Log *slog.Logger
	// Registerer receives the metrics; nil = none.
	Registerer prometheus.Registerer
}

// Registry is what the operator says of one host.
type Registry struct {
	// Host is host or host:port, as references name it.
	Host string
	// PlainHTTP speaks http to this host, credentials included. There is no fallback
	// from https to http.
	PlainHTTP bool
	// CA holds PEM certificates trusted for this host instead of the system's; empty =
	// the system's.
	CA []byte
	// Certificate is a client certificate: a credential of stile itself, presented only
	// to this host and only for the Namespaces.
	Certificate *tls.Certificate
	// Namespaces that may use this registry; "*" is all of them. Empty = all of them,
	// but without Certificate.
	Namespaces []string
	// TokenHosts narrows the hosts (host or host:port) that may be this registry's
	// token endpoint besides itself; empty = any that it names over verified TLS.
	TokenHosts []string
	// MaxInFlight bounds the requests under way to this host. 0 = 8.
	MaxInFlight int
	// Grace overrides how long a yes that cannot be renewed lives; package access reads it.
	Grace time.Duration
}

// CheckOptions say how hard Client.Check asks. The zero value is the usual check.
type CheckOptions struct {
	FreshToken bool // use no token that was held before
	Get        bool // ask by GET, which proves more than HEAD and shows whose answer it is
}

// Descriptor names bytes in a repository.
type Descriptor struct {
	MediaType string
	Digest    string // sha256: and 64 hexadecimal digits
	Size      int64
}

// Manifest is a manifest or an index, byte for byte. Its Digest is that of Raw.
type Manifest struct {
	Descriptor
	Raw []byte
}

// Layout is a way to put a Wasm module into an image.
type Layout string

// The layouts that Client.Push knows.
const (
	LayoutArtifact Layout = "artifact" // the CNCF Wasm artifact: the module itself is the layer
	LayoutOCI      Layout = "oci"      // an OCI image whose tar+gzip layer holds plugin.wasm
	LayoutDocker   Layout = "docker"   // the same as a Docker v2 schema 2 image
)

type counterKey struct{}

// WithCounter returns a context under which every HTTP request that this package
// sends, pings, tokens and redirects included, adds one to n. Counters nest.
func WithCounter(ctx context.Context, n *atomic.Int64) context.Context {
	outer := counters(ctx)
	return context.WithValue(ctx, counterKey{}, append(outer[:len(outer):len(outer)], n))
}

func counters(ctx context.Context) []*atomic.Int64 {
	n, _ := ctx.Value(counterKey{}).([]*atomic.Int64)
	return n
}
