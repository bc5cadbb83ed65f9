// Package kube pins the Kubernetes programs that tests run: assets.sh builds them from
// the versions in this module's go.mod, which is its own so that they weigh on no other.
package kube
