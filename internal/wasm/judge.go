package wasm

import (
	"fmt"
	"slices"
	"strings"
)

// Magic is how every WebAssembly binary begins.
const Magic = "\x00asm"

const abiMarker = "proxy_abi_version_"

// Limits that Envoy's host sets on a module's memory, in pages of 64 KiB, and beyond
// which a module is likely a mistake.
const (
	hostMemoryPages  = 1 << 30 / (64 << 10)   // 1 GiB: no VM may have more
	largeMemoryPages = 128 << 20 / (64 << 10) // 128 MiB for each worker thread of a proxy
	largeCustom      = 4 << 20                // bytes of names and debug information
)

// The functions that Envoy gives to modules, read in proxy-wasm-cpp-host: in all ABI
// versions, and in some alone.
var (
	hostFunctions = set("proxy_",
		"log", "get_status", "set_property", "get_property", "send_local_response",
		"get_shared_data", "set_shared_data",
		"register_shared_queue", "resolve_shared_queue", "dequeue_shared_queue", "enqueue_shared_queue",
		"get_header_map_value", "add_header_map_value", "replace_header_map_value", "remove_header_map_value",
		"get_header_map_pairs", "set_header_map_pairs", "get_header_map_size",
		"get_buffer_status", "get_buffer_bytes", "set_buffer_bytes",
		"http_call", "grpc_call", "grpc_stream", "grpc_close", "grpc_cancel", "grpc_send",
		"set_tick_period_milliseconds", "get_current_time_nanoseconds",
		"define_metric", "increment_metric", "record_metric", "get_metric",
		"set_effective_context", "done", "call_foreign_function")
	hostFunctionsByABI = map[string]map[string]bool{
		"0.1.0": set("proxy_", "get_configuration", "continue_request", "continue_response", "clear_route_cache"),
		"0.2.0": set("proxy_", "continue_stream", "close_stream"),
		"0.2.1": set("proxy_", "continue_stream", "close_stream", "get_log_level"),
	}
	runtimeFunctions = set("", "pthread_equal", "emscripten_notify_memory_growth")
	wasiFunctions    = set("",
		"fd_write", "fd_read", "fd_seek", "fd_close", "fd_fdstat_get", "fd_fdstat_set_flags",
		"fd_prestat_get", "fd_prestat_dir_name", "path_open", "path_filestat_get",
		"environ_get", "environ_sizes_get", "args_get", "args_sizes_get",
		"clock_time_get", "random_get", "sched_yield", "poll_oneoff", "proc_exit")
	httpCallbacks = []string{
		"proxy_on_request_headers", "proxy_on_request_body", "proxy_on_request_trailers", "proxy_on_request_metadata",
		"proxy_on_response_headers", "proxy_on_response_body", "proxy_on_response_trailers", "proxy_on_response_metadata",
	}
	networkCallbacks = []string{
		"proxy_on_new_connection", "proxy_on_downstream_data", "proxy_on_upstream_data",
		"proxy_on_downstream_connection_close", "proxy_on_upstream_connection_close",
	}
)

func set(prefix string, names ...string) map[string]bool {
	s := make(map[string]bool, len(names))
	for _, n := range names {
		s[prefix+n] = true
	}
	return s
}

