// Package sotw has go-control-plane's own client ask stile: a third party's reading of the protocol, in its
// state-of-the-world form. It is a module of its own, because the binary needs nothing of go-control-plane but Envoy's
// messages.
package sotw
