package v1alpha1

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The version and kind of Config.
const (
	ConfigAPIVersion = "stile.dev/v1alpha1"
	ConfigKind       = "Config"
)

// Config is the configuration of the service. DefaultConfig returns the one to begin
// with; a file overrides what it names. It holds paths of secrets, never secrets.
type Config struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`

	// RootNamespace is the namespace whose plugins apply to the proxies of all namespaces.
	RootNamespace string `json:"rootNamespace"`
	// Resources says where WasmPlugins and Secrets come from.
	Resources ResourcesConfig `json:"resources"`
	// Envoy says where the proxies' own listeners come from.
	Envoy EnvoyConfig `json:"envoy"`
	// Keys names the root key.
	Keys KeysConfig `json:"keys"`
	// Store is the folder of modules and proofs.
	Store StoreConfig `json:"store"`
	// XDS is the address that proxies connect to.
	XDS XDSConfig `json:"xds"`
	// Modules is the address from which proxies fetch large modules.
	Modules ModulesConfig `json:"modules"`
	// Admin is the address of /api/v1 and profiles.
	Admin AdminConfig `json:"admin"`
	// Health is the address of /livez, /readyz and /metrics.
	Health HealthConfig `json:"health"`
	// Access sets how long a registry's answer is relied on.
	Access AccessConfig `json:"access"`
	// Fetch sets what may be downloaded, and from where.
	Fetch FetchConfig `json:"fetch"`
	// Registries are the hosts that need settings of their own.
	Registries []RegistryConfig `json:"registries"`
	// Wasm sets how proxies run modules.
	Wasm WasmConfig `json:"wasm"`
	// Audit names the stream of decisions.
	Audit AuditConfig `json:"audit"`
	// Placement sets the architecture-aware placement of pods.
	Placement PlacementConfig `json:"placement"`
}

// ResourcesConfig names the source of resources: a folder or a Kubernetes API, not both.
type ResourcesConfig struct {
	// Directory of YAML documents, watched. Empty: none.
	Directory string `json:"directory"`
	// Kubernetes, if set, is the API to watch; its zero value is the cluster that stile runs in.
	Kubernetes *KubernetesConfig `json:"kubernetes,omitempty"`
}

// KubernetesConfig says which API server to watch, and what of it.
type KubernetesConfig struct {
	// Kubeconfig is a file; empty means the cluster that stile runs in, or the usual file.
	Kubeconfig string `json:"kubeconfig"`
	// Context of the kubeconfig; empty means its current one.
	Context string `json:"context"`
	// Namespaces to watch; none means all.
	Namespaces []string `json:"namespaces"`
	// Revision, if set, is the value of the label istio.io/rev that plugins must carry.
	Revision string `json:"revision"`
	// Selector, if set, is a label selector that plugins must match.
	Selector string `json:"selector"`
}

// EnvoyConfig says which of the operator's Envoy files a proxy gets.
type EnvoyConfig struct {
	// Directory of files named after Envoy's node.cluster, watched.
	Directory string `json:"directory"`
	// Default is the file for clusters that have none; empty: such a proxy gets nothing.
	Default string `json:"default"`
	// Nodes assign files and facts to proxies; the first that matches counts.
	Nodes []EnvoyNode `json:"nodes"`
	// Anchors are type URLs of filters of one's own that plugins are placed around.
	Anchors EnvoyAnchors `json:"anchors"`
}

// EnvoyAnchors are type URLs that are anchors of the phases beside the known ones; the
// prefix type.googleapis.com/ may be left out.
type EnvoyAnchors struct {
	// First are filters that must stay in front of what follows them.
	First []string `json:"first"`
	// AuthN are filters that authenticate.
	AuthN []string `json:"authn"`
	// AuthZ are filters that authorize.
	AuthZ []string `json:"authz"`
	// Stats are filters that count.
	Stats []string `json:"stats"`
}

// EnvoyNode assigns a file, and facts that its bootstrap lacks, to proxies.
type EnvoyNode struct {
	// Cluster is compared with the node's own, "*" standing for any text; empty matches all.
	Cluster string `json:"cluster"`
	// ID is compared with the node's own, likewise.
	ID string `json:"id"`
	// File, in the directory, is what they get; empty: as without this entry.
	File string `json:"file"`
	// Namespace, if set, is taken in place of the one that the proxy reports.
	Namespace string `json:"namespace"`
	// Labels, if set, are taken in place of those that the proxy reports.
	Labels map[string]string `json:"labels"`
	// Gateway, if set, is taken in place of the one that the proxy reports.
	Gateway string `json:"gateway"`
}

// KeysConfig names the root key.
type KeysConfig struct {
	// File is YAML with current and previous, 64 hexadecimal digits each. Empty: made in the store.
	File string `json:"file"`
}

// StoreConfig is the folder of modules and proofs.
type StoreConfig struct {
	// Directory is made if it is not there.
	Directory string `json:"directory"`
	// MaxSize bounds the modules that are kept, in all.
	MaxSize Size `json:"maxSize"`
	// MaxPerNamespace bounds those that the plugins of one namespace have brought in.
	MaxPerNamespace Size `json:"maxPerNamespace"`
}

// TLSConfig names the files of a server's certificate and of those who may connect.
type TLSConfig struct {
	// CertFile is the server's certificate chain, PEM.
	CertFile string `json:"certFile"`
	// KeyFile is its private key, PEM.
	KeyFile string `json:"keyFile"`
	// ClientCAFile holds the authorities of client certificates; empty: none is asked for.
	ClientCAFile string `json:"clientCAFile"`
}

// IsZero reports whether no TLS is configured.
func (t TLSConfig) IsZero() bool { return t == TLSConfig{} }

// XDSConfig is the server that proxies connect to.
type XDSConfig struct {
	// Address, host:port, to listen on.
	Address string    `json:"address"`
	TLS     TLSConfig `json:"tls"`
	// Identities bind client certificates to namespaces and clusters.
	Identities []Identity `json:"identities"`
	// Insecure permits an address off loopback without client certificates.
	Insecure bool `json:"insecure"`
	// InlineMaxModule is the largest module that travels within xDS; 0: none does.
	InlineMaxModule Size `json:"inlineMaxModule"`
	// WarmHold is how long a first answer waits for a verdict.
	WarmHold Duration `json:"warmHold"`
}

// Identity says for which proxies a client certificate may speak.
type Identity struct {
	// SPIFFE is the certificate's URI, with "*" for any text.
	SPIFFE string `json:"spiffe"`
	// Namespaces that such a proxy may name as its own; none means any.
	Namespaces []string `json:"namespaces"`
	// Clusters that such a proxy may name as its own; none means any.
	Clusters []string `json:"clusters"`
}

// ModulesConfig is the server of modules.
type ModulesConfig struct {
	// Address, host:port, to listen on.
	Address string `json:"address"`
	// URL is how proxies reach it.
	URL string    `json:"url"`
	TLS TLSConfig `json:"tls"`
	// Insecure permits an address off loopback without client certificates.
	Insecure bool `json:"insecure"`
}

// AdminConfig is the server of /api/v1 and profiles.
type AdminConfig struct {
	// Address, host:port, to listen on; loopback, unless callers can prove themselves to a Kubernetes API.
	Address string `json:"address"`
}

// HealthConfig is the server of /livez, /readyz and /metrics.
type HealthConfig struct {
	// Address; empty: they are on the admin address.
	Address string `json:"address"`
}

// What acts when a yes has ended.
const (
	OnRevokedKeep         = "keep"         // what is loaded stays, nobody new gets it
	OnRevokedFailStrategy = "failStrategy" // the plugin's own fail strategy
)

// AccessConfig sets how long a registry's answer is relied on.
type AccessConfig struct {
	// Recheck is the interval at which a yes is asked again.
	Recheck Duration `json:"recheck"`
	// Forget is how long a proof that nobody uses is kept.
	Forget Duration `json:"forget"`
	// Grace is how long a yes outlives its last renewal while the registry answers nobody.
	Grace Duration `json:"grace"`
	// GraceWhileAnswering is how long it does once the registry has answered anyone.
	GraceWhileAnswering Duration `json:"graceWhileAnswering"`
	// TokenMaxAge is the oldest registry token that a re-check may use.
	TokenMaxAge Duration `json:"tokenMaxAge"`
	// Rotation is how long what runs waits for the first verdict on an edited Secret.
	Rotation Duration `json:"rotation"`
	// Timeout bounds one check with all its requests.
	Timeout      Duration           `json:"timeout"`
	Retry        RetryConfig        `json:"retry"`
	Denied       DeniedConfig       `json:"denied"`
	Unauthorized UnauthorizedConfig `json:"unauthorized"`
	// OnRevoked says what becomes of a plugin whose yes has ended. keep: what is loaded stays, nobody
	// new gets it. failStrategy: the plugin's own fail strategy.
	OnRevoked string `json:"onRevoked"`
	// MaxProofs bounds the proofs that are kept, in all.
	MaxProofs int `json:"maxProofs"`
	// MaxPerNamespace bounds those of one namespace.
	MaxPerNamespace int `json:"maxPerNamespace"`
}

// RetryConfig is about retriable errors within one check.
type RetryConfig struct {
	// Attempts in all, the first included; 1 s apart, doubling.
	Attempts int `json:"attempts"`
}

// DeniedConfig says when a denial is asked again: first, doubling up to max; and how
// soon a refusal that would end a yes is confirmed.
type DeniedConfig struct {
	// First is when a denial is asked again for the first time; it doubles from there.
	First Duration `json:"first"`
	// Max is what it doubles up to.
	Max Duration `json:"max"`
	// ConfirmAfter is when a refusal that would end a yes is asked again before it does.
	ConfirmAfter Duration `json:"confirmAfter"`
}

// UnauthorizedConfig says when an account that a registry refuses is tried again:
// first, doubling up to max, once for all of its images.
type UnauthorizedConfig struct {
	// First is when the account is tried again for the first time; it doubles from there.
	First Duration `json:"first"`
	// Max is what it doubles up to.
	Max Duration `json:"max"`
}

// FetchConfig sets what may be downloaded, and from where.
type FetchConfig struct {
	// MaxModuleSize bounds a module, also once it is unpacked.
	MaxModuleSize Size `json:"maxModuleSize"`
	// Timeout bounds one download.
	Timeout Duration `json:"timeout"`
	// RefreshAlways is the interval at which modules with imagePullPolicy Always are resolved
	// again; 0: only when the plugin changes.
	RefreshAlways Duration `json:"refreshAlways"`
	// Allow are the hosts that a url may name: host, host:port or *.domain. None: any public one.
	Allow []string `json:"allow"`
	// AllowLoopback permits hosts on this machine that registries does not name.
	AllowLoopback bool `json:"allowLoopback"`
	// AllowPrivate permits hosts with private addresses that registries does not name.
	AllowPrivate bool `json:"allowPrivate"`
	// MaxInFlight bounds all requests under way.
	MaxInFlight int `json:"maxInFlight"`
}

// RegistryConfig are the settings of one host, which may then be loopback or private.
type RegistryConfig struct {
	// Host, or host:port.
	Host string `json:"host"`
	// PlainHTTP says that the host speaks no TLS.
	PlainHTTP bool `json:"plainHTTP"`
	// CAFile are the authorities of the host's certificate, beside those of the system.
	CAFile string `json:"caFile"`
	// CertFile is stile's own client certificate there, PEM.
	CertFile string `json:"certFile"`
	// KeyFile is its private key, PEM.
	KeyFile string `json:"keyFile"`
	// Namespaces that may use it through that certificate; none means none while there is one.
	Namespaces []string `json:"namespaces"`
	// TokenHosts are the only other hosts, host or host:port, that it may send for a token to.
	TokenHosts []string `json:"tokenHosts"`
	// Grace, if not 0, replaces access.grace here.
	Grace Duration `json:"grace"`
	// MaxInFlight bounds the requests under way to this host; 0 is 8.
	MaxInFlight int `json:"maxInFlight"`
}

// DefaultRegistryMaxInFlight is RegistryConfig.MaxInFlight where none is set.
const DefaultRegistryMaxInFlight = 8

// What the check of a module before it ships does.
const (
	PreflightOff     = "off"
	PreflightWarn    = "warn"
	PreflightEnforce = "enforce"
)

// WasmConfig sets how proxies run modules.
type WasmConfig struct {
	// Runtime is the name of Envoy's runtime extension.
	Runtime string `json:"runtime"`
	// HostEnvAllow are the variables of the proxy's environment that plugins may ask for.
	HostEnvAllow []string `json:"hostEnvAllow"`
	// Preflight says whether modules are tried out before they ship, and what a failure does:
	// off, warn or enforce.
	Preflight string `json:"preflight"`
}

// AuditConfig names the stream of decisions.
type AuditConfig struct {
	// File of JSON lines; "-" is standard output, empty none.
	File string `json:"file"`
}

// PlacementConfig sets the architecture-aware placement of pods.
type PlacementConfig struct {
	// Enabled turns it on; it needs resources.kubernetes.
	Enabled bool `json:"enabled"`
	// NamespaceSelector chooses the namespaces whose pods are placed; empty: all.
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`
	// PullSecret is the cluster-wide pull secret.
	PullSecret SecretReference `json:"pullSecret"`
	// Preferred are the architectures that pods are drawn to where they have a choice.
	Preferred []ArchitectureWeight `json:"preferred"`
	// FallbackArchitecture is assumed of images that cannot be inspected; empty: nothing is.
	FallbackArchitecture string `json:"fallbackArchitecture"`
	// MaxWait is how long a pod is held for an answer.
	MaxWait Duration `json:"maxWait"`
}

