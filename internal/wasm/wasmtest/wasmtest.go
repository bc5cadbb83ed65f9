// Package wasmtest builds small WebAssembly modules, good ones and odd ones, for
// tests. Its one rule: what it builds without being told otherwise, Envoy loads.
package wasmtest

import (
	"encoding/binary"
	"slices"
	"strings"
)

// Options say what a module has. The zero value is a Proxy-Wasm module of ABI 0.2.1
// that exports a memory of one page, an allocator and one callback of each type.
type Options struct {
	// Functions are exported. nil = the marker of ABI 0.2.1, malloc,
	// proxy_on_request_headers and proxy_on_new_connection. A name may be followed by a
	// signature, "f:iI>i": parameters, '>', results, each i for i32 or I for i64. Without
	// one it has the signature that hosts want, as far as this package knows, else none.
	Functions []string
	// Imports are "module.name" of imported functions, with signatures as Functions.
	Imports []string
	// NoMemory exports none; ImportMemory imports env.memory instead.
	NoMemory, ImportMemory bool
	// ImportGlobal imports env.global; ImportTable imports env.table.
	ImportGlobal, ImportTable bool
	// MemoryMin is the memory's initial size in pages. 0 = 1.
	MemoryMin uint32
	// Start adds a start section.
	Start bool
	// Custom is the content of a custom section named "filler": a way to make a module
	// as large, and as different from others, as a test wants.
	Custom []byte
}

// Default are the functions of a module for which Options.Functions is nil.
func Default() []string {
	return []string{"proxy_abi_version_0_2_1", "malloc", "proxy_on_request_headers", "proxy_on_new_connection"}
}

// Named is a good module that differs from those with other names.
func Named(name string) []byte { return Module(Options{Custom: []byte(name)}) }

// Sized is a good module of roughly size bytes, which do not compress well, different
// for each seed.
func Sized(size int, seed uint64) []byte {
	filler := make([]byte, max(size, 8))
	state := seed*0x9e3779b97f4a7c15 + 1
	for i := 0; i+8 <= len(filler); i += 8 {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		binary.LittleEndian.PutUint64(filler[i:], state)
	}
	return Module(Options{Custom: filler})
}

// signatures are those of the names that tests use without giving one.
var signatures = map[string]string{
	"malloc": "i>i", "proxy_on_memory_allocate": "i>i",
	"proxy_on_request_headers": "iii>i", "proxy_on_new_connection": "i>i",
	"env.proxy_log": "iii>i", "env.proxy_done": ">i", "env.proxy_get_log_level": "i>i", "env.proxy_continue_request": ">i",
	"wasi_snapshot_preview1.fd_write": "iiii>i", "wasi_unstable.random_get": "ii>i",
}

// function splits a name from its signature.
func function(s string) (name, signature string) {
	name, signature, given := strings.Cut(s, ":")
	if !given {
		signature = signatures[name]
	}
	return name, signature
}

// types collects the signatures that a module uses.
type types struct {
	index map[string]int
	all   [][]byte
}

func (t *types) of(signature string) []byte {
	if _, ok := t.index[signature]; !ok {
		params, results, _ := strings.Cut(signature, ">")
		t.index[signature] = len(t.all)
		t.all = append(t.all, slices.Concat([]byte{0x60}, values(params), values(results)))
	}
	return Uint(uint64(t.index[signature]))
}

func values(letters string) []byte {
	b := Uint(uint64(len(letters)))
	for _, l := range letters {
		b = append(b, map[rune]byte{'i': 0x7f, 'I': 0x7e}[l])
	}
	return b
}

// Module builds the module. Its functions return zeros.
func Module(o Options) []byte {
	functions := o.Functions
	if functions == nil {
		functions = Default()
	}
	ty := types{index: map[string]int{}}
	var imports, declared, exports, bodies [][]byte
	for _, f := range o.Imports {
		full, signature := function(f)
		imports = append(imports, slices.Concat(importName(full), []byte{0x00}, ty.of(signature)))
	}
	if o.ImportMemory {
		imports = append(imports, append(importName("env.memory"), 0x02, 0, 1))
	}
	if o.ImportTable {
		imports = append(imports, append(importName("env.table"), 0x01, 0x70, 0, 1))
	}
	if o.ImportGlobal {
		imports = append(imports, append(importName("env.global"), 0x03, 0x7f, 0))
	}
	for i, f := range append(slices.Clone(functions), "") { // the last is not exported: one to start with
		name, signature := function(f)
		declared = append(declared, ty.of(signature))
		bodies = append(bodies, body(signature))
		if name != "" {
			exports = append(exports, slices.Concat(text(name), []byte{0x00}, Uint(uint64(len(o.Imports)+i))))
		}
	}
	b := []byte("\x00asm\x01\x00\x00\x00")
	b = section(b, 1, vector(ty.all))
	if len(imports) > 0 {
		b = section(b, 2, vector(imports))
	}
	b = section(b, 3, vector(declared))
	if !o.NoMemory && !o.ImportMemory {
		b = section(b, 5, vector([][]byte{append([]byte{0}, Uint(uint64(max(1, o.MemoryMin)))...)}))
		exports = append(exports, append(text("memory"), 0x02, 0))
	}
	b = section(b, 7, vector(exports))
	if o.Start {
		b = section(b, 8, Uint(uint64(len(o.Imports)+len(functions))))
	}
	b = section(b, 10, vector(bodies))
	if o.Custom != nil {
		b = section(b, 0, append(text("filler"), o.Custom...))
	}
	return b
}

// body returns zeros, as many as the signature has results.
func body(signature string) []byte {
	code := []byte{0} // no locals
	_, results, _ := strings.Cut(signature, ">")
	for _, r := range results {
		code = append(code, map[rune]byte{'i': 0x41, 'I': 0x42}[r], 0)
	}
	code = append(code, 0x0b)
	return append(Uint(uint64(len(code))), code...)
}

func importName(full string) []byte {
	for i := range full {
		if full[i] == '.' {
			return append(text(full[:i]), text(full[i+1:])...)
		}
	}
	panic("wasmtest: import without a module: " + full)
}

func section(b []byte, id byte, content []byte) []byte {
	b = append(b, id)
	b = append(b, Uint(uint64(len(content)))...)
	return append(b, content...)
}

func vector(elements [][]byte) []byte {
	b := Uint(uint64(len(elements)))
	for _, e := range elements {
		b = append(b, e...)
	}
	return b
}

func text(s string) []byte { return append(Uint(uint64(len(s))), s...) }

// Uint is n in the binary format's unsigned LEB128.
func Uint(n uint64) []byte { return binary.AppendUvarint(nil, n) }
