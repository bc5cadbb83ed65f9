package sandbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/stileproject/stile/internal/proxywasm"
)

// pluginTimeout bounds a plugin's start and each callback. Envoy knows no bound; here a
// plugin that never comes back must not hold the proxy for ever.
const pluginTimeout = 15 * time.Second

// reloadAfter is how long a plugin that fails and is reloaded stays failed.
const reloadAfter = time.Second

// pendingModule says that a plugin's module is to be fetched before it can be loaded.
type pendingModule struct {
	config *wasmv3.PluginConfig
	source *corev3.RemoteDataSource
}

func (p *pendingModule) Error() string {
	return "the module of " + p.config.GetName() + " is not fetched yet"
}

// newWasm loads a plugin from its resource. A remote module that is not in the code
// cache: warming, it is fetched first (*pendingModule); with nack_on_code_cache_miss it
// is fetched in the background and this is an error; else, as in Envoy, the filter is
// accepted and skipped, and the next one of that module fails by its policy.
func (s *Sandbox) newWasm(packed *anypb.Any, warming bool) (*filter, error) {
	var m httpwasmv3.Wasm
	if err := packed.UnmarshalTo(&m); err != nil {
		return nil, err
	}
	if err := m.ValidateAll(); err != nil {
		return nil, err
	}
	config := m.GetConfig()
	if config.GetFailOpen() && config.GetFailurePolicy() != wasmv3.FailurePolicy_UNSPECIFIED { //nolint:staticcheck // Envoy still reads it
		return nil, fmt.Errorf("only one of fail_open or failure_policy can be set")
	}
	vm := config.GetVmConfig()
	if r := vm.GetRuntime(); r != "" && r != "envoy.wasm.runtime.v8" {
		return nil, fmt.Errorf("Failed to create Wasm VM using %s runtime. The sandbox proxy runs envoy.wasm.runtime.v8 plugins only", r) //nolint:staticcheck // Envoy's words
	}
	if remote := vm.GetCode().GetRemote(); remote != nil {
		module, cached := s.modules[remote.GetSha256()]
		switch {
		case cached:
			return s.loadWasm(config, module)
		case vm.GetNackOnCodeCacheMiss():
			s.fetchToCache(remote)
			return nil, unable(config, "its module is not in the code cache; it is being fetched")
		case warming:
			return nil, &pendingModule{config: config, source: remote}
		}
		if s.never[remote.GetSha256()] {
			return failedWasm(config, errors.New("its module is believed to be on its way")), nil
		}
		s.never[remote.GetSha256()] = true
		return &filter{typeURL: wasmType, sha256: remote.GetSha256(), skipped: true}, nil
	}
	module, err := s.localModule(vm.GetCode().GetLocal())
	if err != nil {
		return nil, unable(config, err.Error())
	}
	return s.loadWasm(config, module)
}

// unable is Envoy's sentence, with the reason that Envoy only logs.
func unable(config *wasmv3.PluginConfig, why string) error {
	return fmt.Errorf("Unable to create Wasm plugin %s: %s", config.GetName(), why) //nolint:staticcheck // Envoy's words
}

func (s *Sandbox) localModule(source *corev3.DataSource) ([]byte, error) {
	switch source.GetSpecifier().(type) {
	case *corev3.DataSource_InlineBytes:
		return source.GetInlineBytes(), nil
	case *corev3.DataSource_InlineString:
		return []byte(source.GetInlineString()), nil
	case *corev3.DataSource_Filename:
		return os.ReadFile(source.GetFilename())
	}
	return nil, errors.New("it has no code")
}

// loadWasm makes the VM and configures the plugin.
func (s *Sandbox) loadWasm(config *wasmv3.PluginConfig, module []byte) (*filter, error) {
	options, err := s.pluginOptions(config)
	if err != nil {
		return nil, unable(config, err.Error())
	}
	options.Bytes = module
	plugin, err := proxywasm.New(s.ctx, options)
	if err != nil {
		return nil, unable(config, err.Error())
	}
	sum := sha256.Sum256(module)
	impl := &wasmFilter{policy: policyOf(config), plugin: plugin, loaded: time.Now()}
	if impl.policy == wasmv3.FailurePolicy_FAIL_RELOAD {
		impl.reload = func() (*proxywasm.Plugin, error) { return proxywasm.New(s.ctx, options) }
	}
	return &filter{typeURL: wasmType, sha256: hex.EncodeToString(sum[:]), impl: impl}, nil
}

// failedWasm is a plugin without code: it acts as its fail policy says, for ever.
func failedWasm(config *wasmv3.PluginConfig, why error) *filter {
	return &filter{
		typeURL: wasmType, sha256: config.GetVmConfig().GetCode().GetRemote().GetSha256(),
		impl: &wasmFilter{policy: policyOf(config), failed: why},
	}
}

func policyOf(config *wasmv3.PluginConfig) wasmv3.FailurePolicy {
	switch p := config.GetFailurePolicy(); {
	case config.GetFailOpen(): //nolint:staticcheck // Envoy still reads it
		return wasmv3.FailurePolicy_FAIL_OPEN
	case p == wasmv3.FailurePolicy_UNSPECIFIED:
		return wasmv3.FailurePolicy_FAIL_CLOSED
	default:
		return p
	}
}

