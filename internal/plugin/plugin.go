// Package plugin decides which plugins run in which filter chain of a proxy, in
// which order and at which place. Its one rule: the same inputs, in any order, give
// the same plan, and a plugin that is wrong changes nothing for its neighbours.
package plugin

import (
	"github.com/stileproject/stile/api/v1alpha1"
)

// Key names a plugin. It is comparable.
type Key struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// String returns "namespace/name".
func (k Key) String() string { return k.Namespace + "/" + k.Name }

// KeyOf returns the key of p.
func KeyOf(p *v1alpha1.WasmPlugin) Key { return Key{Namespace: p.Namespace, Name: p.Name} }

// Node is a proxy, as far as the choice of its plugins depends on it.
type Node struct {
	ID        string
	Cluster   string
	Namespace string
	Labels    map[string]string
	// Gateway is the name of the Gateway, in Namespace, that the proxy serves. Empty: the
	// label gateway.networking.k8s.io/gateway-name, and if that is absent the proxy is no Gateway.
	Gateway string
	// GatewayClass is the class of that Gateway; empty where it is not known, or as the label
	// gateway.networking.k8s.io/gateway-class-name says.
	GatewayClass string
	// Services and ServiceEntries name those, in Namespace, that the proxy is the waypoint of.
	Services, ServiceEntries []string
	// Extensions are the type URLs or names of the extensions that the proxy has; none means
	// unknown, and is taken to have all.
	Extensions []string
}

// Listener is one of the operator's listeners.
type Listener struct {
	Name string
	// Port is the listener's port; matched and shown where Ports is empty and the chain has none.
	Port uint32
	// Ports are what match is compared with, the first of which is shown; none means Port alone.
	Ports []uint32
	// Mode is "CLIENT" or "SERVER"; empty is CLIENT.
	Mode string
	// Skip says that the operator wants no plugin here.
	Skip bool
	// QUIC says that the listener is UDP with QUIC: network filters see no data on it.
	QUIC bool
	// Chains are the filter chains; the default chain, if any, has Index -1.
	Chains []Chain
}

// The types of chains.
const (
	ChainHTTP = "HTTP"
	ChainTCP  = "TCP"
)

// Chain is one filter chain.
type Chain struct {
	// Index is the chain's index in its listener; -1 is the default chain.
	Index int
	// Port is the destination port that the chain itself matches, and then the only one that match
	// is compared with; 0 if none, or if the listener says outright which ports count.
	Port uint32
	// Type is ChainHTTP if the last network filter is an HTTP connection manager, else ChainTCP.
	Type string
	// Network are the network filters, terminal one included.
	Network []Filter
	// HTTP are the HTTP filters of the connection manager, terminal one included.
	HTTP []Filter
	// Upgrades are the connection manager's upgrade configurations that have filters of their own.
	Upgrades []Upgrade
	// Switches are the places of the connection manager's routes at which a filter is switched
	// off by name. They change no plan; Explain shows those of plugins.
	Switches []Switch
}

// Switch says that a route switches a filter off (FilterConfig.disabled).
type Switch struct {
	// Filter is the filter's name; of a plugin, its ECDS name.
	Filter string
	// Where names the virtual host or route: "virtual host all", "route all/1".
	Where string
}

// Upgrade is the chain of HTTP filters of one upgrade type.
type Upgrade struct {
	Type    string
	Filters []Filter
}

// Filter is one of the operator's filters.
type Filter struct {
	Name string
	// TypeURLs are the types that the filter's configuration is, or for config_discovery may
	// be; unwrapped. The prefix "type.googleapis.com/" may be left out.
	TypeURLs []string
}

// Anchors are type URLs that an operator adds to the ones that are known.
type Anchors = v1alpha1.EnvoyAnchors

// Inputs are everything that Build looks at. Build changes none of it.
type Inputs struct {
	// RootNamespace is the namespace whose plugins apply to proxies of all namespaces.
	RootNamespace string
	// Plugins, in any order, valid or not. Names should be unique: of two of one name one counts,
	// the same one whatever the order, and a Problem says so.
	Plugins []*v1alpha1.WasmPlugin
	// Invalid names plugins that are known to be wrong, with why. They attach like all others
	// (their place is taken by a stand-in) unless what decides their place is what is wrong.
	Invalid map[Key][]v1alpha1.Finding
	Node    Node
	// Listeners, in the operator's order.
	Listeners []Listener
	// ExtraAnchors are added to the known anchors.
	ExtraAnchors Anchors
	// OmitSkipped leaves ChainPlan.Skipped empty: who does not show it need not pay for it.
	OmitSkipped bool
}

// Placement is one plugin at its place in a list of filters.
type Placement struct {
	Plugin   Key
	Type     string // "HTTP" or "NETWORK"
	Phase    string // spelled out: UNSPECIFIED_PHASE where unset
	Priority int32
	// At is the index, in the operator's list, of the filter before which the plugin is
	// inserted; len of the list is the end. Placements of one At stand in their order.
	At int
	// Replace says that the operator's filter at At already carries the plugin's name: it is
	// replaced there instead of inserted before.
	Replace bool
	// Before is the name of the operator's next filter; empty at the end.
	Before string
}

// Skip is a plugin that is not in a chain, and why.
type Skip struct {
	Plugin  Key
	Reason  string
	Message string
}

// The reasons of a Skip, in the order in which they are looked for. A plugin that is
// Invalid in what decides its place is looked at no further than its namespace.
const (
	SkipNamespaceMismatch = "NamespaceMismatch"
	SkipSelectorMismatch  = "SelectorMismatch"
	SkipTargetMismatch    = "TargetMismatch"
	SkipMatchMismatch     = "MatchMismatch"
	SkipWrongChainType    = "WrongChainType"
	SkipNotOnQUIC         = "NotOnQUIC"
	SkipLacksExtension    = "ProxyLacksExtension"
	SkipListenerSkipped   = "ListenerSkipped"
	SkipEmptyChain        = "EmptyChain"
	SkipInvalid           = "Invalid"
)

// UpgradePlan is what goes into the chain of one upgrade type.
type UpgradePlan struct {
	// Index is the index in Chain.Upgrades.
	Index int
	Type  string
	HTTP  []Placement
	// Drop are the indexes of placeholder filters to remove.
	Drop []int
}

// ChainPlan is what goes into one filter chain.
type ChainPlan struct {
	Listener    string
	Port        uint32
	Mode        string
	FilterChain int
	// Network and HTTP are in the order in which data meets them.
	Network, HTTP []Placement
	Upgrades      []UpgradePlan
	// Skipped are all other plugins, sorted by key.
	Skipped []Skip
	// DropNetwork and Drop are the indexes of placeholder filters to remove from the network
	// filters and from the HTTP filters, ascending.
	DropNetwork, Drop []int
}

// Plan says, for every filter chain of a proxy, which plugins go where. Chains are in
// the order of Inputs.Listeners and their Chains.
type Plan struct {
	Chains []ChainPlan
}

// Problem is something an operator or author should know; the plan stands without it.
type Problem struct {
	Plugin      Key    // zero if it concerns no plugin
	Listener    string // empty if it concerns no listener
	FilterChain int
	Severity    string // "error" or "warning"
	Reason      string
	Message     string
}
