// Package wasm answers one question about bytes: is this a module that Envoy can
// load? It also unpacks the packagings that modules travel in. Its one rule: it is
// pure. It reads what it is handed, to the end and within limits, keeps nothing
// and asks nobody.
package wasm

import (
	"bytes"
	"fmt"
	"io"
)

// The types of plugin that a module has callbacks for.
const (
	HTTP    = "HTTP"
	Network = "NETWORK"
)

// Severities of a Finding. An error means that Envoy will not load the module, or
// that it cannot do what its plugin's type asks; a warning, that it may not.
const (
	SeverityError   = "error"
	SeverityWarning = "warning"
)

// Module is what the sections of a core module say about it. The zero value is a
// module about which nothing is known.
type Module struct {
	// ABI holds the Proxy-Wasm ABI versions that the module exports a marker for, as
	// "0.2.1", in the order of its export section. Envoy takes the first it knows.
	ABI []string `json:"abi"`
	// Types holds HTTP if any HTTP callback is exported and NETWORK if any network
	// callback is, in that order. Modules made with an SDK usually have both.
	Types []string `json:"types"`
	// Imports is the number of functions that the module imports.
	Imports int `json:"imports"`
	// Functions names those functions as "module.name", in order, without duplicates.
	Functions []string `json:"functions,omitempty"`
	// Exports is the number of exports of any kind.
	Exports int `json:"exports"`
	// MemoryMin and MemoryMax are the limits of the module's first memory in pages of
	// 64 KiB; MemoryMax is 0 where the module sets none.
	MemoryMin uint64 `json:"memoryMin"`
	MemoryMax uint64 `json:"memoryMax,omitempty"`
	// Start reports a start section: code that runs while the module is instantiated.
	Start bool `json:"start,omitempty"`
	// CustomSize is the size in bytes of all custom sections together: names, debug
	// information, producers. Envoy loads and ships them, and executes none.
	CustomSize int64 `json:"customSize,omitempty"`
}

// Finding is one thing that is wrong, or may be, with a module.
type Finding struct {
	Severity string `json:"severity"` // SeverityError or SeverityWarning
	Reason   string `json:"reason"`   // one CamelCase word: NotWasm, Component, UnknownABI, …
	Message  string `json:"message"`  // what is wrong, with the names concerned
	Fix      string `json:"fix"`      // what to do about it
}

// Invalid reports whether any finding is an error.
func Invalid(findings []Finding) bool {
	for _, f := range findings {
		if f.Severity == SeverityError {
			return true
		}
	}
	return false
}

// Inspect reads a whole module and returns what it is and everything that is wrong
// with it. No findings means that nothing known keeps Envoy from loading it. What
// could be read before a fault is returned with the fault.
func Inspect(b []byte) (Module, []Finding) {
	m, findings, _ := InspectReader(bytes.NewReader(b)) // a bytes.Reader has no errors but io.EOF
	return m, findings
}

// InspectReader is Inspect for modules too large to hold: it reads r to its end in
// constant memory. The error is r's own, if it failed before its end; the findings
// are then about what was read.
func InspectReader(r io.Reader) (Module, []Finding, error) {
	s := newScanner(r)
	m, exports, fault := readModule(s)
	if s.err != nil {
		return m, []Finding{unreadable(s.err)}, s.err
	}
	if fault != nil {
		return m, []Finding{*fault}, nil
	}
	findings := judge(&m, exports)
	return m, findings, nil
}

func unreadable(err error) Finding {
	return Finding{
		Severity: SeverityError, Reason: "Unreadable",
		Message: fmt.Sprintf("the module could not be read to its end: %v", err),
		Fix:     "fetch or build the module again",
	}
}

// CheckType returns an error finding if m has no callback of the given plugin type
// (HTTP or NETWORK), nil otherwise: such a plugin would load and never be called.
func CheckType(m Module, pluginType string) []Finding {
	for _, t := range m.Types {
		if t == pluginType {
			return nil
		}
	}
	first := "proxy_on_request_headers"
	if pluginType == Network {
		first = "proxy_on_new_connection or proxy_on_downstream_data"
	}
	return []Finding{{
		Severity: SeverityError, Reason: "NoCallbacks",
		Message: fmt.Sprintf("the plugin's type is %s and the module exports no %s callback", pluginType, pluginType),
		Fix:     fmt.Sprintf("export %s, or set the plugin's type to what the module is made for", first),
	}}
}
