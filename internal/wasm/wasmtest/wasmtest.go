// Package wasmtest builds small WebAssembly modules, good ones and odd ones, for
// tests. Its one rule: what it builds without being told otherwise, Envoy loads.
package wasmtest

import "encoding/binary"

// Options say what a module has. The zero value is a Proxy-Wasm module of ABI 0.2.1
// that exports a memory of one page, an allocator and one callback of each type.
type Options struct {
	// Functions are exported, each without parameters and results. nil = the marker of
	// ABI 0.2.1, malloc, proxy_on_request_headers and proxy_on_new_connection.
	Functions []string
	// Imports are "module.name" of imported functions without parameters and results.
	Imports []string
	// NoMemory exports none; ImportMemory imports env.memory instead.
	NoMemory, ImportMemory bool
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

// Module builds the module.
func Module(o Options) []byte {
	functions := o.Functions
	if functions == nil {
		functions = Default()
	}
	b := []byte("\x00asm\x01\x00\x00\x00")
	b = section(b, 1, vector([][]byte{{0x60, 0, 0}}))
	var imports [][]byte
	for _, full := range o.Imports {
		imports = append(imports, append(importName(full), 0x00, 0))
	}
	if o.ImportMemory {
		imports = append(imports, append(importName("env.memory"), 0x02, 0, 1))
	}
	if len(imports) > 0 {
		b = section(b, 2, vector(imports))
	}
	count := max(1, len(functions)) // one to start with, where none is exported
	b = section(b, 3, vector(repeat([]byte{0}, count)))
	if !o.NoMemory && !o.ImportMemory {
		b = section(b, 5, vector([][]byte{append([]byte{0}, Uint(uint64(max(1, o.MemoryMin)))...)}))
	}
	var exports [][]byte
	for i, name := range functions {
		e := append(text(name), 0x00)
		exports = append(exports, append(e, Uint(uint64(len(o.Imports)+i))...))
	}
	if !o.NoMemory && !o.ImportMemory {
		exports = append(exports, append(text("memory"), 0x02, 0))
	}
	b = section(b, 7, vector(exports))
	if o.Start {
		b = section(b, 8, Uint(uint64(len(o.Imports))))
	}
	b = section(b, 10, vector(repeat([]byte{2, 0, 0x0b}, count)))
	if o.Custom != nil {
		b = section(b, 0, append(text("filler"), o.Custom...))
	}
	return b
}

func importName(full string) []byte {
	for i := range full {
		if full[i] == '.' {
			return append(text(full[:i]), text(full[i+1:])...)
		}
	}
	panic("wasmtest: import without a module: " + full)
}

func repeat(b []byte, n int) [][]byte {
	all := make([][]byte, n)
	for i := range all {
		all[i] = b
	}
	return all
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
