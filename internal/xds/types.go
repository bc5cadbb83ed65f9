package xds

import (
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
)

// The type URLs of the resources that stile serves.
const (
	ListenerType  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	ClusterType   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	ExtensionType = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
)

const (
	// ResourcePrefix begins the ECDS resource name of every plugin.
	ResourcePrefix = "extensions.istio.io/wasmplugin/"
	// ModulesCluster is the cluster from which proxies fetch modules that are too large to travel inline.
	ModulesCluster = "stile-modules"
	// DefaultRuntime is the Wasm runtime that is named to Envoy unless the operator names another.
	DefaultRuntime = "envoy.wasm.runtime.v8"
)

// ResourceName returns the ECDS resource name of a plugin.
func ResourceName(k plugin.Key) string { return ResourcePrefix + k.Namespace + "." + k.Name }

// Mode says how the module of a plugin reaches a proxy.
type Mode uint8

const (
	// Hold answers nothing for the plugin yet: a proxy that runs it goes on, one that is new waits.
	Hold Mode = iota
	// StandIn delivers the stand-in of the plugin's fail strategy instead of a module.
	StandIn
	// Inline carries the module's bytes in the resource itself.
	Inline
	// Remote carries a URL on the module server and the module's sha256.
	Remote
	// File names a file in the proxy's own file system.
	File
)

// String returns the mode in lower case: hold, standin, inline, remote or file.
func (m Mode) String() string {
	switch m {
	case Hold:
		return "hold"
	case StandIn:
		return "standin"
	case Inline:
		return "inline"
	case Remote:
		return "remote"
	case File:
		return "file"
	}
	return "unknown"
}

// Delivery is what a proxy shall be given for one plugin. The zero value holds the answer back.
type Delivery struct {
	Mode   Mode
	Bytes  []byte // Inline: the module; shared and never written to
	SHA256 string // Inline and Remote: of the module's bytes, 64 lower-case hexadecimal digits
	URL    string // Remote: on the module server; a capability, never logged
	Path   string // File: an absolute path in the proxy's file system
	Size   int64  // Inline and Remote: bytes of the module

	// NackOnMiss asks a Remote module's proxy, always, to refuse the update while it does not
	// have the code yet, and to fetch it meanwhile. It need not be set: the server does so for
	// every proxy but one whose listener warms.
	NackOnMiss bool

	// Keep leaves a proxy that holds any real version of the plugin as it is. Every other proxy
	// gets the stand-in where Mode is StandIn, and no answer yet where it is Hold.
	Keep bool
	// Kept, beside Keep, is the delivery that was last given: it lets the server recognise a
	// state-of-the-world proxy that holds it after a restart of stile. Optional.
	Kept *Delivery
}

// Input is everything that decides what one group of proxies is sent.
type Input struct {
	Plan    plugin.Plan
	File    *EnvoyFile // nil: no listeners of ours; the plan's plugins are served by ECDS alone
	Plugins map[plugin.Key]*v1alpha1.WasmPlugin
	// Deliver says what to give for each plugin of the plan. It is called once per plugin.
	Deliver func(plugin.Key) Delivery
	Node    plugin.Node
	// EnvoyVersion is the proxy's version as major.minor.patch; empty is unknown and taken for the newest.
	EnvoyVersion string
	// ModulesURL is where proxies reach the module server. Empty: no stile-modules cluster is made.
	ModulesURL string
	// Runtime is the Wasm runtime to name; empty is DefaultRuntime.
	Runtime string
	// ServeAlone lists plugins that are not in the plan's chains but are served by ECDS all the
	// same, for proxies that have their own listeners.
	ServeAlone []plugin.Key
	// Static puts each plugin's configuration into the listener itself instead of a reference to
	// ECDS: for files that an Envoy without a control plane shall run.
	Static bool
}

// Severity of a Problem.
const (
	SeverityError   = "error"
	SeverityWarning = "warning"
)

// Problem is a fault in the operator's Envoy YAML or in a plugin's translation. It names the
// place and what to do, and holds no secret.
type Problem struct {
	File     string     // the Envoy YAML it is about, if it is about one
	Path     string     // the field, for example listeners[0].filter_chains[1].filters[0].typed_config.stat_prefix
	Plugin   plugin.Key // the plugin it is about, if it is about one
	Severity string     // SeverityError or SeverityWarning
	Reason   string     // one word: Syntax, Invalid, UnknownField, NotServed, TooLargeForEnvoy, …
	Message  string
}

