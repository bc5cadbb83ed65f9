// Package modules holds two small Proxy-Wasm plugins, with their sources beside
// them: what `stile demo` pushes to its registry and the tests run in proxies. Its
// one rule: each .wasm is what modules/generate.sh makes of its .wat, byte for byte.
//
//   - badge signs each request: it appends the "name" of its configuration to the
//     request header x-stile-trail and to the response header x-stile-badge.
//   - toll answers 403 to a request without the header that its configuration names
//     ("header", x-stile-pass by default), and stamps the others with x-stile-toll:
//     paid and "toll" in x-stile-trail.
//
// Both speak Proxy-Wasm ABI 0.2.1, refuse a configuration they do not understand,
// and need a VM of their own.
package modules

import _ "embed" // the modules

//go:generate ./generate.sh

//go:embed badge.wasm
var badge []byte

//go:embed toll.wasm
var toll []byte

// Badge returns a copy of the module badge.
func Badge() []byte { return append([]byte(nil), badge...) }

// Toll returns a copy of the module toll.
func Toll() []byte { return append([]byte(nil), toll...) }
