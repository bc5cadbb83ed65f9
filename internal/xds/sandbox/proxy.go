package sandbox

import (
	"context"
	"time"
)

// Proxy is a running proxy that takes its configuration from an xDS server: the
// sandbox of this package, or the real Envoy of package envoyproc. All methods
// may be called concurrently.
type Proxy interface {
	// Address waits until the named listener serves and returns its host:port on
	// the loopback. It ends with an error when ctx ends or the proxy stops first.
	Address(ctx context.Context, listener string) (string, error)

	// State returns what the proxy holds now, in its own words.
	State(ctx context.Context) (State, error)

	// ConfigDump returns the whole configuration as JSON, for people. Module bytes
	// are not in it; module URLs are, so it must not be logged.
	ConfigDump(ctx context.Context) ([]byte, error)

	// Stop ends the proxy and waits until nothing of it is left: no process, no
	// listener, no file. Further calls return the first one's result.
	Stop() error
}

// Node is how a proxy names itself to the xDS server. Namespace and Labels travel
// as metadata NAMESPACE and LABELS.
type Node struct {
	ID        string
	Cluster   string
	Namespace string
	Labels    map[string]string
}

// State is what a proxy holds.
type State struct {
	Node       Node        `json:"node"`
	Connected  bool        `json:"connected"`  // a stream to the xDS server has answered and still stands
	Listeners  []Listener  `json:"listeners"`  // sorted by name
	Extensions []Extension `json:"extensions"` // sorted by name
}

// Listener is one listener of a proxy.
type Listener struct {
	Name    string   `json:"name"`
	Version string   `json:"version"` // of the listener resource that serves, or warms if none serves yet
	Address string   `json:"address"` // host:port on the loopback; empty while it does not serve
	Warming bool     `json:"warming"` // a version of it waits for extensions, routes or modules
	Filters []string `json:"filters"` // HTTP filter names in order, of the first chain that speaks HTTP
	NotRun  []string `json:"notRun"`  // filters that are configured and let everything pass unread; always empty for a real Envoy
	Message string   `json:"message"` // why the last update of it was refused, or why it does not serve
}

// Extension is one extension configuration (ECDS resource) that a listener names.
type Extension struct {
	Name            string    `json:"name"`
	Version         string    `json:"version"`         // of the last update that was accepted; empty if none
	Live            string    `json:"live"`            // type URL of the filter that acts; empty: none, requests get 500
	Default         bool      `json:"default"`         // what acts is the listener's default_config
	Skipped         bool      `json:"skipped"`         // accepted, but its code is not there: requests pass unread
	SHA256          string    `json:"sha256"`          // of the live module's bytes, hex; empty if it is no module or unknown
	Rejected        string    `json:"rejected"`        // why the last update was rejected; empty if it was accepted
	RejectedVersion string    `json:"rejectedVersion"` // version of the rejected update
	Unproven        bool      `json:"unproven"`        // the last accepted update had the bytes rejected before: accepted, not applied
	Updated         time.Time `json:"updated"`         // when Version, Live or Rejected last changed; zero if unknown
}

// Extension returns the extension of that name, and whether there is one.
func (s State) Extension(name string) (Extension, bool) {
	for _, e := range s.Extensions {
		if e.Name == name {
			return e, true
		}
	}
	return Extension{}, false
}

// Listener returns the listener of that name, and whether there is one.
func (s State) Listener(name string) (Listener, bool) {
	for _, l := range s.Listeners {
		if l.Name == name {
			return l, true
		}
	}
	return Listener{}, false
}
