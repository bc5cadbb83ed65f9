// Package crd holds the CustomResourceDefinition of WasmPlugin as it is generated from api/v1alpha1.
package crd

import _ "embed"

// WasmPlugin is the definition as YAML.
//
//go:embed extensions.istio.io_wasmplugins.yaml
var WasmPlugin []byte

// WasmPluginName is its name in a cluster.
const WasmPluginName = "wasmplugins.extensions.istio.io"
