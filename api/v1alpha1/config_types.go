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

	// rootNamespace is the namespace whose plugins apply to the proxies of all namespaces.
	RootNamespace string `json:"rootNamespace"`
	// resources says where WasmPlugins and Secrets come from.
	Resources ResourcesConfig `json:"resources"`
	// envoy says where the proxies' own listeners come from.
	Envoy EnvoyConfig `json:"envoy"`
	// keys names the root key.
	Keys KeysConfig `json:"keys"`
	// store is the folder of modules and proofs.
	Store StoreConfig `json:"store"`
	// xds is the address that proxies connect to.
	XDS XDSConfig `json:"xds"`
	// modules is the address from which proxies fetch large modules.
	Modules ModulesConfig `json:"modules"`
	// admin is the address of /api/v1 and profiles.
	Admin AdminConfig `json:"admin"`
	// health is the address of /livez, /readyz and /metrics.
	Health HealthConfig `json:"health"`
	// access sets how long a registry's answer is relied on.
	Access AccessConfig `json:"access"`
	// fetch sets what may be downloaded, and from where.
	Fetch FetchConfig `json:"fetch"`
	// registries are the hosts that need settings of their own.
	Registries []RegistryConfig `json:"registries"`
	// wasm sets how proxies run modules.
	Wasm WasmConfig `json:"wasm"`
	// audit names the stream of decisions.
	Audit AuditConfig `json:"audit"`
	// placement sets the architecture-aware placement of pods.
	Placement PlacementConfig `json:"placement"`
	// webhook is the server that the Kubernetes API server asks about new objects.
	Webhook WebhookConfig `json:"webhook"`
}

// ResourcesConfig names the source of resources: a folder or a Kubernetes API, not both.
type ResourcesConfig struct {
	// directory of YAML documents, watched. Empty: none.
	Directory string `json:"directory"`
	// kubernetes, if set, is the API to watch; its zero value is the cluster that stile runs in.
	Kubernetes *KubernetesConfig `json:"kubernetes,omitempty"`
}

// KubernetesConfig says which API server to watch, and what of it.
type KubernetesConfig struct {
	// kubeconfig is a file; empty means the cluster that stile runs in, or the usual file.
	Kubeconfig string `json:"kubeconfig"`
	// context of the kubeconfig; empty means its current one.
	Context string `json:"context"`
	// namespaces to watch; none means all.
	Namespaces []string `json:"namespaces"`
	// revision, if set, is the value of the label istio.io/rev that plugins must carry.
	Revision string `json:"revision"`
	// selector, if set, is a label selector that plugins must match.
	Selector string `json:"selector"`
	// namespace is stile's own, of its lease, its certificates and the ConfigMaps that hold
	// listeners; empty means that of the pod it runs in, else rootNamespace.
	Namespace string `json:"namespace"`
}

// WebhookConfig is the server of admission webhooks.
type WebhookConfig struct {
	// address, host:port, to listen on; empty: there are no webhooks.
	Address string `json:"address"`
	// service is the name of the Service, in stile's own namespace, by which the API server
	// reaches address. Certificates are made for it, kept in the Secret <service>-tls and
	// injected into the webhook configurations of that name.
	Service string `json:"service"`
	// certFile is a PEM certificate that is somebody else's care, as cert-manager's; it is
	// read again when it changes. Empty: certificates are made, and made anew in time, here.
	CertFile string `json:"certFile"`
	// keyFile is the PEM key of certFile.
	KeyFile string `json:"keyFile"`
}

// EnvoyConfig says which of the operator's Envoy files a proxy gets.
type EnvoyConfig struct {
	// directory of files named after Envoy's node.cluster, watched.
	Directory string `json:"directory"`
	// default is the file for clusters that have none; empty: such a proxy gets nothing.
	Default string `json:"default"`
	// nodes assign files and facts to proxies; the first that matches counts.
	Nodes []EnvoyNode `json:"nodes"`
	// anchors are type URLs of filters of one's own that plugins are placed around.
	Anchors EnvoyAnchors `json:"anchors"`
}

// EnvoyAnchors are type URLs that are anchors of the phases beside the known ones; the
// prefix type.googleapis.com/ may be left out.
type EnvoyAnchors struct {
	// first are filters that must stay in front of what follows them.
	First []string `json:"first"`
	// authn are filters that authenticate.
	AuthN []string `json:"authn"`
	// authz are filters that authorize.
	AuthZ []string `json:"authz"`
	// stats are filters that count.
	Stats []string `json:"stats"`
}