// judge returns everything that is wrong with a module that could be read, and
// fills in the types that it has callbacks for. The order is that of the checks.
func judge(m *Module, e exports) []Finding {
	var findings []Finding
	add := func(severity, reason, fix, message string, args ...any) {
		findings = append(findings, Finding{Severity: severity, Reason: reason, Message: fmt.Sprintf(message, args...), Fix: fix})
	}
	abi := chosenABI(m.ABI)
	switch {
	case len(m.ABI) == 0:
		add(SeverityError, "NoABI", "build with a Proxy-Wasm SDK, or export an empty function proxy_abi_version_0_2_1",
			"the module exports no proxy_abi_version_* function: it is not made for Proxy-Wasm")
	case abi == "":
		add(SeverityError, "UnknownABI", "build with an SDK of ABI version 0.2.1",
			"the module is made for Proxy-Wasm ABI %s; Envoy knows 0.1.0, 0.2.0 and 0.2.1", quoteAll(m.ABI))
	}
	if unknown := unknownImports(m.Functions, abi); len(unknown) > 0 {
		add(SeverityError, "UnknownImport", "build without what needs these functions (files, sockets, threads, another host's extensions)",
			"the module imports what Envoy does not have: %s", quoteAll(unknown))
	}
	if len(e.hidden) > 0 {
		add(SeverityError, "UnknownImport", "let the module define its own memory, tables and globals (no --import-memory)",
			"the module imports what is no function, and Envoy gives none: %s", quoteAll(e.hidden))
	}
	if !e.memory {
		add(SeverityError, "NoMemory", "export the module's memory under the name memory",
			"the module exports no memory: the host could hand it nothing")
	}
	switch {
	case m.MemoryMin > hostMemoryPages:
		add(SeverityError, "MemoryTooLarge", "lower the initial memory; 16 MiB suffice most plugins",
			"the module starts with %d MiB of memory; Envoy gives at most %d MiB", m.MemoryMin/16, hostMemoryPages/16)
	case m.MemoryMin > largeMemoryPages:
		add(SeverityWarning, "MemoryLarge", "lower the initial memory; 16 MiB suffice most plugins",
			"the module starts with %d MiB of memory, in each worker thread of each proxy", m.MemoryMin/16)
	}
	if !e.functions["malloc"] && !e.functions["proxy_on_memory_allocate"] {
		add(SeverityError, "NoAllocator", "export proxy_on_memory_allocate (SDKs do) or malloc",
			"the module exports neither malloc nor proxy_on_memory_allocate: Envoy refuses it")
	}
	if m.Start {
		add(SeverityWarning, "StartFunction", "move that code to _initialize, which hosts call when they are ready",
			"the module has a start function: it runs before the host can answer it, and fails if it calls the host")
	}
	if m.CustomSize > largeCustom {
		add(SeverityWarning, "DebugInformation", "strip the module (go build -ldflags='-s -w', wasm-strip, opt-level with strip = true)",
			"%d MiB of the module are names and debug information that every proxy loads", m.CustomSize>>20)
	}
	m.Types = typesOf(e.functions)
	if len(m.Types) == 0 && len(m.ABI) > 0 {
		add(SeverityWarning, "NoCallbacks", "export proxy_on_request_headers or proxy_on_new_connection, or what your SDK makes them of",
			"the module has no HTTP or network callback: no request and no connection reaches it")
	}
	return findings
}

// chosenABI is the version that Envoy takes: the first that it knows.
func chosenABI(versions []string) string {
	for _, v := range versions {
		if hostFunctionsByABI[v] != nil {
			return v
		}
	}
	return ""
}

// unknownImports returns the functions that Envoy does not have, sorted. Where the
// ABI is unknown, those of all versions count as known: one fault, one finding.
func unknownImports(functions []string, abi string) []string {
	var unknown []string
	for _, full := range functions {
		module, name, _ := strings.Cut(full, ".")
		if !knownImport(module, name, abi) {
			unknown = append(unknown, full)
		}
	}
	slices.Sort(unknown)
	return unknown
}

func knownImport(module, name, abi string) bool {
	switch module {
	case "env":
		if hostFunctions[name] || runtimeFunctions[name] {
			return true
		}
		for version, functions := range hostFunctionsByABI {
			if (abi == "" || version == abi) && functions[name] {
				return true
			}
		}
		return false
	case "wasi_snapshot_preview1", "wasi_unstable":
		return wasiFunctions[name]
	default:
		return false
	}
}

func typesOf(functions map[string]bool) []string {
	var types []string
	exported := func(name string) bool { return functions[name] }
	if slices.ContainsFunc(httpCallbacks, exported) {
		types = append(types, HTTP)
	}
	if slices.ContainsFunc(networkCallbacks, exported) {
		types = append(types, Network)
	}
	return types
}

// quoteAll writes names as text that is safe to print, at most ten of them.
func quoteAll(names []string) string {
	const most = 10
	var b strings.Builder
	for i, n := range names {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(names)-most)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		if len(n) > 100 {
			n = n[:100] + "…"
		}
		fmt.Fprintf(&b, "%q", n)
	}
	return b.String()
}
