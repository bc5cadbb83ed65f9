// Package proxywasm runs Proxy-Wasm HTTP plugins as a proxy does: a small host on
// wazero for the demo, the tests and the look at a module before it is shipped. Its
// one rule: a guest gets the memory and the time it is given and nothing of the
// machine, and whatever it does ends in an error of this package.
//
// It speaks Proxy-Wasm ABI 0.1.0, 0.2.0 and 0.2.1 as far as HTTP streams need it:
// headers, bodies, properties, local responses, logs, metrics and shared data.
// Calls to other services, timers, queues, trailers, and going on with a stream that
// was paused are answered Unimplemented, and counted. Stricter than Envoy: a header
// with a line break in it is refused at once, and shared data has a limit.
package proxywasm

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// What went wrong with a plugin, for errors.Is.
var (
	// ErrModule: the bytes are no module that this host can run.
	ErrModule = errors.New("not a proxy-wasm module")
	// ErrRefused: the plugin answered false to its VM or plugin configuration.
	ErrRefused = errors.New("the plugin refused its configuration")
	// ErrFailed: the plugin trapped, exited, or exceeded its memory or time. It
	// answers nothing any more.
	ErrFailed = errors.New("the plugin failed")
	// ErrClosed: the plugin was closed.
	ErrClosed = errors.New("the plugin is closed")
)

const (
	defaultMemoryPages = 1024 // 64 MiB: room for a Go or JavaScript guest, far from the machine's end
	defaultTimeout     = 5 * time.Second
	maxLogMessage      = 4 << 10  // a guest's longer lines are cut
	maxSharedBytes     = 1 << 20  // of one plugin's shared data, keys included
	maxMetrics         = 1 << 10  // of one plugin
	maxGuestCopy       = 16 << 20 // longest string a guest may hand over in one piece
)

// Options say what a plugin is and what it may use. Bytes is required.
type Options struct {
	Bytes       []byte            // the module; not changed, not kept
	Name        string            // plugin name: the property plugin_name, and in logs
	RootID      string            // root_id, handed to the plugin at its start
	VMID        string            // the property plugin_vm_id
	Config      []byte            // plugin configuration
	VMConfig    []byte            // VM configuration
	Env         map[string]string // the guest's environment; nothing of the process's own
	MemoryPages uint32            // the most memory it gets, in pages of 64 KiB; 0 = 1024, at most 65536
	Timeout     time.Duration     // the most time one callback may take, and the whole start; 0 = 5 s
	Properties  map[string]string // further properties, paths joined with dots: "xds.node.id"
	Log         *slog.Logger      // nil = silent
	// Missing hears of each call, by "module.name", that is answered with Unimplemented; nil =
	// nobody does. It must not call the plugin.
	Missing func(name string)
}

// Plugin is one plugin in one VM, started and configured. Its methods may be called
// concurrently: a VM has one thread, so callbacks of different streams take turns. A
// plugin that failed stays failed; make a new one.
type Plugin struct {
	options Options
	abi     string
	log     *slog.Logger
	runtime wazero.Runtime
	module  api.Module
	alloc   api.Function

	mu         sync.Mutex // one thread in the VM; guards all below
	fns        map[string]api.Function
	failed     error
	nextID     uint32
	current    uint32 // the effective context of host calls
	streams    map[uint32]*Stream
	allocating bool
	vmBuffer   []byte // VM configuration while it is started
	cfgBuffer  []byte // plugin configuration while it is configured
	lastError  string // last line the guest logged as an error
	missing    map[string]int
	shared     map[string]sharedValue
	sharedSize int
	metrics    []metric
}

const rootID = 1 // context id of the plugin itself

// New compiles, instantiates, starts and configures a plugin. Its error is one of
// ErrModule, ErrRefused, ErrFailed, or ctx's. The caller must Close the plugin.
func New(ctx context.Context, o Options) (*Plugin, error) {
	if o.MemoryPages == 0 {
		o.MemoryPages = defaultMemoryPages
	}
	o.MemoryPages = min(o.MemoryPages, 65536)
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &Plugin{
		options: o,
		log:     o.Log.With("plugin", o.Name),
		nextID:  rootID,
		current: rootID,
		fns:     map[string]api.Function{},
		streams: map[uint32]*Stream{},
		missing: map[string]int{},
		shared:  map[string]sharedValue{},
	}
	p.options.Bytes, p.options.Config, p.options.VMConfig = nil, nil, nil // nothing of the caller's is kept
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	if err := p.start(ctx, o); err != nil {
		_ = p.Close()
		return nil, fmt.Errorf("start plugin %q: %w", o.Name, err)
	}
	return p, nil
}

