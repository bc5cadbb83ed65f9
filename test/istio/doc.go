// Package istio has the Istio agent's own code read what stile sends: another consumer of the same resources, by
// other people. It is a module of its own, because it needs half of Istio. Its tests' dependencies cannot all be had,
// so go.mod is written with "go mod tidy -e".
package istio
