package v1alpha1

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The group, version and kind of WasmPlugin.
const (
	Group                = "extensions.istio.io"
	Version              = "v1alpha1"
	WasmPluginAPIVersion = Group + "/" + Version
	WasmPluginKind       = "WasmPlugin"
)

// WasmPlugin adds a WebAssembly module to the filter chains of the proxies that it
// selects.
// ---
// It must not be changed once it is shared.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=wp,categories={istio-io,extensions-istio-io,stile}
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=".status.conditions[?(@.type=='Accepted')].status",description="Whether it is valid"
// +kubebuilder:printcolumn:name="Resolved",type=string,JSONPath=".status.conditions[?(@.type=='ResolvedRefs')].reason",description="Whether the module may be read and could be had"
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=".status.conditions[?(@.type=='Programmed')].reason",description="Whether proxies run it"
// +kubebuilder:printcolumn:name="Proxies",type=string,JSONPath=".status.proxies.summary",description="How many of the proxies that should run it have loaded it"
// +kubebuilder:printcolumn:name="Digest",type=string,JSONPath=".status.digest",description="Digest of what is served"
// +kubebuilder:printcolumn:name="URL",type=string,JSONPath=".spec.url",priority=1,description="Where the module comes from"
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=".spec.phase",priority=1,description="Where in the chain the plugin runs"
// +kubebuilder:printcolumn:name="Priority",type=integer,JSONPath=".spec.priority",priority=1,description="Its place in the phase: the higher runs first"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=".metadata.creationTimestamp"
type WasmPlugin struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec says which module runs where, and how.
	// +required
	Spec WasmPluginSpec `json:"spec"`
	// status says what has become of it. It is written by stile.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	Status WasmPluginStatus `json:"status,omitempty" stile:"ignore"`
}

// WasmPluginList is a list of WasmPlugins, as the Kubernetes API returns it.
//
// +kubebuilder:object:root=true
type WasmPluginList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []WasmPlugin `json:"items"`
}