func (p *Plugin) start(ctx context.Context, o Options) error {
	if err := p.instantiate(ctx, o.Bytes); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	entry := "_initialize"
	if p.module.ExportedFunction(entry) == nil {
		entry = "_start"
	}
	if _, err := p.call(ctx, entry); err != nil {
		return err
	}
	if _, err := p.call(ctx, "proxy_on_context_create", rootID, 0); err != nil {
		return err
	}
	p.vmBuffer = append([]byte{}, o.VMConfig...) // not nil: while asked, it exists
	ok, err := p.call(ctx, "proxy_on_vm_start", rootID, uint64(len(p.vmBuffer)))
	p.vmBuffer = nil
	if err != nil {
		return err
	}
	if ok == 0 {
		return p.refused("its start")
	}
	p.cfgBuffer = append([]byte{}, o.Config...)
	ok, err = p.call(ctx, "proxy_on_configure", rootID, uint64(len(p.cfgBuffer)))
	p.cfgBuffer = nil
	if err != nil {
		return err
	}
	if ok == 0 {
		return p.refused("its configuration")
	}
	return nil
}

func (p *Plugin) refused(what string) error {
	if p.lastError != "" {
		return fmt.Errorf("%w: it said no to %s: %q", ErrRefused, what, p.lastError)
	}
	return fmt.Errorf("%w: it said no to %s and gave no reason in its log", ErrRefused, what)
}

// instantiate makes the VM. The interpreter is enough here: it is ready at once, and
// no machine code is made from a stranger's module.
func (p *Plugin) instantiate(ctx context.Context, module []byte) error {
	p.runtime = wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter().
		WithMemoryLimitPages(p.options.MemoryPages).
		WithCloseOnContextDone(true).
		WithDebugInfoEnabled(false))
	compiled, err := p.runtime.CompileModule(ctx, module)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrModule, err)
	}
	if err := p.checkExports(compiled); err != nil {
		return err
	}
	if err := p.link(ctx, compiled); err != nil {
		return err
	}
	config := wazero.NewModuleConfig().
		WithName("").
		WithStartFunctions(). // start calls them itself, in the order of the ABI
		WithStdout(&lineLog{log: p.log, level: slog.LevelInfo}).
		WithStderr(&lineLog{log: p.log, level: slog.LevelError}).
		WithSysWalltime().WithSysNanotime().
		WithRandSource(rand.Reader)
	for _, name := range slices.Sorted(maps.Keys(p.options.Env)) {
		config = config.WithEnv(name, p.options.Env[name])
	}
	p.module, err = p.runtime.InstantiateModule(ctx, compiled, config)
	if err != nil {
		return fmt.Errorf("%w: instantiate: %w", ErrFailed, err)
	}
	p.alloc = p.module.ExportedFunction("proxy_on_memory_allocate")
	if p.alloc == nil {
		p.alloc = p.module.ExportedFunction("malloc")
	}
	return nil
}

// checkExports looks for what every Proxy-Wasm module has.
func (p *Plugin) checkExports(m wazero.CompiledModule) error {
	exports := m.ExportedFunctions()
	for _, v := range []string{"0_2_1", "0_2_0", "0_1_0"} {
		if _, ok := exports["proxy_abi_version_"+v]; ok {
			p.abi = strings.ReplaceAll(v, "_", ".")
			break
		}
	}
	if p.abi == "" {
		return fmt.Errorf("%w: it exports no proxy_abi_version_0_2_1 (nor 0_2_0, 0_1_0): build it with a Proxy-Wasm SDK", ErrModule)
	}
	if _, ok := m.ExportedMemories()["memory"]; !ok {
		return fmt.Errorf("%w: it does not export its memory as \"memory\"", ErrModule)
	}
	allocate, ok := exports["proxy_on_memory_allocate"]
	if !ok {
		allocate, ok = exports["malloc"]
	}
	if !ok {
		return fmt.Errorf("%w: it exports neither proxy_on_memory_allocate nor malloc", ErrModule)
	}
	i32 := []api.ValueType{api.ValueTypeI32}
	if !slices.Equal(allocate.ParamTypes(), i32) || !slices.Equal(allocate.ResultTypes(), i32) {
		return fmt.Errorf("%w: its %s is no (i32) -> i32", ErrModule, allocate.ExportNames()[0])
	}
	return nil
}

