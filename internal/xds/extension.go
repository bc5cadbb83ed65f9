package xds

import (
	"cmp"
	"crypto/sha256"
	_ "embed" // the guard
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	networkwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
)

// The types that a plugin's filter may be.
const (
	httpWasmType    = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"
	httpFaultType   = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"
	networkWasmType = "type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm"
	networkRBACType = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC"
)

// The names by which a proxy may list these extensions where it does not list their types.
var extensionNames = map[string]string{
	httpWasmType:    "envoy.filters.http.wasm",
	httpFaultType:   "envoy.filters.http.fault",
	networkWasmType: "envoy.filters.network.wasm",
	networkRBACType: "envoy.filters.network.rbac",
}

const (
	// initialFetchTimeout is how long a listener waits for a plugin before it takes the stand-in.
	initialFetchTimeout = 30 * time.Second
	// envoyFetchLimit is the largest response that Envoy takes when it fetches a module.
	envoyFetchLimit = 32 << 20
	fetchRetries    = 10
	fetchBackOff    = time.Second
	fetchBackOffMax = 30 * time.Second
	fetchTimeout    = 10 * time.Second // and a second for each MiB
)

// extension translates one plugin.
type extension struct {
	key     plugin.Key
	spec    *v1alpha1.WasmPluginSpec
	in      *Input
	problem func(k plugin.Key, severity, reason, format string, args ...any)
}

func (e *extension) network() bool { return e.spec.EffectiveType() == v1alpha1.TypeNetwork }

// resource returns the plugin's ECDS resource for what shall be delivered.
func (e *extension) resource(d Delivery) *Resource {
	switch d.Mode {
	case Inline, Remote, File:
		return e.module(d)
	case StandIn:
		return e.keep(e.standIn(), d)
	default:
		return e.keep(&Resource{Type: ExtensionType, Name: ResourceName(e.key), Plugin: e.key, Hold: true}, d)
	}
}

// keep marks r, which is this plugin's alone, if proxies shall keep what they run.
func (e *extension) keep(r *Resource, d Delivery) *Resource {
	r.Keep = d.Keep
	if d.Keep && d.Kept != nil && d.Kept.Mode != Hold && d.Kept.Mode != StandIn {
		// The version alone, never an interned resource: what is kept may come without its bytes.
		if _, v, err := e.moduleVersion(*d.Kept); err == nil {
			r.KeptVersion = v
		}
	}
	return r
}

// source returns what a listener says of the plugin: ask ADS for it, wait a while, and take
// the stand-in if no answer comes.
func (e *extension) source(r *Resource) filterSource {
	s := filterSource{network: e.network()}
	if e.in.Static {
		config := &corev3.TypedExtensionConfig{}
		if r.Any == nil || r.Any.UnmarshalTo(config) != nil {
			s.static = e.standInConfig()
			return s
		}
		s.static = config.GetTypedConfig()
		return s
	}
	s.discovery = &corev3.ExtensionConfigSource{
		ConfigSource: &corev3.ConfigSource{
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
			ResourceApiVersion:    corev3.ApiVersion_V3,
			InitialFetchTimeout:   durationpb.New(initialFetchTimeout),
		},
	}
	// A type that the proxy does not know would make it refuse the whole listener.
	wasm, standIn := httpWasmType, httpFaultType
	if e.network() {
		wasm, standIn = networkWasmType, networkRBACType
	}
	s.discovery.TypeUrls = []string{wasm}
	known := hasExtension(e.in.Node.Extensions, standIn)
	if known {
		s.discovery.TypeUrls = append(s.discovery.TypeUrls, standIn)
	}
	config := e.standInConfig()
	if known || sameType(config.GetTypeUrl(), wasm) {
		s.discovery.DefaultConfig = config
	} else {
		e.problem(e.key, SeverityWarning, plugin.SkipLacksExtension,
			"the proxy has no %s, which stands in while the plugin cannot run: it answers 500 then", extensionNames[standIn])
	}
	return s
}

// hasExtension reports whether a proxy has an extension; one that lists none has all.
func hasExtension(have []string, typeURL string) bool {
	return len(have) == 0 || slices.ContainsFunc(have, func(h string) bool {
		return sameType(h, typeURL) || h == extensionNames[typeURL]
	})
}

func (e *extension) standIn() *Resource {
	r := newResource(ExtensionType, ResourceName(e.key), &corev3.TypedExtensionConfig{
		Name: ResourceName(e.key), TypedConfig: e.standInConfig(),
	})
	marked := *r
	marked.Plugin, marked.StandIn = e.key, true
	marked.Version = standInPrefix + r.Version
	return &marked
}

// guard is a module that ends every connection before the filters after it, and so an upstream,
// learn of it.
//
//go:embed guard/guard.wasm
var guard []byte