// WasmPluginSpec is what the author of a plugin decides.
//
// +kubebuilder:validation:XValidation:rule="(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1",message="set at most one of selector, targetRef and targetRefs"
// +kubebuilder:validation:XValidation:rule="!has(self.sha256) || self.sha256.size() == 0 || !self.url.contains('@sha256:') || self.url.endsWith('@sha256:' + self.sha256)",message="sha256 must equal the digest in url"
// +kubebuilder:validation:XValidation:rule="(has(self.type) && self.type == 'NETWORK') == (has(oldSelf.type) && oldSelf.type == 'NETWORK')",message="type cannot be changed: delete the plugin and create it anew"
type WasmPluginSpec struct {
	// selector chooses proxies by their labels. None, and no target reference: every
	// proxy of the plugin's namespace, or of all namespaces if that is the root namespace.
	// +optional
	Selector *WorkloadSelector `json:"selector,omitempty"`
	// targetRef is the older, single form of targetRefs.
	// +optional
	TargetRef *TargetReference `json:"targetRef,omitempty"`
	// targetRefs chooses proxies by the resource that they serve.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	TargetRefs []TargetReference `json:"targetRefs,omitempty"`

	// url names the module: an OCI image (oci://, or no scheme at all), a file on an
	// HTTP server (http://, https://), or a file in the proxy's own file system (file://).
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	// +kubebuilder:validation:XValidation:rule="!self.matches('[[:cntrl:][:space:]]')",message="url must not contain spaces or control characters"
	// +kubebuilder:validation:XValidation:rule="!self.contains('://') || self.matches('^(?i:oci|https?|file)://.')",message="the scheme must be one of oci, http, https and file, and something must follow it"
	// +kubebuilder:validation:XValidation:rule="self.matches('^(?i:https?|file)://') || !self.matches('[?#]')",message="an image takes no query and no fragment"
	// +kubebuilder:validation:XValidation:rule="self.matches('^(?i:https?|file)://') || !self.contains('@') || self.matches('^[^@]+@sha256:[a-f0-9]{64}$')",message="what follows '@' in an image must be sha256: and 64 lower-case hexadecimal digits; user names and passwords belong into a Secret"
	// +kubebuilder:validation:XValidation:rule="!self.matches('^(?i:https?)://') || self.matches('^[^:]+://[^/?#@]+/[^?#]')",message="http(s) must name a host and a file, without user name and password"
	// +kubebuilder:validation:XValidation:rule="!self.matches('^(?i:file)://') || !self.endsWith('/')",message="file:// must name a file"
	URL string `json:"url" stile:"nonempty"`
	// sha256 is the checksum of what url names: the manifest digest of an image, or the
	// unpacked module of an HTTP source. It must equal the digest in url if there is one.
	// +optional
	// +kubebuilder:validation:Pattern=`^$|^[a-f0-9]{64}$`
	SHA256 string `json:"sha256,omitempty"`
	// imagePullPolicy says when to ask again what a tag or an HTTP address holds. Unset, it
	// is Always for images tagged latest or not tagged, else IfNotPresent.
	// +optional
	ImagePullPolicy PullPolicy `json:"imagePullPolicy,omitempty" stile:"nonempty"`
	// imagePullSecret names the Secret, in the plugin's namespace, that holds the
	// credentials for the image's registry.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	ImagePullSecret string `json:"imagePullSecret,omitempty" stile:"nonempty"`
	// verificationKey is a PEM public key. An image is used only if its manifest digest
	// carries a cosign signature by that key.
	// +optional
	VerificationKey string `json:"verificationKey,omitempty"`

	// pluginConfig is handed to the plugin as JSON.
	// +optional
	PluginConfig *Object `json:"pluginConfig,omitempty"`
	// pluginName is the root id by which a module with several plugins chooses one.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	PluginName string `json:"pluginName,omitempty" stile:"nonempty"`
	// phase says where in the chain the plugin runs.
	// +optional
	Phase PluginPhase `json:"phase,omitempty" stile:"nonempty"`
	// priority orders the plugins of one phase: the higher runs first. Unset is 0.
	// +optional
	// +nullable
	Priority *int32 `json:"priority,omitempty"`
	// failStrategy says what happens to traffic while the plugin cannot run. Unset is FAIL_CLOSE.
	// +optional
	FailStrategy FailStrategy `json:"failStrategy,omitempty" stile:"nonempty"`
	// vmConfig configures the virtual machine in which the module runs.
	// +optional
	VMConfig *VMConfig `json:"vmConfig,omitempty"`
	// match says which traffic the plugin sees: that of any entry. None: all of it.
	// +optional
	// +listType=atomic
	Match []TrafficSelector `json:"match,omitempty"`
	// type says whether the plugin works on HTTP requests or on connections. Unset is
	// HTTP. It cannot be changed later.
	// +optional
	Type PluginType `json:"type,omitempty" stile:"nonempty"`
}

// WorkloadSelector chooses the proxies that carry all of its labels.
type WorkloadSelector struct {
	// matchLabels are the labels, with their values. None selects every proxy.
	// +optional
	// +kubebuilder:validation:MaxProperties=4096
	// +kubebuilder:validation:XValidation:rule="self.all(key, key.size() > 0 && key.size() <= 317)",message="a label's name must have 1 to 317 characters"
	// +kubebuilder:validation:XValidation:rule="self.all(key, !key.contains('*') && !self[key].contains('*'))",message="wildcards do not work in labels"
	MatchLabels map[string]LabelValue `json:"matchLabels,omitempty"`
}

// LabelValue is the value of a label.
//
// +kubebuilder:validation:MaxLength=63
type LabelValue string

