// Package content turns a proof into what it proves a right to: a module, or the
// facts about an image. Its one rule: a digest opens only for a source that has
// itself delivered it; a digest that was merely named opens nothing.
package content

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/wasm"
)

// The defaults of Config.
const (
	DefaultInlineMax   = 8 << 20
	DefaultTimeout     = 5 * time.Minute
	DefaultMaxInFlight = 32
)

// Config is how Contents behave. The zero value of every field is its default.
type Config struct {
	// InlineMax is the size in bytes up to and including which a module's bytes are kept
	// in memory while it is in use, and given as Module.Inline. 0 = 8 MiB; negative = none.
	InlineMax int64
	// MaxModule is the largest unpacked module in bytes. 0 = 256 MiB.
	MaxModule int64
	// Timeout bounds one fetch of one module, with all its requests. 0 = 5 min.
	Timeout time.Duration
	// MaxInFlight bounds the fetches under way; one namespace, and one host, has at most
	// a quarter of them, and one host for one namespace an eighth. 0 = 32.
	MaxInFlight int
	// Keys hide URLs in the store's records, for their query may be a credential: the
	// first for writing, all for reading (secret.ForRows). None: http(s) modules are
	// fetched again after a restart.
	Keys []secret.Key
	// Log receives what is odd; nil = nothing is logged.
	Log *slog.Logger
	// Registerer receives the metrics; nil = none.
	Registerer prometheus.Registerer
}

// Fetcher is what Contents need of a registry client; *oci.Client is one. What its
// Blob returns must fail, in place of io.EOF, if the bytes are not the descriptor's.
type Fetcher interface {
	Manifest(context.Context, oci.Reference, oci.Credential, oci.Trust) (oci.Manifest, error)
	Blob(context.Context, oci.Reference, oci.Descriptor, oci.Credential, oci.Trust) (io.ReadCloser, error)
	Download(ctx context.Context, rawURL string, trust oci.Trust) (io.ReadCloser, error)
}

// Module is one module: what it is, where it came from and, if it is small, its bytes.
type Module struct {
	Digest string // of the manifest, "sha256:…"; empty for http(s)
	SHA256 string // of the unpacked module, 64 hexadecimal digits
	Size   int64  // of the unpacked module, in bytes
	// Packaging is artifact (a Wasm artifact), layer (the module itself is a layer of an
	// image), tar (a file in an archive) or raw (http(s), as it is).
	Packaging string
	Info      wasm.Module
	Findings  []wasm.Finding // warnings alone, unless a Problem ModuleInvalid comes with it
	// Inline is the module's bytes, shared and read-only; nil if it is larger than
	// Config.InlineMax.
	Inline []byte
}

// ErrPending says that the content is being fetched: Changes tells when to ask again.
var ErrPending = errors.New("content: not here yet, being fetched")

// ErrNotProven says that the proof no longer stands: ask the gate.
var ErrNotProven = errors.New("content: the right to it no longer stands")

// Reasons of a Problem: those of the condition ResolvedRefs, and StoreFull.
const (
	ReasonUnauthorized        = "Unauthorized"
	ReasonImageNotFound       = "ImageNotFound"
	ReasonRegistryUnreachable = "RegistryUnreachable"
	ReasonSourceNotAllowed    = "SourceNotAllowed"
	ReasonDigestMismatch      = "DigestMismatch"
	ReasonModuleInvalid       = "ModuleInvalid"
	ReasonModuleTooLarge      = "ModuleTooLarge"
	ReasonStoreFull           = "StoreFull" // the disk, the store or the namespace's share of it
)

// Problem is why there is no module. It is an error, given as *Problem.
type Problem struct {
	Reason  string
	Message string // for people; never a credential or a URL's query
	// Retry reports that it is tried again in the background, without anybody asking.
	Retry bool
	// NextTry is when; zero if Retry is false.
	NextTry time.Time
}

// Error returns the reason and the message.
func (p *Problem) Error() string { return p.Reason + ": " + p.Message }

// URLRequest asks for a module at an http(s) URL. Two requests with the same URL are
// the same source, whoever asks: a URL carries its own right.
type URLRequest struct {
	URL string
	// SHA256 is what the unpacked module must have, 64 hexadecimal digits; empty takes
	// what comes, and what came last is then kept for it.
	SHA256    string
	Trust     oci.Trust
	Namespace string // to which the use is charged
	// NotBefore fetches again what was fetched earlier, where SHA256 is empty; zero = any
	// age will do.
	NotBefore time.Time
}

// Platform is one that an image was made for.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

// Facts are what a manifest or an index says, without any layer having been fetched.
type Facts struct {
	Digest    string `json:"digest"`
	MediaType string `json:"mediaType"`
	Size      int64  `json:"size"` // of the manifest or index itself, in bytes
	// Platforms are sorted, without duplicates and without attestations.
	Platforms []Platform `json:"platforms"`
	// Wasm reports that the image declares a Wasm module by a media type or platform.
	Wasm bool `json:"wasm"`
	// Bundle reports an operator bundle: manifests for a package manager that run nowhere.
	Bundle bool `json:"bundle,omitempty"`
}