// guardConfig closes a plugin's connections. RBAC would let the greeting of a server that
// speaks first through to the client; the guard does not even let the upstream be dialled.
func (e *extension) guardConfig(name string) *anypb.Any {
	config := &wasmv3.PluginConfig{
		Name: "standin." + name,
		Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
			VmId:    "stile.standin.guard", // stateless, so all guards share one
			Runtime: e.in.Runtime,
			Code: &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{Local: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineBytes{InlineBytes: guard},
			}}},
		}},
	}
	if olderThan(e.in.EnvoyVersion, 1, 33) {
		return mustAny(&networkwasmv3.Wasm{Config: config}) // closed is what such a proxy does unless told otherwise
	}
	config.FailurePolicy = wasmv3.FailurePolicy_FAIL_CLOSED
	return mustAny(&networkwasmv3.Wasm{Config: config})
}

// standInPrefix begins the version of every stand-in, so that a version alone says whether a
// proxy holds a module or not.
const standInPrefix = "standin-"

// isStandIn reports whether a version is that of a stand-in.
func isStandIn(version string) bool { return strings.HasPrefix(version, standInPrefix) }

func (e *extension) standInConfig() *anypb.Any {
	open := e.spec.EffectiveFailStrategy() == v1alpha1.FailOpen
	name := e.key.Namespace + "." + e.key.Name
	if e.network() {
		if !open {
			return e.guardConfig(name)
		}
		return mustAny(&networkrbacv3.RBAC{StatPrefix: "stile_standin." + name}) // no rules: it lets pass
	}
	config := &faultv3.HTTPFault{}
	if !open {
		// The runtime keys that Envoy uses by default let one setting open every fault filter.
		key := "stile.standin." + name + "."
		config.Abort = &faultv3.FaultAbort{
			ErrorType:  &faultv3.FaultAbort_HttpStatus{HttpStatus: 503},
			Percentage: &typev3.FractionalPercent{Numerator: 100, Denominator: typev3.FractionalPercent_HUNDRED},
		}
		config.AbortPercentRuntime = key + "abort_percent"
		config.AbortHttpStatusRuntime = key + "abort_http_status"
		config.MaxActiveFaultsRuntime = key + "max_active_faults"
		config.DisableDownstreamClusterStats = true
	}
	return mustAny(config)
}

// module returns the resource that carries or names the plugin's module. Its version is a hash
// of everything in it; the module's bytes are in that hash by their own sha256.
func (e *extension) module(d Delivery) *Resource {
	if d.Mode == Remote && d.Size > envoyFetchLimit {
		e.problem(e.key, SeverityWarning, "TooLargeForEnvoy",
			"the module has %d bytes and Envoy fetches at most %d: raise http.async_response_buffer_limit in the proxy's runtime, or make the module smaller", d.Size, envoyFetchLimit)
	}
	pluginConfig, v, err := e.moduleVersion(d)
	if err != nil {
		e.problem(e.key, SeverityError, "Invalid", "%v", err)
		return e.standIn()
	}
	return intern(ExtensionType, ResourceName(e.key), v, func() *Resource {
		// A resource may be kept for long, and keeps no more of the input than it is made from.
		own := &extension{key: e.key, spec: e.spec, in: &Input{Runtime: e.in.Runtime, EnvoyVersion: e.in.EnvoyVersion}}
		vary := func(n int) *anypb.Any { return mustAny(own.config(pluginConfig, d, n, true)) }
		remote := d.Mode == Remote
		return &Resource{Plugin: e.key, Any: vary(0), vary: vary, remote: remote, plain: remote && !d.NackOnMiss, varied: &variation{}}
	})
}

// moduleVersion returns the version of the resource for d, for which d's bytes are not
// needed: their sha256 stands for them. Beside it is the plugin's configuration.
func (e *extension) moduleVersion(d Delivery) (*anypb.Any, string, error) {
	pluginConfig, err := e.pluginConfig()
	if err != nil {
		return nil, "", fmt.Errorf("pluginConfig: %w", err)
	}
	bytes, err := deterministic.Marshal(e.config(pluginConfig, d, 0, false))
	if err != nil {
		return nil, "", fmt.Errorf("cannot be written as Envoy configuration: %w", err)
	}
	return pluginConfig, version(bytes, []byte(d.Mode.String()), []byte(d.SHA256)), nil
}

