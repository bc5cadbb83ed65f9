// Package chart holds charts/stile to what it promises: through Helm's own library, and
// where the API server has the last word, on a real one. It is a module of its own so
// that Helm weighs on no other.
package chart
