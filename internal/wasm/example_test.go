package wasm_test

import (
	"bytes"
	"fmt"

	"github.com/stileproject/stile/internal/wasm"
	"github.com/stileproject/stile/internal/wasm/wasmtest"
)

func ExampleInspect() {
	module := wasmtest.Module(wasmtest.Options{
		Functions: []string{"proxy_abi_version_0_2_1", "proxy_on_request_headers"},
		Imports:   []string{"env.proxy_log", "wasi_snapshot_preview2.open"},
	})
	m, findings := wasm.Inspect(module)
	fmt.Println(m.ABI, m.Types, m.Imports)
	for _, f := range findings {
		fmt.Println(f.Severity, f.Reason+":", f.Message)
	}
	// Output:
	// [0.2.1] [HTTP] 2
	// error UnknownImport: the module imports what Envoy does not have: "wasi_snapshot_preview2.open"
	// error NoAllocator: the module exports neither malloc nor proxy_on_memory_allocate: Envoy refuses it
}

func ExampleUnpack() {
	var module bytes.Buffer
	_, packaging, err := wasm.Unpack(&module, bytes.NewReader(wasmtest.Named("x")), wasm.FormAny, wasm.Limits{Module: 10})
	fmt.Println(packaging, err)
	// Output:
	// raw unpack module: more than the limit of 10 bytes (module); raise fetch.maxModuleSize if the module is really that large
}