// TargetReference names a resource of the plugin's own namespace whose proxies the
// plugin attaches to.
//
// +kubebuilder:validation:XValidation:rule="!(self.kind in ['Gateway', 'GatewayClass']) || has(self.group) && self.group == 'gateway.networking.k8s.io'",message="group must be gateway.networking.k8s.io for kinds Gateway and GatewayClass"
// +kubebuilder:validation:XValidation:rule="self.kind != 'Service' || !has(self.group) || self.group.size() == 0 || self.group == 'core'",message="group must be core or empty for kind Service"
// +kubebuilder:validation:XValidation:rule="self.kind != 'ServiceEntry' || has(self.group) && self.group == 'networking.istio.io'",message="group must be networking.istio.io for kind ServiceEntry"
// +kubebuilder:validation:XValidation:rule="!has(self.__namespace__) || self.__namespace__.size() == 0",message="leave namespace empty: a plugin attaches within its own namespace"
type TargetReference struct {
	// group of the resource; empty or "core" for a Service.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Group string `json:"group,omitempty"`
	// kind of the resource: Gateway, GatewayClass, Service or ServiceEntry.
	// +required
	// +kubebuilder:validation:Enum=Gateway;GatewayClass;Service;ServiceEntry
	Kind string `json:"kind" stile:"nonempty"`
	// name of the resource.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name" stile:"nonempty"`
	// namespace must be empty: the resource is in the plugin's own namespace.
	// +optional
	Namespace string `json:"namespace,omitempty"`
}

// TrafficSelector chooses the traffic that satisfies all of its conditions.
type TrafficSelector struct {
	// mode chooses by direction. Unset is CLIENT_AND_SERVER.
	// +optional
	Mode WorkloadMode `json:"mode,omitempty" stile:"nonempty"`
	// ports chooses by destination port. None: any port.
	// +optional
	// +listType=map
	// +listMapKey=number
	Ports []PortSelector `json:"ports,omitempty"`
}

// PortSelector is one destination port.
type PortSelector struct {
	// number of the port.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Number int32 `json:"number"`
}

// VMConfig configures a plugin's virtual machine.
type VMConfig struct {
	// env are the environment variables that the module sees.
	// +optional
	// +kubebuilder:validation:MaxItems=256
	// +listType=map
	// +listMapKey=name
	Env []EnvVar `json:"env,omitempty"`
}

// EnvVar is one environment variable.
//
// +kubebuilder:validation:XValidation:rule="!has(self.valueFrom) || self.valueFrom != 'HOST' || !has(self.value)",message="value may be set only where valueFrom is INLINE"
type EnvVar struct {
	// name of the variable: letters, digits and underscores, not starting with a digit.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern=`^[A-Za-z_][A-Za-z0-9_]*$`
	// +kubebuilder:validation:XValidation:rule="!self.startsWith('ISTIO_META_WASM_') && !self.startsWith('STILE_')",message="names starting with ISTIO_META_WASM_ or STILE_ are reserved"
	Name string `json:"name" stile:"nonempty"`
	// valueFrom says whether the value is written here or is the proxy's own. Unset is INLINE.
	// +optional
	ValueFrom EnvValueSource `json:"valueFrom,omitempty" stile:"nonempty"`
	// value of the variable where valueFrom is INLINE. Unset is empty.
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	Value *string `json:"value,omitempty"`
}

// PluginPhase is a place in the filter chain. The empty value is PhaseUnspecified.
//
// +kubebuilder:validation:Enum=UNSPECIFIED_PHASE;AUTHN;AUTHZ;STATS;ASM_ROUTER
type PluginPhase string

// The phases, in the order in which a request meets them.
const (
	PhaseAuthN       PluginPhase = "AUTHN"             // before authentication
	PhaseAuthZ       PluginPhase = "AUTHZ"             // after authentication, before authorization
	PhaseStats       PluginPhase = "STATS"             // after authorization, before statistics
	PhaseUnspecified PluginPhase = "UNSPECIFIED_PHASE" // at the end, before the router
	PhaseRouter      PluginPhase = "ASM_ROUTER"        // right before the router, after all others
)

// PluginType is the level at which a plugin works. The empty value and
// TypeUnspecified are TypeHTTP.
//
// +kubebuilder:validation:Enum=UNSPECIFIED_PLUGIN_TYPE;HTTP;NETWORK
type PluginType string

// The types of plugins.
const (
	TypeUnspecified PluginType = "UNSPECIFIED_PLUGIN_TYPE"
	TypeHTTP        PluginType = "HTTP"
	TypeNetwork     PluginType = "NETWORK"
)