// call runs an exported function, if there is one, with as many of the arguments as
// it takes (older ABIs take fewer). Without one the answer is the ABI's default: go on
// (0) for streams, accepted (1) for the questions that are answered with a boolean.
// p.mu is held.
func (p *Plugin) call(ctx context.Context, name string, args ...uint64) (uint32, error) {
	if p.failed != nil {
		return 0, p.failed
	}
	fn, known := p.fns[name]
	if !known {
		fn = p.module.ExportedFunction(name)
		p.fns[name] = fn
	}
	if fn == nil {
		switch name {
		case "proxy_on_vm_start", "proxy_on_configure", "proxy_on_done":
			return 1, nil
		}
		return 0, nil
	}
	params := fn.Definition().ParamTypes()
	if len(params) > len(args) {
		p.failed = fmt.Errorf("%w: its %s takes %d arguments, the ABI has %d", ErrFailed, name, len(params), len(args))
		return 0, p.failed
	}
	results, err := fn.Call(ctx, args[:len(params)]...)
	if err != nil {
		p.failed = p.failure(ctx, name, err)
		return 0, p.failed
	}
	if len(results) == 0 {
		return 0, nil
	}
	return uint32(results[0]), nil //nolint:gosec // an i32 result; its upper half is garbage
}

// failure words how a callback ended. wazero's own text carries a stack of the guest
// over several lines; its first line says what happened.
func (p *Plugin) failure(ctx context.Context, name string, err error) error {
	if ctx.Err() != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return fmt.Errorf("%w: %s did not return within %s", ErrFailed, name, p.options.Timeout)
		}
		return fmt.Errorf("%w: %s: %w", ErrFailed, name, ctx.Err())
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return fmt.Errorf("%w: %s: %s", ErrFailed, name, text)
}

// ABI returns the Proxy-Wasm ABI version that the module speaks: "0.2.1".
func (p *Plugin) ABI() string { return p.abi }

// Err returns why the plugin failed, nil while it has not.
func (p *Plugin) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

// Unimplemented returns how often the plugin called host functions that this host
// answers with Unimplemented, by "module.name".
func (p *Plugin) Unimplemented() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.missing)
}

// Metrics returns the metrics that the plugin has defined: counters and gauges by
// value, histograms by the last value recorded.
func (p *Plugin) Metrics() map[string]int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	values := make(map[string]int64, len(p.metrics))
	for _, m := range p.metrics {
		values[m.name] = m.value
	}
	return values
}

// Close ends the VM. Streams that are still open get ErrClosed.
func (p *Plugin) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed == nil {
		p.failed = ErrClosed
	}
	clear(p.streams)
	if p.runtime == nil {
		return nil
	}
	err := p.runtime.Close(context.Background())
	p.runtime = nil
	return err
}

// lineLog hands what a guest prints to the log, one record a line.
type lineLog struct {
	log   *slog.Logger
	level slog.Level
	rest  []byte
}

func (w *lineLog) Write(b []byte) (int, error) {
	w.rest = append(w.rest, b...)
	for {
		line, rest, found := bytes.Cut(w.rest, []byte{'\n'})
		if !found && len(w.rest) < maxLogMessage {
			return len(b), nil
		}
		if !found {
			line, rest = w.rest[:maxLogMessage], w.rest[maxLogMessage:]
		}
		w.log.Log(context.Background(), w.level, string(line[:min(len(line), maxLogMessage)]))
		w.rest = append([]byte(nil), rest...)
	}
}