// EnvoyNode assigns a file, and facts that its bootstrap lacks, to proxies.
type EnvoyNode struct {
	// cluster is compared with the node's own, "*" standing for any text; empty matches all.
	Cluster string `json:"cluster"`
	// id is compared with the node's own, likewise.
	ID string `json:"id"`
	// file, in the directory, is what they get; empty: as without this entry.
	File string `json:"file"`
	// namespace, if set, is taken in place of the one that the proxy reports.
	Namespace string `json:"namespace"`
	// labels, if set, are added to those that the proxy reports, and win over them.
	Labels map[string]string `json:"labels"`
	// gateway, if set, is taken in place of the one that the proxy reports.
	Gateway string `json:"gateway"`
	// services are the Services, in the proxy's namespace, that it is the waypoint of.
	Services []string `json:"services"`
	// serviceEntries are the ServiceEntries that it is the waypoint of, likewise.
	ServiceEntries []string `json:"serviceEntries"`
}

// KeysConfig names the root key.
type KeysConfig struct {
	// file is YAML with current and previous, 64 hexadecimal digits each. Empty: made in the store.
	File string `json:"file"`
}

// StoreConfig is the folder of modules and proofs.
type StoreConfig struct {
	// directory is made if it is not there.
	Directory string `json:"directory"`
	// maxSize bounds the modules that are kept, in all.
	MaxSize Size `json:"maxSize"`
	// maxPerNamespace bounds those that the plugins of one namespace have brought in.
	MaxPerNamespace Size `json:"maxPerNamespace"`
}

// TLSConfig names the files of a server's certificate and of those who may connect.
type TLSConfig struct {
	// certFile is the server's certificate chain, PEM.
	CertFile string `json:"certFile"`
	// keyFile is its private key, PEM.
	KeyFile string `json:"keyFile"`
	// clientCAFile holds the authorities of client certificates; empty: none is asked for.
	ClientCAFile string `json:"clientCAFile"`
}

// IsZero reports whether no TLS is configured.
func (t TLSConfig) IsZero() bool { return t == TLSConfig{} }

// XDSConfig is the server that proxies connect to.
type XDSConfig struct {
	// address, host:port, to listen on.
	Address string    `json:"address"`
	TLS     TLSConfig `json:"tls"`
	// identities bind client certificates to namespaces and clusters.
	Identities []Identity `json:"identities"`
	// insecure permits an address off loopback without client certificates.
	Insecure bool `json:"insecure"`
	// inlineMaxModule is the largest module that travels within xDS; 0: none does.
	InlineMaxModule Size `json:"inlineMaxModule"`
	// warmHold is how long a first answer waits for a verdict.
	WarmHold Duration `json:"warmHold"`
}

// Identity says for which proxies a client certificate may speak.
type Identity struct {
	// spiffe is the certificate's URI, with "*" for any text.
	SPIFFE string `json:"spiffe"`
	// namespaces that such a proxy may name as its own; none means any.
	Namespaces []string `json:"namespaces"`
	// clusters that such a proxy may name as its own; none means any.
	Clusters []string `json:"clusters"`
}

// ModulesConfig is the server of modules.
type ModulesConfig struct {
	// address, host:port, to listen on.
	Address string `json:"address"`
	// url is how proxies reach it.
	URL string    `json:"url"`
	TLS TLSConfig `json:"tls"`
	// insecure permits an address off loopback without client certificates.
	Insecure bool `json:"insecure"`
}

// AdminConfig is the server of /api/v1 and profiles.
type AdminConfig struct {
	// address, host:port, to listen on; off loopback, callers prove themselves by a client
	// certificate of tls.clientCAFile or by a Kubernetes token.
	Address string `json:"address"`
	// tls of the server. Off loopback without it, tokens cross the network in clear.
	TLS TLSConfig `json:"tls"`
}

// HealthConfig is the server of /livez, /readyz and /metrics.
type HealthConfig struct {
	// address; empty: they are on the admin address.
	Address string `json:"address"`
}

// What acts when a yes has ended.
const (
	OnRevokedKeep         = "keep"         // what is loaded stays, nobody new gets it
	OnRevokedFailStrategy = "failStrategy" // the plugin's own fail strategy
)

// AccessConfig sets how long a registry's answer is relied on.
type AccessConfig struct {
	// recheck is the interval at which a yes is asked again.
	Recheck Duration `json:"recheck"`
	// forget is how long a proof that nobody uses is kept.
	Forget Duration `json:"forget"`
	// grace is how long a yes outlives its last renewal while the registry answers nobody.
	Grace Duration `json:"grace"`
	// graceWhileAnswering is how long it does once the registry has answered anyone.
	GraceWhileAnswering Duration `json:"graceWhileAnswering"`
	// tokenMaxAge is the oldest registry token that a re-check may use.
	TokenMaxAge Duration `json:"tokenMaxAge"`
	// rotation is how long what runs waits for the first verdict on an edited Secret.
	Rotation Duration `json:"rotation"`
	// timeout bounds one check with all its requests.
	Timeout      Duration           `json:"timeout"`
	Retry        RetryConfig        `json:"retry"`
	Denied       DeniedConfig       `json:"denied"`
	Unauthorized UnauthorizedConfig `json:"unauthorized"`
	// onRevoked says what becomes of a plugin whose yes has ended. keep: what is loaded stays, nobody
	// new gets it. failStrategy: the plugin's own fail strategy.
	OnRevoked string `json:"onRevoked"`
	// maxProofs bounds the proofs that are kept, in all.
	MaxProofs int `json:"maxProofs"`
	// maxPerNamespace bounds those of one namespace.
	MaxPerNamespace int `json:"maxPerNamespace"`
}

