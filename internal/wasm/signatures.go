package wasm

import "strings"

// A signature is written as parameters, '>', results: i is i32, I is i64, f is f32, F
// is f64. What is here is what Envoy 1.40.0 says it wants; envoy_test.go asks it.

// hostFunctions are what Envoy gives to modules of every ABI, in module env with the
// prefix proxy_.
var hostFunctions = table("env.proxy_", `
	log iii>i  get_status iii>i  set_property iiii>i  get_property iiii>i  send_local_response iiiiiiii>i
	get_shared_data iiiii>i  set_shared_data iiiii>i
	register_shared_queue iii>i  resolve_shared_queue iiiii>i  dequeue_shared_queue iii>i  enqueue_shared_queue iii>i
	get_header_map_value iiiii>i  add_header_map_value iiiii>i  replace_header_map_value iiiii>i  remove_header_map_value iii>i
	get_header_map_pairs iii>i  set_header_map_pairs iii>i  get_header_map_size ii>i
	get_buffer_status iii>i  get_buffer_bytes iiiii>i  set_buffer_bytes iiiii>i
	http_call iiiiiiiiii>i  grpc_call iiiiiiiiiiii>i  grpc_stream iiiiiiiii>i  grpc_close i>i  grpc_cancel i>i  grpc_send iiii>i
	set_tick_period_milliseconds i>i  get_current_time_nanoseconds i>i
	define_metric iiii>i  increment_metric iI>i  record_metric iI>i  get_metric ii>i
	set_effective_context i>i  done >i  call_foreign_function iiiiii>i`)

// hostFunctionsByABI are what it gives to modules of one ABI besides; its keys are the
// ABI versions that Envoy knows.
var hostFunctionsByABI = map[string]map[string]string{
	"0.1.0": table("env.proxy_", `get_configuration ii>i  continue_request >i  continue_response >i  clear_route_cache >i`),
	"0.2.0": table("env.proxy_", `continue_stream i>i  close_stream i>i`),
	"0.2.1": table("env.proxy_", `continue_stream i>i  close_stream i>i  get_log_level i>i`),
}

// runtimeFunctions are what compilers expect of every host.
var runtimeFunctions = table("env.", `pthread_equal ii>i  emscripten_notify_memory_growth i>`)

// wasiFunctions are all of WASI preview 1 but proc_raise. Most answer that they are
// not there, but a module that imports them loads.
var wasiFunctions = table("", `
	args_get ii>i  args_sizes_get ii>i  environ_get ii>i  environ_sizes_get ii>i
	clock_res_get ii>i  clock_time_get iIi>i  random_get ii>i  sched_yield >i  poll_oneoff iiii>i  proc_exit i>
	fd_advise iIIi>i  fd_allocate iII>i  fd_close i>i  fd_datasync i>i  fd_fdstat_get ii>i  fd_fdstat_set_flags ii>i
	fd_fdstat_set_rights iII>i  fd_filestat_get ii>i  fd_filestat_set_size iI>i  fd_filestat_set_times iIIi>i
	fd_pread iiiIi>i  fd_prestat_dir_name iii>i  fd_prestat_get ii>i  fd_pwrite iiiIi>i  fd_read iiii>i  fd_readdir iiiIi>i
	fd_renumber ii>i  fd_seek iIii>i  fd_sync i>i  fd_tell ii>i  fd_write iiii>i
	path_create_directory iii>i  path_filestat_get iiiii>i  path_filestat_set_times iiiiIIi>i  path_link iiiiii>i
	path_open iiiiiIIii>i  path_readlink iiiiii>i  path_remove_directory iii>i  path_rename iiiiii>i
	path_symlink iiii>i  path_unlink_file iii>i
	sock_accept iii>i  sock_recv iiiiii>i  sock_send iiiii>i  sock_shutdown ii>i`)