// Error returns the place and the message, so that a Problem can be returned as an error.
func (p Problem) Error() string {
	place := p.File
	if p.Path != "" {
		if place != "" {
			place += ": "
		}
		place += p.Path
	}
	if p.Plugin != (plugin.Key{}) {
		place = "plugin " + p.Plugin.Namespace + "/" + p.Plugin.Name
	}
	if place == "" {
		return p.Message
	}
	return place + ": " + p.Message
}

// Resource is one xDS resource, marshalled once and shared by all proxies that get it. It is
// immutable once its Snapshot is made.
type Resource struct {
	Type    string
	Name    string
	Version string // a hash of the content: equal content has equal versions, on every replica
	Any     *anypb.Any
	Plugin  plugin.Key // the plugin an ECDS resource belongs to; zero for all others

	// StandIn: the resource is a fail strategy's stand-in, not a module.
	StandIn bool
	// Hold: nothing is answered for this name yet. Any is nil.
	Hold bool
	// Keep: a proxy that holds any real version keeps it and is sent nothing; every other gets Any.
	Keep bool
	// KeptVersion is the version that proxies are believed to hold where Keep is set; may be empty.
	KeptVersion string

	// carries are the names of the ECDS resources that a listener of ours refers to, sorted.
	carries []string
	// vary returns the same configuration in other bytes, for the n-th try (n ≥ 1) at a proxy
	// that rejected this one. Nil: the resource has no other bytes. Every try of a remote module
	// asks to be refused while the code is not there.
	vary func(n int) *anypb.Any
	// remote: the module is fetched by the proxy, so that a rejection means "not yet".
	remote bool
	// plain: Any does not ask to be refused while the code is not there; an ACK of it proves nothing.
	plain bool
	// varied is the variation last made, if anybody still has it.
	varied *variation
}

// StreamID names one xDS stream for as long as the server runs. The zero StreamID names none.
type StreamID uint64

// EventKind says what an Event tells.
type EventKind uint8

const (
	// Connected: a proxy opened a stream and said who it is.
	Connected EventKind = iota + 1
	// Gone: a stream has ended.
	Gone
	// LedgerChanged: at least one entry of the ledger changed since the last such event.
	LedgerChanged
)

// Event is something the engine wants to know of the proxies.
type Event struct {
	Kind         EventKind
	Stream       StreamID    // Connected and Gone
	Node         plugin.Node // Connected
	EnvoyVersion string      // Connected: the proxy's version, or empty if it does not say
}

// State is what is known of one resource at one proxy.
type State string

// The states of the ledger.
const (
	// Sent: it is on its way, or arrived without an answer yet.
	Sent State = "sent"
	// Accepted: the proxy applied it. For an inline module that means loaded.
	Accepted State = "accepted"
	// Rejected: the proxy refused it and keeps what it had.
	Rejected State = "rejected"
	// Unproven: the proxy said yes to bytes it had refused before, which Envoy does without
	// applying them, or refused a response without saying which resource was at fault.
	Unproven State = "unproven"
)

// Proxy is one connected proxy, as /api/v1/proxies shows it.
type Proxy struct {
	ID             string          `json:"id"`
	Cluster        string          `json:"cluster"`
	Namespace      string          `json:"namespace"`
	ConnectedSince time.Time       `json:"connectedSince"`
	Waiting        bool            `json:"waiting,omitempty"` // it is not answered yet: there is no plan for it, or its Envoy file was never good
	Resources      []ProxyResource `json:"resources"`
}

// ProxyResource is one resource at one proxy.
type ProxyResource struct {
	Type string `json:"type"`
	Name string `json:"name"`
	// Version is the resource's own, a hash of its content; "~n" after it is the n-th spelling
	// of that content, for a proxy that may have refused the others, and "~plain" a remote module
	// that the proxy has not shown to have fetched. "kept" is a real version that is not known.
	Version string `json:"version"`
	State   State  `json:"state"`
	Message string `json:"message,omitempty"` // the proxy's own words when it rejected
}

// Counts are the proxies that concern one plugin. Sent, Accepted, Rejected and Unproven count
// only what is at its present version, and a plugin is no further than the listeners that refer
// to it: one that is loaded and whose listener was refused is not in place.
type Counts struct {
	Matched  int `json:"matched"` // connected proxies that shall have the plugin
	Sent     int `json:"sent"`    // of those: sent, whatever the answer
	Accepted int `json:"accepted"`
	Rejected int `json:"rejected"`
	Unproven int `json:"unproven"`
}