func (s *Sandbox) pluginOptions(config *wasmv3.PluginConfig) (proxywasm.Options, error) {
	vm := config.GetVmConfig()
	pluginConfig, err := configBytes(config.GetConfiguration())
	if err != nil {
		return proxywasm.Options{}, err
	}
	vmConfig, err := configBytes(vm.GetConfiguration())
	if err != nil {
		return proxywasm.Options{}, err
	}
	env := map[string]string{}
	for _, key := range vm.GetEnvironmentVariables().GetHostEnvKeys() {
		if value, ok := s.options.HostEnv[key]; ok {
			env[key] = value
		}
	}
	for key, value := range vm.GetEnvironmentVariables().GetKeyValues() {
		if _, twice := env[key]; twice {
			return proxywasm.Options{}, fmt.Errorf("Key %s is duplicated in envoy.extensions.wasm.v3.VmConfig.environment_variables", key) //nolint:staticcheck // Envoy's words
		}
		env[key] = value
	}
	return proxywasm.Options{
		Name: config.GetName(), RootID: config.GetRootId(), VMID: vm.GetVmId(),
		Config: pluginConfig, VMConfig: vmConfig, Env: env, Log: s.log, Timeout: pluginTimeout,
		Properties: map[string]string{"xds.node.id": s.options.Node.ID, "xds.node.cluster": s.options.Node.Cluster},
	}, nil
}

// configBytes is what a guest sees of a configuration: the text of a string, a Struct
// as JSON, else the message's own bytes.
func configBytes(a *anypb.Any) ([]byte, error) {
	if a == nil {
		return nil, nil
	}
	m, err := a.UnmarshalNew()
	if err != nil {
		return a.GetValue(), nil //nolint:nilerr // a type we do not know is handed over as it is
	}
	switch m := m.(type) {
	case *wrapperspb.StringValue:
		return []byte(m.GetValue()), nil
	case *wrapperspb.BytesValue:
		return m.GetValue(), nil
	case *structpb.Struct:
		var out bytes.Buffer
		encoder := json.NewEncoder(&out)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(m.AsMap()); err != nil {
			return nil, err
		}
		return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
	}
	return a.GetValue(), nil
}

// wasmFilter is a plugin with its fail policy.
type wasmFilter struct {
	policy wasmv3.FailurePolicy
	reload func() (*proxywasm.Plugin, error) // nil unless FAIL_RELOAD

	mu     sync.Mutex // guards the three below
	plugin *proxywasm.Plugin
	failed error // there never was a plugin
	loaded time.Time
}

func (w *wasmFilter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.plugin != nil {
		_ = w.plugin.Close()
	}
}

// live returns the plugin, made anew if it failed and its policy says so.
func (w *wasmFilter) live() (*proxywasm.Plugin, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed != nil {
		return nil, w.failed
	}
	if w.reload != nil && w.plugin.Err() != nil && time.Since(w.loaded) > reloadAfter {
		w.loaded = time.Now()
		if plugin, err := w.reload(); err == nil {
			_ = w.plugin.Close()
			w.plugin = plugin
		}
	}
	return w.plugin, nil
}

func (w *wasmFilter) open() streamFilter {
	s := &wasmStream{open: w.policy == wasmv3.FailurePolicy_FAIL_OPEN}
	s.plugin, s.err = w.live()
	if s.err == nil {
		s.stream, s.err = s.plugin.Stream(nil)
	}
	return s
}

// wasmStream is one request in a plugin.
type wasmStream struct {
	plugin *proxywasm.Plugin
	stream *proxywasm.Stream
	open   bool // of a failure: let pass
	err    error
}

// failed answers as the fail policy says.
func (s *wasmStream) failure() *proxywasm.LocalResponse {
	if s.open {
		return nil
	}
	return &proxywasm.LocalResponse{Status: 503, Details: "wasm_fail_stream", GRPCStatus: -1}
}

func (s *wasmStream) readsRequestBody() bool  { return s.err == nil && s.plugin.ReadsRequestBody() }
func (s *wasmStream) readsResponseBody() bool { return s.err == nil && s.plugin.ReadsResponseBody() }

func (s *wasmStream) request(h *proxywasm.Headers, body *[]byte) *proxywasm.LocalResponse {
	return s.pass(h, body, s.stream.OnRequestHeaders, s.stream.OnRequestBody)
}

func (s *wasmStream) response(h *proxywasm.Headers, body *[]byte) *proxywasm.LocalResponse {
	return s.pass(h, body, s.stream.OnResponseHeaders, s.stream.OnResponseBody)
}

// pass shows the plugin the headers and then the body, if there is one that it reads.
func (s *wasmStream) pass(
	h *proxywasm.Headers, body *[]byte,
	onHeaders func(*proxywasm.Headers, bool) (proxywasm.Action, *proxywasm.LocalResponse, error),
	onBody func([]byte) (proxywasm.Action, []byte, *proxywasm.LocalResponse, error),
) *proxywasm.LocalResponse {
	if s.err != nil {
		return s.failure()
	}
	action, local, err := onHeaders(h, len(*body) == 0)
	if err == nil && local == nil && len(*body) > 0 {
		action, *body, local, err = onBody(*body)
	}
	switch {
	case err != nil:
		s.err = err
		return s.failure()
	case local != nil:
		return local
	case action == proxywasm.Pause:
		return &proxywasm.LocalResponse{
			Status: 504, Details: "wasm_paused", GRPCStatus: -1,
			Body: []byte("a plugin paused the stream, and nothing in the sandbox proxy can wake it\n"),
		}
	}
	return nil
}

func (s *wasmStream) done() {
	if s.stream != nil {
		s.stream.Done()
	}
}

// shortName is a type URL without its prefix, for people.
func shortName(typeURL string) string { return strings.TrimPrefix(typeURL, typePrefix) }
