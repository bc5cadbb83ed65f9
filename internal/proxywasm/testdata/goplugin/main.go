// Goplugin is a Proxy-Wasm plugin in plain Go, without any SDK: what a real guest with
// a runtime, a garbage collector and WASI imports looks like. It answers each request
// with the header x-go set to the "value" of its JSON configuration, GREETING of its
// environment, and the request's path as the property request.path says it. With the
// value "selftest" it asks every host function instead (selftest.go).
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"unsafe"
)

//go:wasmimport env proxy_get_buffer_bytes
func getBuffer(kind, start, size uint32, data, length unsafe.Pointer) uint32

//go:wasmimport env proxy_replace_header_map_value
func replaceHeader(kind uint32, name unsafe.Pointer, nameLen uint32, value unsafe.Pointer, valueLen uint32) uint32

//go:wasmimport env proxy_get_property
func getProperty(path unsafe.Pointer, pathLen uint32, data, length unsafe.Pointer) uint32

func main() {}

// kept holds what the host was given, until it has written there.
var kept = map[uint32][]byte{}

var config struct{ Value string }

//go:wasmexport proxy_abi_version_0_2_1
func abi() {}

//go:wasmexport proxy_on_memory_allocate
func allocate(size uint32) uint32 {
	b := make([]byte, size)
	at := uint32(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	kept[at] = b
	return at
}

func take(at, n uint32) []byte {
	b := kept[at]
	delete(kept, at)
	return b[:n]
}

//go:wasmexport proxy_on_configure
func configure(root, size uint32) uint32 {
	var at, n uint32
	if getBuffer(7, 0, size, unsafe.Pointer(&at), unsafe.Pointer(&n)) != 0 {
		return 0
	}
	if err := json.Unmarshal(take(at, n), &config); err != nil {
		fmt.Fprintln(os.Stderr, "goplugin:", err)
		return 0
	}
	fmt.Println("goplugin: configured")
	return 1
}

//go:wasmexport proxy_on_request_headers
func request(id, headers, end uint32) uint32 {
	if config.Value == "selftest" {
		selfTest()
		return 0
	}
	path := []byte("request\x00path")
	var at, n uint32
	if getProperty(unsafe.Pointer(unsafe.SliceData(path)), uint32(len(path)), unsafe.Pointer(&at), unsafe.Pointer(&n)) != 0 {
		panic("no path")
	}
	name, value := []byte("x-go"), []byte(config.Value+" "+os.Getenv("GREETING")+" "+string(take(at, n)))
	replaceHeader(0, unsafe.Pointer(unsafe.SliceData(name)), uint32(len(name)), unsafe.Pointer(unsafe.SliceData(value)), uint32(len(value)))
	return 0
}