// SecretReference names a Secret; the zero value names none.
type SecretReference struct {
	// Namespace of the Secret.
	Namespace string `json:"namespace"`
	// Name of the Secret.
	Name string `json:"name"`
}

// ArchitectureWeight is one preferred architecture, with a weight from 1 to 100.
type ArchitectureWeight struct {
	// Architecture as Go names it: amd64, arm64.
	Architecture string `json:"architecture"`
	// Weight from 1 to 100.
	Weight int32 `json:"weight"`
}

// DefaultConfig returns a Config in which every value that may be left out is set.
func DefaultConfig() *Config {
	d := func(v time.Duration) Duration { return Duration{v} }
	return &Config{
		APIVersion:    ConfigAPIVersion,
		Kind:          ConfigKind,
		RootNamespace: "stile-system",
		Resources:     ResourcesConfig{Directory: "./resources"},
		Envoy:         EnvoyConfig{Directory: "./envoy"},
		Store:         StoreConfig{Directory: "./data", MaxSize: 4 << 30, MaxPerNamespace: 1 << 30},
		XDS:           XDSConfig{Address: "127.0.0.1:18000", InlineMaxModule: 8 << 20, WarmHold: d(20 * time.Second)},
		Modules:       ModulesConfig{Address: "127.0.0.1:18001", URL: "http://127.0.0.1:18001"},
		Admin:         AdminConfig{Address: "127.0.0.1:18002"},
		Access: AccessConfig{
			Recheck: d(time.Hour), Forget: d(24 * time.Hour),
			Grace: d(24 * time.Hour), GraceWhileAnswering: d(time.Hour),
			TokenMaxAge: d(5 * time.Minute), Rotation: d(2 * time.Minute), Timeout: d(30 * time.Second),
			Retry:        RetryConfig{Attempts: 3},
			Denied:       DeniedConfig{First: d(15 * time.Second), Max: d(5 * time.Minute), ConfirmAfter: d(5 * time.Second)},
			Unauthorized: UnauthorizedConfig{First: d(time.Minute), Max: d(30 * time.Minute)},
			OnRevoked:    OnRevokedKeep,
			MaxProofs:    100_000, MaxPerNamespace: 2000,
		},
		Fetch: FetchConfig{MaxModuleSize: 256 << 20, Timeout: d(5 * time.Minute), MaxInFlight: 256},
		Wasm: WasmConfig{
			Runtime:      "envoy.wasm.runtime.v8",
			HostEnvAllow: []string{"POD_NAME", "POD_NAMESPACE", "POD_IP", "NODE_NAME"},
			Preflight:    PreflightOff,
		},
		Placement: PlacementConfig{MaxWait: d(5 * time.Minute)},
	}
}