// RetryConfig is about retriable errors within one check.
type RetryConfig struct {
	// attempts in all, the first included; 1 s apart, doubling.
	Attempts int `json:"attempts"`
}

// DeniedConfig says when a denial is asked again: first, doubling up to max; and how
// soon a refusal that would end a yes is confirmed.
type DeniedConfig struct {
	// first is when a denial is asked again for the first time; it doubles from there.
	First Duration `json:"first"`
	// max is what it doubles up to.
	Max Duration `json:"max"`
	// confirmAfter is when a refusal that would end a yes is asked again before it does.
	ConfirmAfter Duration `json:"confirmAfter"`
}

// UnauthorizedConfig says when an account that a registry refuses is tried again:
// first, doubling up to max, once for all of its images.
type UnauthorizedConfig struct {
	// first is when the account is tried again for the first time; it doubles from there.
	First Duration `json:"first"`
	// max is what it doubles up to.
	Max Duration `json:"max"`
}

// FetchConfig sets what may be downloaded, and from where.
type FetchConfig struct {
	// maxModuleSize bounds a module, also once it is unpacked.
	MaxModuleSize Size `json:"maxModuleSize"`
	// timeout bounds one download.
	Timeout Duration `json:"timeout"`
	// refreshAlways is the interval at which modules with imagePullPolicy Always are resolved
	// again; 0: only when the plugin changes.
	RefreshAlways Duration `json:"refreshAlways"`
	// allow are the hosts that a url may name: host, host:port or *.domain. None: any public one.
	Allow []string `json:"allow"`
	// allowLoopback permits hosts on this machine that registries does not name.
	AllowLoopback bool `json:"allowLoopback"`
	// allowPrivate permits hosts with private addresses that registries does not name.
	AllowPrivate bool `json:"allowPrivate"`
	// maxInFlight bounds all requests under way.
	MaxInFlight int `json:"maxInFlight"`
}

// RegistryConfig are the settings of one host, which may then be loopback or private.
type RegistryConfig struct {
	// host, or host:port.
	Host string `json:"host"`
	// plainHTTP says that the host speaks no TLS.
	PlainHTTP bool `json:"plainHTTP"`
	// caFile are the authorities of the host's certificate, beside those of the system.
	CAFile string `json:"caFile"`
	// certFile is stile's own client certificate there, PEM.
	CertFile string `json:"certFile"`
	// keyFile is its private key, PEM.
	KeyFile string `json:"keyFile"`
	// namespaces that may use it through that certificate; none means none while there is one.
	Namespaces []string `json:"namespaces"`
	// tokenHosts are the only other hosts, host or host:port, that it may send for a token to.
	TokenHosts []string `json:"tokenHosts"`
	// grace, if not 0, replaces access.grace here.
	Grace Duration `json:"grace"`
	// maxInFlight bounds the requests under way to this host; 0 is 8.
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
	// runtime is the name of Envoy's runtime extension.
	Runtime string `json:"runtime"`
	// hostEnvAllow are the variables of the proxy's environment that plugins may ask for.
	HostEnvAllow []string `json:"hostEnvAllow"`
	// preflight says whether modules are tried out before they ship, and what a failure does:
	// off, warn or enforce.
	Preflight string `json:"preflight"`
}

// AuditConfig names the stream of decisions.
type AuditConfig struct {
	// file of JSON lines; "-" is standard output, empty none.
	File string `json:"file"`
}

// PlacementConfig sets the architecture-aware placement of pods.
type PlacementConfig struct {
	// enabled turns it on; it needs resources.kubernetes.
	Enabled bool `json:"enabled"`
	// namespaceSelector chooses the namespaces whose pods are placed; empty: all.
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`
	// pullSecret is the cluster-wide pull secret.
	PullSecret SecretReference `json:"pullSecret"`
	// preferred are the architectures that pods are drawn to where they have a choice.
	Preferred []ArchitectureWeight `json:"preferred"`
	// fallbackArchitecture is assumed of images that cannot be inspected; empty: nothing is.
	FallbackArchitecture string `json:"fallbackArchitecture"`
	// maxWait is how long a pod is held for an answer.
	MaxWait Duration `json:"maxWait"`
}

// SecretReference names a Secret; the zero value names none.
type SecretReference struct {
	// namespace of the Secret.
	Namespace string `json:"namespace"`
	// name of the Secret.
	Name string `json:"name"`
}

// ArchitectureWeight is one preferred architecture, with a weight from 1 to 100.
type ArchitectureWeight struct {
	// architecture as Go names it: amd64, arm64.
	Architecture string `json:"architecture"`
	// weight from 1 to 100.
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
		Webhook:   WebhookConfig{Service: "stile-webhook"},
	}
}
