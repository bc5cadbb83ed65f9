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

// judge returns everything that is wrong with a module that could be read, and
// fills in the types that it has callbacks for. The order is that of the checks.
func judge(m *Module, e *details) []Finding {
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
	unknown, differing := foreign(e, abi)
	if len(unknown) > 0 {
		add(SeverityError, "UnknownImport", "build without what needs these functions (files, sockets, threads, another host's extensions)",
			"the module imports what Envoy does not have: %s", quoteAll(unknown))
	}
	if len(differing) > 0 {
		add(SeverityError, "ImportSignature", "build with an SDK of the module's ABI version",
			"the module imports functions with other parameters or results than Envoy's: %s", listAll(differing))
	}
	if len(e.hidden) > 0 {
		add(SeverityError, "UnknownImport", "let the module define its own globals (no dynamic linking)",
			"the module imports globals or tags, and Envoy gives none: %s", quoteAll(e.hidden))
	}
	if !e.memory {
		add(SeverityWarning, "NoMemory", "export the module's memory under the name memory",
			"the module exports no memory: Envoy loads it and can hand it nothing")
	}
	switch {
	case m.MemoryMin > hostMemoryPages:
		add(SeverityError, "MemoryTooLarge", "lower the initial memory; 16 MiB suffice most plugins",
			"the module starts with %d MiB of memory; Envoy gives at most %d MiB", m.MemoryMin/16, hostMemoryPages/16)
	case m.MemoryMin > largeMemoryPages:
		add(SeverityWarning, "MemoryLarge", "lower the initial memory; 16 MiB suffice most plugins",
			"the module starts with %d MiB of memory, in each worker thread of each proxy", m.MemoryMin/16)
	}
	_, malloc := e.functions["malloc"]
	if _, allocate := e.functions["proxy_on_memory_allocate"]; !malloc && !allocate {
		add(SeverityError, "NoAllocator", "export proxy_on_memory_allocate (SDKs do) or malloc",
			"the module exports neither malloc nor proxy_on_memory_allocate: Envoy refuses it")
	}
	if wrong := miscalled(m, e, abi); len(wrong) > 0 {
		add(SeverityError, "CallbackSignature", "build with an SDK of the module's ABI version",
			"the module exports callbacks with other parameters or results than Envoy calls them with: %s", listAll(wrong))
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

// foreign returns the imported functions that Envoy does not have, and those that it
// has with another signature, sorted.
func foreign(e *details, abi string) (unknown, differing []string) {
	for _, f := range e.imports {
		want, known := importSignature(f.full, abi)
		got := e.signature(f.typeIndex)
		switch {
		case !known:
			unknown = append(unknown, f.full)
		case got != want && got != anySignature:
			differing = append(differing, fmt.Sprintf("%s has %s, Envoy's has %s", f.full, readable(got), readable(want)))
		}
	}
	slices.Sort(unknown)
	slices.Sort(differing)
	return slices.Compact(unknown), slices.Compact(differing)
}

// miscalled returns the exported callbacks that Envoy calls with another signature.
func miscalled(m *Module, e *details, abi string) []string {
	var wrong []string
	for name := range e.functions {
		want, got := callbackSignature(name, abi), e.exported(m, name)
		if want != anySignature && got != anySignature && got != want {
			wrong = append(wrong, fmt.Sprintf("%s has %s, Envoy wants %s", name, readable(got), readable(want)))
		}
	}
	slices.Sort(wrong)
	return wrong
}

func typesOf(functions map[string]uint32) []string {
	var types []string
	exported := func(name string) bool {
		_, ok := functions[name]
		return ok
	}
	if slices.ContainsFunc(httpCallbacks, exported) {
		types = append(types, HTTP)
	}
	if slices.ContainsFunc(networkCallbacks, exported) {
		types = append(types, Network)
	}
	return types
}

// quoteAll writes names from a stranger as text that is safe to print.
func quoteAll(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		if len(n) > 100 {
			n = n[:100] + "…"
		}
		quoted[i] = fmt.Sprintf("%q", n)
	}
	return listAll(quoted)
}

// listAll joins at most ten texts.
func listAll(texts []string) string {
	const most = 10
	if n := len(texts); n > most {
		return strings.Join(texts[:most], ", ") + fmt.Sprintf(" and %d more", n-most)
	}
	return strings.Join(texts, ", ")
}