// config returns the filter's configuration. try n > 0 differs from the others in bytes and in
// nothing that matters; without code it is what the version is computed from.
func (e *extension) config(pluginConfig *anypb.Any, d Delivery, try int, code bool) *corev3.TypedExtensionConfig {
	vm := &wasmv3.VmConfig{
		VmId:                 e.vmID(d),
		Runtime:              e.in.Runtime,
		EnvironmentVariables: e.environment(),
	}
	switch d.Mode {
	case Inline:
		local := &corev3.DataSource{}
		if code {
			local.Specifier = &corev3.DataSource_InlineBytes{InlineBytes: d.Bytes}
		}
		vm.Code = &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{Local: local}}
	case File:
		vm.Code = &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{Local: &corev3.DataSource{
			Specifier: &corev3.DataSource_Filename{Filename: d.Path},
		}}}
	default:
		vm.NackOnCodeCacheMiss = d.NackOnMiss || try > 0
		vm.Code = &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Remote{Remote: remoteSource(d, try)}}
	}
	if try > 0 && d.Mode != Remote {
		vm.VmId += ".try" + strconv.Itoa(try)
	}
	config := &wasmv3.PluginConfig{
		Name:          e.key.Namespace + "." + e.key.Name,
		RootId:        e.spec.PluginName,
		Vm:            &wasmv3.PluginConfig_VmConfig{VmConfig: vm},
		Configuration: pluginConfig,
	}
	e.failurePolicy(config)
	var filter proto.Message = &httpwasmv3.Wasm{Config: config}
	if e.network() {
		filter = &networkwasmv3.Wasm{Config: config}
	}
	return &corev3.TypedExtensionConfig{Name: ResourceName(e.key), TypedConfig: mustAny(filter)}
}

// remoteSource names the module on the module server. The tries differ by a nanosecond of the
// time-out, since Envoy takes the same bytes again without looking at them.
func remoteSource(d Delivery, try int) *corev3.RemoteDataSource {
	timeout := fetchTimeout + time.Duration((d.Size+1<<20-1)>>20)*time.Second + time.Duration(try)
	return &corev3.RemoteDataSource{
		HttpUri: &corev3.HttpUri{
			Uri:              d.URL,
			HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: ModulesCluster},
			Timeout:          durationpb.New(timeout),
		},
		Sha256: d.SHA256,
		RetryPolicy: &corev3.RetryPolicy{
			NumRetries: wrapperspb.UInt32(fetchRetries),
			RetryBackOff: &corev3.BackoffStrategy{
				BaseInterval: durationpb.New(fetchBackOff),
				MaxInterval:  durationpb.New(fetchBackOffMax),
			},
		},
	}
}

// failurePolicy says what the filter does when its VM has failed. The field is known since
// Envoy 1.33; before, there was a single bit.
func (e *extension) failurePolicy(config *wasmv3.PluginConfig) {
	strategy := e.spec.EffectiveFailStrategy()
	if olderThan(e.in.EnvoyVersion, 1, 33) {
		config.FailOpen = strategy == v1alpha1.FailOpen //nolint:staticcheck // all that such a proxy knows
		return
	}
	switch strategy {
	case v1alpha1.FailOpen:
		config.FailurePolicy = wasmv3.FailurePolicy_FAIL_OPEN
	case v1alpha1.FailReload:
		config.FailurePolicy = wasmv3.FailurePolicy_FAIL_RELOAD
	default:
		config.FailurePolicy = wasmv3.FailurePolicy_FAIL_CLOSED
	}
}

// olderThan reports whether a version is known and below major.minor.
func olderThan(version string, major, minor int) bool {
	first, rest, _ := strings.Cut(version, ".")
	second, _, _ := strings.Cut(rest, ".")
	m, err1 := strconv.Atoi(first)
	n, err2 := strconv.Atoi(second)
	return err1 == nil && err2 == nil && (m < major || m == major && n < minor)
}

func (e *extension) pluginConfig() (*anypb.Any, error) {
	text, err := e.spec.PluginConfig.Canonical()
	if err != nil || len(text) == 0 {
		return nil, err
	}
	return mustAny(wrapperspb.String(string(text))), nil
}

func (e *extension) environment() *wasmv3.EnvironmentVariables {
	if e.spec.VMConfig == nil || len(e.spec.VMConfig.Env) == 0 {
		return nil
	}
	vars := &wasmv3.EnvironmentVariables{KeyValues: map[string]string{}}
	for _, v := range e.spec.VMConfig.Env {
		if v.ValueFrom == v1alpha1.EnvHost {
			vars.HostEnvKeys = append(vars.HostEnvKeys, v.Name)
			continue
		}
		value := ""
		if v.Value != nil {
			value = *v.Value
		}
		vars.KeyValues[v.Name] = value
	}
	slices.Sort(vars.HostEnvKeys)
	return vars
}

// vmID names the VM: a new module, runtime or environment is a new VM, since Envoy's own key
// for VMs leaves the environment out, and the code too where it is yet to be fetched.
func (e *extension) vmID(d Delivery) string {
	h := sha256.New()
	field := func(s string) { fmt.Fprintf(h, "%d:%s", len(s), s) }
	field(cmp.Or(d.SHA256, d.Path))
	field(e.in.Runtime)
	if env := e.environment(); env != nil {
		for _, k := range env.GetHostEnvKeys() {
			field("host " + k)
		}
		for _, k := range sortedKeys(env.GetKeyValues()) {
			field("inline " + k)
			field(env.GetKeyValues()[k])
		}
	}
	return e.key.Namespace + "." + e.key.Name + "." + hex.EncodeToString(h.Sum(nil))[:16]
}