// callbacks are what Envoy calls, if the module exports it.
var callbacks = table("", `
	malloc i>i  proxy_on_memory_allocate i>i  _start >  _initialize >
	proxy_validate_configuration ii>i  proxy_on_vm_start ii>i  proxy_on_configure ii>i  proxy_on_tick i>
	proxy_on_context_create ii>  proxy_on_done i>i  proxy_on_log i>  proxy_on_delete i>  proxy_on_queue_ready ii>
	proxy_on_new_connection i>i  proxy_on_downstream_data iii>i  proxy_on_upstream_data iii>i
	proxy_on_downstream_connection_close ii>  proxy_on_upstream_connection_close ii>
	proxy_on_request_headers iii>i  proxy_on_request_body iii>i  proxy_on_request_trailers ii>i  proxy_on_request_metadata ii>i
	proxy_on_response_headers iii>i  proxy_on_response_body iii>i  proxy_on_response_trailers ii>i  proxy_on_response_metadata ii>i
	proxy_on_http_call_response iiiii>  proxy_on_grpc_receive iii>  proxy_on_grpc_close iii>
	proxy_on_grpc_receive_initial_metadata iii>  proxy_on_grpc_receive_trailing_metadata iii>  proxy_on_foreign_function iii>`)

// callbacksByABI are those that are called otherwise, or not at all, in an ABI.
var callbacksByABI = map[string]map[string]string{
	"0.1.0": table("", `proxy_on_request_headers ii>i  proxy_on_response_headers ii>i  proxy_on_foreign_function ?`),
}

var (
	httpCallbacks = []string{
		"proxy_on_request_headers", "proxy_on_request_body", "proxy_on_request_trailers", "proxy_on_request_metadata",
		"proxy_on_response_headers", "proxy_on_response_body", "proxy_on_response_trailers", "proxy_on_response_metadata",
	}
	networkCallbacks = []string{
		"proxy_on_new_connection", "proxy_on_downstream_data", "proxy_on_upstream_data",
		"proxy_on_downstream_connection_close", "proxy_on_upstream_connection_close",
	}
)

// anySignature is the signature of what is not known, and never wrong.
const anySignature = "?"

func table(prefix, text string) map[string]string {
	words := strings.Fields(text)
	t := make(map[string]string, len(words)/2)
	for i := 0; i+1 < len(words); i += 2 {
		t[prefix+words[i]] = words[i+1]
	}
	return t
}

// importSignature returns the signature of the host's function; known is false if it
// has none of that name. Where the module's ABI is unknown, those of all count: one
// fault, one finding.
func importSignature(full, abi string) (signature string, known bool) {
	module, name, _ := strings.Cut(full, ".")
	if module == "wasi_snapshot_preview1" || module == "wasi_unstable" {
		signature, known = wasiFunctions[name]
		return signature, known
	}
	if signature, known = hostFunctions[full]; known {
		return signature, true
	}
	if signature, known = runtimeFunctions[full]; known {
		return signature, true
	}
	for version, functions := range hostFunctionsByABI {
		if signature, known = functions[full]; known && (abi == "" || version == abi) {
			return signature, true
		}
	}
	return "", false
}

// callbackSignature returns how Envoy calls an export; anySignature if it does not.
func callbackSignature(name, abi string) string {
	if s, ok := callbacksByABI[abi][name]; ok {
		return s
	}
	if s, ok := callbacks[name]; ok {
		return s
	}
	return anySignature
}

// readable writes a signature as Envoy does: "i32 i64 -> i32".
func readable(signature string) string {
	params, results, _ := strings.Cut(signature, ">")
	return words(params) + " -> " + words(results)
}

func words(letters string) string {
	if letters == "" {
		return "void"
	}
	var all []string
	for _, l := range letters {
		all = append(all, map[rune]string{'i': "i32", 'I': "i64", 'f': "f32", 'F': "f64", 'v': "v128", 'r': "funcref", 'e': "externref"}[l])
	}
	return strings.Join(all, " ")
}