// PullPolicy says when a source is asked again what it holds. The empty value is
// PullUnspecified.
//
// +kubebuilder:validation:Enum=UNSPECIFIED_POLICY;IfNotPresent;Always
type PullPolicy string

// The pull policies.
const (
	PullUnspecified  PullPolicy = "UNSPECIFIED_POLICY"
	PullIfNotPresent PullPolicy = "IfNotPresent"
	PullAlways       PullPolicy = "Always"
)

// FailStrategy says what happens to traffic while a plugin cannot run. The empty
// value is FailClose.
//
// +kubebuilder:validation:Enum=FAIL_CLOSE;FAIL_OPEN;FAIL_RELOAD
type FailStrategy string

// The fail strategies.
const (
	FailClose  FailStrategy = "FAIL_CLOSE"  // traffic is refused
	FailOpen   FailStrategy = "FAIL_OPEN"   // traffic passes the plugin by
	FailReload FailStrategy = "FAIL_RELOAD" // the module is loaded anew; refused until it runs
)

// EnvValueSource says where a variable's value comes from. The empty value is EnvInline.
//
// +kubebuilder:validation:Enum=INLINE;HOST
type EnvValueSource string

// The sources of environment variables.
const (
	EnvInline EnvValueSource = "INLINE" // the value written beside it
	EnvHost   EnvValueSource = "HOST"   // the variable of that name in the proxy's own environment
)

// WorkloadMode is a direction of traffic. The empty value and ModeUndefined are
// ModeClientAndServer.
//
// +kubebuilder:validation:Enum=UNDEFINED;CLIENT;SERVER;CLIENT_AND_SERVER
type WorkloadMode string

// The directions of traffic.
const (
	ModeUndefined       WorkloadMode = "UNDEFINED"
	ModeClient          WorkloadMode = "CLIENT" // outbound, and everything at a gateway
	ModeServer          WorkloadMode = "SERVER" // inbound
	ModeClientAndServer WorkloadMode = "CLIENT_AND_SERVER"
)

// WasmPluginStatus is what has become of a plugin.
type WasmPluginStatus struct {
	// observedGeneration is the generation of the spec that this status speaks of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// conditions are Accepted, ResolvedRefs and Programmed.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// digest is the manifest digest of the image that is served.
	// +optional
	Digest string `json:"digest,omitempty"`
	// moduleSHA256 is the checksum of the module that is served.
	// +optional
	ModuleSHA256 string `json:"moduleSHA256,omitempty"`
	// size of the module that is served, in bytes.
	// +optional
	Size int64 `json:"size,omitempty"`
	// servedGeneration is the generation of the spec that what is served was made from: an
	// earlier one while the last good version is served.
	// +optional
	ServedGeneration int64 `json:"servedGeneration,omitempty"`
	// resolvedDigest is what the tag in the url was resolved to. Every replica of stile
	// follows it, so that all serve the same.
	// +optional
	ResolvedDigest string `json:"resolvedDigest,omitempty"`
	// epoch counts how often the right to the module has ended. It is part of what module
	// URLs are made from; every replica follows it.
	// +optional
	Epoch int64 `json:"epoch,omitempty"`
	// servedEpoch is the epoch of what is served: an earlier one where the right to it has
	// ended and proxies keep it.
	// +optional
	ServedEpoch int64 `json:"servedEpoch,omitempty"`
	// proxies counts the proxies that the plugin concerns.
	// +optional
	Proxies *ProxyCounts `json:"proxies,omitempty"`
}

// ProxyCounts counts proxies by what they made of a plugin.
type ProxyCounts struct {
	// matched proxies should run the plugin.
	Matched int32 `json:"matched"`
	// accepted proxies said that they have loaded it.
	Accepted int32 `json:"accepted"`
	// rejected proxies refused it.
	Rejected int32 `json:"rejected"`
	// summary is accepted and matched in one text, as 11/12, for tables.
	// +optional
	Summary string `json:"summary,omitempty"`
}

// Summarized returns the counts with their summary.
func (c ProxyCounts) Summarized() ProxyCounts {
	c.Summary = fmt.Sprintf("%d/%d", c.Accepted, c.Matched)
	return c
}
