package proxywasm

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

// status is how a host function ends, in the numbers of the ABI.
type status uint32

const (
	statusOK                  status = 0
	statusNotFound            status = 1
	statusBadArgument         status = 2
	statusInvalidMemoryAccess status = 6
	statusCasMismatch         status = 8
	statusInternalFailure     status = 10
	statusUnimplemented       status = 12
)

// hostCall is one call from the guest. The plugin's mutex is held by whoever called
// the guest.
type hostCall struct {
	ctx  context.Context //nolint:containedctx // lives as long as the call
	p    *Plugin
	mem  api.Memory
	args []uint64
}

// u32 returns argument i. i32 arguments arrive with garbage in their upper half.
func (c hostCall) u32(i int) uint32 { return uint32(c.args[i]) } //nolint:gosec // as said

// bytes copies what arguments i (address) and i+1 (size) point to.
func (c hostCall) bytes(i int) ([]byte, bool) {
	size := c.u32(i + 1)
	if size > maxGuestCopy {
		return nil, false
	}
	b, ok := c.mem.Read(c.u32(i), size)
	return slices.Clone(b), ok
}

// give hands b to the guest, in memory that the guest allocates, and writes address
// and size where arguments i and i+1 point to. Nothing is written as 0, 0.
func (c hostCall) give(i int, b []byte) status {
	at := uint32(0)
	if len(b) > 0 {
		if c.p.allocating {
			return statusInternalFailure // its allocator asks for memory
		}
		c.p.allocating = true
		got, err := c.p.alloc.Call(c.ctx, uint64(len(b)))
		c.p.allocating = false
		if err != nil {
			panic(err) // the guest is lost; wazero hands this to whoever called it
		}
		at = uint32(got[0]) //nolint:gosec // i32
		if at == 0 || !c.mem.Write(at, b) {
			return statusInvalidMemoryAccess
		}
	}
	if !c.mem.WriteUint32Le(c.u32(i), at) || !c.mem.WriteUint32Le(c.u32(i+1), uint32(len(b))) { //nolint:gosec // bounded
		return statusInvalidMemoryAccess
	}
	return statusOK
}

// stream returns the stream of the effective context, nil for the root context.
func (c hostCall) stream() *Stream { return c.p.streams[c.p.current] }

type hostFunc struct {
	params string // one letter each: i = i32, l = i64
	call   func(hostCall) status
}

// hostFuncs are the functions of module env that this host has. All return a status.
var hostFuncs = map[string]hostFunc{
	"proxy_log":                          {"iii", hostLog},
	"proxy_get_log_level":                {"i", hostLogLevel},
	"proxy_get_current_time_nanoseconds": {"i", hostTime},
	"proxy_get_buffer_bytes":             {"iiiii", hostGetBuffer},
	"proxy_set_buffer_bytes":             {"iiiii", hostSetBuffer},
	"proxy_get_buffer_status":            {"iii", hostBufferStatus},
	"proxy_get_header_map_value":         {"iiiii", hostGetHeader},
	"proxy_add_header_map_value":         {"iiiii", hostAddHeader},
	"proxy_replace_header_map_value":     {"iiiii", hostReplaceHeader},
	"proxy_remove_header_map_value":      {"iii", hostRemoveHeader},
	"proxy_get_header_map_pairs":         {"iii", hostGetHeaders},
	"proxy_set_header_map_pairs":         {"iii", hostSetHeaders},
	"proxy_get_header_map_size":          {"ii", hostHeadersSize},
	"proxy_get_property":                 {"iiii", hostGetProperty},
	"proxy_set_property":                 {"iiii", hostSetProperty},
	"proxy_send_local_response":          {"iiiiiiii", hostLocalResponse},
	"proxy_set_effective_context":        {"i", hostEffectiveContext},
	"proxy_done":                         {"", func(hostCall) status { return statusOK }},
	"proxy_get_shared_data":              {"iiiii", hostGetShared},
	"proxy_set_shared_data":              {"iiiii", hostSetShared},
	"proxy_define_metric":                {"iiii", hostDefineMetric},
	"proxy_increment_metric":             {"il", hostIncrementMetric},
	"proxy_record_metric":                {"il", hostRecordMetric},
	"proxy_get_metric":                   {"ii", hostGetMetric},
}

// link gives the module what it imports: the functions above, WASI, and stubs that
// answer Unimplemented for every other function of env.
func (p *Plugin) link(ctx context.Context, m wazero.CompiledModule) error {
	env := p.runtime.NewHostModuleBuilder("env")
	wasi := map[string]bool{}
	linked := map[string]bool{}
	for _, f := range m.ImportedFunctions() {
		module, name, _ := f.Import()
		switch {
		case module == "wasi_snapshot_preview1" || module == "wasi_unstable":
			wasi[module] = true
		case module != "env":
			return fmt.Errorf("%w: it imports %s.%s, and no proxy has a module %s", ErrModule, module, name, module)
		case !linked[name]:
			linked[name] = true
			if err := p.linkFunc(env, name, f); err != nil {
				return err
			}
		}
	}
	if len(m.ImportedMemories()) > 0 {
		return fmt.Errorf("%w: it imports its memory instead of exporting it", ErrModule)
	}
	if _, err := env.Instantiate(ctx); err != nil {
		return fmt.Errorf("%w: link: %w", ErrModule, err)
	}
	for module := range wasi {
		b := p.runtime.NewHostModuleBuilder(module)
		wasi_snapshot_preview1.NewFunctionExporter().ExportFunctions(b)
		if _, err := b.Instantiate(ctx); err != nil {
			return fmt.Errorf("%w: link %s: %w", ErrModule, module, err)
		}
	}
	return nil
}

func (p *Plugin) linkFunc(env wazero.HostModuleBuilder, name string, want api.FunctionDefinition) error {
	params, results := want.ParamTypes(), want.ResultTypes()
	h, known := hostFuncs[name]
	if !known {
		stub := api.GoModuleFunc(func(_ context.Context, _ api.Module, stack []uint64) {
			p.missing["env."+name]++
			if p.options.Missing != nil {
				p.options.Missing("env." + name)
			}
			if len(results) > 0 {
				stack[0] = uint64(statusUnimplemented)
			}
		})
		env.NewFunctionBuilder().WithGoModuleFunction(stub, params, results).Export(name)
		return nil
	}
	if signature(params) != h.params || signature(results) != "i" {
		return fmt.Errorf("%w: it imports env.%s as (%s) -> (%s), the ABI has (%s) -> (i)",
			ErrModule, name, signature(params), signature(results), h.params)
	}
	run := api.GoModuleFunc(func(ctx context.Context, m api.Module, stack []uint64) {
		mem := m.Memory()
		if mem == nil { // called from a start section, before there is one
			stack[0] = uint64(statusInternalFailure)
			return
		}
		stack[0] = uint64(h.call(hostCall{ctx: ctx, p: p, mem: mem, args: stack}))
	})
	env.NewFunctionBuilder().WithGoModuleFunction(run, params, results).Export(name)
	return nil
}

func signature(types []api.ValueType) string {
	var b strings.Builder
	for _, t := range types {
		switch t {
		case api.ValueTypeI32:
			b.WriteByte('i')
		case api.ValueTypeI64:
			b.WriteByte('l')
		default:
			b.WriteString(api.ValueTypeName(t))
		}
	}
	return b.String()
}
