package wasm

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stileproject/stile/internal/wasm/wasmtest"
	"github.com/stileproject/stile/test/envoy/envoytest"
)

// What is judged an error, a real Envoy does not load; what is not, it loads.
func TestInspect_AgreesWithEnvoy(t *testing.T) {
	t.Parallel()
	envoy := envoytest.Path(t)
	rows := judgedModules()
	for version, functions := range hostFunctionsByABI {
		o := wasmtest.Options{Functions: []string{"malloc", "proxy_on_memory_allocate", "proxy_abi_version_" + map[string]string{"0.1.0": "0_1_0", "0.2.0": "0_2_0", "0.2.1": "0_2_1"}[version]}}
		for _, all := range []map[string]string{hostFunctions, functions, runtimeFunctions} {
			for name, signature := range all {
				o.Imports = append(o.Imports, name+":"+signature)
			}
		}
		for name, signature := range wasiFunctions {
			o.Imports = append(o.Imports, "wasi_snapshot_preview1."+name+":"+signature, "wasi_unstable."+name+":"+signature)
		}
		for name := range callbacks {
			if s := callbackSignature(name, version); s != anySignature && name != "malloc" && name != "proxy_on_memory_allocate" && name != "_start" {
				o.Functions = append(o.Functions, name+":"+s)
			}
		}
		// These return "no" where zero is returned for them, which ends the start.
		for i, f := range o.Functions {
			if f == "proxy_on_vm_start:ii>i" || f == "proxy_on_configure:ii>i" {
				o.Functions[i] = ""
			}
		}
		rows = append(rows, judged{story: "everything of ABI " + version, bytes: wasmtest.Module(o)})
	}
	rows = append(rows,
		judged{story: "as much memory as a host gives", bytes: wasmtest.Module(wasmtest.Options{MemoryMin: hostMemoryPages}), want: []string{"warning MemoryLarge"}},
		judged{story: "a page more", bytes: wasmtest.Module(wasmtest.Options{MemoryMin: hostMemoryPages + 1}), want: []string{"error MemoryTooLarge"}},
	)
	var good [][]byte
	for _, row := range rows {
		_, findings := Inspect(row.bytes)
		if !Invalid(findings) {
			good = append(good, row.bytes)
			continue
		}
		t.Run(row.story, func(t *testing.T) {
			t.Parallel()
			if loads, _ := envoyLoads(t, envoy, row.bytes); loads {
				t.Errorf("Envoy loads it; findings: %+v", findings)
			}
		})
	}
	t.Run("all that are good", func(t *testing.T) {
		t.Parallel()
		if loads, words := envoyLoads(t, envoy, good...); !loads {
			t.Errorf("Envoy does not load all of them: the plugin is the number of the row among the good ones\n%s", words)
		}
	})
}

// envoyLoads reports whether Envoy, asked to validate a configuration with the modules
// as HTTP filters, loads them all, and Envoy's words.
func envoyLoads(t *testing.T, envoy string, modules ...[]byte) (bool, []byte) {
	t.Helper()
	dir := t.TempDir()
	type m = map[string]any
	const at = "type.googleapis.com/envoy.extensions.filters."
	var filters []m
	for i, module := range modules {
		file := filepath.Join(dir, fmt.Sprint(i, ".wasm"))
		if err := os.WriteFile(file, module, 0o600); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprint("plugin-", i)
		filters = append(filters, m{"name": name, "typed_config": m{"@type": at + "http.wasm.v3.Wasm", "config": m{
			"name": name, "vm_config": m{"vm_id": name, "runtime": "envoy.wasm.runtime.v8", "code": m{"local": m{"filename": file}}},
		}}})
	}
	filters = append(filters, m{"name": "r", "typed_config": m{"@type": at + "http.router.v3.Router"}})
	bootstrap, err := json.Marshal(m{"static_resources": m{"listeners": []m{{
		"name":    "l",
		"address": m{"socket_address": m{"address": "127.0.0.1", "port_value": 0}},
		"filter_chains": []m{{"filters": []m{{"name": "hcm", "typed_config": m{
			"@type":        at + "network.http_connection_manager.v3.HttpConnectionManager",
			"stat_prefix":  "x",
			"route_config": m{"virtual_hosts": []m{{"name": "v", "domains": []string{"*"}, "routes": []m{{"match": m{"prefix": "/"}, "direct_response": m{"status": 200}}}}}},
			"http_filters": filters,
		}}}}},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "envoy.json")
	if err := os.WriteFile(config, bootstrap, 0o600); err != nil {
		t.Fatal(err)
	}
	words, err := exec.CommandContext(t.Context(), envoy, "--mode", "validate", "-c", config, "--concurrency", "1", "--use-dynamic-base-id", "-l", "error").CombinedOutput()
	return err == nil, words
}
