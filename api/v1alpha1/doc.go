// Package v1alpha1 holds the two documents that people write for stile: the
// WasmPlugin of extensions.istio.io/v1alpha1, whole, and the Config of
// stile.dev/v1alpha1. Its one rule: what a document may say is decided here, by
// the same code for the command line, the folder of files and the webhook.
//
// +kubebuilder:object:generate=true
// +groupName=extensions.istio.io
package v1alpha1

//go:generate go run sigs.k8s.io/controller-tools/cmd/controller-gen@v0.19.0 object crd paths=. output:crd:dir=../crd
